//! Views of an operator's own: which of them are compared, and what becomes of the others.

use time::{Duration, OffsetDateTime};

use crate::support::World;
use crate::support::clickhouse::{Server, command as clickhouse, lasting_port};
use crate::support::daemon::Daemon;
use crate::support::events::{event_of, publish_samples};
use crate::support::nats::Nats;
use crate::verify::{of_lane, verify};

/// A target with these columns and this engine, and a view that fills it, which may have
/// columns of its own.
struct Operators {
    name: &'static str,
    columns: &'static str,
    engine: &'static str,
    settings: &'static str,
    declared: &'static str,
    select: &'static str,
}

impl Operators {
    const fn new(
        name: &'static str,
        columns: &'static str,
        engine: &'static str,
        select: &'static str,
    ) -> Self {
        Self {
            name,
            columns,
            engine,
            settings: "",
            declared: "",
            select,
        }
    }

    const fn with_settings(self, settings: &'static str) -> Self {
        Self { settings, ..self }
    }

    const fn declared(self, declared: &'static str) -> Self {
        Self { declared, ..self }
    }

    async fn create(&self, world: &World) {
        let Self {
            name,
            columns,
            engine,
            settings,
            declared,
            select,
        } = self;
        let target = format!(
            "CREATE TABLE {name} ({columns}) ENGINE = {engine}
             SETTINGS non_replicated_deduplication_window = 10000{settings}"
        );
        let view = format!("CREATE MATERIALIZED VIEW {name}_mv TO {name} {declared} AS {select}");
        for statement in [target, view] {
            run(world, &statement).await;
        }
    }
}

async fn run(world: &World, statement: &str) {
    let run = world.clickhouse().query(&statement.replace('?', "??"));
    let run = run.execute().await;
    run.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

const ROWS: &str = "MergeTree PARTITION BY date ORDER BY date";
const SUMS: &str = "SummingMergeTree PARTITION BY date ORDER BY (date, k)";

/// Each holds what it should, which nobody could tell from its SELECT, and why.
const NOT_COMPARED: [(Operators, &str); 8] = [
    (
        Operators::new(
            "by_month",
            "month Date, n UInt64",
            "SummingMergeTree PARTITION BY month ORDER BY month",
            "SELECT toStartOfMonth(server_ts) AS month, count() AS n FROM analytics_events GROUP BY month",
        ),
        "not partitioned by",
    ),
    (
        Operators::new(
            "filled_up",
            "date Date, k String, more UInt64",
            ROWS,
            "SELECT toDate(server_ts) AS date, client_id AS k FROM analytics_events",
        )
        .declared("(date Date, k String, more UInt64)"),
        "leaves a column",
    ),
    (
        Operators::new(
            "narrow",
            "date Date, k String, n UInt64",
            SUMS,
            "SELECT toDate(server_ts) AS date, client_id AS k, count() AS n FROM analytics_events GROUP BY date, k",
        )
        .declared("(date Date, k String, n UInt8)"),
        "gives other types",
    ),
    (
        Operators::new(
            "zeroes",
            "date Date, k String, n UInt64",
            SUMS,
            "SELECT toDate(server_ts) AS date, client_id AS k, count(nullIf(user_id, user_id)) AS n FROM analytics_events GROUP BY date, k",
        ),
        "does not merge a column",
    ),
    (
        Operators::new(
            "twice",
            "date Date, k String, l String, n UInt64",
            "SummingMergeTree PARTITION BY date ORDER BY (date, k, l)",
            "SELECT toDate(server_ts) AS date, client_id AS k, client_id AS l, count() AS n FROM analytics_events GROUP BY date, client_id, session_id",
        ),
        "groups by something other",
    ),
    (
        Operators::new(
            "ticks",
            "date Date, tick UInt64",
            ROWS,
            "SELECT toDate(server_ts) AS date, tick FROM analytics_events",
        ),
        "is not simple",
    ),
    (
        Operators::new(
            "humans",
            "date Date, k String, n UInt64",
            SUMS,
            "SELECT toDate(server_ts) AS date, client_id AS k, count() AS n FROM analytics_events WHERE in(user_id, bots) = 0 GROUP BY date, k",
        ),
        "is not simple",
    ),
    (
        Operators::new(
            "one_each",
            "date Date, k String, n UInt64",
            SUMS,
            "SELECT toDate(server_ts) AS date, client_id AS k, toUInt64(1) AS n FROM analytics_events",
        ),
        "groups by something other",
    ),
];

/// Odd, and compared nevertheless.
const COMPARED: [Operators; 3] = [
    Operators::new(
        "taken_and_not_kept",
        "date Date, k String EPHEMERAL, n UInt64",
        ROWS,
        "SELECT toDate(server_ts) AS date, client_id AS k, stream_seq AS n FROM analytics_events",
    ),
    Operators::new(
        "named_as_in_statements",
        "date Date, count Int32, day String, digest UInt64, held_key String",
        ROWS,
        "SELECT toDate(server_ts) AS date, message_size AS count, user_id AS day, stream_seq AS digest, client_id AS held_key FROM analytics_events",
    ),
    Operators::new(
        "of_many_kinds",
        "date Date, k LowCardinality(Nullable(String)), `odd name` UInt8, size Int64, n UInt64, seen SimpleAggregateFunction(max, DateTime64(3, 'UTC'))",
        "SummingMergeTree PARTITION BY date ORDER BY (date, k, `odd name`)",
        "SELECT toDate(server_ts) AS date, nullIf(system_browser, '') AS k, user_id IN ('', 'it''s') AS `odd name`, sumIf(message_size, event_type LIKE 'message%') AS size, count() AS n, max(server_ts) AS seen FROM analytics_events AS e WHERE NOT (user_id = 'now()') GROUP BY date, k, `odd name`",
    )
    .with_settings(", allow_nullable_key = 1"),
];

#[tokio::test]
async fn a_view_is_compared_where_that_can_be_done_and_named_and_left_elsewhere() {
    let world = World::new().await;
    let config = world.config("batch_size: 300, flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    run(&world, "CREATE TABLE bots (user_id String) ENGINE = Set").await;
    let tick = "ALTER TABLE analytics_events ADD COLUMN tick UInt64 ALIAS toUInt64(now64(3))";
    run(&world, tick).await;
    for (view, _) in &NOT_COMPARED {
        view.create(&world).await;
    }
    for view in &COMPARED {
        view.create(&world).await;
    }
    for events in [500, 1000, 1500] {
        publish_samples(&world, 500).await;
        world.settled(events, 0).await;
    }
    let (code, report) = verify(&config, &[]);
    assert_eq!(code, 0, "{report}");
    let others = of_lane(&report)["views_not_compared"].as_array().unwrap();
    let reason = |name: &str| {
        let other = others.iter().find(|other| other["name"] == name);
        other.map(|other| other["reason"].as_str().unwrap())
    };
    for (view, wanted) in &NOT_COMPARED {
        let reason = reason(view.name).unwrap_or_default();
        assert!(reason.contains(wanted), "{}: {reason}", view.name);
    }
    assert_eq!(others.len(), NOT_COMPARED.len(), "{report}");

    for view in &COMPARED {
        run(&world, &format!("TRUNCATE TABLE {}", view.name)).await;
    }
    let (code, report) = verify(&config, &[]);
    assert_eq!(code, 1, "{report}");
    let differ = of_lane(&report)["days"].to_string();
    for view in &COMPARED {
        assert!(differ.contains(view.name), "{report}");
    }
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!(code, 0, "{report}");
}

/// ClickHouse drops rows of a date when that is too old in its own time zone.
#[tokio::test]
async fn a_day_that_is_over_sooner_in_clickhouses_time_zone_is_not_compared() {
    let port = lasting_port();
    let dir = tempfile::tempdir().unwrap();
    let mut server = clickhouse(dir.path(), port);
    let server = Server::spawn(server.env("TZ", "Pacific/Kiritimati"));
    let world = World::with_servers(Nats::start().await, &server.url);
    let config = world.config("flush_interval_seconds: 0.1, retention_days: 2", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    // Dropped after ten o'clock in the morning, and not before.
    let today = OffsetDateTime::now_utc().date().midnight().assume_utc();
    let at = (today - Duration::hours(1)).unix_timestamp() * 1000;
    world.publish("app.start", event_of("c", at)).await;
    world.settled(1, 0).await;
    run(&world, "OPTIMIZE TABLE event_counts_by_type FINAL").await;
    daemon.stop().await;
    let (code, report) = verify(&config, &[]);
    assert_eq!(code, 0, "{report}");
}
