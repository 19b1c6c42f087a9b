//! What the tables that inserts reach must be.

use std::collections::HashMap;

use clickhouse::error::Error;

use super::{Finding, Setting, Topic};
use crate::clickhouse::ClickHouse;
use crate::clickhouse::quote::quote_identifier;
use crate::clickhouse::reach::{Catalog, INSERTED_INTO, Name, Table};
use crate::clickhouse::{codes, row_policy, schema};

/// What is wrong with the tables that inserts reach, in whatever database.
pub async fn of_tables(clickhouse: &ClickHouse) -> Result<Vec<Finding>, Error> {
    let defaults = table_defaults(clickhouse).await?;
    let missing = schema::missing(clickhouse).await?;
    let reach = Catalog::read(clickhouse).await?.reach(&INSERTED_INTO);
    let (home, user) = (clickhouse.database(), clickhouse.user());
    let mut filtered = Vec::new();
    for table in reach.tables.iter().map(Table::name) {
        let is_asked = table.database == home && INSERTED_INTO.contains(&table.table.as_str());
        if is_asked && row_policy::hides_rows_of(clickhouse, &table).await? {
            filtered.push(of_filtered(&table, clickhouse));
        }
    }
    let tables = reach.tables.iter();
    Ok(tables
        .flat_map(|table| of_table(table, home, &defaults))
        .chain(reach.strange.iter().map(|view| of_strange(view, home)))
        .chain(reach.unseen.iter().map(|name| of_unseen(name, user)))
        .chain(missing.into_iter().map(of_missing))
        .chain(filtered)
        .collect())
}

fn of_filtered(table: &Name, clickhouse: &ClickHouse) -> Finding {
    let shown = table.shown_in(clickhouse.database());
    Finding::fatal(
        Topic::Rights,
        row_policy::problem(&shown),
        row_policy::remedy(clickhouse, table),
    )
}

/// A window view, a live view: they count what they are given, and know no token.
fn of_strange(view: &Table, home: &str) -> Finding {
    let (name, engine) = (view.name(), &view.engine);
    Finding::fatal(
        Topic::Deduplication,
        format!(
            "`{}` is a {engine}, which would count a repeated insert again",
            name.shown_in(home)
        ),
        format!("DROP VIEW {}", name.quoted()),
    )
}

fn of_unseen(name: &Name, user: &str) -> Finding {
    Finding::fatal(
        Topic::Deduplication,
        format!("inserts reach `{name}`, and this user cannot see whether it recognises a repeat"),
        format!(
            "GRANT SELECT ON {}.* TO {}",
            quote_identifier(&name.database),
            quote_identifier(user)
        ),
    )
}

fn of_missing((name, file): (&str, &str)) -> Finding {
    Finding {
        topic: Topic::Schema,
        detail: format!("`{name}` is missing"),
        remedy: format!(
            "run its CREATE statement of migrations/{file}, then `analytics-server verify --repair`"
        ),
        // Without a view, what it counts stands still; without one of these, everything.
        fatal: INSERTED_INTO.contains(&name),
    }
}

/// The fewest past inserts that a table must recognise a repeat among: a few times the
/// parts that inserts in flight can make, up to 32 with up to 36 days each.
const LEAST_WINDOW: u64 = 5000;

/// What a window is set to where it is missing.
const GOOD_WINDOW: u64 = 10_000;

/// Seconds for which a replicated table must recognise a repeat: ClickHouse or the
/// daemon may be away for days between an insert and its repeat. Tables that are not
/// replicated know no such limit.
const LEAST_SECONDS: u64 = 7 * 86_400;

/// What a view may write to that keeps nothing: its own views are what counts.
const KEEPS_NOTHING: &str = "Null";

fn of_table(table: &Table, home: &str, defaults: &HashMap<String, String>) -> Vec<Finding> {
    let name = table.name();
    let shown = name.shown_in(home);
    if table.engine == KEEPS_NOTHING {
        return Vec::new();
    }
    if !table.engine.ends_with("MergeTree") {
        let engine = &table.engine;
        return vec![Finding::fatal(
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
    let mut findings = Vec::new();
    let mut missing = |detail, remedy| {
        findings.push(Finding::fatal(Topic::Deduplication, detail, remedy));
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
    // The built-in value was a week once and is an hour in newer versions.
    let seconds = "replicated_deduplication_window_seconds";
    if replicated && number(seconds, 3600) < LEAST_SECONDS {
        let hours = number(seconds, 3600) / 3600;
        let detail =
            format!("table `{shown}` would count an insert again that is repeated after {hours} h");
        missing(detail, mend(seconds, LEAST_SECONDS));
    }
    // ClickHouse takes either this or the insert's own setting for a yes.
    let is_named = name.database == home && INSERTED_INTO.contains(&name.table.as_str());
    if is_named && number("async_insert", 0) != 0 {
        let detail = format!(
            "table `{shown}` has async_insert set, so inserts are queued and their tokens do not count"
        );
        missing(detail, mend("async_insert", 0));
    }
    findings
}

/// The server's own defaults of what a table can set. Not every user may see them: then
/// ClickHouse's built-in ones have to do.
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
        of_table(&table, "d", &defaults.collect())
            .into_iter()
            .map(|finding| {
                let remedy = finding
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
        let findings = |engine| of_table(&Table::of_engine("e", "t", engine), "d", &HashMap::new());
        let memory = &findings("Memory")[0];
        assert_eq!(
            (memory.detail.as_str(), memory.fatal),
            (
                "table `e.t` is a Memory, which would count a repeated insert again",
                true
            )
        );
        assert_eq!(findings("Null"), []);
        assert_eq!(
            findings("SummingMergeTree ORDER BY a")[0].remedy,
            "ALTER TABLE `e`.`t` MODIFY SETTING non_replicated_deduplication_window = 10000"
        );
    }
}
