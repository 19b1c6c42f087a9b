//! The answers are the engine's own, version 26.7.

use super::*;

const CONSTRAINT_VIOLATED: &str = "Code: 469. DB::Exception: Constraint `c` for table a.t (7f35cc09-02db-448a-9899-c1aefd63beec) is violated at row 1. Expression: (x != 'bad'). Column values: x = 'bad'. (VIOLATED_CONSTRAINT) (version 26.7.2.1)";
const NOT_A_NUMBER: &str = "Code: 6. DB::Exception: Cannot parse string 'b' as UInt8: syntax error at begin of string. Note: there are toUInt8OrZero and toUInt8OrNull functions, which returns zero/NULL instead of throwing exception: while converting column \"x\" from type String to type UInt8: While executing Native. (CANNOT_PARSE_TEXT) (version 26.7.2.1)";

#[test]
fn the_table_is_in_order_and_has_each_code_once() {
    for class in [Class::Refused, Class::Unknown] {
        let codes = CODES.iter().filter(|code| code.class == class);
        assert!(codes.map(|code| code.code).is_sorted(), "{class:?}");
    }
    let mut codes: Vec<u16> = CODES.iter().map(|code| code.code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), CODES.len());
    assert!(CODES.iter().all(|code| !code.why.is_empty()));
}

#[test]
fn a_value_that_does_not_fit_is_refused() {
    for answer in [
        CONSTRAINT_VIOLATED,
        NOT_A_NUMBER,
        "Code: 32. DB::Exception: Attempt to read after eof: Cannot parse UInt8 from String, because value is too short: while converting column \"x\" from type String to type UInt8: While executing Native. (ATTEMPT_TO_READ_AFTER_EOF) (version 26.7.2.1)",
        "Code: 691. DB::Exception: Unknown element 'b' for enum, maybe you meant: ['a']: while converting column \"x\" from type String to type Enum8('a' = 1): While executing Native. (UNKNOWN_ELEMENT_OF_ENUM) (version 26.7.2.1)",
        "Code: 26. DB::Exception: Cannot parse quoted string: expected opening quote ''', got '2': while converting column \"x\" from type String to type Tuple(a UInt8, b String): While executing Native. (CANNOT_PARSE_QUOTED_STRING) (version 26.7.2.1)",
    ] {
        assert_eq!(class_of(answer), Class::Refused, "{answer}");
    }
}

#[test]
fn an_error_in_a_view_comes_after_the_rows_were_stored() {
    for answer in [
        "Code: 6. DB::Exception: Cannot parse string 'bad' as UInt8: syntax error at begin of string: while executing 'FUNCTION toUInt8(__table1.x :: 1) -> toUInt8(__table1.x) UInt8 : 0': while pushing to view a.v. (CANNOT_PARSE_TEXT) (version 26.7.2.1)",
        "Code: 469. DB::Exception: Constraint `c` for table a.vt is violated at row 1. Expression: (y != 'bad'). Column values: y = 'bad': while pushing to view a.v (8b3cb0d0-dc28-4355-8b3c-b0d0dc28e355). (VIOLATED_CONSTRAINT) (version 26.7.2.1)",
        "Code: 469. DB::Exception: Constraint `c` for table a.vt is violated at row 1. Expression: (y != 'bad'). Column values: y = 'it\\'s \\\\': while pushing to view a.`it's`. (VIOLATED_CONSTRAINT) (version 26.7.2.1)",
    ] {
        assert_eq!(class_of(answer), Class::Unavailable, "{answer}");
    }
}

#[test]
fn an_error_of_the_schema_is_not_the_datas_fault_whatever_its_code() {
    for answer in [
        // A column that the table lacks.
        "Code: 117. DB::Exception: Unknown column with name zz found while reading data in Native format: While executing Native. (INCORRECT_DATA) (version 26.7.2.1)",
        // An index over toUInt8(x): partitions before this one are stored.
        "Code: 6. DB::Exception: Cannot parse string 'bad' as UInt8: syntax error at begin of string: while executing 'FUNCTION toUInt8(x : 0) -> toUInt8(x) UInt8 : 1'. (CANNOT_PARSE_TEXT) (version 26.7.2.1)",
        // Only a header of the answer arrived.
        "Code: 469",
        // Not listed.
        "Code: 342. DB::Exception: whatever. (METADATA_MISMATCH) (version 26.7.2.1)",
    ] {
        assert_eq!(class_of(answer), Class::Unavailable, "{answer}");
    }
}

#[test]
fn what_a_user_wrote_decides_nothing() {
    let quoted = "Column values: x = ': while pushing to view a.b. It\\'s', y = ''.";
    let answer = CONSTRAINT_VIOLATED.replace("Column values: x = 'bad'.", quoted);
    assert_eq!(class_of(&answer), Class::Refused);
    let quoted =
        "'\\': while converting column \"x\": While executing Native. (CANNOT_PARSE_TEXT)'";
    let answer = format!(
        "Code: 6. DB::Exception: Cannot parse string {quoted} as UInt8: syntax error: while executing 'FUNCTION toUInt8(x : 0) -> toUInt8(x) UInt8 : 1'. (CANNOT_PARSE_TEXT) (version 26.7.2.1)"
    );
    assert_eq!(class_of(&answer), Class::Unavailable);
}

#[test]
fn the_outcome_is_unknown_unless_clickhouse_itself_says_it() {
    for answer in ["502 Bad Gateway", "<html>Code: 469.", "", "Code: none"] {
        assert_eq!(class_of(answer), Class::Unknown, "{answer}");
    }
    let stops = "Code: 236. DB::Exception: The server stops. (ABORTED) (version 26.7.2.1)";
    assert_eq!(class_of(stops), Class::Unknown);
}

#[test]
fn an_error_that_may_quote_data_is_shown_by_its_code_alone() {
    let shown = without_data(CONSTRAINT_VIOLATED);
    assert_eq!(shown, "Code: 469. (VIOLATED_CONSTRAINT)");
    let not_listed = "Code: 36. DB::Exception: Unknown time zone 'a\n. (SECRET)'. (BAD_ARGUMENTS) (version 26.7.2.1)";
    assert_eq!(without_data(not_listed), "Code: 36. (BAD_ARGUMENTS)");
    let cut_short = "Code: 36. DB::Exception: Unknown time zone 'ann@exam";
    assert!(without_data(cut_short).ends_with("(the message is left out, as it may quote data)"));
    let harmless =
        "Code: 241. DB::Exception: Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED) (version 26.7)";
    assert_eq!(without_data(&format!("{harmless}\nstack")), harmless);
}
