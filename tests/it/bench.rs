//! `bench`: what it measures, and that it leaves nothing behind.

use std::path::Path;
use std::process::{Child, Stdio};

use clickhouse::Client;
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::support::clickhouse::free_port;
use crate::support::daemon;
use crate::support::{World, eventually, signal};

/// The names of all streams; a bucket is one.
async fn streams(world: &World) -> Vec<String> {
    let jetstream = world.nats.jetstream().await;
    let mut names: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
    names.sort();
    names
}

/// The scratch databases of this world.
async fn databases(world: &World) -> Vec<String> {
    let sql = "SELECT name FROM system.databases WHERE startsWith(name, ?)";
    let client: Client = world.clickhouse().with_database("default");
    let query = client.query(sql).bind(format!("{}_bench_", world.database));
    query.fetch_all().await.unwrap()
}

async fn nothing_is_left(world: &World) {
    assert_eq!(streams(world).await, Vec::<String>::new());
    assert_eq!(databases(world).await, Vec::<String>::new());
    assert!(!world.dir.path().join("data").exists());
}

fn start(config: &Path, arguments: &[&str]) -> Child {
    let mut command = daemon::command(config);
    command.arg("bench").args(arguments);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

/// How it ended, and what it wrote to stderr.
async fn end(child: Child) -> (Option<i32>, String) {
    let ending = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap());
    let output = ending.await.unwrap();
    assert!(output.stdout.is_empty(), "a report of a run that failed");
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), stderr)
}

/// Waits until the run has stored something in its database; returns its name.
async fn has_stored(world: &World) -> String {
    eventually("the run stores events", async || {
        let database = databases(world).await.pop()?;
        let sql = format!("SELECT count() FROM {database}.analytics_events");
        let client = world.clickhouse().with_database("default");
        let rows = client.query(&sql).fetch_one::<u64>().await.ok()?;
        (rows > 0).then_some(database)
    })
    .await
}

#[tokio::test]
async fn bench_measures_each_server_alone_and_the_pipeline_and_leaves_nothing() {
    let world = World::new().await;
    let config = world.config("batch_size: 300, flush_interval_seconds: 0.1", "");
    let pid = world.nats.pid().to_string();
    let arguments = ["--events", "1000", "--rate", "200", "--seconds", "1"];
    let arguments = [&["bench", "--json", "--nats-pid", &pid], &arguments[..]].concat();
    let output = daemon::run(&config, &arguments).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["events"], 1000);
    assert_eq!(report["settings"]["batch_size"], 300);
    assert_eq!(report["optimised"], !cfg!(debug_assertions));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report:#}"));
    let is_about = |value: f64, expected: f64| (value / expected - 1.0).abs() < 1e-9;
    let payload = number(&report["payload_bytes"]);
    assert!(is_about(
        number(&report["mean_payload_bytes"]),
        payload / 1e3
    ));
    let mut rates = Vec::new();
    for phase in ["nats_alone", "clickhouse_alone", "pipeline"] {
        let speed = &report[phase];
        let rate = number(&speed["events_per_second"]);
        let seconds = number(&speed["seconds"]);
        assert!(is_about(rate * seconds, 1e3));
        assert!(is_about(
            number(&speed["megabytes_per_second"]) * seconds,
            payload / 1e6
        ));
        rates.push(rate);
        let (cpu, memory) = (
            &speed["cpu_seconds_per_million_events"],
            &speed["peak_memory_bytes"],
        );
        for process in ["analytics_server", "nats_server"] {
            if cfg!(target_os = "linux") {
                assert!(number(&cpu[process]) >= 0.0);
                assert!(number(&memory[process]) > 0.0);
            }
        }
        // Nobody said which process it is.
        assert!(cpu["clickhouse"].is_null() && memory["clickhouse"].is_null());
    }
    let slower = rates[0].min(rates[1]);
    assert!(is_about(
        number(&report["ratio_to_slower"]),
        rates[2] / slower
    ));

    let latency = &report["latency"];
    assert_eq!(
        (&latency["events"], &latency["rate"]),
        (&200.into(), &200.into())
    );
    let percentiles = ["p50_ms", "p95_ms", "p99_ms"].map(|name| number(&latency[name]));
    assert!(percentiles[0] > 0.0 && percentiles.is_sorted(), "{latency}");
    nothing_is_left(&world).await;
}

#[tokio::test]
async fn bench_starts_clickhouse_where_it_is_embedded_and_leaves_the_users_things_alone() {
    let world = World::new().await;
    let port = free_port();
    let config = world.embedded_config(port);
    let base_dir = world.dir.path().join("data");
    std::fs::create_dir(&base_dir).unwrap();
    // What a daemon that ran before has left behind.
    let jetstream = world.nats.jetstream().await;
    analytics_server::internal::open_bucket(&jetstream, 1)
        .await
        .unwrap();
    let (code, _, stderr) = run(&config, &["send", "--count", "7"]).await;
    assert_eq!(code, Some(0), "{stderr}");

    let (code, stdout, stderr) = run(&config, &["bench", "--events", "500", "--rate", "0"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("500 events of "), "{stdout}");
    assert!(stdout.contains("The whole pipeline runs at "), "{stdout}");
    assert!(!stdout.contains("p50"), "{stdout}");
    let line = |name| {
        stdout
            .lines()
            .find(|line| line.trim_start().starts_with(name))
    };
    // Found by itself, and nats-server is not.
    assert_eq!(line("nats-server").unwrap().matches('–').count(), 3);
    if cfg!(target_os = "linux") {
        assert!(!line("ClickHouse  ").unwrap().contains('–'), "{stdout}");
    }

    assert_eq!(
        streams(&world).await,
        ["ANALYTICS", "KV_analytics-checkpoints"]
    );
    let users = jetstream.get_stream("ANALYTICS").await.unwrap();
    assert_eq!(users.get_info().await.unwrap().state.messages, 7);
    assert_eq!(base_dir.read_dir().unwrap().count(), 0);

    // A daemon's ClickHouse on this port is not a place to start another one.
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (code, _, stderr) = run(&config, &["bench"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    let advice = format!("set db_url to its ClickHouse, http://127.0.0.1:{port}");
    assert!(stderr.contains(&advice), "{stderr}");
    assert_eq!(base_dir.read_dir().unwrap().count(), 0);
}

async fn run(config: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon::run(config, arguments).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Long enough for it to be still publishing when it has stored the first events.
const LONG: [&str; 4] = ["--rate", "10", "--seconds", "86400"];

#[tokio::test]
async fn bench_that_is_interrupted_leaves_nothing() {
    for name in ["INT", "TERM", "HUP"] {
        let world = World::new().await;
        let config = world.config("flush_interval_seconds: 0.1", "");
        let child = start(&config, &LONG);
        has_stored(&world).await;
        assert_eq!(streams(&world).await.len(), 2);
        signal(&child, name);
        let (code, stderr) = end(child).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("removing what was made"), "{stderr}");
        assert!(
            stderr.ends_with("analytics-server: interrupted\n"),
            "{stderr}"
        );
        nothing_is_left(&world).await;
    }
}

/// As in `bench 2>&1 | head`, or with a Ctrl-C that ends the reader, too.
#[tokio::test]
async fn bench_whose_reader_is_gone_leaves_nothing() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let mut child = start(&config, &LONG);
    has_stored(&world).await;
    drop((child.stdout.take(), child.stderr.take()));
    signal(&child, "INT");
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert!(!ended.await.unwrap().success());
    nothing_is_left(&world).await;
}

#[tokio::test]
async fn bench_fails_when_an_event_is_not_stored_exactly_once() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let child = start(&config, &["--rate", "1", "--seconds", "10"]);
    let database = has_stored(&world).await;
    signal(&child, "STOP");
    let again = format!(
        "INSERT INTO {database}.analytics_events SELECT * FROM {database}.analytics_events LIMIT 1"
    );
    let client = world.clickhouse().with_database("default");
    client.query(&again).execute().await.unwrap();
    signal(&child, "CONT");
    let (code, stderr) = end(child).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains(
            "not exactly once: 11 events were published; 12 rows are stored, of 11 events"
        ),
        "{stderr}"
    );
    nothing_is_left(&world).await;
}

#[tokio::test]
async fn bench_that_fails_leaves_nothing_and_says_what_it_could_not_remove() {
    let mut world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let child = start(&config, &LONG);
    has_stored(&world).await;
    let scratch = streams(&world).await.remove(0);
    let jetstream = world.nats.jetstream().await;
    jetstream.delete_stream(&scratch).await.unwrap();
    let (code, stderr) = end(child).await;
    assert_eq!(code, Some(1), "{stderr}");
    nothing_is_left(&world).await;

    let child = start(&config, &LONG);
    has_stored(&world).await;
    let scratch = streams(&world).await.remove(0);
    world.nats.kill();
    let (code, stderr) = end(child).await;
    assert_ne!(code, Some(0), "{stderr}");
    let left = format!("not everything could be removed: stream `{scratch}`");
    assert!(stderr.contains(&left), "{stderr}");
    assert_eq!(databases(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn bench_makes_nothing_before_both_servers_answer() {
    let mut world = World::new().await;
    let config = world.config_at("analytics.yml", "http://127.0.0.1:1", "", "");
    let (code, _, stderr) = run(&config, &["bench"]).await;
    assert_eq!(code, Some(69), "{stderr}");
    let says = "analytics-server: cannot use ClickHouse at http://127.0.0.1:1: ";
    assert!(stderr.starts_with(says), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    nothing_is_left(&world).await;

    if cfg!(target_os = "linux") {
        // Above what Linux gives to processes.
        let (code, _, stderr) = run(&config, &["bench", "--nats-pid", "4194305"]).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains("there is no process 4194305 (--nats-pid)"),
            "{stderr}"
        );
    }

    world.nats.kill();
    let (code, _, stderr) = run(&config, &["bench"]).await;
    assert_eq!(code, Some(69), "{stderr}");
}
