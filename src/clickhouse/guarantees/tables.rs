//! What the tables that inserts reach must be.

use std::collections::HashMap;

use clickhouse::error::Error;

use super::{Setting, Shortcoming, Topic};
use crate::clickhouse::ClickHouse;
use crate::clickhouse::quote::quote_identifier;
use crate::clickhouse::reach::{Catalog, Name, Table};
use crate::clickhouse::{codes, row_policy, schema};

/// What is wrong with the tables that inserts into these reach, in any database.
pub async fn of_tables(
    clickhouse: &ClickHouse,
    inserted_into: &[&str],
) -> Result<Vec<Shortcoming>, Error> {
    let defaults = table_defaults(clickhouse).await?;
    let missing = schema::missing(clickhouse).await?;
    let reach = Catalog::read(clickhouse).await?.reach(inserted_into);
    let (home, user) = (clickhouse.database(), clickhouse.user());
    let mut filtered = Vec::new();
    for table in reach.tables.iter().map(Table::name) {
        if is_one_of(inserted_into, home, &table)
            && row_policy::hides_rows_of(clickhouse, &table).await?
        {
            filtered.push(of_filtered(&table, clickhouse));
        }
    }
    let tables = reach.tables.iter();
    Ok(tables
        .flat_map(|table| {
            let is_inserted_into = is_one_of(inserted_into, home, &table.name());
            of_table(table, is_inserted_into, home, &defaults)
        })
        .chain(reach.strange.iter().map(|view| of_strange(view, home)))
        .chain(reach.unseen.iter().map(|name| of_unseen(name, user)))
        .chain(
            missing
                .into_iter()
                .map(|missing| of_missing(missing, inserted_into)),
        )
        .chain(filtered)
        .collect())
}

fn is_one_of(inserted_into: &[&str], home: &str, table: &Name) -> bool {
    table.database == home && inserted_into.contains(&table.table.as_str())
}

fn of_filtered(table: &Name, clickhouse: &ClickHouse) -> Shortcoming {
    let shown = table.shown_in(clickhouse.database());
    Shortcoming::fatal(
        Topic::Rights,
        row_policy::problem(&shown),
        row_policy::remedy(clickhouse, table),
    )
}

/// A window view or a live view: they count what they are given, and know no tokens.
fn of_strange(view: &Table, home: &str) -> Shortcoming {
    let (name, engine) = (view.name(), &view.engine);
    Shortcoming::fatal(
        Topic::Deduplication,
        format!(
            "`{}` is a {engine}, which would count a repeated insert again",
            name.shown_in(home)
        ),
        format!("DROP VIEW {}", name.quoted()),
    )
}

fn of_unseen(name: &Name, user: &str) -> Shortcoming {
    Shortcoming::fatal(
        Topic::Deduplication,
        format!("inserts reach `{name}`, and this user cannot see whether it recognises a repeat"),
        format!(
            "GRANT SELECT ON {}.* TO {}",
            quote_identifier(&name.database),
            quote_identifier(user)
        ),
    )
}

fn of_missing((name, file): (&str, &str), inserted_into: &[&str]) -> Shortcoming {
    Shortcoming {
        topic: Topic::Schema,
        detail: format!("`{name}` is missing"),
        remedy: format!(
            "run its CREATE statement of migrations/{file}, then `analytics-server verify --repair`"
        ),
        // Without a view, what it counts stands still; without one of these, everything
        // does.
        fatal: inserted_into.contains(&name),
    }
}

/// The fewest past inserts among which a table must recognise a repeat: a few times the
/// parts that inserts in flight can make, up to 32 inserts with up to 36 days each.
const LEAST_WINDOW: u64 = 5000;

/// What a window is set to if it is missing.
const GOOD_WINDOW: u64 = 10_000;

/// Seconds for which a replicated table must recognise a repeat: ClickHouse or the
/// daemon may be away for days between an insert and its repeat. Tables that are not
/// replicated have no such limit.
const LEAST_SECONDS: u64 = 7 * 86_400;

/// A table that a view may write to although it keeps nothing: what counts is its own
/// views.
const KEEPS_NOTHING: &str = "Null";

fn of_table(
    table: &Table,
    is_inserted_into: bool,
    home: &str,
    defaults: &HashMap<String, String>,
) -> Vec<Shortcoming> {
    let name = table.name();
    let shown = name.shown_in(home);
    if table.engine == KEEPS_NOTHING {
        return Vec::new();
    }
    if !table.engine.ends_with("MergeTree") {
        let engine = &table.engine;
        return vec![Shortcoming::fatal(
            Topic::Deduplication,
            format!("table `{shown}` is a {engine}, which would count a repeated insert again"),
            "let its view write to a MergeTree with a deduplication window".to_owned(),
        )];
    }
    let number = |name, built_in: u64| {
        let set = setting_in(&table.engine_full, name).or(defaults.get(name).map(String::as_str));
        set.and_then(|value| value.parse().ok()).unwrap_or(built_in)
    };
    let mend = |setting, value: u64| {
        let table = match name.database == home {
            true => quote_identifier(&name.table),
            false => name.quoted(),
        };
        format!("ALTER TABLE {table} MODIFY SETTING {setting} = {value}")
    };
    let mut shortcomings = Vec::new();
    let mut missing = |detail, remedy| {
        shortcomings.push(Shortcoming::fatal(Topic::Deduplication, detail, remedy));
    };

    let replicated = table.is_replicated();
    let (window, built_in) = if replicated {
        ("replicated_deduplication_window", 10_000)
    } else {
        ("non_replicated_deduplication_window", 0)
    };
    if number(window, built_in) < LEAST_WINDOW {
        let detail = format!("table `{shown}` would count a repeated insert again");
        missing(detail, mend(window, GOOD_WINDOW));
    }
    // The built-in value used to be a week and is an hour in newer versions.
    let seconds = "replicated_deduplication_window_seconds";
    if replicated && number(seconds, 3600) < LEAST_SECONDS {
        let hours = number(seconds, 3600) / 3600;
        let detail = format!(
            "table `{shown}` would count an insert again if it is repeated after {hours} h"
        );
        missing(detail, mend(seconds, LEAST_SECONDS));
    }
    // Either this or the insert's own setting means yes to ClickHouse.
    if is_inserted_into && number("async_insert", 0) != 0 {
        let detail = format!(
            "table `{shown}` has async_insert set, so inserts are queued and their tokens do not count"
        );
        missing(detail, mend("async_insert", 0));
    }
    shortcomings
}

/// The server's own defaults for what a table can set. Not every user may see them:
/// ClickHouse's built-in ones have to do then.
async fn table_defaults(clickhouse: &ClickHouse) -> Result<HashMap<String, String>, Error> {
    let sql = "SELECT name, toString(value) AS value FROM system.merge_tree_settings";
    match clickhouse.rows::<Setting>(sql, &[]).await {
        Ok(settings) => Ok(settings
            .into_iter()
            .map(|Setting { name, value }| (name, value))
            .collect()),
        Err(error) if codes::of(&error) == Some(codes::ACCESS_DENIED) => Ok(HashMap::new()),
        Err(error) => Err(error),
    }
}

/// A setting among an engine's clauses, such as `ORDER BY a SETTINGS b = 1, c = 2`.
fn setting_in<'a>(engine_full: &'a str, name: &str) -> Option<&'a str> {
    // Whole words: one setting's name ends with another's.
    let mut words = engine_full
        .split([' ', ','])
        .filter(|word| !word.is_empty() && *word != "=");
    words.find(|word| *word == name)?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedies(engine: &str, settings: &str, defaults: &[(&str, &str)]) -> Vec<String> {
        let engine_full = format!("{engine} ORDER BY (a, b) SETTINGS {settings}");
        let table = Table::of_engine("d", "dead_letters", &engine_full);
        let defaults = defaults
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        of_table(&table, true, "d", &defaults.collect())
            .into_iter()
            .map(|shortcoming| {
                let remedy = shortcoming
                    .remedy
                    .strip_prefix("ALTER TABLE `dead_letters` MODIFY SETTING ");
                remedy.unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn a_table_must_recognise_a_repeat_among_many_inserts() {
        let plain = |settings| remedies("SummingMergeTree", settings, &[]);
        let mend = ["non_replicated_deduplication_window = 10000"];
        assert_eq!(plain("index_granularity = 8192"), mend);
        assert_eq!(plain("non_replicated_deduplication_window = 4999"), mend);
        let good = "index_granularity = 8192, non_replicated_deduplication_window = 5000";
        assert_eq!(plain(good), [""; 0]);
        let default = [("non_replicated_deduplication_window", "5000")];
        assert_eq!(remedies("MergeTree", "x = 1", &default), [""; 0]);
    }

    #[test]
    fn a_replicated_table_must_recognise_it_for_a_week_as_well() {
        let replicated = |settings| remedies("ReplicatedMergeTree", settings, &[]);
        let seconds = "replicated_deduplication_window_seconds = 604800";
        assert_eq!(replicated("index_granularity = 8192"), [seconds]);
        assert_eq!(replicated(seconds), [""; 0]);
        let small = format!("replicated_deduplication_window = 7, {seconds}");
        assert_eq!(
            replicated(&small),
            ["replicated_deduplication_window = 10000"]
        );
        let default = [("replicated_deduplication_window_seconds", "604800")];
        assert_eq!(remedies("SharedMergeTree", "x = 1", &default), [""; 0]);
    }

    #[test]
    fn a_table_must_not_queue_inserts() {
        let window = "non_replicated_deduplication_window = 10000";
        let queued = format!("{window}, async_insert = 1");
        assert_eq!(remedies("MergeTree", &queued, &[]), ["async_insert = 0"]);
        let default = [("async_insert", "1")];
        assert_eq!(
            remedies("MergeTree", window, &default),
            ["async_insert = 0"]
        );
        let set = format!("{window}, async_insert = 0");
        assert_eq!(remedies("MergeTree", &set, &default), [""; 0]);
    }

    #[test]
    fn a_target_that_knows_no_tokens_is_refused_unless_it_keeps_nothing() {
        let shortcomings = |engine| {
            of_table(
                &Table::of_engine("e", "t", engine),
                false,
                "d",
                &HashMap::new(),
            )
        };
        let memory = &shortcomings("Memory")[0];
        assert_eq!(
            (memory.detail.as_str(), memory.fatal),
            (
                "table `e.t` is a Memory, which would count a repeated insert again",
                true
            )
        );
        assert_eq!(shortcomings("Null"), []);
        assert_eq!(
            shortcomings("SummingMergeTree ORDER BY a")[0].remedy,
            "ALTER TABLE `e`.`t` MODIFY SETTING non_replicated_deduplication_window = 10000"
        );
    }
}
