//! Tables and views of an operator's own, of each kind that ClickHouse fills by itself when
//! the daemon inserts: they count each event once like the daemon's.

use crate::support::World;

/// What the operator grants the daemon's user in addition to the guide's grants. Views of
/// `analytics_events` lead into this database: to insert is to insert there, too, and a day
/// of a view that has lost rows is compared, and swapped or deleted, there.
pub const GRANT: &str = "GRANT SELECT, INSERT, ALTER DELETE ON operators.* TO analytics";

/// Each target has the window that the daemon asks for, except the last one's, which gets
/// it below.
const SET_UP: [&str; 16] = [
    "CREATE DATABASE operators",
    // In another database, view and target.
    "CREATE TABLE operators.clients (date Date, client_id String, events UInt64)
     ENGINE = SummingMergeTree(events) PARTITION BY date ORDER BY (date, client_id)
     SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW operators.clients_mv TO operators.clients AS
     SELECT toDate(server_ts) AS date, client_id, count() AS events
     FROM {database}.analytics_events GROUP BY date, client_id",
    // A view of what another view fills, one row each.
    "CREATE TABLE error_users (date Date, error_type LowCardinality(String), user_id String)
     ENGINE = MergeTree PARTITION BY date ORDER BY (date, error_type)
     SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW error_users_mv TO error_users AS
     SELECT date, error_type, user_id FROM error_tracking",
    // A view of a target that sums its rows.
    "CREATE TABLE events_by_day (date Date, events UInt64)
     ENGINE = SummingMergeTree(events) PARTITION BY date ORDER BY date
     SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW events_by_day_mv TO events_by_day AS
     SELECT date, sum(count) AS events FROM event_counts_by_type GROUP BY date",
    // One target for the events and for what the operator adds from elsewhere.
    "CREATE TABLE operators.activity (date Date, source LowCardinality(String), name String, events UInt64)
     ENGINE = SummingMergeTree(events) PARTITION BY date ORDER BY (date, source, name)
     SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW operators.activity_of_events_mv TO operators.activity AS
     SELECT toDate(server_ts) AS date, 'events' AS source, event_type AS name, count() AS events
     FROM {database}.analytics_events GROUP BY date, name",
    "CREATE TABLE operators.imports (date Date, name String, events UInt64)
     ENGINE = MergeTree ORDER BY date",
    "CREATE MATERIALIZED VIEW operators.activity_of_imports_mv TO operators.activity AS
     SELECT date, 'imports' AS source, name, sum(events) AS events
     FROM operators.imports GROUP BY date, name",
    // On the days of the events, and on one that has none.
    "INSERT INTO operators.imports
     SELECT today() - number % 4, 'import ' || toString(number % 100), 1 + number FROM numbers(1000)",
    "INSERT INTO operators.imports
     SELECT today() - number % 4, 'later import ' || toString(number % 10), 1 FROM numbers(100)",
    // Without TO: ClickHouse creates the target, and names it.
    "CREATE MATERIALIZED VIEW users_by_browser (date Date, browser LowCardinality(String), events UInt64)
     ENGINE = SummingMergeTree(events) PARTITION BY date ORDER BY (date, browser) AS
     SELECT toDate(server_ts) AS date, system_browser AS browser, count() AS events
     FROM analytics_events GROUP BY date, browser",
    "ALTER TABLE {inner} MODIFY SETTING non_replicated_deduplication_window = 10000",
    "ALTER TABLE operators.imports MODIFY SETTING old_parts_lifetime = 1",
];

/// What each of them says, and the same counted from the events. In those that the daemon
/// cannot compare, what a killed ClickHouse has lost stays lost; but nothing of the operator's
/// own may be missing or there twice.
pub const VIEWS: [(&str, &str); 4] = [
    (
        "SELECT date, client_id, sum(events) FROM operators.clients GROUP BY ALL",
        "SELECT toDate(server_ts) AS date, client_id, count() FROM analytics_events GROUP BY ALL",
    ),
    (
        "SELECT date, error_type, user_id, count() FROM error_users GROUP BY ALL",
        "SELECT toDate(server_ts) AS date, error_type, user_id, count() FROM analytics_events
         WHERE event_type = 'error_occurred' GROUP BY ALL",
    ),
    (
        "SELECT date, name, sum(events) FROM operators.activity WHERE source = 'imports' GROUP BY ALL",
        "SELECT date, name, sum(events) FROM operators.imports GROUP BY ALL",
    ),
    (
        "SELECT date, browser, sum(events) FROM users_by_browser GROUP BY ALL",
        "SELECT toDate(server_ts) AS date, system_browser AS browser, count() FROM analytics_events GROUP BY ALL",
    ),
];

/// Needs the rights of an administrator, and the daemon's tables.
pub async fn set_up(world: &World) {
    for statement in SET_UP {
        let statement = statement.replace("{database}", &world.database);
        let statement = match statement.contains("{inner}") {
            true => statement.replace("{inner}", &inner_table(world).await),
            false => statement,
        };
        let statement = world.clickhouse().query(&statement);
        statement.execute().await.unwrap();
    }
}

/// What ClickHouse calls the table of the view without one.
async fn inner_table(world: &World) -> String {
    let sql = "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, '.inner')";
    let tables = world.ask(sql).await.unwrap();
    format!("`{}`", tables[0]["name"].as_str().unwrap())
}
