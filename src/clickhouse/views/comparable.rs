//! Which views can be compared with what they select, and rebuilt from it.
//!
//! A view sees an insert's rows, and its target merges what comes of them. Only for some SELECTs is
//! that what the SELECT gives for all rows at once. One that is not known to be among them is not
//! compared: a view that was right would be rebuilt wrongly.

use clickhouse::Row;
use serde::Deserialize;

use super::select::{self, Item, Select, names_of_key, unquoted};
use crate::clickhouse::reach::Table;

pub const NOT_SEEN: &str = "this user may not read its target";
pub const SHARED: &str = "another view fills its target, too";
pub const OF_LETTERS: &str = "it reads dead letters, which come and go";
pub const SOURCE: &str = "its source is not compared";
pub const MERGED_SOURCE: &str = "its source's rows are merged after it has seen them";
pub const EVENTS_TTL: &str = "events are dropped by a TTL that is not the daemon's";
const REPLICATED: &str = "its target is replicated, where rows and token are one operation";
const NO_TABLE: &str = "its target keeps no rows";
const ENGINE: &str = "its target's engine keeps some rows and drops others";
const TTL: &str = "its target has a TTL that does not count whole days from its day";
const NO_DAYS: &str = "its target is not partitioned by a column `toDate(server_ts)`";
const STATES: &str = "its target holds aggregate states, which depend on the order of merges";
const FLOATS: &str = "its target holds floating-point numbers, whose sums depend on their order";
const COLUMNS: &str = "its SELECT leaves a column of its target to a default";
const TYPES: &str = "its SELECT gives other types than its target has";
const SELECT: &str = "its SELECT is not simple: columns, counts and sums of the rows of one table";
const KEY: &str = "its SELECT groups by something other than its target's sorting key";
const MERGES: &str = "its target does not merge a column as its SELECT aggregates it";

/// A column as `system.columns` has it.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct ColumnType {
    pub name: String,
    pub r#type: String,
}

/// A column that is computed when it is read, at least for older parts.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Computed {
    pub name: String,
    pub expression: String,
}

impl ColumnType {
    /// The type without what it is wrapped in: the values are the same.
    pub fn bare_type(&self) -> &str {
        let mut bare = match self.merged_by() {
            Some((_function, inner)) => inner,
            None => self.r#type.as_str(),
        };
        let inner = bare.strip_prefix("LowCardinality(");
        if let Some(inner) = inner.and_then(|inner| inner.strip_suffix(')')) {
            bare = inner;
        }
        bare
    }

    /// The function and the type of a `SimpleAggregateFunction`.
    fn merged_by(&self) -> Option<(&str, &str)> {
        let inner = self.r#type.strip_prefix("SimpleAggregateFunction(")?;
        inner.strip_suffix(')')?.split_once(", ")
    }
}

/// Why a target's days cannot be compared.
pub fn of_target(target: &Table) -> Result<(), &'static str> {
    match target.engine.as_str() {
        _ if target.is_replicated() => Err(REPLICATED),
        "MergeTree" | "SummingMergeTree" | "AggregatingMergeTree" => Ok(()),
        engine if engine.ends_with("MergeTree") => Err(ENGINE),
        _ => Err(NO_TABLE),
    }
}

/// How many days a table keeps rows, counted from this time of theirs; `None` if for ever.
///
/// # Errors
/// If its TTL is of another kind.
pub fn kept_days(table: &Table, time: &str) -> Result<Option<u16>, &'static str> {
    let Some((_, ttl)) = table.engine_full.split_once(" TTL ") else {
        return Ok(None);
    };
    let ttl = ttl.split(" SETTINGS ").next().unwrap_or_default();
    let days = ttl.strip_prefix(time).and_then(|ttl| {
        let days = ttl.strip_prefix(" + toIntervalDay(")?;
        days.strip_suffix(')')?.parse().ok()
    });
    days.map(Some).ok_or(TTL)
}

/// What is known of a view besides its SELECT.
pub struct Facts<'a> {
    pub target: &'a Table,
    /// The column of days of a source that is itself a view's target.
    pub source_day: Option<&'a str>,
    /// Columns of the source.
    pub computed: &'a [Computed],
    /// The columns of the SELECT.
    pub given: &'a [ColumnType],
    /// Those of the view, which may differ.
    pub declared: &'a [ColumnType],
    /// Those of the target.
    pub held: &'a [ColumnType],
}

/// Why what a view gives cannot be compared with what its target holds.
pub fn of_select(select: &str, facts: &Facts) -> Result<(), &'static str> {
    let Facts { target, held, .. } = *facts;
    of_columns(facts)?;
    let is_odd = |computed: &&Computed| !select::is_expression_of_a_row(&computed.expression);
    let mut odd = facts.computed.iter().filter(is_odd);
    if odd.any(|computed| select::mentions(select, &computed.name)) {
        return Err(SELECT);
    }
    let select = Select::read(select).ok_or(SELECT)?;
    let item = |name: &str| select.items.iter().find(|item| item.name == name);
    let day = unquoted(&target.partition_key);
    let is_day = |item: &Item| match facts.source_day {
        Some(day) => item.is(day),
        None => item.expression == ["toDate", "(", "server_ts", ")"],
    };
    // Another expression with the name of the time would be mistaken for it.
    let time = facts.source_day.unwrap_or("server_ts");
    let is_shadowed = select
        .items
        .iter()
        .any(|item| item.name == time && !item.is(time) && !is_day(item));
    let is_date = held
        .iter()
        .any(|column| column.name == day && column.r#type == "Date");
    if !is_date || is_shadowed || !item(day).is_some_and(is_day) {
        return Err(NO_DAYS);
    }
    match target.engine.as_str() {
        "MergeTree" => {
            let are_of_a_row = select.items.iter().all(Item::is_of_a_row);
            match are_of_a_row && select.groups.is_empty() {
                true => Ok(()),
                false => Err(SELECT),
            }
        }
        _ => of_merged(&select, day, target, held),
    }
}

/// A target with one row per key, whose other columns are merged.
fn of_merged(
    select: &Select,
    day: &str,
    target: &Table,
    held: &[ColumnType],
) -> Result<(), &'static str> {
    let (keys, values): (Vec<&Item>, Vec<&Item>) =
        select.items.iter().partition(|item| item.is_of_a_row());
    let sorted_by = names_of_key(&target.sorting_key).ok_or(KEY)?;
    let is_key = |name: &str| name == day || sorted_by.contains(&name);
    let is_group = |item: &Item, group: &[&str]| {
        item.expression == group || matches!(group, [name] if unquoted(name) == item.name)
    };
    let is_grouped = |item: &&Item| select.groups.iter().any(|group| is_group(item, group));
    let are_keys = keys
        .iter()
        .all(|item| is_key(item.name) && is_grouped(item));
    let mut groups = select.groups.iter();
    let all_groups = groups.all(|group| keys.iter().any(|item| is_group(item, group)));
    let all_keys = sorted_by
        .iter()
        .all(|name| keys.iter().any(|item| item.name == *name));
    if !are_keys || !all_keys || !all_groups || select.groups.is_empty() {
        return Err(KEY);
    }
    let summed = summed(target)?;
    let mut counts = false;
    for value in values {
        let function = value.aggregate().ok_or(SELECT)?;
        let column = held.iter().find(|column| column.name == value.name);
        let merged_by = column.and_then(|column| Some(column.merged_by()?.0));
        let is_summed = merged_by == Some("sum")
            || merged_by.is_none()
                && column.is_some_and(|column| is_summed(column, target, summed.as_deref()));
        let is_merged = match function.as_str() {
            "count" | "countif" | "sum" | "sumif" => is_summed,
            // Without any rows, `minIf` gives zero, which would be the least of all.
            "min" | "max" => merged_by == Some(&function),
            "groupuniqarray" | "groupuniqarrayif" => merged_by == Some("groupUniqArrayArray"),
            _ => false,
        };
        if !is_merged {
            return Err(MERGES);
        }
        // Given a column, it may count none.
        counts |= value.expression == ["count", "(", ")"];
    }
    // A row whose sums are all zero is dropped.
    match counts || target.engine != "SummingMergeTree" {
        true => Ok(()),
        false => Err(MERGES),
    }
}

/// The columns that a SummingMergeTree is told to sum; without any, it sums all numbers.
fn summed(target: &Table) -> Result<Option<Vec<&str>>, &'static str> {
    let Some(list) = target.engine_full.strip_prefix("SummingMergeTree(") else {
        return Ok(None);
    };
    // A list of several has brackets of its own.
    let end = list.find(')').ok_or(MERGES)?;
    let list = list[..end].trim_start_matches('(');
    names_of_key(list).map(Some).ok_or(MERGES)
}

fn is_summed(column: &ColumnType, target: &Table, summed: Option<&[&str]>) -> bool {
    let is_number = ["UInt", "Int", "Decimal"]
        .iter()
        .any(|number| column.r#type.starts_with(number));
    let is_listed = summed.is_none_or(|summed| summed.contains(&column.name.as_str()));
    target.engine == "SummingMergeTree" && is_number && is_listed
}

fn of_columns(facts: &Facts) -> Result<(), &'static str> {
    for column in facts.held {
        let bare = column.bare_type();
        if bare.starts_with("AggregateFunction(") {
            return Err(STATES);
        }
        if bare.contains("Float") {
            return Err(FLOATS);
        }
        for given in [facts.given, facts.declared] {
            match given.iter().find(|given| given.name == column.name) {
                None => return Err(COLUMNS),
                Some(given) if given.bare_type() != bare => return Err(TYPES),
                Some(_) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
