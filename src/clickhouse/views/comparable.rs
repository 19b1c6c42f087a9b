//! Which views can be compared with what they select, and built again from it.
//!
//! A view sees an insert's rows, and its target merges what comes of them. That is what its
//! SELECT gives of all rows at once for some SELECTs only. What is not known to be among them
//! is not compared: a view that was right would be built again wrongly.

use std::collections::BTreeSet;

use clickhouse::Row;
use serde::Deserialize;

use crate::clickhouse::reach::Table;

pub const NOT_SEEN: &str = "this user may not see its target";
pub const SHARED: &str = "another view fills its target, too";
pub const OF_LETTERS: &str = "it reads dead letters, which come and go";
pub const SOURCE: &str = "its source is not compared";
pub const MERGED_SOURCE: &str = "its source's rows are merged after it has seen them";
const REPLICATED: &str = "its target is replicated, where rows and token are one operation";
const NO_TABLE: &str = "its target keeps no rows";
const ENGINE: &str = "its target's engine keeps some rows and drops others";
const NO_DAYS: &str = "its target is not partitioned by a column of days";
const STATES: &str = "its target holds aggregate states, which depend on the order of merges";
const FLOATS: &str = "its target holds floating-point numbers, whose sums depend on their order";
const COLUMNS: &str = "its SELECT leaves a column of its target to a default";
const TYPES: &str = "its SELECT gives other types than its target has";
const READS_MORE: &str = "its SELECT reads more than the rows of its source";
const BY_INSERT: &str = "its SELECT depends on how rows are divided among inserts";

/// Aggregate functions whose results merge into those of all rows.
const MERGEABLE: [&str; 5] = ["count", "sum", "min", "max", "groupuniqarray"];

/// What may follow the name of an aggregate function without changing that.
const HARMLESS: [&str; 3] = ["", "if", "array"];

/// What may follow it at all.
const COMBINATORS: [&str; 16] = [
    "if",
    "array",
    "distinct",
    "ordefault",
    "ornull",
    "state",
    "simplestate",
    "merge",
    "mergestate",
    "map",
    "foreach",
    "resample",
    "argmin",
    "argmax",
    "tuple",
    "null",
];

/// A column as `system.columns` has it.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct ColumnType {
    pub name: String,
    pub r#type: String,
}

impl ColumnType {
    /// The type without what it is kept in: the values are the same.
    pub fn bare_type(&self) -> &str {
        let mut bare = self.r#type.as_str();
        loop {
            let kept = ["LowCardinality(", "SimpleAggregateFunction("];
            let Some(inner) = kept.iter().find_map(|kept| bare.strip_prefix(kept)) else {
                return bare;
            };
            let inner = inner.strip_suffix(')').unwrap_or(inner);
            bare = match bare.starts_with('S') {
                // After the function's name.
                true => inner.split_once(", ").map_or(inner, |(_, inner)| inner),
                false => inner,
            };
        }
    }
}

/// Why a target's days cannot be compared.
pub fn of_target(target: &Table) -> Option<&'static str> {
    match target.engine.as_str() {
        _ if target.is_replicated() => Some(REPLICATED),
        "MergeTree" | "SummingMergeTree" | "AggregatingMergeTree" => None,
        engine if engine.ends_with("MergeTree") => Some(ENGINE),
        _ => Some(NO_TABLE),
    }
}

/// Why what a view gives cannot be compared with what its target holds.
pub fn of_columns(given: &[ColumnType], held: &[ColumnType], day: &str) -> Option<&'static str> {
    for column in held {
        let bare = column.bare_type();
        if bare.starts_with("AggregateFunction(") {
            return Some(STATES);
        }
        if bare.contains("Float") {
            return Some(FLOATS);
        }
        match given.iter().find(|given| given.name == column.name) {
            None => return Some(COLUMNS),
            Some(given) if given.bare_type() != bare => return Some(TYPES),
            Some(_) => {}
        }
    }
    let is_day = |column: &ColumnType| column.name == day && column.r#type == "Date";
    (!held.iter().any(is_day)).then_some(NO_DAYS)
}

/// Why a SELECT, as ClickHouse writes it, does not say what the target must hold.
/// `merges` says that the target merges rows of one key.
pub fn of_select(
    select: &str,
    merges: bool,
    aggregates: &BTreeSet<String>,
) -> Option<&'static str> {
    // Values in quotes say nothing.
    let select = without_quoted(select);
    let words: Vec<&str> = select
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
        .collect();
    let has = |word: &str| words.iter().any(|other| other.eq_ignore_ascii_case(word));
    let selects = words
        .iter()
        .filter(|word| word.eq_ignore_ascii_case("select"));
    let from_more = select
        .split_once(" FROM ")
        .is_some_and(|(_, from)| clause(from).contains(','));
    let in_table = select.match_indices(" IN ").any(|(at, found)| {
        let list = select[at + found.len()..].trim_start_matches('(');
        !list.starts_with(|letter: char| letter.is_ascii_digit() || "'-[".contains(letter))
    });
    let others = [
        "join",
        "union",
        "dictionary",
        "now",
        "now64",
        "today",
        "yesterday",
        "current_timestamp",
        "nowInBlock",
        "rand",
        "rand32",
        "rand64",
        "generateUUIDv4",
        "generateUUIDv7",
    ];
    if selects.count() > 1
        || from_more
        || in_table
        || others.iter().any(|word| has(word))
        || words
            .iter()
            .any(|word| word.starts_with("dictGet") || word.starts_with("joinGet"))
    {
        return Some(READS_MORE);
    }
    let by_insert = [
        "distinct",
        "limit",
        "over",
        "having",
        "with",
        "arrayJoin",
        "qualify",
    ];
    let grouped = has("group");
    let calls = select.match_indices('(').filter_map(|(at, _)| {
        let before = &select[..at];
        let start = before.rfind(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let name = &before[start.map_or(0, |start| start + 1)..];
        (!name.is_empty()).then(|| name.to_ascii_lowercase())
    });
    let mut aggregated = false;
    for name in calls {
        if let Some(mergeable) = aggregate(&name, aggregates) {
            aggregated = true;
            if !mergeable {
                return Some(BY_INSERT);
            }
        }
    }
    let divides = if merges { false } else { grouped || aggregated };
    (divides || by_insert.iter().any(|word| has(word))).then_some(BY_INSERT)
}

/// The clause that text begins with, up to the next one.
fn clause(text: &str) -> &str {
    let next = [
        " WHERE ",
        " PREWHERE ",
        " GROUP BY ",
        " ORDER BY ",
        " SETTINGS ",
    ];
    let ends = next.iter().filter_map(|next| text.find(next));
    &text[..ends.min().unwrap_or(text.len())]
}

/// Whether a function, in lower case, is an aggregate, and then whether its results merge.
fn aggregate(name: &str, aggregates: &BTreeSet<String>) -> Option<bool> {
    let mut bases = aggregates
        .iter()
        .filter_map(|base| Some((base, name.strip_prefix(base.as_str())?)));
    let (base, rest) = bases
        .clone()
        .find(|(_, rest)| rest.is_empty())
        .or_else(|| bases.find(|(_, rest)| is_combined(rest)))?;
    Some(MERGEABLE.contains(&base.as_str()) && HARMLESS.contains(&rest))
}

fn is_combined(rest: &str) -> bool {
    rest.is_empty()
        || COMBINATORS
            .iter()
            .any(|combinator| rest.strip_prefix(combinator).is_some_and(is_combined))
}

/// Without what is between single quotes.
fn without_quoted(select: &str) -> String {
    let mut plain = String::with_capacity(select.len());
    let mut letters = select.chars();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if quoted => drop(letters.next()),
            '\'' => {
                quoted = !quoted;
                plain.push(letter);
            }
            _ if quoted => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(select: &str, merges: bool) -> Option<&'static str> {
        let aggregates = [
            "count",
            "sum",
            "min",
            "max",
            "groupuniqarray",
            "uniqexact",
            "avg",
            "any",
            "grouparray",
        ];
        let aggregates = aggregates.map(str::to_owned).into();
        of_select(select, merges, &aggregates)
    }

    #[test]
    fn a_select_must_not_depend_on_how_rows_are_divided() {
        let sums = "SELECT toDate(server_ts) AS date, sumIf(x, y IN ('a, (SELECT', 'b')) AS n, minute(z) FROM d.t WHERE u != 'now()' GROUP BY date";
        assert_eq!(of(sums, true), None);
        // Each insert would give a row of its own.
        assert_eq!(of(sums, false), Some(BY_INSERT));
        assert_eq!(of("SELECT a, b FROM d.t WHERE c > 1", false), None);
        for select in [
            "SELECT uniqExact(a) FROM d.t",
            "SELECT avg(a) FROM d.t GROUP BY b",
            "SELECT sumDistinct(a) FROM d.t",
            "SELECT countState() FROM d.t",
            "SELECT DISTINCT a FROM d.t",
            "SELECT a FROM d.t LIMIT 1 BY b",
            "SELECT count() FROM d.t GROUP BY a HAVING count() > 1",
            "SELECT max(a) OVER (PARTITION BY b) FROM d.t",
        ] {
            assert_eq!(of(select, true), Some(BY_INSERT), "{select}");
        }
        for select in [
            "SELECT a FROM d.t INNER JOIN d.u ON t.a = u.a",
            "SELECT a FROM d.t, d.u",
            "SELECT a FROM d.t WHERE a NOT IN (d.internal)",
            "SELECT a FROM d.t WHERE a IN (SELECT a FROM d.u)",
            "SELECT dictGetString('d', 'x', a) FROM d.t",
            "SELECT NOW() AS a FROM d.t",
        ] {
            assert_eq!(of(select, true), Some(READS_MORE), "{select}");
        }
    }

    #[test]
    fn a_target_must_hold_what_the_select_gives() {
        let columns = |columns: &[(&str, &str)]| {
            let columns = columns.iter();
            let columns = columns.map(|(name, r#type)| ColumnType {
                name: (*name).to_owned(),
                r#type: (*r#type).to_owned(),
            });
            columns.collect::<Vec<_>>()
        };
        let given = columns(&[
            ("day", "Date"),
            ("users", "Array(String)"),
            ("kind", "String"),
        ]);
        let held = |last| {
            let users = "SimpleAggregateFunction(groupUniqArrayArray, Array(String))";
            let held = columns(&[("day", "Date"), ("users", users), last]);
            of_columns(&given, &held, "day")
        };
        assert_eq!(held(("kind", "LowCardinality(String)")), None);
        assert_eq!(held(("kind", "UInt8")), Some(TYPES));
        assert_eq!(held(("inserted_at", "DateTime")), Some(COLUMNS));
        assert_eq!(held(("n", "Float64")), Some(FLOATS));
        assert_eq!(held(("n", "AggregateFunction(uniq, String)")), Some(STATES));
        assert_eq!(of_columns(&given, &given, "kind"), Some(NO_DAYS));
    }
}
