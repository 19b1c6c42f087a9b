//! A day of a view, rebuilt in a staging table and swapped in at once.
//!
//! Each of these statements may arrive late, when another instance has taken over and is inserting:
//! a swap would then bring back a day without that instance's rows. So the staging table has a name
//! that no other attempt ever has, every statement of an attempt names it, and whoever takes over
//! [clears](leftovers) such tables before inserting. A statement that arrives later fails: its
//! table is gone.

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;
use time::Date;

use super::client::ClickHouse;
use super::quote::quote_identifier;
use super::reach::Name;
use super::tables::Tables;
use super::views::View;

/// The comment on staging tables. Together with their names, it tells them apart from tables that
/// are not the daemon's to drop.
const COMMENT: &str = "analytics-server builds a day of a view again here";

/// A day of a view that is rebuilt, once.
pub struct Rebuild<'a> {
    view: &'a View,
    day: Date,
    beside: Name,
}

impl<'a> Rebuild<'a> {
    pub fn new(view: &'a View, day: Date, beside: Name) -> Self {
        Self { view, day, beside }
    }

    /// Creates the staging table. The target's window comes with it, and stays unused.
    pub async fn create(&self, clickhouse: &ClickHouse) -> Result<(), Error> {
        let (beside, target) = (self.beside.quoted(), self.view.target.quoted());
        let create = format!("CREATE TABLE {beside} AS {target} COMMENT '{COMMENT}'");
        clickhouse.execute(&create).await
    }

    /// Fills it with what the view's SELECT gives.
    pub async fn fill(&self, clickhouse: &ClickHouse) -> Result<(), Error> {
        let View {
            select,
            columns,
            day: day_column,
            ..
        } = self.view;
        let columns: Vec<String> = columns
            .iter()
            .map(|column| quote_identifier(&column.name))
            .collect();
        let columns = columns.join(", ");
        // Blocks that look the same must not be taken for repeats.
        clickhouse
            .execute(&format!(
                "INSERT INTO {} ({columns}) SETTINGS insert_deduplicate = 0, async_insert = 0
                 SELECT {columns} FROM ({select}) WHERE {} = '{}'",
                self.beside.quoted(),
                quote_identifier(day_column),
                self.day
            ))
            .await
    }

    /// Swaps it in: no reader sees half of it, and the target keeps its tokens.
    pub async fn swap(&self, clickhouse: &ClickHouse) -> Result<(), Error> {
        let (target, beside) = (self.view.target.quoted(), self.beside.quoted());
        let day = self.day;
        let swap = format!("ALTER TABLE {target} REPLACE PARTITION '{day}' FROM {beside}");
        clickhouse.execute(&swap).await
    }
}

/// A name for a staging table. `owner` and `attempt` together are never used again.
pub fn beside(clickhouse: &ClickHouse, tables: &Tables, owner: &str, attempt: u32) -> Name {
    let owner: String = owner
        .chars()
        .map(|letter| match letter.is_ascii_alphanumeric() {
            true => letter,
            false => '_',
        })
        .collect();
    let name = format!("{}{owner}_{attempt}", prefix(tables));
    Name::new(clickhouse.database(), &name)
}

/// Each kind has its own: lanes that share a database leave each other's alone.
fn prefix(tables: &Tables) -> String {
    format!("rebuilt_{}_", tables.events)
}

/// The staging tables that exist for views of this kind, whoever created them.
pub async fn leftovers(clickhouse: &ClickHouse, tables: &Tables) -> Result<Vec<Name>, Error> {
    #[derive(Row, Deserialize)]
    struct Left {
        name: String,
    }
    let left: Vec<Left> = clickhouse
        .rows(
            "SELECT name FROM system.tables
             WHERE database = currentDatabase()
                 AND startsWith(name, {prefix:String}) AND comment = {comment:String}",
            &[("prefix", &prefix(tables)), ("comment", COMMENT)],
        )
        .await?;
    let home = clickhouse.database();
    let names = left.into_iter().map(|left| Name::new(home, &left.name));
    Ok(names.collect())
}

/// Drops a staging table.
pub async fn drop(clickhouse: &ClickHouse, beside: &Name) -> Result<(), Error> {
    let drop = format!("DROP TABLE IF EXISTS {} SYNC", beside.quoted());
    clickhouse.execute(&drop).await
}

/// Whether a statement is running that names a staging table for views of this kind. One that has
/// begun continues with its table even if that is dropped.
pub async fn runs(clickhouse: &ClickHouse, tables: &Tables) -> Result<bool, Error> {
    #[derive(Row, Deserialize)]
    struct Running {
        count: u64,
    }
    let running: Vec<Running> = clickhouse
        .rows(
            "SELECT count() AS count FROM system.processes
             WHERE current_database = currentDatabase() AND query_kind != 'Select'
                 AND match(query, {name:String})",
            // After the prefix come an owner, whose name ends with 32 digits, and the attempt.
            &[(
                "name",
                &format!("{}[0-9A-Za-z_]+_[0-9a-f]{{32}}_[0-9]+", prefix(tables)),
            )],
        )
        .await?;
    Ok(running.iter().any(|running| running.count > 0))
}
