//! `dead-letters`: what could not be stored, looked at, published again, deleted.

use std::path::{Path, PathBuf};

use analytics_server::internal::StreamId;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;

use crate::support::daemon::{self, Daemon};
use crate::support::events::event;
use crate::support::{World, eventually};

/// An event that cannot be stored, since it names no client.
fn without_client() -> Vec<u8> {
    event("")
}

fn batch(events: &[Vec<u8>]) -> Vec<u8> {
    // As producers do: field 1, length-delimited.
    let events = events.iter().flat_map(|event| {
        let length = u8::try_from(event.len()).unwrap();
        [&[0x0a, length], event.as_slice()].concat()
    });
    events.collect()
}

/// Runs `dead-letters` and returns its exit code, stdout and stderr.
async fn letters(config: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let arguments = [&["dead-letters"], arguments].concat();
    let output = daemon::run(config, &arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The same, for a run that succeeds; its lines as JSON.
async fn json(config: &Path, arguments: &[&str]) -> Vec<Value> {
    let (code, stdout, stderr) = letters(config, &[arguments, &["--json"]].concat()).await;
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    let lines = stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Puts a letter where the daemon puts them, as one that could not read `payload` would
/// have done: for a message that the stream does not hold.
async fn old_letter(world: &World, sequence: u64, subject: &str, payload: &[u8]) -> String {
    let stream = world.stream().await;
    let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    let insert = format!(
        "INSERT INTO dead_letters (stream, stream_seq, batch_index, subject, received_at, reason, error, headers, payload)
         SELECT '{stream}', {sequence}, 0, 'fechatter.analytics.{subject}', now64(3) - 60, 'undecodable', 'too new',
             '{{\"Nats-Msg-Id\":[\"of the producer\"],\"Nats-Expected-Last-Sequence\":[\"1\"],\"trace\":[\"a\",\"b\"]}}',
             unhex('{hex}')"
    );
    world.clickhouse().query(&insert).execute().await.unwrap();
    sequence.to_string()
}

/// A daemon that runs, over a stream that exists.
async fn running(world: &World) -> (PathBuf, Daemon) {
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    (config, daemon)
}

#[tokio::test]
async fn letters_are_listed_shown_and_picked_by_reason_and_time() {
    let world = World::new().await;
    let (config, _daemon) = running(&world).await;
    assert_eq!(
        letters(&config, &["list"]).await,
        (Some(0), String::new(), "no dead letters\n".to_owned())
    );
    world.publish("user.login", vec![0xff; 20]).await;
    world.publish("app.start", without_client()).await;
    let events = [event("a"), without_client()];
    world.publish("batch", batch(&events)).await;
    world.settled(1, 3).await;

    let (code, table, _) = letters(&config, &["list"]).await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("LETTER  RECEIVED "), "{table}");
    assert!(lines[1].starts_with("3/1 "), "the newest first: {table}");
    assert!(lines[3].starts_with("1/0 "), "{table}");
    assert!(
        lines[3].contains(" fechatter.analytics.user.login "),
        "{table}"
    );

    let names = async |arguments: &[&str]| -> Vec<u64> {
        let listed = json(&config, &[&["list"], arguments].concat()).await;
        listed
            .iter()
            .map(|letter| letter["stream_seq"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(names(&[]).await, [3, 2, 1]);
    assert_eq!(names(&["--limit", "2"]).await, [3, 2]);
    assert_eq!(names(&["--reason", "undecodable"]).await, [1]);
    let both = ["--reason", "undecodable", "--reason", "missing_client_id"];
    assert_eq!(names(&both).await, [3, 2, 1]);
    assert_eq!(names(&["--reason", "it's \\ odd"]).await, [0; 0]);
    assert_eq!(names(&["--since", "1h"]).await, [3, 2, 1]);
    assert_eq!(names(&["--since", "2100-01-01"]).await, [0; 0]);
    assert_eq!(names(&["--replayed"]).await, [0; 0]);

    let (code, shown, _) = letters(&config, &["show", "1"]).await;
    assert_eq!(code, Some(0));
    assert!(shown.contains("\nreason       undecodable\n"), "{shown}");
    assert!(shown.contains("\nreplayed_at  never\n"), "{shown}");
    assert!(shown.contains("\n00000010  ff ff ff ff "), "{shown}");
    let full = format!("{}/3/1", world.stream().await);
    for name in ["3/1", &full] {
        let shown = &json(&config, &["show", name]).await[0];
        assert_eq!(shown["letter"], full);
        assert_eq!(shown["payload_is"], "event");
        assert_eq!(shown["payload_base64"], BASE64_STANDARD.encode(&events[1]));
        assert!(shown["headers"].is_object());
        assert_eq!(shown["replayed_at"], Value::Null);
    }
    let (code, _, stderr) = letters(&config, &["show", "3"]).await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("there is no dead letter 3/0 of stream ANALYTICS@"),
        "{stderr}"
    );
    for wrong in [
        ["show", "x"].as_slice(),
        &["list", "--since", "soon"],
        &["replay"],
        &["purge", "--json"],
        &["purge", "1", "--all"],
    ] {
        assert_eq!(letters(&config, wrong).await.0, Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_letter_is_stored_once_however_often_it_is_replayed() {
    let world = World::new().await;
    let (config, daemon) = running(&world).await;
    let letter = old_letter(&world, 1000, "user.login", &event("mended")).await;
    let replay = ["replay", letter.as_str()];

    let dry = json(&config, &[&replay[..], &["--dry-run"]].concat()).await;
    assert_eq!(dry[0]["published"], 1);
    let (code, stdout, stderr) = letters(&config, &replay).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout, "replayed 1 of 1 dead letter\n");
    world.settled(1, 1).await;

    let (code, stdout, stderr) = letters(&config, &replay).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stdout,
        "replayed 0 of 1 dead letter; 1 marked as replayed before\n"
    );
    assert!(stderr.contains("1000/0: was replayed at 20"), "{stderr}");
    let again = [&replay[..], &["--again"]].concat();
    let (_, stdout, stderr) = letters(&config, &again).await;
    assert!(
        stdout.ends_with("; 1 found where a replay puts them\n"),
        "{stdout}"
    );
    assert!(
        stderr.contains("its replay is in analytics_events"),
        "{stderr}"
    );
    // As after a mark that failed.
    unmark(&world).await;
    let found = json(&config, &replay).await;
    assert_eq!(found[0]["found"], 1);
    assert_eq!(json(&config, &["list", "--replayed"]).await.len(), 1);

    // The daemon is away, so the replay is in the stream alone.
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    old_letter(&world, 1001, "user.login", &event("late")).await;
    assert_eq!(json(&config, &["replay", "1001"]).await[0]["published"], 1);
    unmark(&world).await;
    let (_, _, stderr) = letters(&config, &["replay", "1001"]).await;
    assert!(
        stderr.contains("its replay is in the stream as sequence 2"),
        "{stderr}"
    );
    let _daemon = Daemon::start(&config);
    world.settled(2, 2).await;

    let stored = world
        .rows("SELECT client_id, subject, toString(event_id) AS id FROM analytics_events ORDER BY stream_seq")
        .await;
    assert_eq!(stored[0]["client_id"], "mended");
    assert_eq!(stored[0]["subject"], "fechatter.analytics.user.login");
    let shown = &json(&config, &["show", "1000"]).await[0];
    assert_eq!(stored[0]["id"], shown["replay_id"]);
    assert_eq!(shown["replayed_at"], Value::Null, "the test took it away");
    let shown = &json(&config, &["show", "1001"]).await[0];
    assert!(shown["replayed_at"].as_str().unwrap().starts_with("20"));

    // What the producer said in addition to the event is kept, its instructions are not.
    let stream = world
        .nats
        .jetstream()
        .await
        .get_stream("ANALYTICS")
        .await
        .unwrap();
    let headers = stream.direct_get(1).await.unwrap().headers;
    assert_eq!(headers.get_all("trace").count(), 2);
    assert_eq!(headers.get("Nats-Expected-Last-Sequence"), None);
}

/// Takes the marks away.
async fn unmark(world: &World) {
    world
        .clickhouse()
        .query("ALTER TABLE dead_letters UPDATE replayed_at = 0 WHERE true SETTINGS mutations_sync = 1")
        .execute()
        .await
        .unwrap();
}

#[tokio::test]
async fn one_event_of_a_batch_is_replayed_alone_and_once() {
    let world = World::new().await;
    let (config, _daemon) = running(&world).await;
    let neighbour = event("neighbour");
    let mended = event("mended");
    world
        .publish("batch", batch(std::slice::from_ref(&neighbour)))
        .await;
    // Two letters that differ only in what they say their payload is.
    old_letter(&world, 1000, "batch", &mended).await;
    mark_as(&world, 1000, "event").await;
    old_letter(&world, 1001, "batch", &batch(&[mended.clone(), mended])).await;
    mark_as(&world, 1001, "message").await;

    let replayed = &json(&config, &["replay", "--all"]).await[0];
    assert_eq!(replayed["published"], 2, "{replayed}");
    world.settled(4, 2).await;
    for _ in 0..2 {
        unmark(&world).await;
        let replayed = &json(&config, &["replay", "--all"]).await[0];
        assert_eq!(replayed["found"], 2, "{replayed}");
    }
    let stored = world
        .rows("SELECT client_id, stream_seq, batch_index FROM analytics_events ORDER BY stream_seq, batch_index")
        .await;
    let stored: Vec<String> = stored.iter().map(Value::to_string).collect();
    assert_eq!(
        stored,
        [
            r#"{"batch_index":0,"client_id":"neighbour","stream_seq":1}"#,
            r#"{"batch_index":0,"client_id":"mended","stream_seq":2}"#,
            r#"{"batch_index":0,"client_id":"mended","stream_seq":3}"#,
            r#"{"batch_index":1,"client_id":"mended","stream_seq":3}"#,
        ]
    );
}

async fn mark_as(world: &World, sequence: u64, payload_is: &str) {
    let update = format!(
        "ALTER TABLE dead_letters UPDATE payload_is = '{payload_is}' WHERE stream_seq = {sequence} SETTINGS mutations_sync = 1"
    );
    world.clickhouse().query(&update).execute().await.unwrap();
}

#[tokio::test]
async fn a_letter_that_is_still_bad_becomes_a_new_one() {
    let world = World::new().await;
    let (config, _daemon) = running(&world).await;
    world.publish("app.start", without_client()).await;
    let events = [event("a"), without_client()];
    world.publish("batch", batch(&events)).await;
    world.settled(1, 2).await;

    let first = ["replay", "--reason", "missing_client_id", "--limit", "1"];
    assert_eq!(json(&config, &first).await[0]["published"], 1);
    world.settled(1, 3).await;
    let replayed = &json(&config, &["replay", "--all"]).await[0];
    assert_eq!(
        (
            &replayed["selected"],
            &replayed["published"],
            &replayed["replayed_before"]
        ),
        (&3.into(), &2.into(), &1.into()),
    );
    world.settled(1, 5).await;
    // Even without its mark, a letter is recognised by the one that it has become.
    unmark(&world).await;
    let (_, _, stderr) = letters(&config, &["replay", "1", "2/1"]).await;
    assert!(
        stderr.contains("1/0: not published, its replay has become dead letter 3/0"),
        "{stderr}"
    );
    assert!(
        stderr.contains("2/1: not published, its replay "),
        "{stderr}"
    );
    world.settled(1, 5).await;
}

#[tokio::test]
async fn letters_are_purged_by_name_and_by_filter() {
    let world = World::new().await;
    let (config, _daemon) = running(&world).await;
    // One batch each.
    for (count, payload) in (1..).zip([
        without_client(),
        without_client(),
        without_client(),
        vec![0xff],
    ]) {
        world.publish("app.start", payload).await;
        world.settled(0, count).await;
    }

    let dry = ["purge", "--all", "--dry-run"];
    let (_, stdout, _) = letters(&config, &dry).await;
    assert_eq!(stdout, "would purge 4 dead letters\n");
    let (_, stdout, _) = letters(&config, &["purge", "2"]).await;
    assert_eq!(stdout, "purged 1 dead letter\n");
    let oldest = json(&config, &["purge", "--limit", "1"]).await;
    assert_eq!(oldest[0]["purged"], 1);
    let left = json(&config, &["list"]).await;
    assert_eq!(
        (&left[0]["stream_seq"], &left[1]["stream_seq"]),
        (&4.into(), &3.into())
    );
    let purged = json(&config, &["purge", "--reason", "undecodable"]).await;
    assert_eq!(purged[0]["purged"], 1);
    let (code, _, stderr) = letters(&config, &["purge", "2"]).await;
    assert_eq!(code, Some(1), "{stderr}");
}

#[tokio::test]
async fn letters_of_a_stream_that_was_deleted_are_named_in_full() {
    let world = World::new().await;
    let (config, _daemon) = running(&world).await;
    old_letter(&world, 1, "app.start", &event("of the old stream")).await;
    let old = world.stream().await;
    let jetstream = world.nats.jetstream().await;
    jetstream.delete_stream("ANALYTICS").await.unwrap();
    eventually("the stream is made again", async || {
        let stream = jetstream.get_stream("ANALYTICS").await.ok()?;
        (StreamId::of(&stream).to_string() != old).then_some(())
    })
    .await;

    let (code, _, stderr) = letters(&config, &["replay", "1"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    let listed = json(&config, &["list"]).await;
    let name = listed[0]["letter"].as_str().unwrap();
    assert_eq!(name, format!("{old}/1/0"));
    assert_eq!(json(&config, &["replay", name]).await[0]["published"], 1);
    eventually("the event is stored", async || {
        (world.stored().await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_missing_is_said() {
    let mut world = World::new().await;
    let config = world.config("", "");
    let (code, _, stderr) = letters(&config, &["list"]).await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("run `analytics-server migrate`"),
        "{stderr}"
    );
    daemon::run(&config, &["migrate"]).await;

    let (code, _, stderr) = letters(&config, &["show", "1"]).await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("stream `ANALYTICS` does not exist"),
        "{stderr}"
    );
    world.nats.kill();
    assert_eq!(letters(&config, &["list"]).await.0, Some(0));
    let (code, _, stderr) = letters(&config, &["purge", "1"]).await;
    assert_eq!(code, Some(69), "{stderr}");
}
