//! Who has the checkpoint, and until when.

use std::time::Duration;

use analytics_server::internal::{Checkpoint, Claim, StreamId, Turn, open_bucket};
use prometheus::IntCounter;

use super::ANALYTICS;
use crate::support::World;
use crate::support::daemon::Daemon;
use crate::support::events::publish_samples;

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
        let frozen = Daemon::start_with_fault(&log, &config, &format!("freeze@{step}:2"));
        frozen.takes_over().await;
        let other = Daemon::start(&config);
        other.logs("standing by").await;
        publish_samples(&world, 300).await;
        other.takes_over().await;
        world.stored_once(300, 0).await;
        frozen.signal("CONT");
        frozen.logs("standing by").await;
        publish_samples(&world, 100).await;
        world.stored_once(400, 0).await;
    }
}

#[tokio::test]
async fn work_that_ends_while_the_lease_is_renewed_leaves_a_record_that_can_be_written() {
    let world = World::new().await;
    let stream = StreamId {
        name: "S".to_owned(),
        created: "monday".to_owned(),
    };
    let lease_timeout = Duration::from_millis(20);
    let claim = Claim {
        owner: "o".to_owned(),
        created: stream.created.clone(),
        stream,
        consumer: "c".to_owned(),
        lease_timeout,
        at_once: false,
        writes: IntCounter::new("writes", "of the record").unwrap(),
    };
    let jetstream = world.nats.jetstream().await;
    let bucket = open_bucket(&jetstream, 1).await.unwrap();
    let checkpoint = Checkpoint::take_over(bucket, claim, Turn::Vacant, None).await;
    let checkpoint = checkpoint.unwrap().unwrap();
    // It is renewed after a quarter of the lease, which takes a fraction of a millisecond.
    for microseconds in (0..1000).step_by(5) {
        let work = tokio::time::sleep(lease_timeout / 4 + Duration::from_micros(microseconds));
        checkpoint.keep_during(work).await.unwrap();
        checkpoint.change(|_| ()).await.unwrap();
    }
}
