//! The wire contract, as another encoder writes it: `tests/vectors.jsonl` says
//! what each message must become.

use std::path::Path;

use serde_json::{Map, Value};

use crate::support::World;

/// One line of the file.
#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    subject: String,
    /// Base64.
    payload: String,
    #[serde(default)]
    rows: Vec<Map<String, Value>>,
    dead_letter: Option<String>,
}

fn vectors() -> Vec<Vector> {
    let file = std::env::var_os("FECHATTER_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors.jsonl"),
        |file| file.into(),
    );
    let text = std::fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn every_vector_becomes_its_rows_or_its_dead_letter(analytics: &str) {
    use base64::prelude::{BASE64_STANDARD, Engine};

    let world = World::new().await;
    let daemon = world.daemon(analytics);
    daemon.logs("checkpoint taken over").await;
    let mut sent = Vec::new();
    for vector in vectors() {
        let payload = BASE64_STANDARD.decode(&vector.payload).unwrap();
        let subject = vector.subject.strip_prefix("fechatter.analytics.").unwrap();
        let sequence = world.publish(subject, payload).await;
        sent.push((sequence, vector));
    }
    let rows = sent
        .iter()
        .map(|(_, vector)| vector.rows.len())
        .sum::<usize>();
    let letters = sent
        .iter()
        .filter(|(_, vector)| vector.dead_letter.is_some())
        .count();
    world.settled(rows as u64, letters as u64).await;

    for (sequence, vector) in &sent {
        let of_this = format!("WHERE stream_seq = {sequence} ORDER BY batch_index");
        let stored = world
            .rows(&format!(
                "SELECT * EXCEPT payload, hex(payload) AS payload, toUnixTimestamp64Milli(client_ts) AS client_ts_ms
                 FROM analytics_events {of_this}"
            ))
            .await;
        assert_eq!(stored.len(), vector.rows.len(), "{}", vector.name);
        for (stored, expected) in stored.iter().zip(&vector.rows) {
            for (column, value) in expected {
                assert_eq!(&stored[column], value, "{}: {column}", vector.name);
            }
            let known = vector.name != "unknown-event-type";
            assert_eq!(stored["payload"] == "", known, "{}: payload", vector.name);
        }
        let letters = world
            .rows(&format!(
                "SELECT reason, subject, base64Encode(payload) AS payload FROM dead_letters {of_this}"
            ))
            .await;
        match &vector.dead_letter {
            Some(reason) => {
                assert_eq!(letters.len(), 1, "{}", vector.name);
                assert_eq!(letters[0]["reason"], *reason, "{}", vector.name);
                assert_eq!(letters[0]["subject"], vector.subject, "{}", vector.name);
                assert_eq!(letters[0]["payload"], vector.payload, "{}", vector.name);
            }
            None => assert!(letters.is_empty(), "{}", vector.name),
        }
    }
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn every_vector_is_stored_as_it_must_be_in_ordinary_batches() {
    every_vector_becomes_its_rows_or_its_dead_letter("flush_interval_seconds: 0.2").await;
}

#[tokio::test]
async fn every_vector_is_stored_as_it_must_be_in_batches_of_one_row() {
    every_vector_becomes_its_rows_or_its_dead_letter("batch_size: 1").await;
}
