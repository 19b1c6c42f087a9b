//! A table is filled from one stream only: views of two could not be kept exact.

use std::path::{Path, PathBuf};

use crate::support::World;
use crate::support::daemon::{self, Daemon};
use crate::support::events::event;
use crate::support::nats::Nats;

/// A configuration with the same database, and a stream or consumer of its own.
fn another(world: &World, name: &str, messaging: &str) -> PathBuf {
    let config = world.config("flush_interval_seconds: 0.1", messaging);
    let other = world.dir.path().join(name);
    std::fs::rename(config, &other).unwrap();
    other
}

/// `serve` ends with an error that names who fills the table.
async fn is_refused(config: &Path) {
    let output = daemon::run(config, &["serve"]).await;
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let names = "table `analytics_events` is filled from stream ANALYTICS@";
    assert!(log.contains(names), "{log}");
    assert!(log.contains("Give this stream another db_name"), "{log}");
}

const ELSEWHERE: &str = "subjects: {analytics_events: 'elsewhere.>', analytics_batch: elsewhere.batch}, jetstream: {stream_name: ELSEWHERE}";

#[tokio::test]
async fn a_second_stream_into_the_same_table_is_refused_and_the_first_goes_on() {
    let world = World::new().await;
    let second = another(&world, "second.yml", ELSEWHERE);
    let renamed = "jetstream: {consumer_name: another}";
    let renamed = another(&world, "renamed.yml", renamed);
    let first = world.daemon("flush_interval_seconds: 0.1");
    first.logs("checkpoint taken over").await;
    is_refused(&second).await;
    // The events of the same stream would be stored twice.
    is_refused(&renamed).await;
    world.publish("app.start", event("a")).await;
    world.settled(1, 0).await;

    let output = daemon::run(&second, &["check"]).await;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        report.contains("`analytics_events` is filled from stream ANALYTICS@"),
        "{report}"
    );

    // A daemon that stops in an orderly way leaves the table to others at once.
    first.stop().await;
    let second = Daemon::start(&second);
    second.logs("checkpoint taken over").await;
}

#[tokio::test]
async fn the_same_stream_of_another_nats_is_refused_until_the_first_is_gone() {
    let world = World::new().await;
    let first = world.daemon("flush_interval_seconds: 0.1");
    first.logs("checkpoint taken over").await;
    let other = Nats::start().await;
    let second = another(
        &world,
        "second.yml",
        &format!("nats_url: '{}'", other.url()),
    );
    is_refused(&second).await;

    first.kill();
    let second = Daemon::start(&second);
    second
        .logs("another lane has written to this table: waiting")
        .await;
    second.logs("checkpoint taken over").await;
}

#[tokio::test]
async fn a_lane_that_was_frozen_while_another_took_its_table_inserts_nothing_more() {
    let world = World::new().await;
    let second = another(&world, "second.yml", ELSEWHERE);
    let mut first = world.daemon("flush_interval_seconds: 0.1");
    first.logs("checkpoint taken over").await;
    first.signal("STOP");
    let second = Daemon::start(&second);
    second.logs("checkpoint taken over").await;
    world.publish("app.start", event("a")).await;
    first.signal("CONT");
    first.logs("is filled from stream ELSEWHERE@").await;
    assert_eq!(first.ended().await.code(), Some(1));
    assert_eq!(world.stored().await, 0);
}
