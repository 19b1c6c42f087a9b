//! What is stored once also when the record, the stream or an instance is not what
//! it was.

use std::time::Duration;

use analytics_server::internal::StreamId;
use analytics_server::internal::{Checkpoint, Claim, Turn, open_bucket};
use prometheus::IntCounter;

use crate::http::health_of;
use crate::support::backup;
use crate::support::daemon::{self, Daemon};
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

#[tokio::test]
async fn a_stream_that_was_restored_stores_nothing_twice() {
    for with_checkpoint in [true, false] {
        let world = World::new().await;
        let config = world.config(ANALYTICS, "");
        let daemon = Daemon::start(&config);
        daemon.logs("checkpoint taken over").await;
        publish_samples(&world, 100).await;
        world.publish("batch", b"\xff".as_slice()).await;
        stored_once_with_letters(&world, 100, 1).await;
        let before = world.stream().await;
        let client = world.nats.client().await;
        let backup = backup::backup(&client, "ANALYTICS").await;
        // What came after the backup is lost, and its sequences are used again.
        publish_samples(&world, 30).await;
        stored_once_with_letters(&world, 130, 1).await;
        daemon.kill();
        let jetstream = world.nats.jetstream().await;
        jetstream.delete_stream("ANALYTICS").await.unwrap();
        if !with_checkpoint {
            let bucket = "analytics-checkpoints";
            jetstream.delete_key_value(bucket).await.unwrap();
        }
        backup::restore(&client, &backup).await;
        backup::restored(&client, &backup).await;
        assert_ne!(world.stream().await, before);
        publish_samples(&world, 50).await;

        let daemon = Daemon::start(&config);
        daemon.logs("the stream was restored").await;
        stored_once_with_letters(&world, 180, 1).await;
        daemon.stop().await;
        // Another start knows it, and so do the commands.
        let daemon = Daemon::start(&config);
        daemon.logs("checkpoint taken over").await;
        assert!(!daemon.log().contains("the stream was restored"));
        publish_samples(&world, 10).await;
        stored_once_with_letters(&world, 190, 1).await;
        let sql = "SELECT uniqExact(stream) AS n FROM analytics_events";
        assert_eq!(world.number(sql).await, 1);
        let verified = daemon::run(&config, &["verify"]).await;
        let said = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert_eq!(verified.status.code(), Some(0), "{said}");
        let checked = daemon::run(&config, &["check"]).await;
        assert_eq!(checked.status.code(), Some(0));
    }
}

async fn stored_once_with_letters(world: &World, events: u64, letters: u64) {
    world.settled(events, letters).await;
    world.views_equal_a_recount().await;
}

/// After a power failure the clock of NATS' machine may be behind: what takes the place of
/// lost messages is then stored earlier than they were. Here the past is moved instead.
#[tokio::test]
async fn a_lost_tail_is_found_also_where_the_clock_is_behind() {
    let mut world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 90).await;
    stored_once(&world, 90).await;
    world.nats.kill();
    let copy = world.nats.copy_of_data();
    world.nats.start_again();
    world.nats.is_back().await;
    for _ in 0..10 {
        world.publish("app.start", event("lost")).await;
    }
    stored_once(&world, 100).await;
    daemon.stop().await;

    // The lost messages were stored an hour later than they seem to have been, and so says
    // the checkpoint.
    let jetstream = world.nats.jetstream().await;
    let key = "ANALYTICS.analytics-processor";
    let bucket = jetstream.get_key_value("analytics-checkpoints").await;
    let record = bucket.unwrap().get(key).await.unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let hour = 3_600_000_000_000_i64;
    let later = |time: &mut serde_json::Value| *time = (time.as_i64().unwrap() + hour).into();
    later(&mut record["committed_stored_at"]);
    for landmark in record["landmarks"].as_array_mut().unwrap() {
        if landmark[0].as_u64() > Some(90) {
            later(&mut landmark[1]);
        }
    }
    let later = "ALTER TABLE analytics_events UPDATE received_at = received_at + INTERVAL 1 HOUR WHERE stream_seq > 90";
    let later = world.clickhouse().query(later);
    let later = later.with_setting("mutations_sync", "1").execute();
    later.await.unwrap();

    world.nats.kill();
    world.nats.go_back_to(&copy);
    world.nats.start_again();
    world.nats.is_back().await;
    let jetstream = world.nats.jetstream().await;
    let bucket = jetstream.get_key_value("analytics-checkpoints").await;
    let record = record.to_string().into();
    bucket.unwrap().put(key, record).await.unwrap();
    // As many as were lost, and one more.
    for _ in 0..11 {
        world.publish("app.start", event("new")).await;
    }
    let daemon = Daemon::start(&config);
    daemon.logs("the stream has lost its tail").await;
    stored_once(&world, 111).await;
    let sql = "SELECT count() AS n FROM analytics_events WHERE client_id = 'new'";
    assert_eq!(world.number(sql).await, 11);
}

#[tokio::test]
async fn an_insert_that_still_runs_when_the_checkpoint_is_lost_is_waited_for() {
    let world = World::new().await;
    let config = world.config("batch_size: 100, flush_interval_seconds: 60", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    // Checked row by row before any of them is stored: the insert takes 3 s.
    let slow = "ALTER TABLE analytics_events ADD CONSTRAINT slow CHECK sleepEachRow(0.03) = 0";
    world.clickhouse().query(slow).execute().await.unwrap();
    publish_samples(&world, 100).await;
    eventually("the insert runs", async || {
        let inserts = "SELECT count() AS n FROM system.processes WHERE query_kind = 'Insert' AND current_database = currentDatabase()";
        (world.number(inserts).await > 0).then_some(())
    })
    .await;
    daemon.kill();
    let jetstream = world.nats.jetstream().await;
    let bucket = "analytics-checkpoints";
    jetstream.delete_key_value(bucket).await.unwrap();
    // Batches are cut elsewhere: no token of before is met again.
    let daemon = Daemon::start(&world.config("batch_size: 30, flush_interval_seconds: 0.1", ""));
    daemon
        .logs("waiting for the inserts of an earlier writer")
        .await;
    stored_once(&world, 100).await;
}

#[tokio::test]
async fn a_last_message_that_was_deleted_by_itself_is_no_lost_tail() {
    let world = World::new().await;
    let config = world.config(ANALYTICS, "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 100).await;
    stored_once(&world, 100).await;
    let last = world.publish("app.start", event("deleted")).await;
    stored_once(&world, 101).await;
    daemon.stop().await;
    let stream = world.nats.jetstream().await.get_stream("ANALYTICS").await;
    stream.unwrap().delete_message(last).await.unwrap();
    publish_samples(&world, 50).await;
    let daemon = Daemon::start(&config);
    stored_once(&world, 151).await;
    let log = daemon.log();
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn a_restored_stream_is_known_also_where_its_first_rows_are_gone() {
    for with_checkpoint in [true, false] {
        let world = World::new().await;
        let config = world.config(ANALYTICS, "");
        let daemon = Daemon::start(&config);
        daemon.logs("checkpoint taken over").await;
        world.publish("batch", b"\xff".as_slice()).await;
        publish_samples(&world, 60).await;
        world.settled(60, 1).await;
        daemon.stop().await;
        // Purged, and deleted from the stream.
        let purge = "ALTER TABLE dead_letters DELETE WHERE 1";
        let purge = world.clickhouse().query(purge);
        let purge = purge.with_setting("mutations_sync", "1").execute();
        purge.await.unwrap();
        let client = world.nats.client().await;
        let jetstream = world.nats.jetstream().await;
        let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
        for sequence in 2..=25 {
            stream.delete_message(sequence).await.unwrap();
        }
        let backup = backup::backup(&client, "ANALYTICS").await;
        jetstream.delete_stream("ANALYTICS").await.unwrap();
        if !with_checkpoint {
            let bucket = "analytics-checkpoints";
            jetstream.delete_key_value(bucket).await.unwrap();
        }
        backup::restore(&client, &backup).await;
        backup::restored(&client, &backup).await;
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
