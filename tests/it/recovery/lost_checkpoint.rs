//! There is no checkpoint of what is to be read: it was lost, or the consumer or the
//! stream is another one.

use super::ANALYTICS;
use crate::support::daemon::Daemon;
use crate::support::events::publish_samples;
use crate::support::{World, eventually};

#[tokio::test]
async fn a_checkpoint_that_was_lost_while_nobody_worked_stores_nothing_twice() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::at_work(&config).await;
    publish_samples(&world, 300).await;
    world.stored_once(300, 0).await;
    daemon.kill();
    world.lose_checkpoint().await;
    publish_samples(&world, 50).await;

    let daemon = Daemon::start(&config);
    daemon
        .logs("there is no checkpoint, though ClickHouse holds rows of this stream")
        .await;
    daemon
        .logs("ClickHouse holds more than the checkpoint knows of")
        .await;
    world.stored_once(350, 0).await;
}

#[tokio::test]
async fn a_consumer_of_another_name_stores_nothing_twice() {
    let world = World::new().await;
    let daemon = Daemon::at_work(&world.config(ANALYTICS, "")).await;
    publish_samples(&world, 200).await;
    world.stored_once(200, 0).await;
    daemon.stop().await;
    let renamed = world.config(ANALYTICS, "jetstream: {consumer_name: another}");
    let _daemon = Daemon::at_work(&renamed).await;
    publish_samples(&world, 100).await;
    eventually("what is new is stored", async || {
        (world.stored().await >= 300).then_some(())
    })
    .await;
    stored_once_by(&world, "another", 300).await;
}

/// As [`World::stored_once`], with the consumer of another name.
async fn stored_once_by(world: &World, consumer: &str, events: u64) {
    let stream = world.nats.stream().await;
    eventually("everything is acknowledged", async || {
        let info = stream.consumer_info(consumer).await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(world.stored().await, events);
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn an_insert_that_still_runs_when_the_checkpoint_is_lost_is_waited_for() {
    let world = World::new().await;
    let config = world.config("batch_size: 100, flush_interval_seconds: 60", "");
    let daemon = Daemon::at_work(&config).await;
    // Checked row by row before any of them is stored: the insert takes 3 s.
    let slow = "ALTER TABLE analytics_events ADD CONSTRAINT slow CHECK sleepEachRow(0.03) = 0";
    world.run(slow).await;
    publish_samples(&world, 100).await;
    eventually("the insert runs", async || {
        let inserts = "SELECT count() AS n FROM system.processes WHERE query_kind = 'Insert' AND current_database = currentDatabase()";
        (world.number(inserts).await > 0).then_some(())
    })
    .await;
    daemon.kill();
    world.lose_checkpoint().await;
    // Batches are cut elsewhere: no token of before is met again.
    let daemon = Daemon::start(&world.config("batch_size: 30, flush_interval_seconds: 0.1", ""));
    daemon
        .logs("waiting for the inserts of an earlier writer")
        .await;
    world.stored_once(100, 0).await;
}

#[tokio::test]
async fn a_stream_that_was_made_again_is_another_one() {
    let world = World::new().await;
    let daemon = Daemon::at_work(&world.config(ANALYTICS, "")).await;
    publish_samples(&world, 100).await;
    world.stored_once(100, 0).await;
    let jetstream = world.nats.jetstream().await;
    jetstream.delete_stream("ANALYTICS").await.unwrap();
    daemon
        .logs("the stream is not the one of the checkpoint")
        .await;
    publish_samples(&world, 70).await;
    world.stored_once(170, 0).await;
}
