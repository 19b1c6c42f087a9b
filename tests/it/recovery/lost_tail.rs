//! The end of the stream is gone, and its sequences are used again.

use super::ANALYTICS;
use crate::support::World;
use crate::support::daemon::Daemon;
use crate::support::events::{event, publish_samples};

/// NATS goes back to what it had on disk before, as after a power failure: the end of
/// the stream is gone, the checkpoint is an old one, and sequences are used again.
async fn nats_goes_back_in_time(daemon_stays: bool) {
    let mut world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::at_work(&config).await;
    publish_samples(&world, 200).await;
    world.stored_once(200, 0).await;
    let copy = world.nats.restart_and_copy().await;
    publish_samples(&world, 100).await;
    world.stored_once(300, 0).await;

    let daemon = match daemon_stays {
        true => Some(daemon),
        false => {
            daemon.kill();
            None
        }
    };
    world.nats.restart_from(&copy).await;
    publish_samples(&world, 150).await;
    let daemon = daemon.unwrap_or_else(|| Daemon::start(&config));
    // Sequences 201 to 300 are stored twice over, as different messages.
    world.stored_once(450, 0).await;
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

/// After a power failure the clock of NATS' machine may be behind: what takes the place of
/// lost messages is then stored earlier than they were. Here the past is moved instead.
#[tokio::test]
async fn a_lost_tail_is_found_also_where_the_clock_is_behind() {
    let mut world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::at_work(&config).await;
    publish_samples(&world, 90).await;
    world.stored_once(90, 0).await;
    let copy = world.nats.restart_and_copy().await;
    for _ in 0..10 {
        world.publish("app.start", event("lost")).await;
    }
    world.stored_once(100, 0).await;
    daemon.stop().await;

    // The lost messages were stored an hour later than they seem to have been, and so says
    // the checkpoint.
    let mut record = world.record().await;
    let hour = 3_600_000_000_000_i64;
    let later = |time: &mut serde_json::Value| *time = (time.as_i64().unwrap() + hour).into();
    later(&mut record["committed_stored_at"]);
    for landmark in record["landmarks"].as_array_mut().unwrap() {
        if landmark[0].as_u64() > Some(90) {
            later(&mut landmark[1]);
        }
    }
    let later = "ALTER TABLE analytics_events UPDATE received_at = received_at + INTERVAL 1 HOUR WHERE stream_seq > 90";
    world.run(later).await;

    world.nats.restart_from(&copy).await;
    world.put_record(&record).await;
    // As many as were lost, and one more.
    for _ in 0..11 {
        world.publish("app.start", event("new")).await;
    }
    let daemon = Daemon::start(&config);
    daemon.logs("the stream has lost its tail").await;
    world.stored_once(111, 0).await;
    let sql = "SELECT count() AS n FROM analytics_events WHERE client_id = 'new'";
    assert_eq!(world.number(sql).await, 11);
}

#[tokio::test]
async fn a_last_message_that_was_deleted_by_itself_is_no_lost_tail() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::at_work(&config).await;
    publish_samples(&world, 100).await;
    world.stored_once(100, 0).await;
    let last = world.publish("app.start", event("deleted")).await;
    world.stored_once(101, 0).await;
    daemon.stop().await;
    let stream = world.nats.stream().await;
    stream.delete_message(last).await.unwrap();
    publish_samples(&world, 50).await;
    let daemon = Daemon::start(&config);
    world.stored_once(151, 0).await;
    let log = daemon.log();
    assert!(!log.contains("ERROR"), "{log}");
}
