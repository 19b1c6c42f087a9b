//! The stream was put back from a backup, which gives it another creation time.

use super::ANALYTICS;
use crate::support::backup::{Backup, backup, restore, restored};
use crate::support::daemon::{self, Daemon};
use crate::support::events::publish_samples;
use crate::support::{World, eventually};

/// Puts the backup in the stream's place.
async fn restore_to(world: &World, stream: &Backup, with_checkpoint: bool) {
    let client = world.nats.client().await;
    let jetstream = world.nats.jetstream().await;
    jetstream.delete_stream("ANALYTICS").await.unwrap();
    if !with_checkpoint {
        world.lose_checkpoint().await;
    }
    restore(&client, stream).await;
    restored(&client, stream).await;
}

#[tokio::test]
async fn a_stream_that_was_restored_stores_nothing_twice() {
    for with_checkpoint in [true, false] {
        let world = World::new().await;
        let config = world.config(ANALYTICS, "");
        let daemon = Daemon::at_work(&config).await;
        publish_samples(&world, 100).await;
        world.publish("batch", b"\xff".as_slice()).await;
        world.stored_once(100, 1).await;
        let before = world.stream().await;
        let backup = backup(&world.nats.client().await, "ANALYTICS").await;
        // What came after the backup is lost, and its sequences are used again.
        publish_samples(&world, 30).await;
        world.stored_once(130, 1).await;
        daemon.kill();
        restore_to(&world, &backup, with_checkpoint).await;
        assert_ne!(world.stream().await, before);
        publish_samples(&world, 50).await;

        let daemon = Daemon::start(&config);
        daemon.logs("the stream was restored").await;
        world.stored_once(180, 1).await;
        daemon.stop().await;
        // Another start knows it, and so do the commands.
        let daemon = Daemon::at_work(&config).await;
        assert!(!daemon.log().contains("the stream was restored"));
        publish_samples(&world, 10).await;
        world.stored_once(190, 1).await;
        let sql = "SELECT uniqExact(stream) AS n FROM analytics_events";
        assert_eq!(world.number(sql).await, 1);
        let verified = daemon::run(&config, &["verify"]).await;
        let said = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert_eq!(verified.status.code(), Some(0), "{said}");
        let checked = daemon::run(&config, &["check"]).await;
        assert_eq!(checked.status.code(), Some(0));
    }
}

#[tokio::test]
async fn a_restored_stream_is_known_also_where_its_first_rows_are_gone() {
    for with_checkpoint in [true, false] {
        let world = World::new().await;
        let config = world.config(ANALYTICS, "");
        let daemon = Daemon::at_work(&config).await;
        world.publish("batch", b"\xff".as_slice()).await;
        publish_samples(&world, 60).await;
        world.settled(60, 1).await;
        daemon.stop().await;
        // Purged, and deleted from the stream.
        world.run("ALTER TABLE dead_letters DELETE WHERE 1").await;
        let stream = world.nats.stream().await;
        for sequence in 2..=25 {
            stream.delete_message(sequence).await.unwrap();
        }
        let backup = backup(&world.nats.client().await, "ANALYTICS").await;
        restore_to(&world, &backup, with_checkpoint).await;
        let daemon = Daemon::start(&config);
        daemon.logs("the stream was restored").await;
        publish_samples(&world, 10).await;
        eventually("what is new is stored", async || {
            (world.stored().await >= 70).then_some(())
        })
        .await;
        assert_eq!(world.stored().await, 70);
        world.views_equal_a_recount().await;
    }
}
