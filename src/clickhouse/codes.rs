//! ClickHouse's error codes, and what an insert that meets one does about it; also those on which a
//! query about a view is given up. The rest of the daemon knows a code by its name here.
//!
//! A wrong entry loses events in one of two ways: rows that are not at fault become dead letters,
//! or rows that were already stored are stored again in smaller pieces. So only an answer that is
//! certainly about a row's value, and that certainly came before anything was stored, counts as
//! [`Class::Refused`]; a code that is not listed is retried and shown.
//!
//! Source: ClickHouse's `src/Common/ErrorCodes.cpp`, and what the engine answered.

mod named;
mod table;

use clickhouse::error::Error;

pub use named::*;
pub use table::CODES;

/// What to do about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A row's value is at fault, and none of the block is stored: find the row, which becomes a
    /// dead letter, and insert the others.
    Refused,
    /// The data is not at fault: send it again with growing pauses, and show why.
    Unavailable,
    /// It may have been stored: only the same bytes under the same token may follow.
    Unknown,
}

/// One of ClickHouse's error codes.
#[derive(Debug)]
pub struct Code {
    pub code: u16,
    /// As ClickHouse writes it after its message.
    pub name: &'static str,
    /// What its errors can be at most: see [`class_of`].
    pub class: Class,
    pub why: &'static str,
}

/// Said if a value did not convert to its column's type. ClickHouse converts a block while it reads
/// it, before any of it is stored. The same code without these words comes from an expression of
/// the table, and that of a key or an index is computed when the block's other partitions are
/// already stored.
const CONVERTING: &str = ": while converting column \"";
const READING: &str = ": While executing Native";

/// A view, or its target, is at fault. The block may be in the table already, and in
/// other views.
const IN_A_VIEW: &str = "while pushing to view ";

/// The code that ClickHouse answered with; `None` where the error is none of its own.
pub fn of(error: &Error) -> Option<u16> {
    match error {
        Error::BadResponse(answer) => of_answer(answer),
        _ => None,
    }
}

/// The code that an answer begins with; `None` where it is not ClickHouse's own.
pub fn of_answer(answer: &str) -> Option<u16> {
    let rest = answer.strip_prefix("Code: ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

/// What to do about ClickHouse's answer to an insert in `Native` format, such as
/// `Code: 469. DB::Exception: … (VIOLATED_CONSTRAINT) (version …)`.
pub fn class_of(answer: &str) -> Class {
    let Some(number) = of_answer(answer) else {
        // A proxy answered, or something that is not ClickHouse.
        return Class::Unknown;
    };
    let Some(code) = listed(number) else {
        return Class::Unavailable;
    };
    if code.class == Class::Refused && !is_refusal(code, answer) {
        return Class::Unavailable;
    }
    code.class
}

/// Answers that come before an insert writes anything.
const BEFORE_THE_BEGIN: [u16; 15] = [
    UNKNOWN_TABLE,
    UNKNOWN_DATABASE,
    UNKNOWN_SETTING,
    READONLY,
    UNKNOWN_USER,
    WRONG_PASSWORD,
    REQUIRED_PASSWORD,
    QUOTA_EXCEEDED,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
    TABLE_IS_READ_ONLY,
    // The table is not written to in that case.
    TOO_MANY_PARTS,
    SETTING_CONSTRAINT_VIOLATION,
    ACCESS_DENIED,
    AUTHENTICATION_FAILED,
];

/// Whether ClickHouse gave this answer, and may have begun to write. For what is not listed, nobody
/// knows.
pub fn came_after_begin(answer: &str) -> bool {
    of_answer(answer).is_some_and(|number| !BEFORE_THE_BEGIN.contains(&number))
}

/// Codes which say that the query itself cannot be answered, whenever it is asked.
const OF_THE_QUERY: [u16; 17] = [
    NOT_FOUND_COLUMN_IN_BLOCK,
    NO_SUCH_COLUMN_IN_TABLE,
    ILLEGAL_TYPE_OF_ARGUMENT,
    ILLEGAL_COLUMN,
    UNKNOWN_FUNCTION,
    UNKNOWN_IDENTIFIER,
    NOT_IMPLEMENTED,
    UNKNOWN_TYPE,
    TYPE_MISMATCH,
    SYNTAX_ERROR,
    CANNOT_CONVERT_TYPE,
    MULTIPLE_EXPRESSIONS_FOR_ALIAS,
    ILLEGAL_AGGREGATION,
    AMBIGUOUS_IDENTIFIER,
    NOT_AN_AGGREGATE,
    NO_COMMON_TYPE,
    ACCESS_DENIED,
];

/// Whether an error says that this query, or this user, will never get an answer.
pub fn is_of_the_query(error: &Error) -> bool {
    of(error).is_some_and(|number| OF_THE_QUERY.contains(&number))
}

/// Whether nothing is stored, and a row's value is why.
fn is_refusal(code: &Code, answer: &str) -> bool {
    // Up to the name, which also proves that the answer arrived whole.
    let ending = format!(". ({})", code.name);
    let before = match code.code {
        VIOLATED_CONSTRAINT => says(answer, &ending),
        _ => answer.contains(CONVERTING) && says(answer, &format!("{READING}{ending}")),
    };
    before && !says(answer, IN_A_VIEW)
}

/// Whether `answer` says `words` outside the values that it quotes: what users write must not
/// decide what becomes of it. Values come before ClickHouse's own last words, in quotes, with
/// quotes inside them escaped.
fn says(answer: &str, words: &str) -> bool {
    let Some((before, after)) = answer.rsplit_once(words) else {
        return false;
    };
    let quotes = before.replace(r"\\", "").replace(r"\'", "");
    let inside = !quotes.matches('\'').count().is_multiple_of(2);
    !(inside && after.contains('\''))
}

/// ClickHouse's answer to an insert, for the log. If the error is about a value, ClickHouse quotes
/// it, and it may be what a user wrote: then only the code and its name are kept, as for a code
/// that is not listed.
pub fn without_data(answer: &str) -> String {
    let number = of_answer(answer);
    let name = match number.map(|number| (number, listed(number))) {
        Some((_, Some(code))) if code.class == Class::Refused => code.name,
        Some((_, None)) => name(answer).unwrap_or("the message is left out, as it may quote data"),
        // ClickHouse adds a stack trace if it is configured to.
        _ => return answer.lines().next().unwrap_or_default().to_owned(),
    };
    format!("Code: {}. ({name})", number.unwrap_or_default())
}

fn listed(number: u16) -> Option<&'static Code> {
    CODES.iter().find(|code| code.code == number)
}

/// The name after the message.
fn name(answer: &str) -> Option<&str> {
    let (_, rest) = answer.rsplit_once(". (")?;
    let (name, _) = rest.split_once(')')?;
    let is_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().all(is_name).then_some(name)
}

#[cfg(test)]
mod tests;
