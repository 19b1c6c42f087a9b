//! `verify`: what is wrong is found, and what can be mended is.

use std::path::Path;
use std::process::Command;

use analytics_server::internal::BatchMessage;
use prost::Message;
use serde_json::Value;

use crate::support::World;
use crate::support::clickhouse::{Server, command as clickhouse, lasting_port};
use crate::support::daemon::{Daemon, command};
use crate::support::events::{event, publish_samples};
use crate::support::nats::Nats;

const EVENTS: u64 = 3000;

/// The exit code of `verify`, and its report.
pub fn verify(config: &Path, arguments: &[&str]) -> (i32, Value) {
    let output = command(config)
        .args(["verify", "--json"])
        .args(arguments)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

/// What a report says of the one lane.
pub fn of_lane(report: &Value) -> &Value {
    assert_eq!(report["lanes"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["lanes"][0]["lane"], "analytics");
    &report["lanes"][0]
}

#[tokio::test]
async fn a_part_that_clickhouse_lost_is_found_and_filled_also_where_its_token_is_known() {
    let port = lasting_port();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::spawn(&mut clickhouse(dir.path(), port));
    let world = World::with_servers(Nats::start().await, &server.url);
    let config = world.config("batch_size: 500, flush_interval_seconds: 0.1", "");
    let daemon = Daemon::at_work(&config).await;
    // A merged part's sources would take its place.
    world.run("SYSTEM STOP MERGES").await;
    publish_samples(&world, EVENTS as usize).await;
    world.publish("app.start", b"\xff".as_slice()).await;
    world.settled(EVENTS, 1).await;
    let (code, report) = verify(&config, &[]);
    assert_eq!((code, &report["exact"]), (0, &true.into()), "{report}");
    assert_eq!(of_lane(&report)["stream"]["messages"], EVENTS + 1);

    // As if they had never been committed; the log of their tokens stays.
    world.run("SYSTEM STOP MERGES").await;
    let parts = world
        .rows("SELECT if(table = 'analytics_events', argMin(path, min_block_number), argMax(path, min_block_number)) AS path FROM system.parts WHERE active AND database = currentDatabase() AND table IN ('analytics_events', 'session_totals') GROUP BY table")
        .await;
    daemon.stop().await;
    server.kill9();
    for part in &parts {
        std::fs::remove_dir_all(part["path"].as_str().unwrap()).unwrap();
    }
    let _server = Server::spawn(&mut clickhouse(dir.path(), port));

    let stored = world.stored().await;
    assert!(stored < EVENTS);
    let (code, report) = verify(&config, &[]);
    assert_eq!((code, &report["exact"]), (1, &false.into()), "{report}");
    assert_eq!(
        of_lane(&report)["stream"]["missing_events"],
        EVENTS - stored
    );
    let differ = of_lane(&report)["days"][0]["views_that_differ"].to_string();
    assert!(differ.contains("session_totals"), "{report}");

    // A running daemon stands by meanwhile, and continues afterwards.
    let daemon = Daemon::at_work(&config).await;
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!((code, &report["exact"]), (0, &true.into()), "{report}");
    assert_eq!(of_lane(&report)["repaired"]["events"], EVENTS - stored);
    daemon.logs("standing by").await;
    world.publish("app.start", event("after")).await;
    world.stored_once(EVENTS + 1, 1).await;
    let (code, report) = verify(&config, &[]);
    assert_eq!(code, 0, "{report}");
}

/// Runs the command and prints the most memory that it had, in KiB, for which only the
/// parent of a process that has ended can still ask.
const PEAK: &str = r#"
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(most // 1024 if sys.platform == "darwin" else most)
sys.exit(ended.returncode)
"#;

#[tokio::test]
async fn its_memory_does_not_grow_with_the_messages() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.takes_over().await;
    // 200 MB that nobody can read, then 1 MB that is many events.
    let (messages, events) = (400, 140_000);
    for _ in 0..messages {
        world.publish("app.start", vec![0xff; 500_000]).await;
    }
    let batch = BatchMessage {
        events: vec![event("a").into(); events],
    };
    world.publish("batch", batch.encode_to_vec()).await;
    world.settled(events as u64, messages).await;

    let verify = command(&config);
    let output = Command::new("python3")
        .args(["-c", PEAK])
        .arg(verify.get_program())
        .args(verify.get_args())
        .arg("verify")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let peak = String::from_utf8_lossy(&output.stdout);
    let peak = peak.trim().parse::<u64>().unwrap() * 1024;
    println!("{peak} bytes at the peak");
    assert!(peak < 160_000_000, "{peak} bytes");
}

#[tokio::test]
async fn an_event_that_is_stored_twice_is_told_of_and_left() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let _daemon = Daemon::at_work(&config).await;
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;
    let twice = "INSERT INTO analytics_events SELECT * FROM analytics_events";
    world.run(twice).await;
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!(
        (code, &of_lane(&report)["days"][0]["duplicate_events"]),
        (1, &1.into())
    );
    let text = command(&config).arg("verify").output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("NOT EXACT: events are stored twice"),
        "{text}"
    );
}

#[tokio::test]
async fn a_database_that_is_gone_is_said_and_not_waited_for() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::at_work(&config).await;
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;
    daemon.stop().await;
    world
        .run(&format!("DROP DATABASE {}", world.database))
        .await;
    for arguments in [&["verify"][..], &["verify", "--repair"]] {
        let output = command(&config).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("ClickHouse: Code: 81."), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    // The daemon creates it again, and says what it does not do by itself.
    let daemon = Daemon::start(&config);
    daemon
        .logs("ClickHouse holds nothing of this stream, though the checkpoint says")
        .await;
    daemon.stop().await;
    assert_eq!(verify(&config, &["--repair"]).0, 0);
    assert_eq!(world.stored().await, 1);
}

#[tokio::test]
async fn a_view_that_is_gone_is_not_exact() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let _daemon = Daemon::at_work(&config).await;
    let view = "event_counts_by_type_mv";
    world.run(&format!("DROP TABLE {view}")).await;
    publish_samples(&world, 300).await;
    world.settled(300, 0).await;
    let (code, report) = verify(&config, &[]);
    assert_eq!((code, &report["missing"]), (1, &serde_json::json!([view])));
    let checked = command(&config).arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.contains("warning      schema         `event_counts_by_type_mv` is missing"),
        "{said}"
    );
    assert!(
        said.contains("→ run its CREATE statement of migrations/0004_event_counts_by_type.sql"),
        "{said}"
    );

    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/0004_event_counts_by_type.sql");
    let file = std::fs::read_to_string(file).unwrap();
    let (_, statement) = file.split_once("CREATE MATERIALIZED VIEW").unwrap();
    let statement = statement.split(";\n").next().unwrap();
    let create = format!("CREATE MATERIALIZED VIEW{statement}");
    world.run(&create).await;
    assert_eq!(verify(&config, &["--repair"]).0, 0);
    world.views_equal_a_recount().await;
}

/// What somebody else has put into a view's target is theirs: a rebuild would delete it.
#[tokio::test]
async fn rows_that_no_event_explains_are_told_of_and_left() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let _daemon = Daemon::at_work(&config).await;
    for sql in [
        // A target that a view of another table fills, too.
        "CREATE TABLE activity (date Date, name String, n UInt64) ENGINE = SummingMergeTree PARTITION BY date ORDER BY (date, name) SETTINGS non_replicated_deduplication_window = 10000",
        "CREATE MATERIALIZED VIEW activity_mv TO activity AS SELECT toDate(server_ts) AS date, event_type AS name, count() AS n FROM analytics_events GROUP BY date, name",
        "CREATE TABLE imports (date Date, name String) ENGINE = MergeTree ORDER BY date",
        "CREATE MATERIALIZED VIEW imports_mv TO activity AS SELECT date, name, count() AS n FROM imports GROUP BY date, name",
        "INSERT INTO imports SELECT today(), toString(number) FROM numbers(1000)",
        // A target that no other view fills, and that has been written to by hand.
        "INSERT INTO daily_active_users VALUES (today(), 'somebody from elsewhere', 7), (today() - 3, 'somebody', 1)",
        // Somebody's own, with a name like those of the daemon's.
        "CREATE TABLE rebuilt_by_hand_1 (a UInt8) ENGINE = MergeTree ORDER BY a",
    ] {
        world.run(sql).await;
    }
    publish_samples(&world, 300).await;
    world.settled(300, 0).await;
    // A day that differs, and could be built again if it were not for these rows.
    world
        .run("ALTER TABLE daily_active_users DELETE WHERE user_id NOT LIKE 'somebody%'")
        .await;
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(of_lane(&report)["repaired"]["days_left"], 2, "{report}");
    let others = of_lane(&report)["views_not_compared"].to_string();
    assert!(
        others.contains("another view fills its target, too"),
        "{others}"
    );
    for (rows, sql) in [
        (
            1000,
            "SELECT sum(n) AS n FROM activity WHERE toUInt64OrNull(name) IS NOT NULL",
        ),
        (
            8,
            "SELECT sum(events_count) AS n FROM daily_active_users WHERE user_id LIKE 'somebody%'",
        ),
        (
            1,
            "SELECT count() AS n FROM system.tables WHERE database = currentDatabase() AND name = 'rebuilt_by_hand_1'",
        ),
    ] {
        assert_eq!(world.number(sql).await, rows, "{sql}");
    }
    // Once they are gone, the day is built.
    world
        .run("ALTER TABLE daily_active_users DELETE WHERE user_id LIKE 'somebody%'")
        .await;
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!((code, &report["exact"]), (0, &true.into()), "{report}");
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn views_of_views_are_compared_and_built_again_where_that_can_be_done() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let _daemon = Daemon::at_work(&config).await;
    let window = "SETTINGS non_replicated_deduplication_window = 10000";
    let other = format!("{}_other", world.database);
    for sql in [
        format!("CREATE DATABASE {other}"),
        // In another database.
        format!("CREATE TABLE {other}.received (day Date, n UInt64) ENGINE = SummingMergeTree PARTITION BY day ORDER BY day {window}"),
        format!("CREATE MATERIALIZED VIEW {other}.received_mv TO {other}.received AS SELECT toDate(server_ts) AS day, count() AS n FROM analytics_events GROUP BY day"),
        // From a view that keeps its rows, and from one that sums them.
        format!("CREATE TABLE errors (date Date, error_type String, n UInt64) ENGINE = SummingMergeTree PARTITION BY date ORDER BY (date, error_type) {window}"),
        "CREATE MATERIALIZED VIEW errors_mv TO errors AS SELECT date, error_type, count() AS n FROM error_tracking GROUP BY date, error_type".to_owned(),
        format!("CREATE TABLE days (date Date, n UInt64) ENGINE = SummingMergeTree PARTITION BY date ORDER BY date {window}"),
        "CREATE MATERIALIZED VIEW days_mv TO days AS SELECT date, sum(count) AS n FROM event_counts_by_type GROUP BY date".to_owned(),
    ] {
        world.run(&sql).await;
    }
    publish_samples(&world, 2000).await;
    world.settled(2000, 0).await;
    let output = command(&config).arg("verify").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("in every view but one, which was not compared"),
        "{said}"
    );
    assert!(
        said.contains("not compared: days, since its source's rows are merged"),
        "{said}"
    );

    world.run("TRUNCATE TABLE errors").await;
    world.run(&format!("TRUNCATE TABLE {other}.received")).await;
    let (code, report) = verify(&config, &[]);
    assert_eq!(code, 1, "{report}");
    for view in ["errors", &format!("{other}.received")] {
        assert!(
            of_lane(&report)["days"]
                .to_string()
                .contains(&format!("\"{view}\"")),
            "{report}"
        );
    }
    // The view of a view is right after its source is.
    world.run("ALTER TABLE error_tracking DELETE WHERE 1").await;
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!((code, &report["exact"]), (0, &true.into()), "{report}");
    world.views_equal_a_recount().await;
    let received = format!("SELECT sum(n) AS n FROM {other}.received");
    assert_eq!(world.number(&received).await, 2000);
    let sql = "SELECT (SELECT sum(n) FROM errors) = (SELECT count() FROM error_tracking) AS n";
    assert_eq!(world.number(sql).await, 1);
}

/// The views have what is missing from the table: what is inserted again is in them twice, until
/// they are recounted. Whoever continues a repair that was cut off has to know that.
#[tokio::test]
async fn a_repair_that_is_killed_half_way_is_gone_on_with_by_the_daemon() {
    let world = World::new().await;
    let config = world.config("batch_size: 10, flush_interval_seconds: 0.1", "");
    let daemon = Daemon::at_work(&config).await;
    publish_samples(&world, 100).await;
    world.settled(100, 0).await;
    daemon.stop().await;
    world
        .run("ALTER TABLE analytics_events DELETE WHERE stream_seq > 50")
        .await;
    let mut repair = command(&config);
    repair.args(["verify", "--repair"]);
    let repair = repair
        .env("ANALYTICS_FAULT", "kill@after-commit:2")
        .output();
    assert_eq!(repair.unwrap().status.code(), None);
    let stored = world.stored().await;
    assert!((60..100).contains(&stored), "{stored}");

    let _daemon = Daemon::at_work(&config).await;
    world.stored_once(100, 0).await;
    // What is new is not looked for.
    publish_samples(&world, 50).await;
    world.settled(150, 0).await;
    let record = world.record().await.to_string();
    assert!(!record.contains("look_until"), "{record}");
}
