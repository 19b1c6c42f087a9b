//! A message, or one event of a batch message, that cannot be stored as an
//! event: a row of `dead_letters`, where analysts see it with SQL.

use std::collections::BTreeMap;

use crate::clickhouse::native::{Block, BlockBuilder, Plain};
use crate::event::Source;
use crate::nats::Headers;

#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// What could not be stored.
    pub source: Source,
    pub reason: Reason,
    /// What is wrong, for a person to read.
    pub error: String,
}

impl DeadLetter {
    pub fn new(source: Source, Unfit { reason, error }: Unfit) -> Self {
        Self {
            source,
            reason,
            error,
        }
    }
}

/// Why an event becomes a dead letter instead of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    pub reason: Reason,
    /// What is wrong, for a person to read.
    pub error: String,
}

impl Unfit {
    pub fn new(reason: Reason, error: impl ToString) -> Self {
        Self {
            reason,
            error: error.to_string(),
        }
    }
}

/// Why an event became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The bytes are not the protobuf message that they should be.
    Undecodable,
    /// The event says nothing about who sent it.
    MissingContext,
    /// The event's context names no client.
    MissingClientId,
    /// ClickHouse does not accept the row.
    Refused,
}

impl Reason {
    pub const ALL: [Self; 4] = [
        Self::Undecodable,
        Self::MissingContext,
        Self::MissingClientId,
        Self::Refused,
    ];

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

/// Roughly what a letter adds to its block in addition to subject, headers and payload.
const ROW_OVERHEAD: usize = 150;

/// The block that inserts `letters`, all of one stream, into `dead_letters`.
///
/// The same letters always give the same bytes.
pub fn block(stream: &str, letters: &[DeadLetter]) -> Block {
    let bytes: usize = letters
        .iter()
        .map(|letter| letter.source.size() + ROW_OVERHEAD)
        .sum();
    // Those of a batch message are the same for all of its letters.
    let mut headers = Plain::<str>::default();
    let mut of_message = (None, String::new());
    for (row, DeadLetter { source, .. }) in letters.iter().enumerate() {
        if of_message.0 != Some(source.place.0) {
            of_message = (Some(source.place.0), headers_json(&source.headers));
        }
        headers.set(row, &of_message.1);
    }
    let sources = || letters.iter().map(|letter| &letter.source);
    let mut block = BlockBuilder::new(letters.len(), bytes);
    block
        .values("stream", letters.iter().map(|_| stream))
        .values("stream_seq", sources().map(|source| &source.place.0))
        .values("batch_index", sources().map(|source| &source.place.1))
        .values("subject", sources().map(|source| source.subject.as_str()))
        .values("received_at", sources().map(|source| &source.received_at))
        .values(
            "reason",
            letters.iter().map(|letter| letter.reason.as_str()),
        )
        .values("error", letters.iter().map(|letter| letter.error.as_str()))
        .column("headers", vec![(headers.into(), letters.len())])
        .values("payload", sources().map(|source| source.payload.as_ref()))
        .values(
            "payload_is",
            sources().map(|source| source.payload_is.as_str()),
        );
    block.build()
}

/// The headers as a JSON object of arrays, `{"Nats-Msg-Id": ["…"]}`, names in order:
/// they come in no order, and a repeat must be the same bytes.
fn headers_json(headers: &Headers) -> String {
    let mut by_name = BTreeMap::<&str, Vec<&str>>::new();
    for (name, value) in headers.iter() {
        by_name.entry(name).or_default().push(value);
    }
    serde_json::Value::from_iter(by_name).to_string()
}
