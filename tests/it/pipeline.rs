//! From the stream into ClickHouse, once: what the daemon promises.

use std::collections::HashMap;
use std::process::Command;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use uuid::Uuid;

use crate::support::daemon::Daemon;
use crate::support::events::{event, publish_samples, publish_with_an_odd_header};
use crate::support::{World, dependency, eventually};

#[tokio::test]
async fn a_hundred_thousand_events_are_stored_once_however_often_the_daemon_is_killed() {
    const EVENTS: usize = 100_000;
    let world = World::new().await;
    let config = world.config("batch_size: 2000, flush_interval_seconds: 0.2", "");
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.logs("checkpoint taken over").await;
    let mut daemon = Some(daemon);
    let killing = async {
        for kills in 1..=5 {
            let enough = (EVENTS / 6 * kills) as u64;
            eventually("some more is stored", async || {
                (world.stored().await >= enough).then_some(())
            })
            .await;
            daemon.take().unwrap().kill();
            daemon = Some(Daemon::start_with(&config, &[], "info"));
        }
    };
    tokio::join!(publish_samples(&world, EVENTS), killing);

    world.settled(EVENTS as u64, 0).await;
    let ids = "SELECT uniqExact(event_id) AS n FROM analytics_events";
    assert_eq!(world.number(ids).await, EVENTS as u64);
    let sequences = "SELECT uniqExact(stream_seq) AS n FROM analytics_events";
    assert_eq!(world.number(sequences).await, EVENTS as u64);
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn a_stop_stores_and_acknowledges_what_is_held() {
    let world = World::new().await;
    let daemon = world.daemon("flush_interval_seconds: 3600");
    daemon.logs("checkpoint taken over").await;
    let sequence = world.publish("app.start", event("a")).await;
    daemon.logs(&format!("sequence={sequence}")).await;
    assert_eq!(world.stored().await, 0);

    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    assert!(
        log.contains(r#"stopped lane="analytics" stored=1 dead_letters=0"#),
        "{log}"
    );
    world.settled(1, 0).await;
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_at_once() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 3600", "");
    let mut daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    let sequence = world.publish("app.start", event("a")).await;
    daemon.logs(&format!("sequence={sequence}")).await;
    // The insert can no longer end, and so neither can an orderly stop.
    world
        .clickhouse()
        .query("DROP TABLE analytics_events SYNC")
        .execute()
        .await
        .unwrap();
    daemon.signal("INT");
    daemon.logs("insert failed, retrying").await;
    daemon.signal("INT");
    assert_eq!(daemon.ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_stop_while_clickhouse_takes_nothing_leaves_the_batch_for_the_next_start() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    let rename = async |sql: &str| world.clickhouse().query(sql).execute().await.unwrap();
    rename("RENAME TABLE analytics_events TO elsewhere").await;
    world.publish("app.start", event("a")).await;
    daemon.logs("insert failed, retrying").await;
    let (status, log) = daemon.stop().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        log.contains("they are recorded, and are sent first at the next start"),
        "{log}"
    );

    rename("RENAME TABLE elsewhere TO analytics_events").await;
    let daemon = Daemon::start(&config);
    daemon.logs("in_flight=1").await;
    world.settled(1, 0).await;
}

#[tokio::test]
async fn odd_messages_stop_nothing_and_none_is_dropped() {
    let world = World::new().await;
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    daemon.logs("checkpoint taken over").await;
    let jetstream = world.nats.jetstream().await;
    let send = async |subject: &str, headers: &[(&str, &str)], payload: Vec<u8>| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let subject = format!("fechatter.analytics.{subject}");
        let ack = jetstream
            .publish_with_headers(subject, map, payload.into())
            .await
            .unwrap();
        ack.await.unwrap()
    };

    let id = Uuid::new_v4();
    send(
        "app.start",
        &[("Nats-Msg-Id", &id.to_string())],
        event("with an id"),
    )
    .await;
    // JetStream keeps the duplicate out.
    let again = send(
        "app.start",
        &[("Nats-Msg-Id", &id.to_string())],
        event("with an id"),
    )
    .await;
    assert!(again.duplicate);
    send(
        "app.start",
        &[("Nats-Msg-Id", "order 17"), ("x", "ä\t\"")],
        event("no uuid"),
    )
    .await;
    send("a.*x.>y.$z.{}'\"\\.ünïcode", &[], event("odd tokens")).await;
    send("app.start", &[], event(&"x".repeat(1_000_000))).await;
    send(
        "app.start",
        &[("Nats-Msg-Id", "bad"), ("b", "2"), ("a", "1")],
        Vec::new(),
    )
    .await;
    send("batch", &[], Vec::new()).await;
    send("batch", &[("Nats-Msg-Id", "another")], vec![0xff; 100]).await;

    world.settled(4, 2).await;
    let with_id = format!("SELECT count() AS n FROM analytics_events WHERE event_id = '{id}'");
    assert_eq!(world.number(&with_id).await, 1);
    let letters = world
        .rows("SELECT headers FROM dead_letters ORDER BY stream_seq")
        .await;
    assert_eq!(
        letters[0]["headers"],
        r#"{"Nats-Msg-Id":["bad"],"a":["1"],"b":["2"]}"#
    );
}

#[tokio::test]
async fn a_producer_in_another_language_is_understood() {
    let world = World::new().await;
    let _daemon = world.daemon("flush_interval_seconds: 0.1");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/publish.py");
    let mut python = Command::new(dependency("venv/bin/python"));
    python.arg(script).arg(world.nats.url());
    let output = tokio::task::spawn_blocking(move || python.output().unwrap())
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let ids: HashMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();

    world.settled(2, 0).await;
    let rows = world
        .rows("SELECT toString(event_id) AS id, client_id, user_id, event_type, search_query_length, message_size FROM analytics_events ORDER BY client_id")
        .await;
    assert_eq!(rows[0]["client_id"], "python-batch");
    assert_eq!(rows[0]["event_type"], "message_sent");
    assert_eq!(rows[0]["message_size"], -5);
    assert_eq!(rows[1]["id"], ids["search"]);
    assert_eq!(rows[1]["user_id"], "ünï");
    assert_eq!(rows[1]["search_query_length"], "12");
}

#[tokio::test]
async fn servers_that_come_late_or_go_away_are_waited_for() {
    let mut world = World::new().await;
    world.nats.kill();
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    daemon.logs("connecting to NATS failed, retrying").await;
    world.nats.start_again();
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("before")).await;
    world.settled(1, 0).await;

    world.nats.kill();
    daemon.logs("connection to NATS lost").await;
    world.nats.start_again();
    world.nats.is_back().await;
    world.publish("app.start", event("after")).await;
    world.settled(2, 0).await;
    let log = daemon.log();
    let said = log.matches("connecting to NATS failed, retrying").count();
    assert_eq!(said, 1, "said once a change, not once a try: {log}");
}

#[tokio::test]
async fn a_stream_that_exists_is_left_alone_and_what_does_not_fit_is_named() {
    let world = World::new().await;
    let jetstream = world.nats.jetstream().await;
    let stream = Config {
        name: "ANALYTICS".to_owned(),
        subjects: vec!["fechatter.analytics.>".to_owned(), "other".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    jetstream.create_stream(&stream).await.unwrap();
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    daemon
        .logs("retention is workqueue, should be limits (run: ")
        .await;

    jetstream.delete_stream("ANALYTICS").await.unwrap();
    let fits = Config {
        retention: RetentionPolicy::Limits,
        ..stream
    };
    jetstream.create_stream(&fits).await.unwrap();
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;
    daemon.logs("allow_direct is false, should be true (run: nats stream edit ANALYTICS --allow-direct)").await;
    let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
    assert_eq!(stream.cached_info().config.subjects, fits.subjects);
    assert!(!stream.cached_info().config.allow_direct);
}

#[tokio::test]
async fn overlapping_subjects_are_one_stream() {
    let world = World::new().await;
    let subjects = r#"subjects: {analytics_events: "fechatter.analytics.>", user_events: "fechatter.analytics.user.>", bot_events: "fechatter.analytics.bot.>"}"#;
    let _daemon = Daemon::start(&world.config("flush_interval_seconds: 0.1", subjects));
    let jetstream = world.nats.jetstream().await;
    eventually("the stream is made", async || {
        jetstream.get_stream("ANALYTICS").await.ok()
    })
    .await;
    world.publish("user.login", event("a")).await;
    world.settled(1, 0).await;
    let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
    assert_eq!(
        stream.cached_info().config.subjects,
        ["fechatter.analytics.>"]
    );
    assert!(stream.cached_info().config.allow_direct);
}

#[tokio::test]
async fn a_header_that_the_client_library_refuses_stops_nothing() {
    let world = World::new().await;
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("before")).await;

    let id = Uuid::new_v4();
    publish_with_an_odd_header(&world.nats, "", id);

    for _ in 0..5 {
        world.publish("app.start", event("after")).await;
    }
    world.settled(7, 0).await;
    let rows = world
        .rows(
            "SELECT toString(event_id) AS id FROM analytics_events WHERE client_id = 'odd header'",
        )
        .await;
    assert_eq!(rows[0]["id"], id.to_string());
}

#[tokio::test]
async fn of_two_instances_one_works_and_the_other_takes_over_when_it_stops_or_dies() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let first = Daemon::start(&config);
    first.logs("checkpoint taken over").await;
    let second = Daemon::start(&config);
    second.logs("standing by: another instance is active").await;
    let third = Daemon::start(&config);
    third.logs("standing by: another instance is active").await;
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;

    let (status, log) = first.stop().await;
    assert!(status.success(), "{log}");
    let mut standbys = vec![second, third];
    let mut events = 1;
    while let Some(active) = works(&mut standbys).await {
        world.publish("app.start", event("a")).await;
        events += 1;
        world.settled(events, 0).await;
        // Not a word to the others.
        active.kill();
    }
    assert_eq!(events, 3);
}

/// Waits for the one of `standbys` that takes over, and takes it out.
async fn works(standbys: &mut Vec<Daemon>) -> Option<Daemon> {
    if standbys.is_empty() {
        return None;
    }
    let active = eventually("one of them takes over", async || {
        let took_over = |daemon: &Daemon| daemon.log().contains("checkpoint taken over");
        standbys.iter().position(took_over)
    })
    .await;
    Some(standbys.remove(active))
}

#[tokio::test]
async fn a_consumer_or_a_bucket_deleted_under_the_daemon_is_made_again_and_nothing_is_lost() {
    let world = World::new().await;
    let config = world.config("batch_size: 100, flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.logs("checkpoint taken over").await;
    let jetstream = world.nats.jetstream().await;
    publish_samples(&world, 250).await;
    world.settled(250, 0).await;

    let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
    stream.delete_consumer("analytics-processor").await.unwrap();
    publish_samples(&world, 250).await;
    world.settled(500, 0).await;

    // What is stored must not be stored again because the record that says so is missing.
    jetstream
        .delete_key_value("analytics-checkpoints")
        .await
        .unwrap();
    publish_samples(&world, 250).await;
    world.settled(750, 0).await;
    let sequences = "SELECT uniqExact(stream_seq) AS n FROM analytics_events";
    assert_eq!(world.number(sequences).await, 750);
    world.views_equal_a_recount().await;
    eventually("the checkpoint is made again", async || {
        let bucket = jetstream
            .get_key_value("analytics-checkpoints")
            .await
            .ok()?;
        bucket.get("ANALYTICS.analytics-processor").await.ok()?
    })
    .await;
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
}
