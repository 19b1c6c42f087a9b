//! The materialized views that an insert reaches, compared with what they select.
//!
//! A ClickHouse server that was killed in the middle of an insert may have lost the rows of just
//! one view. What a view must hold is what its own SELECT gives; what it holds is its target,
//! merged. Days are compared, since a day can be rebuilt: see `rebuild`.

mod comparable;
mod find;
mod select;

use std::borrow::Cow;
use std::collections::BTreeSet;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::{Deserialize, Serialize};
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};

use super::client::ClickHouse;
use super::codes;
use super::quote::{quote_identifier, quote_string};
use super::reach::Name;

pub use find::reached;

/// A materialized view whose target can be compared with its SELECT, a day at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What analysts query: the target, or the view if it has a table of its own.
    pub name: String,
    pub(super) target: Name,
    pub(super) source: Name,
    /// The source's column of days, if the source is itself a view's target.
    source_day: Option<String>,
    /// What the target must hold.
    pub(super) select: String,
    /// The column that the target is partitioned by, a partition for each day.
    pub(super) day: String,
    pub(super) columns: Vec<Column>,
    /// For how many days neither the events nor its own rows are dropped.
    kept_days: Option<u16>,
    /// Whether rows are merged later, those with the same sorting key into one.
    merges: bool,
    sorting_key: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    is_array: bool,
}

/// A view that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uncompared {
    pub name: String,
    pub reason: Cow<'static, str>,
}

/// The views that inserts reach.
#[derive(Debug, Default)]
pub struct Views {
    /// Each after the one that fills its source.
    pub compared: Vec<View>,
    pub others: Vec<Uncompared>,
}

impl View {
    /// Whether all events of a day still exist, and all of its rows: what is left of other days
    /// cannot be compared.
    pub fn keeps(&self, day: Date) -> bool {
        let today = OffsetDateTime::now_utc().date();
        let is_young = |days| day > today - Duration::days(i64::from(days));
        self.kept_days.is_none_or(is_young)
    }

    /// What ClickHouse objects to in the queries about this view; it does not run them.
    async fn objection(&self, clickhouse: &ClickHouse) -> Result<Option<Error>, Error> {
        #[derive(Row, Deserialize)]
        struct Line {
            #[expect(dead_code, reason = "it is enough that there is a plan")]
            explain: String,
        }
        for question in [self.different(), self.unexplained_rows()] {
            let explain = format!("EXPLAIN {question}");
            let plan = clickhouse
                .rows::<Line>(&explain, &[("day", "2000-01-01")])
                .await;
            match plan {
                Ok(_) => {}
                Err(error) if codes::is_of_the_query(&error) => return Ok(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether the target holds for a day what the view's SELECT gives.
    pub async fn is_exact(&self, clickhouse: &ClickHouse, day: Date) -> Result<bool, Error> {
        #[derive(Row, Deserialize)]
        struct Digests {
            different: u64,
        }
        let day = day.to_string();
        let rows: Vec<Digests> = clickhouse.rows(&self.different(), &[("day", &day)]).await?;
        Ok(rows.iter().all(|row| row.different == 1))
    }

    fn different(&self) -> String {
        let held = self.digest(&self.held());
        let selected = self.digest(&format!("({})", self.select));
        format!("SELECT uniqExact(digest) AS different FROM ({held} UNION ALL {selected})")
    }

    /// How many rows of a day nothing in the source explains. They are not the daemon's, or their
    /// events were deleted: rebuilding the day deletes them.
    pub async fn unexplained(&self, clickhouse: &ClickHouse, day: Date) -> Result<u64, Error> {
        #[derive(Row, Deserialize)]
        struct Count {
            unexplained: u64,
        }
        let day = day.to_string();
        let rows: Vec<Count> = clickhouse
            .rows(&self.unexplained_rows(), &[("day", &day)])
            .await?;
        Ok(rows.iter().map(|row| row.unexplained).sum())
    }

    fn unexplained_rows(&self) -> String {
        let key = match self.merges {
            true => format!("toString(tuple({}))", self.sorting_key),
            false => self.row(),
        };
        // Even for a day with millions of keys, hashes fit into memory.
        let key = format!("cityHash64({key})");
        let of_day = format!("WHERE {} = {{day:Date}}", quote_identifier(&self.day));
        format!(
            "SELECT count() AS unexplained FROM (SELECT {key} AS held_key FROM {} {of_day})
             WHERE held_key NOT IN (SELECT {key} FROM ({}) {of_day})",
            self.held(),
            self.select
        )
    }

    /// The days of the target that some rows of the source go to: those that `filter`
    /// selects of the events, or those of `days` in a view's target.
    pub async fn days_of(
        &self,
        clickhouse: &ClickHouse,
        filter: &str,
        days: &BTreeSet<Date>,
    ) -> Result<BTreeSet<Date>, Error> {
        let filter = match &self.source_day {
            None => filter.to_owned(),
            // None at all: an empty list of days would not be valid SQL.
            Some(_) if days.is_empty() => return Ok(BTreeSet::new()),
            Some(day) => {
                let days: Vec<String> = days.iter().map(|day| format!("'{day}'")).collect();
                format!("{} IN ({})", quote_identifier(day), days.join(", "))
            }
        };
        // The view's own SELECT, as if its source had only these rows.
        let only = format!(
            "{{{}: {}}}",
            quote_string(&self.source.to_string()),
            quote_string(&filter)
        );
        self.days(
            clickhouse,
            &format!(
                "SELECT DISTINCT toString({}) AS day FROM ({}) SETTINGS additional_table_filters = {only}",
                quote_identifier(&self.day),
                self.select
            ),
        )
        .await
    }

    /// The days that the target holds rows for, or should.
    pub async fn all_days(&self, clickhouse: &ClickHouse) -> Result<BTreeSet<Date>, Error> {
        let day = quote_identifier(&self.day);
        let (table, select) = (self.target.quoted(), &self.select);
        self.days(
            clickhouse,
            &format!(
                "SELECT DISTINCT toString({day}) AS day FROM
                 (SELECT {day} FROM {table} UNION ALL SELECT {day} FROM ({select}))"
            ),
        )
        .await
    }

    /// Whether its source is another view's target.
    pub fn reads_a_view(&self) -> bool {
        self.source_day.is_some()
    }

    /// Whether its source is that view's target.
    pub fn is_filled_by(&self, other: &Self) -> bool {
        self.source == other.target
    }

    async fn days(&self, clickhouse: &ClickHouse, sql: &str) -> Result<BTreeSet<Date>, Error> {
        #[derive(Row, Deserialize)]
        struct Found {
            day: String,
        }
        let found: Vec<Found> = clickhouse.rows(sql, &[]).await?;
        let format = format_description!("[year]-[month]-[day]");
        let days = found.iter().map(|found| {
            Date::parse(&found.day, format).map_err(|error| Error::Other(error.into()))
        });
        days.collect()
    }

    fn held(&self) -> String {
        // Rows are merged in the background: FINAL merges them at once.
        let merged = if self.merges { " FINAL" } else { "" };
        format!("{}{merged}", self.target.quoted())
    }

    /// A digest of the rows of a day, whatever their order.
    fn digest(&self, source: &str) -> String {
        format!(
            "SELECT (count(), sum(cityHash64({}))) AS digest FROM {source} WHERE {} = {{day:Date}}",
            self.row(),
            quote_identifier(&self.day)
        )
    }

    /// A row as text: an expression's type may differ from its column's.
    fn row(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let name = quote_identifier(&column.name);
                // A merged array has no order of its own.
                match column.is_array {
                    true => format!("arraySort({name})"),
                    false => name,
                }
            })
            .collect();
        format!("toString(tuple({}))", columns.join(", "))
    }
}
