//! What the daemon reports over HTTP.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::clickhouse::free_port;
use crate::support::daemon::Daemon;
use crate::support::events::{event, publish_samples};
use crate::support::{LIMIT, World, eventually};

/// The answer as it comes, with its headers.
pub async fn get(address: &str, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    let answered = connection.read_to_string(&mut answer);
    tokio::time::timeout(LIMIT, answered).await.ok()?.ok()?;
    Some(answer)
}

pub async fn health_of(address: &str) -> Option<String> {
    get(address, "/health").await
}

/// Waits until an endpoint's answer has all of these parts.
async fn tells(daemon: &Daemon, path: &str, parts: &[&str]) {
    let address = daemon.address().await;
    eventually(&format!("{path} tells {parts:?}"), async || {
        let answer = get(&address, path).await?;
        parts.iter().all(|part| answer.contains(part)).then_some(())
    })
    .await;
}

/// Every series with its value.
struct Figures(BTreeMap<String, f64>);

impl Figures {
    async fn of(daemon: &Daemon) -> Self {
        let answer = get(&daemon.address().await, "/metrics").await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: text/plain; version=0.0.4"));
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| line.rsplit_once(' '));
        let figures = series.map(|(name, value)| (of_lane(name), value.parse().unwrap()));
        Self(figures.collect())
    }

    fn get(&self, series: &str) -> f64 {
        let value = self.0.get(&format!("analytics_{series}"));
        *value.unwrap_or_else(|| panic!("there is no {series}"))
    }

    /// received = stored + dead letters + in flight + returned
    fn balance(&self) {
        let parts = [
            r#"events_stored_total{table="analytics_events"}"#,
            r#"events_stored_total{table="dead_letters"}"#,
            "events_in_flight",
            "events_returned_total",
        ];
        let sum: f64 = parts.iter().map(|series| self.get(series)).sum();
        assert_eq!(self.get("events_received_total"), sum);
        assert!(self.get("events_in_flight") >= 0.0);
        assert!(self.get("in_flight_bytes") >= 0.0);
    }
}

/// A series as it is within the one lane: all but those of the process belong to it.
fn of_lane(series: &str) -> String {
    let of_process = ["process_", "analytics_build_", "analytics_dependency_"];
    if of_process.iter().any(|prefix| series.starts_with(prefix)) {
        return series.to_owned();
    }
    let lane = r#"lane="analytics""#;
    assert!(series.contains(lane), "{series}");
    let mut series = series.replace(lane, "");
    for (rest, nothing) in [("{,", "{"), (",,", ","), (",}", "}"), ("{}", "")] {
        series = series.replace(rest, nothing);
    }
    series
}

#[tokio::test]
async fn health_follows_the_servers() {
    let mut world = World::new().await;
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    let ready = ["HTTP/1.1 200", "ok"];
    tells(
        &daemon,
        "/health",
        &["HTTP/1.1 200", r#""status":"healthy""#, r#""schema":"ok""#],
    )
    .await;
    tells(&daemon, "/health", &[r#""last_insert":null"#]).await;
    tells(&daemon, "/readyz", &ready).await;

    let rename = async |from: &str, to: &str| {
        let rename = format!("RENAME TABLE {from} TO {to}");
        world.clickhouse().query(&rename).execute().await.unwrap();
    };
    rename("analytics_events", "elsewhere").await;
    world.publish("app.start", event("a")).await;
    // The insert's, or that of the query before the first one.
    let degraded = [
        "HTTP/1.1 200",
        r#""status":"degraded""#,
        " fails: Code: 60.",
    ];
    tells(&daemon, "/health", &degraded).await;
    tells(&daemon, "/readyz", &ready).await;
    rename("elsewhere", "analytics_events").await;
    tells(
        &daemon,
        "/health",
        &[
            "HTTP/1.1 200",
            r#""status":"healthy""#,
            r#""stored":1"#,
            r#""last_insert":"20"#,
        ],
    )
    .await;

    world.nats.kill();
    let unhealthy = [
        "HTTP/1.1 503",
        r#""status":"unhealthy""#,
        r#""nats":"connection lost""#,
    ];
    tells(&daemon, "/health", &unhealthy).await;
    tells(&daemon, "/readyz", &["HTTP/1.1 503", "NATS is away"]).await;
    tells(&daemon, "/livez", &["HTTP/1.1 200"]).await;
    tells(
        &daemon,
        "/metrics",
        &[r#"analytics_role{lane="analytics",role="active"} 0"#],
    )
    .await;
    tells(
        &daemon,
        "/metrics",
        &[r#"analytics_dependency_up{dependency="nats"} 0"#],
    )
    .await;
}

#[tokio::test]
async fn every_metric_is_there_from_the_start() {
    let world = World::new().await;
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    daemon.logs("checkpoint taken over").await;
    let answer = get(&daemon.address().await, "/metrics").await.unwrap();
    let types = answer
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    // Those of the process are different on another system.
    let types = types.filter(|line| !line.starts_with("process_"));
    insta::assert_snapshot!(types.collect::<Vec<_>>().join("\n"));
    for (name, help) in answer
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
    {
        assert!(help.len() > 5, "{name}: {help}");
    }

    let figures = Figures::of(&daemon).await;
    for (series, value) in &figures.0 {
        let name = series.split('{').next().unwrap();
        // What a start does.
        let moves = [
            "process_",
            "analytics_checkpoint",
            "analytics_stream",
            "analytics_build",
        ];
        let is_counter = answer.contains(&format!("# TYPE {name} counter"));
        if is_counter && !moves.iter().any(|start| name.starts_with(start)) {
            assert_eq!(*value, 0.0, "{series}");
        }
    }
    assert_eq!(figures.get(r#"role{role="active"}"#), 1.0);
    assert_eq!(figures.get(r#"role{role="standby"}"#), 0.0);
    assert_eq!(figures.get(r#"dependency_up{dependency="nats"}"#), 1.0);
    assert_eq!(
        figures.get(r#"dependency_up{dependency="clickhouse"}"#),
        1.0
    );
    assert_eq!(figures.get("checkpoint_takeovers_total"), 1.0);
}

#[tokio::test]
async fn what_is_received_is_stored_or_a_letter_or_in_flight_or_given_back() {
    let mut world = World::new().await;
    let daemon = world.daemon("batch_size: 40, flush_interval_seconds: 0.1");
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 500).await;
    for _ in 0..10 {
        world.publish("app.start", "not protobuf").await;
        Figures::of(&daemon).await.balance();
    }
    world.settled(500, 10).await;
    eventually("all is counted", async || {
        let figures = Figures::of(&daemon).await;
        figures.balance();
        (figures.get("events_in_flight") == 0.0).then_some(())
    })
    .await;
    let figures = Figures::of(&daemon).await;
    assert_eq!(figures.get("events_received_total"), 510.0);
    assert_eq!(figures.get("messages_received_total"), 510.0);
    assert_eq!(figures.get("in_flight_bytes"), 0.0);
    assert_eq!(
        figures.get(r#"dead_letters_total{reason="undecodable"}"#),
        10.0
    );
    let errors = r#"events_processing_errors_total{error_type="undecodable",stage="decode"}"#;
    assert_eq!(figures.get(errors), 10.0);
    assert_eq!(figures.get("batch_rows_sum"), 510.0);
    assert_eq!(
        figures.get("freshness_seconds_count"),
        figures.get("batch_rows_count")
    );

    // What is held when NATS goes away is given back, and comes again.
    world
        .clickhouse()
        .query("RENAME TABLE analytics_events TO elsewhere")
        .execute()
        .await
        .unwrap();
    publish_samples(&world, 100).await;
    eventually("something is in flight", async || {
        let figures = Figures::of(&daemon).await;
        figures.balance();
        (figures.get("events_in_flight") > 0.0).then_some(())
    })
    .await;
    let retries = r#"insert_retries_total{error_class="unavailable"}"#;
    eventually("the insert is tried again", async || {
        (Figures::of(&daemon).await.get(retries) > 0.0).then_some(())
    })
    .await;
    world.nats.kill();
    eventually("it is given back", async || {
        let figures = Figures::of(&daemon).await;
        figures.balance();
        (figures.get("events_returned_total") > 0.0).then_some(())
    })
    .await;
    world.nats.start_again();
    world
        .clickhouse()
        .query("RENAME TABLE elsewhere TO analytics_events")
        .execute()
        .await
        .unwrap();
    world.settled(600, 10).await;
    eventually("all is counted again", async || {
        let figures = Figures::of(&daemon).await;
        figures.balance();
        (figures.get("events_in_flight") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn events_are_counted_by_type_and_producer() {
    let world = World::new().await;
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    daemon.logs("checkpoint taken over").await;
    let jetstream = world.nats.jetstream().await;
    let send = async |header: (&str, &str)| {
        let mut headers = HeaderMap::new();
        headers.insert(header.0, header.1);
        let subject = "fechatter.analytics.app.start";
        let payload = event("client").into();
        let sent = jetstream
            .publish_with_headers(subject, headers, payload)
            .await;
        sent.unwrap().await.unwrap();
    };
    for number in 0..70 {
        send(("service", &format!("service-{number}"))).await;
    }
    send(("Nats-Service", "service-0")).await;
    world.publish("app.start", event("client")).await;
    world.settled(72, 0).await;
    let processed = |service: &str| {
        format!(r#"events_processed_total{{event_type="other",service="{service}"}}"#)
    };
    eventually("all are counted", async || {
        let figures = Figures::of(&daemon).await;
        let services = figures
            .0
            .keys()
            .filter(|name| name.contains(r#"event_type="other""#));
        let sum: f64 = services.map(|name| figures.0[name]).sum();
        (sum == 72.0).then_some(())
    })
    .await;
    let figures = Figures::of(&daemon).await;
    assert_eq!(figures.get(&processed("service-0")), 2.0);
    assert_eq!(figures.get(&processed("unknown")), 1.0);
    // 64 with this one and the one before.
    assert_eq!(figures.get(&processed("service-61")), 1.0);
    assert_eq!(figures.get(&processed("other")), 8.0);
}

#[tokio::test]
async fn the_role_is_told_as_it_changes() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let first = Daemon::start(&config);
    tells(
        &first,
        "/metrics",
        &[r#"role{lane="analytics",role="active"} 1"#],
    )
    .await;
    let second = Daemon::start(&config);
    let is_standby = [
        r#"role{lane="analytics",role="active"} 0"#,
        r#"role{lane="analytics",role="standby"} 1"#,
    ];
    tells(&second, "/metrics", &is_standby).await;
    tells(&second, "/health", &["HTTP/1.1 200", r#""role":"standby""#]).await;
    tells(&second, "/readyz", &["HTTP/1.1 200"]).await;
    first.stop().await;
    let is_active = [
        r#"role{lane="analytics",role="active"} 1"#,
        r#"role{lane="analytics",role="standby"} 0"#,
    ];
    tells(&second, "/metrics", &is_active).await;
    tells(&second, "/health", &[r#""role":"active""#]).await;
}

#[tokio::test]
async fn metrics_are_served_on_a_port_of_their_own_too() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let port = free_port();
    let mut text = std::fs::read_to_string(&config).unwrap();
    text.push_str(&format!("observability: {{metrics: {{port: {port}}}}}\n"));
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    let address = format!("127.0.0.1:{port}");
    let answer = get(&address, "/metrics").await.unwrap();
    assert!(answer.contains("analytics_build_info{version="), "{answer}");
    let answer = get(&address, "/health").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test]
async fn silent_connections_keep_neither_probes_nor_events_out() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with_descriptors(128, &config);
    daemon.logs("checkpoint taken over").await;
    let address = daemon.address().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    tells(&daemon, "/livez", &["HTTP/1.1 200"]).await;
    tells(&daemon, "/health", &[r#""status":"healthy""#]).await;
    publish_samples(&world, 100).await;
    world.settled(100, 0).await;
    tells(&daemon, "/health", &[r#""stored":100"#]).await;
    let log = daemon.log();
    assert!(!log.contains("no HTTP connection can be accepted"), "{log}");
    drop(silent);
}

#[tokio::test]
async fn a_listener_that_was_out_of_file_descriptors_goes_on() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with_descriptors(48, &config);
    daemon.logs("checkpoint taken over").await;
    let address = daemon.address().await;
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    daemon.logs("no HTTP connection can be accepted").await;
    drop(silent);
    tells(&daemon, "/health", &[r#""status":"healthy""#]).await;
}
