//! Messages that the stream dropped before they were stored are counted, and no others.

use super::ANALYTICS;
use crate::http::health_of;
use crate::support::World;
use crate::support::daemon::Daemon;
use crate::support::events::{event, publish_samples};

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
    let daemon = Daemon::at_work(&config).await;
    world.publish("app.start", event("before")).await;
    world.stored_once(1, 0).await;
    daemon.stop().await;
    for _ in 0..50 {
        world.publish("app.start", event("meanwhile")).await;
    }
    let stream = world.nats.stream().await;
    stream.purge().sequence(32).await.unwrap();

    let daemon = Daemon::start(&config);
    daemon
        .logs("the stream dropped messages before they were stored first=2 last=31 expired=30")
        .await;
    world.stored_once(21, 0).await;
    expired(&daemon, 30).await;
}

#[tokio::test]
async fn messages_that_were_deleted_one_by_one_before_they_were_stored_are_counted() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::at_work(&config).await;
    world.publish("app.start", event("before")).await;
    world.stored_once(1, 0).await;
    daemon.stop().await;
    for number in 2..=31 {
        let subject = if number % 5 == 0 {
            "app.gone"
        } else {
            "app.start"
        };
        world.publish(subject, event("meanwhile")).await;
    }
    let stream = world.nats.stream().await;
    // Some in the middle, and the last two.
    for sequence in [7, 8, 12, 30, 31] {
        stream.delete_message(sequence).await.unwrap();
    }
    let gone = stream.purge().filter("fechatter.analytics.app.gone");
    // 5, 10, 15, 20, 25, and 30 before.
    assert_eq!(gone.await.unwrap().purged, 5);

    let daemon = Daemon::start(&config);
    world.stored_once(21, 0).await;
    let said = "the stream dropped messages before they were stored";
    daemon.logs(&format!("{said} first=5")).await;
    // Nothing follows these.
    daemon
        .logs(&format!("{said} first=30 last=31 expired=2"))
        .await;
    expired(&daemon, 10).await;
    world.publish("app.start", event("after")).await;
    world.stored_once(22, 0).await;
    expired(&daemon, 10).await;
}

#[tokio::test]
async fn messages_that_were_stored_before_the_stream_dropped_them_do_not_count_as_expired() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::at_work(&config).await;
    publish_samples(&world, 20).await;
    world.stored_once(20, 0).await;
    daemon.stop().await;
    world.lose_checkpoint().await;
    publish_samples(&world, 10).await;
    let stream = world.nats.stream().await;
    for sequence in [3, 9, 10, 22, 25] {
        stream.delete_message(sequence).await.unwrap();
    }

    // It reads the whole stream again.
    let daemon = Daemon::start(&config);
    world.stored_once(28, 0).await;
    expired(&daemon, 2).await;
}

#[tokio::test]
async fn messages_on_a_subject_that_was_added_to_the_stream_do_not_count_as_expired() {
    let world = World::new().await;
    let daemon = Daemon::at_work(&world.config(ANALYTICS, "")).await;
    world.publish("app.start", event("before")).await;
    world.stored_once(1, 0).await;
    let jetstream = world.nats.jetstream().await;
    let stream = world.nats.stream().await;
    let mut config = stream.cached_info().config.clone();
    config.subjects.push("another.subject".to_owned());
    jetstream.update_stream(config).await.unwrap();
    for events in 2..10 {
        let sent = jetstream.publish("another.subject", "not an event".into());
        sent.await.unwrap().await.unwrap();
        world.publish("app.start", event("after")).await;
        world.stored_once(events, 0).await;
    }
    expired(&daemon, 0).await;
    let log = daemon.log();
    assert!(!log.contains("the stream dropped messages"), "{log}");
    assert!(!log.contains("interrupted"), "{log}");
}
