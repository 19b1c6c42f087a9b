//! What the daemon holds at a time is bounded, even where a message becomes far more rows
//! than its bytes suggest.

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::support::World;
use crate::support::daemon::Daemon;
use crate::support::events::event;
use crate::support::nats::Nats;

/// An event of a batch message that says nothing: a dead letter of two bytes.
const EMPTY: &[u8] = b"\x0a\x00";

/// The smallest event that becomes a row: a client's name of one letter.
const SMALLEST: &[u8] = b"\x0a\x05\x0a\x03\x0a\x01a";

/// A third above what was measured, and far below the 512 MiB of `deploy/kubernetes`.
const MOST_MEMORY: u64 = 210_000_000;

const MIB: usize = 1024 * 1024;

/// As many events as fit into a message of this many bytes.
fn filled(event: &[u8], bytes: usize) -> Vec<u8> {
    event.repeat(bytes / event.len())
}

/// A configuration of nats-server in which messages may have eight times the default
/// size.
async fn nats_with_large_messages(dir: &tempfile::TempDir) -> Nats {
    let config = dir.path().join("nats.conf");
    std::fs::write(&config, "max_payload: 8MB\n").unwrap();
    Nats::start_with(&["--config", config.to_str().unwrap()]).await
}

/// Stores what waits in the stream with a daemon that is killed in the middle of an
/// insert, and with another one after it. Returns the latter.
async fn stored_although_killed(world: &World, insert: u32) -> Daemon {
    let config = world.config("flush_interval_seconds: 0.1", "");
    let log = world.dir.path().join("killed.log");
    let fault = format!("kill@during-insert:{insert}");
    let mut killed = Daemon::start_logging_to(&log, &config, &[("ANALYTICS_FAULT", &fault)]);
    killed.ended().await;
    Daemon::start_with(&config, &[], "info")
}

async fn each_row_is_there_once(world: &World, events: u64, dead_letters: u64) {
    world.settled(events, dead_letters).await;
    for (table, rows) in [("analytics_events", events), ("dead_letters", dead_letters)] {
        let different = format!("SELECT uniqExact(stream_seq, batch_index) AS n FROM {table}");
        assert_eq!(world.number(&different).await, rows);
    }
    world.views_equal_a_recount().await;
}

fn takes_little_memory(daemon: &Daemon) {
    if let Some(most) = daemon.most_memory() {
        assert!(most < MOST_MEMORY, "{most} bytes");
    }
}

/// A daemon has made the stream and the tables, and has ended.
async fn set_up(world: &World) {
    let daemon = world.daemon("");
    daemon.logs("checkpoint taken over").await;
    daemon.stop().await;
}

#[tokio::test]
async fn messages_of_the_smallest_events_are_stored_once_in_little_memory_also_after_a_kill() {
    let world = World::new().await;
    set_up(&world).await;
    let (empty, smallest) = (filled(EMPTY, MIB), filled(SMALLEST, MIB));
    world.publish("app.start", event("before")).await;
    world.publish("batch", smallest.clone()).await;
    world.publish("batch", empty).await;
    world.publish("batch", smallest).await;
    let daemon = stored_although_killed(&world, 6).await;
    let rows = 1 + 2 * (MIB / SMALLEST.len());
    let letters = MIB / EMPTY.len();
    each_row_is_there_once(&world, rows as u64, letters as u64).await;
    takes_little_memory(&daemon);
}

#[tokio::test]
async fn a_message_of_a_million_rows_is_stored_once_in_little_memory_also_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with_nats(nats_with_large_messages(&dir).await);
    set_up(&world).await;
    world.publish("batch", filled(SMALLEST, 8 * MIB)).await;
    let daemon = stored_although_killed(&world, 5).await;
    let rows = 8 * MIB / SMALLEST.len();
    each_row_is_there_once(&world, rows as u64, 0).await;
    // Those that were stored before the kill count, too, and their days are recounted.
    daemon.logs(&format!("batch stored rows={rows} ")).await;
    takes_little_memory(&daemon);
}

#[tokio::test]
async fn headers_that_each_of_many_dead_letters_has_take_little_memory() {
    const LETTERS: usize = 10_000;
    let world = World::new().await;
    set_up(&world).await;
    let mut headers = HeaderMap::new();
    headers.insert("long", "x".repeat(60_000));
    let jetstream = world.nats.jetstream().await;
    let payload = EMPTY.repeat(LETTERS).into();
    let ack = jetstream.publish_with_headers("fechatter.analytics.batch", headers, payload);
    ack.await.unwrap().await.unwrap();
    let daemon = stored_although_killed(&world, 5).await;
    each_row_is_there_once(&world, 0, LETTERS as u64).await;
    let complete = "SELECT countIf(length(headers) > 60000) AS n FROM dead_letters";
    assert_eq!(world.number(complete).await, LETTERS as u64);
    takes_little_memory(&daemon);
}

#[tokio::test]
async fn rows_of_a_large_message_that_clickhouse_refuses_become_dead_letters() {
    const EVENTS: usize = 120_000;
    let world = World::new().await;
    set_up(&world).await;
    let constraint = "ALTER TABLE analytics_events ADD CONSTRAINT c CHECK client_id != 'b'";
    world
        .clickhouse()
        .query(constraint)
        .execute()
        .await
        .unwrap();
    let mut payload = SMALLEST.repeat(EVENTS);
    // The first and the last of a piece, two neighbours, and one of the last piece.
    let refused = [0, 49_999, 60_000, 60_001, 119_000];
    for index in refused {
        payload[index * SMALLEST.len() + SMALLEST.len() - 1] = b'b';
    }
    world.publish("batch", payload).await;
    let daemon = stored_although_killed(&world, 20).await;
    let letters = refused.len() as u64;
    each_row_is_there_once(&world, EVENTS as u64 - letters, letters).await;
    let sql = "SELECT batch_index, reason FROM dead_letters ORDER BY batch_index";
    let letters: Vec<_> = world.rows(sql).await;
    let expected = refused.map(|index| json!({"batch_index": index, "reason": "refused"}));
    assert_eq!(letters, expected);
    daemon.stop().await;
}

#[tokio::test]
async fn a_large_message_that_an_older_build_has_recorded_is_stored_once() {
    const EVENTS: u64 = 120_000;
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.logs("checkpoint taken over").await;
    world.publish("app.start", event("before")).await;
    world
        .publish("batch", SMALLEST.repeat(EVENTS as usize))
        .await;
    world.publish("app.start", event("after")).await;
    world.settled(EVENTS + 2, 0).await;
    daemon.stop().await;

    // A build that sent all three messages as one insert, which ClickHouse has stored
    // in part: its record says no more than that.
    let jetstream = world.nats.jetstream().await;
    let stream = jetstream.get_stream("ANALYTICS").await.unwrap();
    let stored_at = async |sequence| {
        let message = stream.get_raw_message(sequence).await.unwrap();
        message.time.unix_timestamp_nanos() as i64
    };
    let bucket = jetstream.get_key_value("analytics-checkpoints").await;
    let bucket = bucket.unwrap();
    let key = "ANALYTICS.analytics-processor";
    let record = bucket.get(key).await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&record).unwrap();
    record["committed"] = json!(0);
    record["committed_stored_at"] = json!(0);
    record["in_flight"] = json!([{
        "first": 1,
        "last": 3,
        "first_stored_at": stored_at(1).await,
        "last_stored_at": stored_at(3).await,
        "generation": 0,
    }]);
    bucket.put(key, record.to_string().into()).await.unwrap();
    let delete = "ALTER TABLE analytics_events DELETE WHERE batch_index >= 70000 SETTINGS mutations_sync = 1";
    world.clickhouse().query(delete).execute().await.unwrap();

    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.logs("in_flight=1").await;
    each_row_is_there_once(&world, EVENTS + 2, 0).await;
    daemon
        .logs(&format!("batch stored rows={}", EVENTS + 2))
        .await;
}
