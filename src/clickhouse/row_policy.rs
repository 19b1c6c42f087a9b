//! Row policies, which silently hide rows from a user.
//!
//! What the daemon cannot see counts as missing: it would be inserted again, and a view
//! rebuilt without it.

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::ClickHouse;
use super::quote::quote_identifier;
use super::reach::Name;

/// What ClickHouse writes into the plan of a query whose rows a policy filters. Unlike
/// `system.row_policies`, a plan needs no right of its own.
const FILTER: &str = "Row level filter";

/// Whether a policy may hide rows of this table from the user. One that lets everything
/// through does not. An empty table's plan does not read it, and says nothing.
pub async fn hides_rows_of(clickhouse: &ClickHouse, table: &Name) -> Result<bool, Error> {
    #[derive(Row, Deserialize)]
    struct Line {
        explain: String,
    }
    let sql = format!("EXPLAIN actions = 1 SELECT 1 FROM {}", table.quoted());
    let plan: Vec<Line> = clickhouse.rows(&sql, &[]).await?;
    Ok(plan.iter().any(|line| line.explain.contains(FILTER)))
}

/// # Errors
/// Also if rows of this table are hidden: an answer would not say what it holds.
pub async fn refuse(clickhouse: &ClickHouse, table: &Name) -> Result<(), Error> {
    if !hides_rows_of(clickhouse, table).await? {
        return Ok(());
    }
    let shown = table.shown_in(clickhouse.database());
    let (problem, remedy) = (problem(&shown), remedy(clickhouse, table));
    Err(Error::Other(format!("{problem}: {remedy}").into()))
}

pub fn problem(table: &str) -> String {
    format!("a row policy hides rows of `{table}` from this user, which would be stored again")
}

/// A policy of its own, since a table's policies add up.
pub fn remedy(clickhouse: &ClickHouse, table: &Name) -> String {
    format!(
        "CREATE ROW POLICY analytics_server ON {} USING 1 TO {}",
        table.quoted(),
        quote_identifier(clickhouse.user())
    )
}
