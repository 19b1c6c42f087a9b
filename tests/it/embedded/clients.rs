//! The `clickhouse` crate and clickhouse-connect, as their users call them.

use std::process::Command;

use clickhouse::insert_formatted::CompressedData;
use clickhouse::{Client, Compression, Row};
use serde::{Deserialize, Serialize};

use super::number;
use crate::support::clickhouse::{fresh_database, url};
use crate::support::dependency;

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Event {
    id: u64,
    name: String,
}

/// Names with everything that breaks inline data: empty lines, quotes, zero bytes.
fn events(count: u64) -> Vec<Event> {
    let event = |id| Event {
        id,
        name: format!("it's {id}\n\n;\0\\ \"quoted\""),
    };
    (0..count).map(event).collect()
}

async fn create(client: &Client) {
    let sql = "CREATE TABLE events (id UInt64, name String) ENGINE = MergeTree ORDER BY id \
               SETTINGS non_replicated_deduplication_window = 1000";
    client.query(sql).execute().await.unwrap();
}

fn csv(rows: std::ops::Range<u64>) -> Vec<u8> {
    rows.map(|id| format!("{id},x\n"))
        .collect::<String>()
        .into()
}

/// Rows of `events` as one block of the format Native.
fn native(events: &[Event]) -> Vec<u8> {
    fn leb128(mut value: usize, to: &mut Vec<u8>) {
        while value >= 0x80 {
            to.push(value as u8 | 0x80);
            value >>= 7;
        }
        to.push(value as u8);
    }
    fn text(text: &str, to: &mut Vec<u8>) {
        leb128(text.len(), to);
        to.extend_from_slice(text.as_bytes());
    }
    let mut block = Vec::new();
    leb128(2, &mut block);
    leb128(events.len(), &mut block);
    text("id", &mut block);
    text("UInt64", &mut block);
    for event in events {
        block.extend(event.id.to_le_bytes());
    }
    text("name", &mut block);
    text("String", &mut block);
    for event in events {
        text(&event.name, &mut block);
    }
    block
}

#[tokio::test]
async fn the_clickhouse_crate_inserts_and_selects_rows() {
    for compression in [Compression::None, Compression::Lz4] {
        let client = fresh_database().await.with_compression(compression);
        create(&client).await;
        let rows = events(50_000);
        let mut insert = client.insert::<Event>("events").await.unwrap();
        for row in &rows {
            insert.write(row).await.unwrap();
        }
        insert.end().await.unwrap();

        let query = client.query("SELECT ?fields FROM events ORDER BY id");
        assert!(
            query.fetch_all::<Event>().await.unwrap() == rows,
            "{compression:?}"
        );
        let bound = client
            .query("SELECT ?fields FROM events WHERE id = {id: UInt64} AND name = ?")
            .param("id", 7)
            .bind(&rows[7].name);
        assert_eq!(bound.fetch_all::<Event>().await.unwrap(), rows[7..8]);
    }
}

#[tokio::test]
async fn the_clickhouse_crate_inserts_formatted_bytes() {
    let client = fresh_database().await;
    create(&client).await;
    let plain = client.clone().with_compression(Compression::None);
    let mut insert = plain.insert_formatted_with("INSERT INTO events FORMAT CSV");
    insert.send(csv(0..1000).into()).await.unwrap();
    insert.end().await.unwrap();

    let rows = events(100_000);
    let packed = client.clone().with_compression(Compression::Lz4);
    let mut insert = packed.insert_formatted_with("INSERT INTO events FORMAT Native");
    let block = CompressedData::new(&native(&rows), Compression::Lz4).unwrap();
    insert.send_compressed(block).await.unwrap();
    insert.end().await.unwrap();
    assert_eq!(number(&client, "SELECT count() FROM events").await, 101_000);
    // Wherever it is cut on its way, one block is still one part.
    let parts = "SELECT count() FROM system.parts WHERE active AND database = currentDatabase() \
                 AND rows = 100000";
    assert_eq!(number(&client, parts).await, 1);
}

#[tokio::test]
async fn the_clickhouse_crate_inserts_native_blocks() {
    let client = fresh_database().await;
    let sql = "CREATE TABLE numbers (number UInt64) ENGINE = MergeTree ORDER BY number";
    client.query(sql).execute().await.unwrap();
    let query = client.query("SELECT number FROM numbers(200000)");
    let mut blocks = query.fetch_native().unwrap();
    let mut insert = client.insert_native("numbers");
    while let Some(block) = blocks.next().await.unwrap() {
        insert.write(&block).await.unwrap();
    }
    insert.end().await.unwrap();
    assert_eq!(
        number(&client, "SELECT uniqExact(number) FROM numbers").await,
        200_000
    );
}

#[tokio::test]
async fn an_insert_repeated_with_its_token_counts_once_in_rows_and_views() {
    let client = fresh_database().await;
    create(&client).await;
    for sql in [
        "CREATE TABLE totals (key UInt8, total UInt64) ENGINE = SummingMergeTree ORDER BY key \
         SETTINGS non_replicated_deduplication_window = 1000",
        "CREATE MATERIALIZED VIEW counting TO totals AS \
         SELECT 0 AS key, count() AS total FROM events GROUP BY key",
    ] {
        client.query(sql).execute().await.unwrap();
    }
    let block = native(&events(50_000));
    let send = async |token: &str| {
        let mut insert = client
            .insert_formatted_with("INSERT INTO events FORMAT Native")
            .with_setting("async_insert", "0")
            .with_setting("insert_deduplicate", "1")
            .with_setting("insert_deduplication_token", token)
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1");
        insert.send(block.clone().into()).await.unwrap();
        insert.end().await.unwrap();
    };
    for _ in 0..3 {
        send("first").await;
    }
    assert_eq!(number(&client, "SELECT count() FROM events").await, 50_000);
    assert_eq!(
        number(&client, "SELECT sum(total) FROM totals").await,
        50_000
    );
    send("second").await;
    assert_eq!(number(&client, "SELECT count() FROM events").await, 100_000);
    assert_eq!(
        number(&client, "SELECT sum(total) FROM totals").await,
        100_000
    );
}

#[tokio::test]
async fn an_error_reaches_the_clickhouse_crate_with_its_code() {
    let client = fresh_database().await;
    let missing = client.query("SELECT * FROM missing").execute().await;
    let message = missing.unwrap_err().to_string();
    assert!(message.contains("Code: 60. DB::Exception"), "{message}");
    assert!(message.contains("(UNKNOWN_TABLE)"), "{message}");

    let mut insert = client.insert_formatted_with("INSERT INTO missing FORMAT CSV");
    let sent = insert.send(csv(0..10).into()).await;
    let message = sent.and(insert.end().await).unwrap_err().to_string();
    assert!(message.contains("Code: 60. DB::Exception"), "{message}");
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_result_is_an_error_and_not_its_end() {
    for compression in [Compression::None, Compression::Lz4] {
        let client = fresh_database().await.with_compression(compression);
        let sql = "SELECT toUInt64(number + throwIf(number = 3000000)) FROM numbers(4000000)";
        let mut rows = client.query(sql).fetch::<u64>().unwrap();
        let mut count = 0;
        let message = loop {
            match rows.next().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => panic!("the result ends after {count} rows"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(count > 0);
        assert!(message.contains("Code: 395. DB::Exception"), "{message}");
    }
}

#[tokio::test]
async fn clickhouse_connect_works_with_its_default_settings() {
    let client = fresh_database().await;
    let query = client.query("SELECT currentDatabase()");
    let database = query.fetch_one::<String>().await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/connect.py");
    let python = dependency("venv/bin/python");
    let run = tokio::task::spawn_blocking(move || {
        Command::new(&python)
            .args([script, url(), &database])
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}: run scripts/deps.sh", python.display()))
    });
    let output = run.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
