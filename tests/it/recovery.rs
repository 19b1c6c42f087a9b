//! What is stored once also when the record, the stream or an instance is not what
//! it was.

use crate::http::health_of;
use crate::support::daemon::Daemon;
use crate::support::events::{event, publish_samples};
use crate::support::{World, eventually};

const ANALYTICS: &str = "batch_size: 60, flush_interval_seconds: 0.1";

/// Waits until so many events are stored, and compares them with the views.
async fn stored_once(world: &World, events: u64) {
    world.settled(events, 0).await;
    let different =
        "SELECT uniqExact(stream_seq, batch_index, received_at) AS n FROM analytics_events";
    assert_eq!(world.number(different).await, events);
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn a_checkpoint_that_was_lost_while_nobody_worked_stores_nothing_twice() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 300).await;
    stored_once(&world, 300).await;
    daemon.kill();
    let jetstream = world.nats.jetstream().await;
    jetstream
        .delete_key_value("analytics-checkpoints")
        .await
        .unwrap();
    publish_samples(&world, 50).await;

    let daemon = Daemon::start(&config);
    daemon
        .logs("there is no checkpoint, though ClickHouse holds rows of this stream")
        .await;
    daemon
        .logs("ClickHouse holds more than the checkpoint knows of")
        .await;
    stored_once(&world, 350).await;
}

#[tokio::test]
async fn a_consumer_of_another_name_stores_nothing_twice() {
    let world = World::new().await;
    let daemon = Daemon::start(&world.config(ANALYTICS, ""));
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 200).await;
    stored_once(&world, 200).await;
    daemon.stop().await;
    let renamed = world.config(ANALYTICS, "jetstream: {consumer_name: another}");
    let daemon = Daemon::start(&renamed);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 100).await;
    eventually("what is new is stored", async || {
        (world.stored().await >= 300).then_some(())
    })
    .await;
    stored_once_by(&world, "another", 300).await;
}

/// As [`stored_once`], with the consumer of another name.
async fn stored_once_by(world: &World, consumer: &str, events: u64) {
    let stream = world.nats.jetstream().await.get_stream("ANALYTICS").await;
    let stream = stream.unwrap();
    eventually("everything is acknowledged", async || {
        let info = stream.consumer_info(consumer).await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(world.stored().await, events);
    world.views_equal_a_recount().await;
}

/// NATS goes back to what it had on disk before, as after a power failure: the end of
/// the stream is gone, the checkpoint is an old one, and sequences are used again.
async fn nats_goes_back_in_time(daemon_stays: bool) {
    let mut world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 200).await;
    stored_once(&world, 200).await;
    world.nats.kill();
    let copy = world.nats.copy_of_data();
    world.nats.start_again();
    world.nats.is_back().await;
    publish_samples(&world, 100).await;
    stored_once(&world, 300).await;

    let daemon = match daemon_stays {
        true => Some(daemon),
        false => {
            daemon.kill();
            None
        }
    };
    world.nats.kill();
    world.nats.go_back_to(&copy);
    world.nats.start_again();
    world.nats.is_back().await;
    publish_samples(&world, 150).await;
    let daemon = daemon.unwrap_or_else(|| Daemon::start(&config));
    // Sequences 201 to 300 are stored twice over, as different messages.
    stored_once(&world, 450).await;
    let log = daemon.log();
    assert!(
        log.contains("the stream has lost its tail")
            || log.contains("ClickHouse holds more than the checkpoint knows of"),
        "{log}"
    );
}

#[tokio::test]
async fn a_stream_that_lost_its_tail_under_the_daemon_loses_and_doubles_nothing_stored() {
    nats_goes_back_in_time(true).await;
}

#[tokio::test]
async fn a_stream_and_a_checkpoint_that_went_back_while_nobody_worked_lose_and_double_nothing() {
    nats_goes_back_in_time(false).await;
}

#[tokio::test]
async fn a_stream_that_was_made_again_is_another_one() {
    let world = World::new().await;
    let daemon = world.daemon(ANALYTICS);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 100).await;
    stored_once(&world, 100).await;
    let jetstream = world.nats.jetstream().await;
    jetstream.delete_stream("ANALYTICS").await.unwrap();
    daemon
        .logs("the stream is not the one of the checkpoint")
        .await;
    publish_samples(&world, 70).await;
    stored_once(&world, 170).await;
}

/// What `/health` says of the messages that the stream dropped.
async fn expired(daemon: &Daemon, messages: u64) {
    let health = health_of(&daemon.address().await).await.unwrap();
    let counted = format!(r#""expired":{messages}}}"#);
    assert!(health.contains(&counted), "{health}");
}

#[tokio::test]
async fn messages_that_expired_before_they_were_stored_are_counted() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("before")).await;
    stored_once(&world, 1).await;
    daemon.stop().await;
    for _ in 0..50 {
        world.publish("app.start", event("meanwhile")).await;
    }
    let stream = world.nats.jetstream().await.get_stream("ANALYTICS").await;
    stream.unwrap().purge().sequence(32).await.unwrap();

    let daemon = Daemon::start(&config);
    daemon
        .logs("the stream dropped messages before they were stored first=2 last=31 expired=30")
        .await;
    stored_once(&world, 21).await;
    expired(&daemon, 30).await;
}

#[tokio::test]
async fn messages_that_were_deleted_one_by_one_before_they_were_stored_are_counted() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("before")).await;
    stored_once(&world, 1).await;
    daemon.stop().await;
    for number in 2..=31 {
        let subject = if number % 5 == 0 {
            "app.gone"
        } else {
            "app.start"
        };
        world.publish(subject, event("meanwhile")).await;
    }
    let stream = world.nats.jetstream().await.get_stream("ANALYTICS").await;
    let stream = stream.unwrap();
    // Some in the middle, and the last two.
    for sequence in [7, 8, 12, 30, 31] {
        stream.delete_message(sequence).await.unwrap();
    }
    let gone = stream.purge().filter("fechatter.analytics.app.gone");
    // 5, 10, 15, 20, 25, and 30 before.
    assert_eq!(gone.await.unwrap().purged, 5);

    let daemon = Daemon::start(&config);
    stored_once(&world, 21).await;
    let said = "the stream dropped messages before they were stored";
    daemon.logs(&format!("{said} first=5")).await;
    // Nothing follows these.
    daemon
        .logs(&format!("{said} first=30 last=31 expired=2"))
        .await;
    expired(&daemon, 10).await;
    world.publish("app.start", event("after")).await;
    stored_once(&world, 22).await;
    expired(&daemon, 10).await;
}

#[tokio::test]
async fn messages_that_were_stored_before_the_stream_dropped_them_do_not_count_as_expired() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 20).await;
    stored_once(&world, 20).await;
    daemon.stop().await;
    let jetstream = world.nats.jetstream().await;
    let bucket = jetstream.delete_key_value("analytics-checkpoints").await;
    bucket.unwrap();
    publish_samples(&world, 10).await;
    let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
    for sequence in [3, 9, 10, 22, 25] {
        stream.delete_message(sequence).await.unwrap();
    }

    // It reads the whole stream again.
    let daemon = Daemon::start(&config);
    stored_once(&world, 28).await;
    expired(&daemon, 2).await;
}

#[tokio::test]
async fn messages_on_a_subject_that_was_added_to_the_stream_do_not_count_as_expired() {
    let world = World::new().await;
    let daemon = world.daemon(ANALYTICS);
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("before")).await;
    stored_once(&world, 1).await;
    let jetstream = world.nats.jetstream().await;
    let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.subjects.push("another.subject".to_owned());
    jetstream.update_stream(config).await.unwrap();
    for events in 2..10 {
        let sent = jetstream.publish("another.subject", "not an event".into());
        sent.await.unwrap().await.unwrap();
        world.publish("app.start", event("after")).await;
        stored_once(&world, events).await;
    }
    expired(&daemon, 0).await;
    let log = daemon.log();
    assert!(!log.contains("the stream dropped messages"), "{log}");
    assert!(!log.contains("interrupted"), "{log}");
}

#[tokio::test]
async fn an_instance_that_was_frozen_past_its_lease_stores_nothing_when_it_goes_on() {
    for step in [
        "after-record",
        "during-insert",
        "after-insert",
        "before-ack",
    ] {
        let world = World::new().await;
        let config = world.config(ANALYTICS, "");
        let log = world.dir.path().join("frozen.log");
        let fault = format!("freeze@{step}:2");
        let frozen = Daemon::start_logging_to(&log, &config, &[("ANALYTICS_FAULT", &fault)]);
        frozen.logs("checkpoint taken over").await;
        let other = Daemon::start(&config);
        other.logs("standing by").await;
        publish_samples(&world, 300).await;
        other.logs("checkpoint taken over").await;
        stored_once(&world, 300).await;
        frozen.signal("CONT");
        frozen.logs("standing by").await;
        publish_samples(&world, 100).await;
        stored_once(&world, 400).await;
    }
}
