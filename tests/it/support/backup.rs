//! A stream taken out of JetStream and put back, as `nats stream backup` and
//! `nats stream restore` do it.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::eventually;

/// A stream's configuration, its state, and the pieces of an archive of its messages.
pub struct Backup {
    name: String,
    config: Value,
    state: Value,
    pieces: Vec<Bytes>,
}

/// Consumers are left out: the daemon creates its own again at each start.
pub async fn backup(client: &Client, name: &str) -> Backup {
    let inbox = client.new_inbox();
    let mut archive = client.subscribe(inbox.clone()).await.unwrap();
    let subject = format!("$JS.API.STREAM.SNAPSHOT.{name}");
    let wanted = json!({"deliver_subject": inbox, "no_consumers": true, "chunk_size": 128 * 1024});
    let answer = request(client, subject, wanted.to_string()).await;
    let mut pieces = Vec::new();
    loop {
        let piece = archive.next().await.unwrap();
        // The last one is empty, and may have a status, which is an error or 204.
        if piece.payload.is_empty() {
            let ended = piece.status.is_none_or(|status| status.as_u16() == 204);
            assert!(ended, "{piece:?}");
            break;
        }
        if let Some(reply) = piece.reply {
            // JetStream sends no more than it knows to have arrived.
            client.publish(reply, Bytes::new()).await.unwrap();
        }
        pieces.push(piece.payload);
    }
    Backup {
        name: name.to_owned(),
        config: answer["config"].clone(),
        state: answer["state"].clone(),
        pieces,
    }
}

/// Puts the stream back; there must be none of its name.
pub async fn restore(client: &Client, backup: &Backup) {
    let Backup {
        name,
        config,
        state,
        pieces,
    } = backup;
    let subject = format!("$JS.API.STREAM.RESTORE.{name}");
    let wanted = json!({"config": config, "state": state}).to_string();
    let answer = request(client, subject, wanted).await;
    let deliver = answer["deliver_subject"].as_str().unwrap();
    for piece in pieces {
        let taken = client.request(deliver.to_owned(), piece.clone()).await;
        let taken = taken.unwrap().payload;
        assert!(taken.is_empty(), "{}", String::from_utf8_lossy(&taken));
    }
    request(client, deliver.to_owned(), String::new()).await;
}

/// The stream, once it is there and has as many messages as the backup.
pub async fn restored(client: &Client, backup: &Backup) -> Stream {
    let jetstream = async_nats::jetstream::new(client.clone());
    eventually("the stream is back", async || {
        let stream = jetstream.get_stream(&backup.name).await.ok()?;
        let messages = stream.cached_info().state.messages;
        (backup.state["messages"] == messages).then_some(stream)
    })
    .await
}

/// What the API answers, which must not be an error.
async fn request(client: &Client, subject: String, body: String) -> Value {
    // The last answer of a restore comes when it is done.
    let request = async_nats::Request::new()
        .payload(body.into())
        .timeout(Some(Duration::from_secs(30)));
    let answer = client.send_request(subject, request).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer
}
