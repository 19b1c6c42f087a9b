//! What the tables must be, besides what the migrations say: how long they keep rows.

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::client::ClickHouse;
use super::migrations;
use super::tables::Tables;

#[derive(Row, Deserialize)]
pub struct Table {
    pub name: String,
    pub engine: String,
    /// The engine with its clauses and settings, as ClickHouse writes them.
    pub engine_full: String,
}

/// All tables of the database: one that an operator added may be a view's target, too.
pub async fn tables(clickhouse: &ClickHouse) -> Result<Vec<Table>, Error> {
    clickhouse
        .rows(
            "SELECT name, engine, engine_full FROM system.tables WHERE database = currentDatabase()",
            &[],
        )
        .await
}

/// The tables and views that are missing although their migrations were applied, each with the file
/// that creates it.
pub async fn missing(clickhouse: &ClickHouse) -> Result<Vec<(&'static str, &'static str)>, Error> {
    let tables = tables(clickhouse).await?;
    let is_missing = |name| tables.iter().all(|table| table.name != name);
    Ok(migrations::objects()
        .filter(|(name, _)| is_missing(*name))
        .collect())
}

/// The tables of these kinds that do not keep rows for `days`, each with what its TTL
/// should be.
pub async fn kept_otherwise(
    clickhouse: &ClickHouse,
    kinds: &[&Tables],
    days: u16,
) -> Result<Vec<(&'static str, String)>, Error> {
    let tables = tables(clickhouse).await?;
    let mut retained = Vec::new();
    for table in kinds.iter().flat_map(|kind| kind.retained()) {
        // All kinds have the table of dead letters.
        if !retained.contains(&table) {
            retained.push(table);
        }
    }
    Ok(retained
        .into_iter()
        .map(|(name, age_from)| (name, format!("{age_from} + toIntervalDay({days})")))
        .filter(|(name, ttl)| {
            let table = tables.iter().find(|table| table.name == *name);
            table.is_some_and(|table| !table.engine_full.contains(&format!("TTL {ttl}")))
        })
        .collect())
}

/// Makes every table of these kinds keep rows for `days`; returns those that were altered.
/// A table that already does is not touched: an `ALTER` rewrites parts.
pub async fn retain(
    clickhouse: &ClickHouse,
    kinds: &[&Tables],
    days: u16,
) -> Result<Vec<&'static str>, Error> {
    let mut altered = Vec::new();
    for (name, ttl) in kept_otherwise(clickhouse, kinds, days).await? {
        // Rewriting the parts takes as long as it takes, and nobody has to wait for it.
        let sql = format!("ALTER TABLE {name} MODIFY TTL {ttl} SETTINGS alter_sync = 0");
        clickhouse.execute(&sql).await?;
        altered.push(name);
    }
    Ok(altered)
}
