//! The materialized views of `analytics_events`, recounted and rebuilt by day.
//!
//! A ClickHouse that was killed in the middle of an insert may have lost the rows of
//! one view alone. What a view must hold stands in its own SELECT; what it holds is
//! its target, merged. Where they differ, the day is built again beside the others
//! and swapped in at once.

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;
use time::Date;

use super::client::ClickHouse;
use super::migrations::quote_identifier;

/// A materialized view and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The target's name in the database: what analysts query.
    pub name: String,
    /// What the target must hold.
    select: String,
    /// The target's column that it is partitioned by, a day each.
    day: String,
    columns: Vec<Column>,
    /// The target's rows are merged in the background: FINAL merges them at once.
    merges: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    is_array: bool,
}

/// The views whose days can be recounted, and the names of those whose cannot: their
/// targets are not partitioned by a column of days, hold states, or have several
/// views.
#[derive(Debug, Default)]
pub struct Views {
    pub by_day: Vec<View>,
    pub others: Vec<String>,
}

/// The views that read `analytics_events`, those of operators included.
///
/// Replicated tables are left out: there, token and rows are one operation.
pub async fn of_events(clickhouse: &ClickHouse) -> Result<Views, Error> {
    #[derive(Row, Deserialize)]
    struct Found {
        name: String,
        as_select: String,
        create_table_query: String,
    }
    #[derive(Row, Deserialize)]
    struct Target {
        engine: String,
        partition_key: String,
    }
    #[derive(Row, Deserialize)]
    struct TargetColumn {
        name: String,
        r#type: String,
    }
    let found: Vec<Found> = clickhouse
        .rows(
            "SELECT name, as_select, create_table_query FROM system.tables
             WHERE engine = 'MaterializedView' AND (database, name) IN
             (
                 SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) FROM system.tables
                 WHERE database = currentDatabase() AND name = 'analytics_events'
             )
             ORDER BY name",
            &[],
        )
        .await?;
    let mut views = Views::default();
    for view in found {
        let Some(name) = target(&view.create_table_query, clickhouse.database()) else {
            views.others.push(view.name);
            continue;
        };
        let targets: Vec<Target> = clickhouse
            .rows(
                "SELECT engine, partition_key FROM system.tables
                 WHERE database = currentDatabase() AND name = {name:String}",
                &[("name", &name)],
            )
            .await?;
        let columns: Vec<TargetColumn> = clickhouse
            .rows(
                "SELECT name, type FROM system.columns
                 WHERE database = currentDatabase() AND table = {view:String} ORDER BY position",
                &[("view", &view.name)],
            )
            .await?;
        let Some(Target {
            engine,
            partition_key,
        }) = targets.into_iter().next()
        else {
            views.others.push(view.name);
            continue;
        };
        if engine.starts_with("Replicated") || engine.starts_with("Shared") {
            continue;
        }
        let is_day =
            |column: &TargetColumn| column.name == partition_key && column.r#type == "Date";
        // The bytes of a state depend on the order in which it was merged.
        let is_state = |column: &TargetColumn| column.r#type.starts_with("AggregateFunction(");
        if !columns.iter().any(is_day) || columns.iter().any(is_state) {
            views.others.push(name);
            continue;
        }
        views.by_day.push(View {
            name,
            select: view.as_select,
            day: partition_key,
            merges: engine != "MergeTree",
            columns: columns
                .into_iter()
                .map(|column| Column {
                    is_array: column.r#type.contains("Array("),
                    name: column.name,
                })
                .collect(),
        });
    }
    // What two views write together is what neither of them says.
    let alone = |view: &View| targets_of(&views.by_day, &view.name) == 1;
    let (alone, shared): (Vec<_>, Vec<_>) = views.by_day.iter().cloned().partition(alone);
    views
        .others
        .extend(shared.into_iter().map(|view| view.name));
    views.by_day = alone;
    Ok(views)
}

fn targets_of(views: &[View], name: &str) -> usize {
    views.iter().filter(|view| view.name == name).count()
}

impl View {
    /// Whether the target holds of a day what a recount of `analytics_events` says.
    pub async fn is_exact(&self, clickhouse: &ClickHouse, day: Date) -> Result<bool, Error> {
        let last = if self.merges { "FINAL" } else { "" };
        let table = quote_identifier(&self.name);
        let held = self.digest(&format!("{table} {last}"));
        let counted = self.digest(&format!("({})", self.select));
        #[derive(Row, Deserialize)]
        struct Digests {
            different: u64,
        }
        let rows: Vec<Digests> = clickhouse
            .rows(
                &format!("SELECT uniqExact(digest) AS different FROM ({held} UNION ALL {counted})"),
                &[("day", &day.to_string())],
            )
            .await?;
        Ok(rows.iter().all(|row| row.different == 1))
    }

    /// The query of the days that the target holds rows of, as `day`.
    pub fn days(&self) -> String {
        let (day, table) = (quote_identifier(&self.day), quote_identifier(&self.name));
        format!("SELECT DISTINCT {day} AS day FROM {table}")
    }

    /// A number for the rows of a day, whatever their order.
    fn digest(&self, source: &str) -> String {
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
        // As text: an expression's type may differ from its column's.
        format!(
            "SELECT (count(), sum(cityHash64(toString(tuple({}))))) AS digest FROM {source} WHERE {} = {{day:Date}}",
            columns.join(", "),
            quote_identifier(&self.day)
        )
    }

    /// Builds a day again from `analytics_events` and swaps it in at once: no reader
    /// sees half of it. Nothing may be inserted meanwhile.
    pub async fn rebuild(&self, clickhouse: &ClickHouse, day: Date) -> Result<(), Error> {
        #[derive(Row, Deserialize)]
        struct Rows {
            rows: u64,
        }
        let table = quote_identifier(&self.name);
        let beside = quote_identifier(&format!("{}_rebuilt", self.name));
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| quote_identifier(&column.name))
            .collect();
        let columns = columns.join(", ");
        // Left over from a rebuild that was cut off.
        let drop = format!("DROP TABLE IF EXISTS {beside} SYNC");
        clickhouse.execute(&drop).await?;
        clickhouse
            .execute(&format!("CREATE TABLE {beside} AS {table}"))
            .await?;
        // Blocks that look the same must not be taken for repeats.
        clickhouse
            .execute(&format!(
                "INSERT INTO {beside} ({columns}) SETTINGS insert_deduplicate = 0, async_insert = 0
                 SELECT {columns} FROM ({}) WHERE {} = '{day}'",
                self.select,
                quote_identifier(&self.day),
            ))
            .await?;
        let built: Vec<Rows> = clickhouse
            .rows(&format!("SELECT count() AS rows FROM {beside}"), &[])
            .await?;
        // A partition cannot be replaced by none.
        let swap = if built.iter().any(|built| built.rows > 0) {
            format!("ALTER TABLE {table} REPLACE PARTITION '{day}' FROM {beside}")
        } else {
            format!("ALTER TABLE {table} DROP PARTITION '{day}'")
        };
        clickhouse.execute(&swap).await?;
        clickhouse.execute(&drop).await
    }
}

/// The table that a materialized view writes to, where it is one of `database`:
/// from `CREATE MATERIALIZED VIEW database.view TO database.target (…`.
fn target(create: &str, database: &str) -> Option<String> {
    let (_, rest) = create.split_once(" TO ")?;
    let end = rest.find([' ', '(']).unwrap_or(rest.len());
    let (in_database, table) = rest[..end].split_once('.')?;
    let unquoted = |name: &str| name.trim_matches('`').to_owned();
    (unquoted(in_database) == database).then(|| unquoted(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_view_stands_behind_to() {
        let create =
            "CREATE MATERIALIZED VIEW d.mv TO d.`daily-users` (`date` Date) AS SELECT 1 FROM d.t";
        assert_eq!(target(create, "d").as_deref(), Some("daily-users"));
        assert_eq!(target(create, "other"), None);
        let inner = "CREATE MATERIALIZED VIEW d.mv (`date` Date) ENGINE = MergeTree AS SELECT 1";
        assert_eq!(target(inner, "d"), None);
    }
}
