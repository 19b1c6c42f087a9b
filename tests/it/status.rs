//! `analytics-server health` and `status`: what an operator sees.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::clickhouse::lasting_port;
use crate::support::daemon::{self, Daemon};
use crate::support::events::publish_samples;
use crate::support::{LIMIT, World, eventually};

/// A configuration by which its daemon is found, and the address.
fn config(world: &World) -> (PathBuf, String) {
    let config = world.config("flush_interval_seconds: 0.1", "");
    let port = lasting_port();
    let filed = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, filed.replace("port: 0", &format!("port: {port}"))).unwrap();
    (config, format!("127.0.0.1:{port}"))
}

/// Exit code, standard output, standard error.
async fn run(config: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon::run(config, arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code();
    (code, text(output.stdout), text(output.stderr))
}

/// `status`, which looks twice within a tenth of a second.
async fn status(config: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    run(config, &[&["status", "--interval", "0.1"], more].concat()).await
}

#[tokio::test]
async fn health_asks_the_daemon_of_the_configuration() {
    let mut world = World::new().await;
    let (config, address) = config(&world);
    for command in ["health", "status"] {
        let (code, _, stderr) = run(&config, &[command]).await;
        assert_eq!(code, Some(69), "{stderr}");
        let refused = format!("no answer from {address}: Connection refused");
        assert!(stderr.contains(&refused), "{stderr}");
    }

    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    let (code, stdout, _) = run(&config, &["health"]).await;
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains(r#""status":"healthy""#), "{stdout}");
    world.nats.kill();
    eventually("it is unhealthy", async || {
        let (code, stdout, _) = run(&config, &["health"]).await;
        (code == Some(1) && stdout.contains("connection lost")).then_some(())
    })
    .await;
    let (code, stdout, _) = status(&config, &[]).await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("unhealthy"), "{stdout}");
    assert!(stdout.contains("NATS          connection lost"), "{stdout}");
}

#[tokio::test]
async fn status_shows_what_went_through() {
    let world = World::new().await;
    let (config, address) = config(&world);
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 1500).await;
    world.publish("app.start", "not protobuf").await;
    world.settled(1500, 1).await;

    let stored = eventually("all is counted", async || {
        let (code, stdout, stderr) = status(&config, &["--json"]).await;
        assert_eq!(code, Some(0), "{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let lane = &report["lanes"][0];
        let all = &lane["since_start"];
        // It is asked for every few seconds.
        let lag = &report["health"]["lanes"][0]["lag"];
        let is_known = lag["pending"] == 0 && lag["ack_pending"] == 0;
        (is_known && all["stored"] == 1500 && all["dead_letters"] == 1).then_some(report)
    })
    .await;
    assert_eq!(stored["address"], address.as_str());
    assert_eq!(stored["health"]["lanes"][0]["role"], "active");
    let lane = &stored["lanes"][0];
    assert_eq!(lane["lane"], "analytics");
    assert_eq!(lane["since_start"]["received"], 1501);
    assert_eq!(lane["dead_letters"]["undecodable"], 1);
    assert_eq!(lane["in_flight"]["events"], 0);
    let batches = lane["since_start"]["batch_rows"].as_f64().unwrap();
    assert!((1.0..=1501.0).contains(&batches), "{stored}");
    assert!(lane["since_start"]["insert_seconds"].as_f64() > Some(0.0));

    let (code, stdout, _) = status(&config, &[]).await;
    assert_eq!(code, Some(0));
    let first = format!("at {address}: healthy\n");
    assert!(stdout.contains(&first), "{stdout}");
    assert!(
        stdout.contains("lane analytics: healthy, active\n"),
        "{stdout}"
    );
    let shows = |name: &str, end: &str| {
        let lines: Vec<_> = stdout
            .lines()
            .filter(|line| line.starts_with(name))
            .collect();
        assert!(
            lines.iter().any(|line| line.ends_with(end)),
            "{name} {end}: {stdout}"
        );
    };
    for name in ["NATS", "ClickHouse", "schema", "pipeline"] {
        shows(name, " ok");
    }
    shows("lag", " 0 messages to come, 0 not acknowledged");
    shows("last insert", " ago");
    shows("received", " 1,501");
    shows("stored", " 1,500");
    shows("dead letters", " 1 undecodable");
    // For what was never there, it says `-`.
    shows("insert p95", "s");
}

#[tokio::test]
async fn status_watches_a_daemon_that_comes_and_goes() {
    let world = World::new().await;
    let (config, address) = config(&world);
    let mut command = tokio::process::Command::from(daemon::command(&config));
    command.args(["status", "--watch", "--interval", "0.1"]);
    let watch = command.stdout(Stdio::piped()).kill_on_drop(true).spawn();
    let mut watch = watch.unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut shows = async |text: &str| {
        let found = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(text) {
                    return;
                }
            }
            panic!("it ends before it shows `{text}`");
        };
        let found = tokio::time::timeout(LIMIT, found).await;
        assert!(found.is_ok(), "it does not show `{text}`");
    };
    shows(&format!("no answer from {address}")).await;
    let daemon = Daemon::start(&config);
    shows(": healthy, active").await;
    world.nats.signal("STOP");
    // It holds its connection and says nothing any more.
    shows("NATS          connection lost").await;
    world.nats.signal("CONT");
    shows(": healthy, active").await;
    daemon.kill();
    shows(&format!("no answer from {address}")).await;
}
