//! A message, or one event of a batch message, that cannot be stored as an
//! event: a row of `dead_letters`, where analysts see it with SQL.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use crate::clickhouse::native::{Block, BlockBuilder, Millis};
use crate::event::{Event, Place};

#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Sequence of the message in its stream.
    pub stream_seq: u64,
    /// Place inside a batch message, else 0.
    pub batch_index: u32,
    pub subject: Subject,
    /// When JetStream stored the message.
    pub received_at: Millis,
    pub reason: Reason,
    /// What is wrong, for a person.
    pub error: String,
    pub headers: HeaderMap,
    /// What could not be stored.
    pub payload: Bytes,
    pub payload_is: PayloadIs,
}

/// What the bytes of a letter are. Subject and index do not tell: the first event of
/// a batch message and a batch message that cannot be read have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadIs {
    /// The payload of a whole message.
    Message,
    /// One event of a batch message.
    Event,
}

impl PayloadIs {
    /// `index` is an event's place in a batch message, `None` for a whole message.
    pub fn at(index: Option<u32>) -> Self {
        match index {
            Some(_) => Self::Event,
            None => Self::Message,
        }
    }

    /// The value of the column `payload_is`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Event => "event",
        }
    }
}

impl DeadLetter {
    pub fn place(&self) -> Place {
        Place(self.stream_seq, self.batch_index)
    }

    /// The letter of an event that was decoded and cannot be stored; without the
    /// message's headers, which the event does not have.
    pub fn of_event(event: &Event, reason: Reason, error: &str) -> Self {
        Self {
            stream_seq: event.stream_seq,
            batch_index: event.batch_index,
            subject: event.subject.clone(),
            received_at: event.received_at,
            reason,
            error: error.to_owned(),
            headers: HeaderMap::new(),
            payload: event.payload.clone(),
            payload_is: event.payload_is,
        }
    }
}

/// Why an event became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The bytes are not the protobuf message that they should be.
    Undecodable,
    /// The event says nothing about who sent it.
    MissingContext,
    /// The event's context names no client.
    MissingClientId,
    /// ClickHouse does not take the row.
    Refused,
}

impl Reason {
    /// The value of the column `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::MissingContext => "missing_context",
            Self::MissingClientId => "missing_client_id",
            Self::Refused => "refused",
        }
    }
}

/// Roughly what a letter adds to its block beside its payload.
const ROW_OVERHEAD: usize = 200;

/// The block that inserts `letters`, all of one stream, into `dead_letters`.
///
/// The same letters always give the same bytes.
pub fn block(stream: &str, letters: &[DeadLetter]) -> Block {
    let bytes: usize = letters
        .iter()
        .map(|letter| letter.payload.len() + ROW_OVERHEAD)
        .sum();
    let headers: Vec<String> = letters
        .iter()
        .map(|letter| headers_json(&letter.headers))
        .collect();
    let mut block = BlockBuilder::new(letters.len(), bytes);
    block
        .column("stream", letters.iter().map(|_| stream))
        .column("stream_seq", letters.iter().map(|letter| letter.stream_seq))
        .column(
            "batch_index",
            letters.iter().map(|letter| letter.batch_index),
        )
        .column(
            "subject",
            letters.iter().map(|letter| letter.subject.as_str()),
        )
        .column(
            "received_at",
            letters.iter().map(|letter| letter.received_at),
        )
        .column(
            "reason",
            letters.iter().map(|letter| letter.reason.as_str()),
        )
        .column("error", letters.iter().map(|letter| letter.error.as_str()))
        .column("headers", headers.iter().map(String::as_str))
        .column(
            "payload",
            letters.iter().map(|letter| letter.payload.as_ref()),
        )
        .column(
            "payload_is",
            letters.iter().map(|letter| letter.payload_is.as_str()),
        );
    block.build()
}

/// The headers as a JSON object of arrays, `{"Nats-Msg-Id": ["…"]}`, names in
/// order: a header map keeps them in none, and a repeat must be the same bytes.
fn headers_json(headers: &HeaderMap) -> String {
    let headers: std::collections::BTreeMap<&str, Vec<&str>> = headers
        .iter()
        .map(|(name, values)| {
            (
                name.as_ref(),
                values.iter().map(|value| value.as_str()).collect(),
            )
        })
        .collect();
    serde_json::Value::from_iter(headers).to_string()
}
