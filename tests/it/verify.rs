//! `verify`: what is wrong is found, and what can be mended is.

use std::path::Path;
use std::process::Command;

use analytics_server::pipeline::decode::BatchMessage;
use prost::Message;
use serde_json::Value;

use crate::support::World;
use crate::support::clickhouse::{Server, command as clickhouse, lasting_port};
use crate::support::daemon::{Daemon, command};
use crate::support::events::{event, publish_samples};
use crate::support::nats::Nats;

const EVENTS: u64 = 3000;

/// The exit code of `verify`, and its report.
fn verify(config: &Path, arguments: &[&str]) -> (i32, Value) {
    let output = command(config)
        .args(["verify", "--json"])
        .args(arguments)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

#[tokio::test]
async fn a_part_that_clickhouse_lost_is_found_and_filled_also_where_its_token_is_known() {
    let port = lasting_port();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::spawn(&mut clickhouse(dir.path(), port));
    let world = World::with_servers(Nats::start().await, &server.url);
    let config = world.config("batch_size: 500, flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    // A merged part's sources would take its place.
    let stop_merges = world.clickhouse().query("SYSTEM STOP MERGES");
    stop_merges.execute().await.unwrap();
    publish_samples(&world, EVENTS as usize).await;
    world.publish("app.start", b"\xff".as_slice()).await;
    world.settled(EVENTS, 1).await;
    let (code, report) = verify(&config, &[]);
    assert_eq!((code, &report["exact"]), (0, &true.into()), "{report}");
    assert_eq!(report["stream"]["messages"], EVENTS + 1);

    // As if they had never been committed; the log of their tokens stays.
    world
        .clickhouse()
        .query("SYSTEM STOP MERGES")
        .execute()
        .await
        .unwrap();
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
    assert_eq!(report["stream"]["missing_events"], EVENTS - stored);
    let differ = report["days"][0]["views_that_differ"].to_string();
    assert!(differ.contains("session_totals"), "{report}");

    // A daemon at work stands by meanwhile, and goes on afterwards.
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!((code, &report["exact"]), (0, &true.into()), "{report}");
    assert_eq!(report["repaired"]["events"], EVENTS - stored);
    daemon.logs("standing by").await;
    world.publish("app.start", event("after")).await;
    world.settled(EVENTS + 1, 1).await;
    world.views_equal_a_recount().await;
    let (code, report) = verify(&config, &[]);
    assert_eq!(code, 0, "{report}");
}

/// Runs the command and prints the most memory that it had, in KiB, which only the parent of
/// a process that has ended can still ask.
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
    daemon.logs("checkpoint taken over").await;
    // 200 MB that nobody can read, then 1 MB that are many events.
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
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;
    let twice = "INSERT INTO analytics_events SELECT * FROM analytics_events";
    world.clickhouse().query(twice).execute().await.unwrap();
    let (code, report) = verify(&config, &["--repair"]);
    assert_eq!((code, &report["days"][0]["double_events"]), (1, &1.into()));
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
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;
    daemon.stop().await;
    let drop = format!("DROP DATABASE {}", world.database);
    world.clickhouse().query(&drop).execute().await.unwrap();
    for arguments in [&["verify"][..], &["verify", "--repair"]] {
        let output = command(&config).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("ClickHouse: Code: 81."), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    // The daemon makes it again, and says what it does not do by itself.
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
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    let view = "event_counts_by_type_mv";
    let drop = format!("DROP TABLE {view}");
    world.clickhouse().query(&drop).execute().await.unwrap();
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
    world.clickhouse().query(&create).execute().await.unwrap();
    assert_eq!(verify(&config, &["--repair"]).0, 0);
    world.views_equal_a_recount().await;
}
