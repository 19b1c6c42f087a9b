//! A day of a view, built again beside the others and swapped in at once.
//!
//! Each of these statements may come late, when another instance has taken over and
//! inserts: a swap would then bring back a day without its rows. So the table beside has
//! a name that no other try ever has, every statement of a try names it, and whoever
//! takes over [clears](leftovers) such tables before it inserts. A statement that comes
//! later fails: its table is not there.

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;
use time::Date;

use super::client::ClickHouse;
use super::quote::quote_identifier;
use super::reach::Name;
use super::views::View;

/// What the names of tables beside begin with, and their comments. Both tell them from
/// tables that are not the daemon's to drop.
const PREFIX: &str = "rebuilt_";
const COMMENT: &str = "analytics-server builds a day of a view again here";

/// A day of a view that is built again, once.
pub struct Rebuild<'a> {
    view: &'a View,
    day: Date,
    beside: Name,
}

impl<'a> Rebuild<'a> {
    /// `owner` and `attempt` together are never used again.
    pub fn new(view: &'a View, day: Date, home: &str, owner: &str, attempt: u32) -> Self {
        let owner: String = owner
            .chars()
            .map(|letter| match letter.is_ascii_alphanumeric() {
                true => letter,
                false => '_',
            })
            .collect();
        let beside = Name::new(home, &format!("{PREFIX}{owner}_{attempt}"));
        Self { view, day, beside }
    }

    /// Makes the table beside. The window of the target comes with it, and stays unused.
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

/// The tables beside that are there, whoever made them.
pub async fn leftovers(clickhouse: &ClickHouse) -> Result<Vec<Name>, Error> {
    #[derive(Row, Deserialize)]
    struct Left {
        name: String,
    }
    let left: Vec<Left> = clickhouse
        .rows(
            "SELECT name FROM system.tables
             WHERE database = currentDatabase()
                 AND startsWith(name, {prefix:String}) AND comment = {comment:String}",
            &[("prefix", PREFIX), ("comment", COMMENT)],
        )
        .await?;
    let home = clickhouse.database();
    let names = left.into_iter().map(|left| Name::new(home, &left.name));
    Ok(names.collect())
}

/// Drops a table beside.
pub async fn drop(clickhouse: &ClickHouse, beside: &Name) -> Result<(), Error> {
    let drop = format!("DROP TABLE IF EXISTS {} SYNC", beside.quoted());
    clickhouse.execute(&drop).await
}

/// Whether a statement runs that names a table beside. One that has begun goes on with
/// its table, though that is dropped.
pub async fn runs(clickhouse: &ClickHouse) -> Result<bool, Error> {
    #[derive(Row, Deserialize)]
    struct Running {
        count: u64,
    }
    let running: Vec<Running> = clickhouse
        .rows(
            "SELECT count() AS count FROM system.processes
             WHERE current_database = currentDatabase() AND query_kind != 'Select'
                 AND match(query, {name:String})",
            // After the prefix an owner, whose name ends with 32 digits, and the attempt.
            &[(
                "name",
                &format!("{PREFIX}[0-9A-Za-z_]+_[0-9a-f]{{32}}_[0-9]+"),
            )],
        )
        .await?;
    Ok(running.iter().any(|running| running.count > 0))
}
