//! What the tables must be beside what the migrations say: how long they keep
//! rows, and what exactly once rests on.

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::client::ClickHouse;

/// Every table that keeps rows, and the time from which their age counts.
const RETAINED: [(&str, &str); 7] = [
    ("analytics_events", "toDateTime(server_ts)"),
    ("dead_letters", "toDateTime(received_at)"),
    ("daily_active_users", "date"),
    ("event_counts_by_type", "date"),
    ("message_statistics", "date"),
    ("error_tracking", "date"),
    ("session_totals", "date"),
];

/// The fewest past inserts that a table must recognise a repeat among: many
/// times the parts that inserts in flight can make.
const LEAST_WINDOW: u64 = 1000;

#[derive(Row, Deserialize)]
struct Table {
    name: String,
    engine: String,
    /// The engine with its clauses and settings, as ClickHouse writes them.
    engine_full: String,
}

async fn tables(clickhouse: &ClickHouse) -> Result<Vec<Table>, Error> {
    clickhouse
        .rows(
            "SELECT name, engine, engine_full FROM system.tables WHERE database = currentDatabase()",
            &[],
        )
        .await
}

/// Makes every table keep rows for `days`; returns those that were altered.
/// A table that does already is not touched: an `ALTER` rewrites parts.
pub async fn retain(clickhouse: &ClickHouse, days: u16) -> Result<Vec<&'static str>, Error> {
    let tables = tables(clickhouse).await?;
    let mut altered = Vec::new();
    for (name, time) in RETAINED {
        let ttl = format!("{time} + toIntervalDay({days})");
        let Some(table) = tables.iter().find(|table| table.name == name) else {
            continue;
        };
        if !table.engine_full.contains(&format!("TTL {ttl}")) {
            clickhouse
                .execute(&format!("ALTER TABLE {name} MODIFY TTL {ttl}"))
                .await?;
            altered.push(name);
        }
    }
    Ok(altered)
}

/// A table in which a repeated insert would be stored or counted again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoWindow {
    pub table: String,
    /// The statement that mends it.
    pub remedy: String,
}

/// The tables of the database whose deduplication window is missing or too
/// small. All that hold rows are asked for, so that the target of a view that an
/// operator added is, too.
pub async fn without_window(clickhouse: &ClickHouse) -> Result<Vec<NoWindow>, Error> {
    let tables = tables(clickhouse).await?;
    Ok(tables
        .into_iter()
        .filter(|table| table.engine.ends_with("MergeTree") && table.name != "schema_migrations")
        .filter(|table| window(&table.engine, &table.engine_full) < LEAST_WINDOW)
        .map(|table| NoWindow {
            remedy: format!(
                "ALTER TABLE {} MODIFY SETTING {} = 10000",
                super::migrations::quote_identifier(&table.name),
                setting_of(&table.engine)
            ),
            table: table.name,
        })
        .collect())
}

fn setting_of(engine: &str) -> &'static str {
    if engine.starts_with("Replicated") || engine.starts_with("Shared") {
        "replicated_deduplication_window"
    } else {
        "non_replicated_deduplication_window"
    }
}

/// The window in effect, from the engine's settings or ClickHouse's default.
fn window(engine: &str, engine_full: &str) -> u64 {
    let setting = setting_of(engine);
    // Looked for with a space or comma before it: one setting's name ends with the other's.
    let value = engine_full
        .split([' ', ','])
        .skip_while(|word| *word != setting)
        .nth(2)
        .and_then(|value| value.parse().ok());
    let default = if setting == "replicated_deduplication_window" {
        10_000
    } else {
        0
    };
    value.unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_read_from_the_settings_of_the_engine() {
        let plain = "MergeTree PARTITION BY date ORDER BY a SETTINGS index_granularity = 8192";
        assert_eq!(window("MergeTree", plain), 0);
        let set = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 500, index_granularity = 8192";
        assert_eq!(window("MergeTree", set), 500);
        assert_eq!(
            window(
                "ReplicatedSummingMergeTree",
                "ReplicatedSummingMergeTree('/a', 'b') ORDER BY a"
            ),
            10_000
        );
        let replicated =
            "ReplicatedMergeTree('/a', 'b') SETTINGS replicated_deduplication_window = 7";
        assert_eq!(window("ReplicatedMergeTree", replicated), 7);
    }
}
