//! What exactly-once delivery rests on: `serve` refuses to run without it, and `check`
//! says the same.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::daemon::{self, Daemon};
use crate::support::{World, clickhouse, rewriting};

/// `serve` ends with 1 and names each of `details`; `check` does, too. Returns the
/// remedies.
async fn both_refuse(config: &Path, details: &[&str]) -> Vec<String> {
    let served = daemon::run(config, &["serve"]).await;
    let log = String::from_utf8_lossy(&served.stderr).into_owned();
    assert_eq!(served.status.code(), Some(1), "{log}");
    let (failed, report) = check(config, "failed").await;
    for detail in details {
        assert!(log.contains(detail), "{detail}: {log}");
        let told = failed.iter().any(|finding| finding["detail"] == **detail);
        assert!(told, "{detail}: {report}");
    }
    let remedies = failed
        .iter()
        .map(|finding| finding["remedy"].as_str().unwrap());
    for remedy in remedies
        .clone()
        .filter(|remedy| remedy.starts_with("ALTER"))
    {
        assert!(log.contains(remedy), "{remedy}: {log}");
    }
    remedies.map(str::to_owned).collect()
}

/// What `check` finds with this status, and everything that it says.
async fn check(config: &Path, status: &str) -> (Vec<Value>, String) {
    let checked = daemon::run(config, &["check", "--json"]).await;
    let report = String::from_utf8(checked.stdout).unwrap();
    let checks: Value = serde_json::from_str(&report).unwrap();
    let all = checks["checks"].as_array().unwrap().iter();
    let found = all.filter(|check| check["status"] == status).cloned();
    (found.collect(), report)
}

/// A configuration whose ClickHouse is behind a proxy that makes these changes.
async fn through(world: &World, changes: &[(&str, &str)]) -> PathBuf {
    let proxy = rewriting::start(clickhouse::url(), changes).await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(clickhouse::url(), &format!("http://{proxy}"));
    std::fs::write(&config, text).unwrap();
    config
}

/// The schema and the stream, created by `check --repair`.
async fn repaired(config: &Path) {
    let repaired = daemon::run(config, &["check", "--repair"]).await;
    let report = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert_eq!(repaired.status.code(), Some(0), "{report}");
}

#[tokio::test]
async fn a_table_that_would_count_a_repeat_again_is_refused_until_the_remedy_is_run() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    repaired(&config).await;
    for statement in [
        "CREATE TABLE mine (date Date) ENGINE = MergeTree ORDER BY date",
        "CREATE MATERIALIZED VIEW mine_mv TO mine AS SELECT toDate(server_ts) AS date FROM analytics_events",
        "ALTER TABLE session_totals MODIFY SETTING non_replicated_deduplication_window = 999",
        "ALTER TABLE analytics_events MODIFY SETTING async_insert = 1",
    ] {
        world.clickhouse().query(statement).execute().await.unwrap();
    }
    let remedies = both_refuse(
        &config,
        &[
            "table `mine` would count a repeated insert again",
            "table `session_totals` would count a repeated insert again",
            "table `analytics_events` has async_insert set, so inserts are queued and their tokens do not count",
        ],
    )
    .await;
    assert_eq!(remedies.len(), 3, "{remedies:?}");
    for remedy in remedies {
        world.clickhouse().query(&remedy).execute().await.unwrap();
    }
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    assert_eq!(check(&config, "failed").await.0, Vec::<Value>::new());
}

#[tokio::test]
async fn whatever_an_insert_reaches_must_recognise_a_repeat() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    repaired(&config).await;
    let other = format!("{}_other", world.database);
    let window = "SETTINGS non_replicated_deduplication_window = 10000";
    for statement in [
        format!("CREATE DATABASE {other}"),
        // In another database.
        format!("CREATE TABLE {other}.days (date Date, n UInt64) ENGINE = SummingMergeTree ORDER BY date"),
        format!("CREATE MATERIALIZED VIEW {other}.days_mv TO {other}.days AS SELECT toDate(server_ts) AS date, count() AS n FROM analytics_events GROUP BY date"),
        // From a view's target, by way of a table that keeps nothing.
        "CREATE TABLE passed (date Date) ENGINE = Null".to_owned(),
        "CREATE MATERIALIZED VIEW passed_mv TO passed AS SELECT date FROM error_tracking".to_owned(),
        "CREATE MATERIALIZED VIEW errors (date Date) ENGINE = MergeTree ORDER BY date AS SELECT date FROM passed".to_owned(),
        // Where nothing knows a token.
        "CREATE TABLE letters (reason String) ENGINE = Memory".to_owned(),
        "CREATE MATERIALIZED VIEW letters_mv TO letters AS SELECT reason FROM dead_letters".to_owned(),
        // These are as they must be, or nothing reaches them.
        format!("CREATE TABLE good (date Date) ENGINE = MergeTree ORDER BY date {window}"),
        "CREATE MATERIALIZED VIEW good_mv TO good AS SELECT date FROM daily_active_users".to_owned(),
        "CREATE TABLE unrelated (date Date) ENGINE = MergeTree ORDER BY date".to_owned(),
    ] {
        let run = world.clickhouse().query(&statement).execute().await;
        run.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let inner = "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, '.inner')";
    let inner = world.rows(inner).await[0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let remedies = both_refuse(
        &config,
        &[
            &format!("table `{other}.days` would count a repeated insert again"),
            &format!("table `{inner}` would count a repeated insert again"),
            "table `letters` is a Memory, which would count a repeated insert again",
        ],
    )
    .await;
    assert_eq!(remedies.len(), 3, "{remedies:?}");
    for remedy in remedies.iter().filter(|it| it.starts_with("ALTER")) {
        world.clickhouse().query(remedy).execute().await.unwrap();
    }
    let drop = world.clickhouse().query("DROP VIEW letters_mv").execute();
    drop.await.unwrap();
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
}

#[tokio::test]
async fn settings_that_inserts_do_not_get_are_refused() {
    let world = World::new().await;
    // As with a proxy that has its own idea of them.
    let changes = [
        ("max_execution_time=0", "max_execution_time=9"),
        ("async_insert=0", "async_insert=1"),
        (
            "materialized_views_ignore_errors=0",
            "deduplicate_insert=disable",
        ),
    ];
    let config = through(&world, &changes).await;
    let remedies = both_refuse(
        &config,
        &[
            "inserts ask for max_execution_time = 0 and get 9",
            "inserts ask for async_insert = 0 and get 1",
            "deduplicate_insert is disable, so a repeated insert would be stored again",
        ],
    )
    .await;
    let statements = remedies
        .iter()
        .filter(|it| it.contains("ALTER USER `default` SETTINGS"));
    assert_eq!(statements.count(), 3, "{remedies:?}");

    let config = through(&world, &[("insert_deduplicate=1", "input_duplicate=1")]).await;
    let detail = "inserts ask for insert_deduplicate = 1, which is not known to this ClickHouse";
    both_refuse(&config, &[detail]).await;
}

/// The version of the tests' ClickHouse, and another one of the same length.
async fn version_instead_of(world: &World, major_and_minor: &str) -> (String, String) {
    let client = world.clickhouse().with_database("default");
    let version: String = client.query("SELECT version()").fetch_one().await.unwrap();
    let mut parts = version.splitn(3, '.');
    let length = parts.by_ref().take(2).map(str::len).sum::<usize>() + 1;
    assert_eq!(length, major_and_minor.len(), "{version}");
    let other = format!("{major_and_minor}{}", &version[length..]);
    (version, other)
}

#[tokio::test]
async fn a_clickhouse_that_is_too_old_is_refused_and_a_new_one_is_mentioned() {
    let world = World::new().await;
    let (version, old) = version_instead_of(&world, "24.7").await;
    let config = through(&world, &[(&version, &old)]).await;
    let detail = "ClickHouse 24.7 is older than 24.8: views can count a repeated insert again";
    let remedies = both_refuse(&config, &[detail]).await;
    assert!(
        remedies
            .iter()
            .any(|remedy| remedy.starts_with("upgrade ClickHouse to 24.8"))
    );

    let (version, new) = version_instead_of(&world, "99.9").await;
    let config = through(&world, &[(&version, &new)]).await;
    let daemon = Daemon::start(&config);
    daemon
        .logs("has not been tested; 26.7 is the newest that has")
        .await;
    daemon.logs("checkpoint taken over").await;
    let (warnings, report) = check(&config, "warning").await;
    assert_eq!(warnings.len(), 1, "{report}");
    assert_eq!(warnings[0]["name"], "clickhouse");
}

#[tokio::test]
async fn a_nats_that_is_too_old_is_refused_and_a_new_one_is_mentioned() {
    let world = World::new().await;
    let client = world.nats.client().await;
    let version = client.server_info().version;
    let version = format!("\"version\":\"{version}\"");
    let with = async |other: &str| {
        let proxy = rewriting::start(&world.nats.url(), &[(&version, other)]).await;
        world.config(
            "flush_interval_seconds: 0.1",
            &format!("nats_url: 'nats://{proxy}'"),
        )
    };
    let config = with("\"version\":\"2.9.25\"").await;
    both_refuse(
        &config,
        &["nats-server 2.9 is older than 2.10: it lacks what the consumer and the checkpoint ask of JetStream"],
    )
    .await;

    let config = with("\"version\":\"3.0.0\"").await;
    let daemon = Daemon::start(&config);
    daemon
        .logs("has not been tested; 2.15 is the newest that has")
        .await;
    daemon.logs("checkpoint taken over").await;
    let (warnings, report) = check(&config, "warning").await;
    assert_eq!(warnings.len(), 1, "{report}");
    assert_eq!(warnings[0]["name"], "nats");
}
