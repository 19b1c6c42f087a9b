//! What an insert reaches: the views of the tables that it names, their targets, the
//! views of these, and so on, in any database.
//!
//! Read from `system.tables`, where a table names the views that it feeds whether the
//! user may see them or not, and a view's statement names its target.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::client::ClickHouse;
use super::quote::quote_identifier;
use super::tables::Tables;

/// A table's name with that of its database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub database: String,
    pub table: String,
}

impl Name {
    pub fn new(database: &str, table: &str) -> Self {
        Self {
            database: database.to_owned(),
            table: table.to_owned(),
        }
    }

    /// As statements name it.
    pub fn quoted(&self) -> String {
        let Self { database, table } = self;
        format!("{}.{}", quote_identifier(database), quote_identifier(table))
    }

    /// As someone who works in the database `home` names it.
    pub fn shown_in(&self, home: &str) -> String {
        if self.database == home {
            self.table.clone()
        } else {
            self.to_string()
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.table)
    }
}

/// A table or view as `system.tables` has it.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Table {
    database: String,
    name: String,
    pub uuid: String,
    pub engine: String,
    /// The engine with its clauses and settings, as ClickHouse writes them.
    pub engine_full: String,
    pub partition_key: String,
    pub sorting_key: String,
    create_table_query: String,
    /// What a view selects.
    pub as_select: String,
    /// The views that an insert into it feeds, each with its database before it.
    dependents: Vec<(String, String)>,
}

impl Table {
    /// A table that has nothing but its engine, such as `MergeTree ORDER BY a`.
    #[cfg(test)]
    pub fn of_engine(database: &str, name: &str, engine_full: &str) -> Self {
        let engine = engine_full.split_whitespace().next().unwrap_or_default();
        Self {
            database: database.to_owned(),
            name: name.to_owned(),
            uuid: format!("uuid-of-{name}"),
            engine: engine.to_owned(),
            engine_full: engine_full.to_owned(),
            partition_key: String::new(),
            sorting_key: String::new(),
            create_table_query: String::new(),
            as_select: String::new(),
            dependents: Vec::new(),
        }
    }

    pub fn name(&self) -> Name {
        Name::new(&self.database, &self.name)
    }

    /// Whether the token and the rows are one operation in Keeper.
    pub fn is_replicated(&self) -> bool {
        ["Replicated", "Shared"]
            .iter()
            .any(|prefix| self.engine.starts_with(prefix))
    }
}

/// A materialized view between two tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub view: Table,
    pub source: Name,
    pub target: Name,
}

/// The tables and views of the server that this user may see.
pub struct Catalog {
    tables: BTreeMap<Name, Table>,
    home: String,
}

/// What an insert reaches.
#[derive(Debug, Default)]
pub struct Reach {
    /// The views, each after the one that fills its source.
    pub links: Vec<Link>,
    /// The tables that rows go to, those that the daemon names first.
    pub tables: Vec<Table>,
    /// Views and targets that the user may not see.
    pub unseen: Vec<Name>,
    /// What an insert feeds that is not a materialized view: nobody knows what it does with a
    /// repeat.
    pub strange: Vec<Table>,
}

/// A short fingerprint of the tables that an insert reaches.
pub async fn identity(clickhouse: &ClickHouse, tables: &Tables) -> Result<String, Error> {
    let catalog = Catalog::read(clickhouse).await?;
    Ok(catalog.reach(&tables.inserted_into()).identity())
}

impl Catalog {
    /// # Errors
    /// Also if the daemon's own database is missing.
    pub async fn read(clickhouse: &ClickHouse) -> Result<Self, Error> {
        // Views are only in ClickHouse's own databases, and the tables of others may be fetched
        // over the network.
        let tables: Vec<Table> = clickhouse
            .rows(
                "SELECT database, name, toString(uuid) AS uuid, engine, engine_full,
                     partition_key, sorting_key, create_table_query, as_select,
                     arrayZip(dependencies_database, dependencies_table) AS dependents
                 FROM system.tables
                 WHERE database IN
                 (
                     SELECT name FROM system.databases
                     WHERE engine IN ('Atomic', 'Ordinary', 'Replicated', 'Shared', 'Memory', 'Overlay')
                         AND name NOT IN ('system', 'information_schema', 'INFORMATION_SCHEMA')
                 )",
                &[],
            )
            .await?;
        let tables = tables.into_iter().map(|table| (table.name(), table));
        Ok(Self {
            tables: tables.collect(),
            home: clickhouse.database().to_owned(),
        })
    }

    pub fn get(&self, name: &Name) -> Option<&Table> {
        self.tables.get(name)
    }

    /// How many materialized views write to a table, refreshed ones included.
    pub fn views_into(&self, target: &Name) -> usize {
        let targets = self.tables.values().filter_map(target_of);
        targets.filter(|other| other == target).count()
    }

    /// What inserts into these tables of the daemon's database reach.
    pub fn reach(&self, names: &[&str]) -> Reach {
        let mut reach = Reach::default();
        let mut seen = BTreeSet::new();
        let roots = names.iter().map(|name| Name::new(&self.home, name));
        let mut queue: VecDeque<Name> = roots.filter(|name| self.get(name).is_some()).collect();
        while let Some(source) = queue.pop_front() {
            if !seen.insert(source.clone()) {
                continue;
            }
            let Some(table) = self.get(&source) else {
                reach.unseen.push(source);
                continue;
            };
            reach.tables.push(table.clone());
            let dependents = table.dependents.iter();
            // Always in the same order.
            let dependents: BTreeSet<Name> = dependents
                .map(|(database, view)| Name::new(database, view))
                .collect();
            for name in &dependents {
                match self.get(name).map(|view| (view, target_of(view))) {
                    Some((view, Some(target))) => {
                        queue.push_back(target.clone());
                        reach.links.push(Link {
                            view: view.clone(),
                            source: source.clone(),
                            target,
                        });
                    }
                    Some((other, None)) => reach.strange.push(other.clone()),
                    None => reach.unseen.push(name.clone()),
                }
            }
        }
        reach
    }
}

impl Reach {
    /// A short fingerprint of these tables: others, even with the same names, know none of the
    /// tokens that these know.
    pub fn identity(&self) -> String {
        let tables: BTreeSet<String> = self
            .tables
            .iter()
            .map(|table| format!("{} {}\n", table.name(), table.uuid))
            .collect();
        let digest = Sha256::digest(tables.into_iter().collect::<String>());
        let letters = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
        letters.collect()
    }
}

/// The table that a materialized view writes to; `None` for everything else.
fn target_of(view: &Table) -> Option<Name> {
    if view.engine != "MaterializedView" {
        return None;
    }
    let named = target_in(&view.create_table_query);
    Some(named.unwrap_or_else(|| {
        let inner = match view.uuid.as_str() {
            // In a database without UUIDs.
            "00000000-0000-0000-0000-000000000000" => format!(".inner.{}", view.name),
            uuid => format!(".inner_id.{uuid}"),
        };
        Name::new(&view.database, &inner)
    }))
}

/// From `CREATE MATERIALIZED VIEW database.view [REFRESH …] TO database.target (…`.
fn target_in(create: &str) -> Option<Name> {
    let after = create.strip_prefix("CREATE MATERIALIZED VIEW ")?;
    let (_, mut rest) = qualified(after)?;
    // Only a schedule can come between the name and ` TO `; columns come after both.
    if !rest.starts_with(" TO ") {
        let columns = rest.find('(').unwrap_or(rest.len());
        let schedule = &rest[..columns];
        rest = &schedule[schedule.find(" TO ")?..];
    }
    let (target, _) = qualified(rest.strip_prefix(" TO ")?)?;
    Some(target)
}

/// A name with that of its database at the beginning of `text`, and what follows it.
fn qualified(text: &str) -> Option<(Name, &str)> {
    let (database, rest) = identifier(text)?;
    let (table, rest) = identifier(rest.strip_prefix('.')?)?;
    Some((Name { database, table }, rest))
}

/// An identifier as ClickHouse writes it, in backticks if it needs them.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('`') else {
        let end = text.find([' ', '.', '(']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '`' => return Some((name, &quoted[at + 1..])),
            '\\' => name.push(letters.next()?.1),
            other => name.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, engine: &str, create: &str, dependents: &[(&str, &str)]) -> Table {
        let (database, name) = name.split_once('.').unwrap();
        Table {
            create_table_query: create.to_owned(),
            dependents: dependents
                .iter()
                .map(|(database, view)| ((*database).to_owned(), (*view).to_owned()))
                .collect(),
            ..Table::of_engine(database, name, engine)
        }
    }

    fn view(name: &str, target: &str) -> Table {
        let create = format!("CREATE MATERIALIZED VIEW {name} TO {target} (`a` Date) AS SELECT 1");
        table(name, "MaterializedView", &create, &[])
    }

    fn catalog(tables: Vec<Table>) -> Catalog {
        let tables = tables.into_iter().map(|table| (table.name(), table));
        Catalog {
            tables: tables.collect(),
            home: "d".to_owned(),
        }
    }

    #[test]
    fn views_of_views_in_other_databases_are_reached_in_the_order_of_the_rows() {
        let catalog = catalog(vec![
            table(
                "d.analytics_events",
                "MergeTree",
                "",
                &[("d", "one"), ("e", "two")],
            ),
            table("d.unrelated", "MergeTree", "", &[("d", "other")]),
            view("d.one", "d.daily"),
            view("d.other", "d.daily"),
            table("d.daily", "SummingMergeTree", "", &[("f", "three")]),
            table(
                "e.two",
                "MaterializedView",
                "CREATE MATERIALIZED VIEW e.two (`a` Date) ENGINE = Null AS SELECT 1",
                &[],
            ),
            table(
                "e..inner_id.uuid-of-two",
                "Null",
                "",
                &[("d", "gone"), ("d", "window")],
            ),
            table(
                "d.window",
                "WindowView",
                "CREATE WINDOW VIEW d.window TO d.x",
                &[],
            ),
            view("f.three", "f.`to `"),
        ]);
        let reach = catalog.reach(&["analytics_events", "missing"]);
        let links: Vec<String> = reach
            .links
            .iter()
            .map(|link| format!("{} → {} → {}", link.source, link.view.name(), link.target))
            .collect();
        assert_eq!(
            links,
            [
                "d.analytics_events → d.one → d.daily",
                "d.analytics_events → e.two → e..inner_id.uuid-of-two",
                "d.daily → f.three → f.to ",
            ]
        );
        let tables: Vec<String> = reach
            .tables
            .iter()
            .map(|it| it.name().to_string())
            .collect();
        assert_eq!(
            tables,
            ["d.analytics_events", "d.daily", "e..inner_id.uuid-of-two"]
        );
        assert_eq!(
            reach.unseen,
            [Name::new("d", "gone"), Name::new("f", "to ")]
        );
        assert_eq!(reach.strange.len(), 1);
        assert_eq!(catalog.views_into(&Name::new("d", "daily")), 2);
    }

    #[test]
    fn the_target_of_a_view_follows_its_name_or_its_schedule() {
        let target = |create| target_in(create).map(|target| target.to_string());
        for (create, found) in [
            (
                "CREATE MATERIALIZED VIEW d.mv TO d.`daily-users` (`date` Date) AS SELECT 1 FROM d.t",
                Some("d.daily-users"),
            ),
            (
                "CREATE MATERIALIZED VIEW d.`a TO b.c (` TO `e\\`f`.g (`x TO y` Date) AS SELECT 1",
                Some("e`f.g"),
            ),
            (
                "CREATE MATERIALIZED VIEW d.mv REFRESH EVERY 1 HOUR APPEND TO d.t (`a` Date) AS SELECT 1",
                Some("d.t"),
            ),
            (
                "CREATE MATERIALIZED VIEW d.mv (`a TO b` Date) ENGINE = MergeTree AS SELECT 1 TO d",
                None,
            ),
        ] {
            assert_eq!(target(create).as_deref(), found, "{create}");
        }
    }

    #[test]
    fn a_table_that_was_exchanged_is_another_one() {
        let of = |uuid: &str| {
            let mut events = table("d.analytics_events", "MergeTree", "", &[]);
            events.uuid = uuid.to_owned();
            catalog(vec![events])
                .reach(&["analytics_events"])
                .identity()
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a").len(), 16);
    }
}
