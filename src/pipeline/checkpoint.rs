//! The checkpoint: one record in a JetStream KV bucket that says who writes, up
//! to where everything is stored, and which ranges may have been inserted.
//!
//! It is written by compare-and-set before a batch is sent to ClickHouse. A
//! write that meets a revision which it did not expect means that another
//! instance took over: the record is the fence, and nothing else is.

use std::time::Duration;

use async_nats::jetstream::kv::{CreateErrorKind, Entry, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::decode::Message;
use crate::nats::StreamId;

/// The bucket; a record's key is stream and consumer.
const BUCKET: &str = "analytics-checkpoints";

/// A contiguous run of stream sequences, with when JetStream stored both ends:
/// a stream that lost its tail gives the same sequences to other messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub first: u64,
    pub last: u64,
    /// Nanoseconds since the Unix epoch.
    pub first_stored_at: i64,
    /// Nanoseconds since the Unix epoch.
    pub last_stored_at: i64,
}

impl Range {
    pub fn starting_at(message: &Message) -> Self {
        Self {
            first: message.sequence,
            last: message.sequence,
            first_stored_at: message.stored_at,
            last_stored_at: message.stored_at,
        }
    }

    pub fn extend_to(&mut self, message: &Message) {
        self.last = message.sequence;
        self.last_stored_at = message.stored_at;
    }
}

/// What stands in the bucket, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The instance that writes.
    pub owner: String,
    /// The stream's creation time: sequences of a re-created stream are others.
    pub stream_created: String,
    /// Raised to insert again, on purpose, what was inserted before.
    pub generation: u32,
    /// Everything up to this stream sequence is stored.
    pub committed: u64,
    /// Ranges that may have been inserted, in order.
    pub in_flight: Vec<Range>,
}

impl Record {
    fn new(owner: &str, stream: &StreamId) -> Self {
        Self {
            owner: owner.to_owned(),
            stream_created: stream.created.clone(),
            generation: 0,
            committed: 0,
            in_flight: Vec::new(),
        }
    }

    /// The record as `owner` takes it over for `stream`, whose last sequence is
    /// `last_sequence`.
    fn taken_over(self, owner: &str, stream: &StreamId, last_sequence: u64) -> Self {
        if self.stream_created != stream.created {
            warn!(%stream, "the stream is not the one of the checkpoint: starting at its beginning");
            return Self::new(owner, stream);
        }
        if self.committed > last_sequence {
            // What comes next under these sequences are other messages.
            warn!(
                committed = self.committed,
                last_sequence, "the stream has lost its tail: going on at its end"
            );
        }
        Self {
            owner: owner.to_owned(),
            committed: self.committed.min(last_sequence),
            in_flight: self
                .in_flight
                .into_iter()
                .filter(|range| range.last <= last_sequence)
                .collect(),
            ..self
        }
    }

    /// Adds a range that is about to be inserted; false when it stands there already.
    fn begin(&mut self, range: &Range) -> bool {
        let new = !self.in_flight.contains(range);
        if new {
            self.in_flight.push(range.clone());
        }
        new
    }

    /// Takes out a range that is stored, which must be the first one.
    fn retire(&mut self, range: &Range) {
        debug_assert_eq!(
            self.in_flight.first(),
            Some(range),
            "ranges are committed in order"
        );
        self.in_flight.retain(|other| other != range);
        self.committed = range.last;
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Another instance has written the record. This one must stop inserting.
    #[error("another instance, {owner}, has taken over")]
    Fenced { owner: String },
    /// NATS did not answer, or not with what is needed.
    #[error("cannot reach the checkpoint: {0}")]
    Unavailable(String),
    #[error(
        "bucket `{BUCKET}` is in memory or forgets with age, and a lost checkpoint is events twice: \
         make it again with file storage and no max_age"
    )]
    Forgetful,
    #[error("the checkpoint `{key}` in bucket `{BUCKET}` cannot be read: {error}")]
    Corrupt { key: String, error: String },
}

/// Who takes the record over, and for what.
#[derive(Debug)]
pub struct Claim<'a> {
    /// This instance.
    pub owner: &'a str,
    /// It had taken the record over before, in the life of this process.
    pub had_it: bool,
    pub stream: StreamId,
    /// The durable consumer's name.
    pub consumer: &'a str,
    /// The last sequence of the stream now.
    pub last_sequence: u64,
}

/// The record, as this instance owns it.
#[derive(Debug)]
pub struct Checkpoint {
    store: Store,
    key: String,
    revision: u64,
    record: Record,
    stream: StreamId,
}

/// A range that stands in the checkpoint and not yet in ClickHouse, or not for
/// sure. It ends with [`Checkpoint::commit`].
#[must_use = "a recorded range is inserted, then committed"]
#[derive(Debug)]
pub struct Recorded {
    range: Range,
    token: String,
}

impl Recorded {
    /// The deduplication token under which exactly these messages are inserted.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Checkpoint {
    /// Takes the record over, or makes it. From now on every other instance that
    /// writes it fails.
    ///
    /// # Errors
    /// [`CheckpointError::Fenced`] when `claim` says that this instance had taken
    /// it over before, and another has it now.
    pub async fn take_over(store: Store, claim: Claim<'_>) -> Result<Self, CheckpointError> {
        let Claim {
            owner,
            had_it,
            stream,
            consumer,
            last_sequence,
        } = claim;
        let key = key(&stream.name, consumer);
        loop {
            let found = read(&store, &key).await?;
            if let Some((record, _)) = &found
                && record.owner != owner
            {
                if had_it {
                    return Err(CheckpointError::Fenced {
                        owner: record.owner.clone(),
                    });
                }
                info!(previous_owner = record.owner, "taking the checkpoint over");
            }
            let (record, expected) = match found {
                None => (Record::new(owner, &stream), None),
                Some((record, revision)) => (
                    record.taken_over(owner, &stream, last_sequence),
                    Some(revision),
                ),
            };
            let value = to_json(&record);
            let written =
                match expected {
                    None => store
                        .create(&key, value)
                        .await
                        .map_err(|error| match error.kind() {
                            CreateErrorKind::AlreadyExists => None,
                            _ => Some(error.to_string()),
                        }),
                    Some(revision) => store.update(&key, value, revision).await.map_err(|error| {
                        match error.kind() {
                            UpdateErrorKind::WrongLastRevision => None,
                            _ => Some(error.to_string()),
                        }
                    }),
                };
            match written {
                Ok(revision) => {
                    info!(
                        %stream,
                        committed = record.committed,
                        in_flight = record.in_flight.len(),
                        "checkpoint taken over"
                    );
                    return Ok(Self {
                        store,
                        key,
                        revision,
                        record,
                        stream,
                    });
                }
                // Somebody else wrote in between, or what was read was stale.
                Err(None) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(Some(error)) => return Err(CheckpointError::Unavailable(error)),
            }
        }
    }

    /// Everything up to this stream sequence is stored.
    pub fn committed(&self) -> u64 {
        self.record.committed
    }

    /// Ranges that were recorded and not committed, in order.
    pub fn in_flight(&self) -> &[Range] {
        &self.record.in_flight
    }

    /// Records a range. Only then may it be sent to ClickHouse.
    pub async fn record(&mut self, range: &Range) -> Result<Recorded, CheckpointError> {
        if self.record.begin(range) {
            self.write().await?;
        }
        Ok(Recorded {
            range: range.clone(),
            token: self.token(range),
        })
    }

    /// Says that a range is stored for good. Ranges are committed in order.
    pub async fn commit(&mut self, recorded: Recorded) -> Result<(), CheckpointError> {
        self.record.retire(&recorded.range);
        self.write().await
    }

    fn token(&self, range: &Range) -> String {
        let Range {
            first,
            last,
            first_stored_at,
            last_stored_at,
        } = range;
        let generation = self.record.generation;
        format!(
            "{}/{generation}/{first}@{first_stored_at}-{last}@{last_stored_at}",
            self.stream
        )
    }

    /// Writes the record if it is still at the revision that this instance wrote.
    async fn write(&mut self) -> Result<(), CheckpointError> {
        let value = to_json(&self.record);
        match self
            .store
            .update(&self.key, value.clone(), self.revision)
            .await
        {
            Ok(revision) => {
                self.revision = revision;
                return Ok(());
            }
            Err(error) if error.kind() != UpdateErrorKind::WrongLastRevision => {
                return Err(CheckpointError::Unavailable(error.to_string()));
            }
            Err(_) => {}
        }
        Err(CheckpointError::Fenced {
            owner: self.other_owner().await,
        })
    }

    /// Who has the record now, for the message.
    async fn other_owner(&self) -> String {
        match read(&self.store, &self.key).await {
            Ok(Some((record, _))) => record.owner,
            _ => "unknown".to_owned(),
        }
    }
}

/// Opens the bucket, and makes it when it is missing: on disk, and with as many
/// copies as the stream that it speaks of.
pub async fn open_bucket(
    jetstream: &jetstream::Context,
    num_replicas: usize,
) -> Result<Store, CheckpointError> {
    if let Ok(store) = jetstream.get_key_value(BUCKET).await {
        let config = &store.stream.cached_info().config;
        if config.storage != StorageType::File || !config.max_age.is_zero() {
            return Err(CheckpointError::Forgetful);
        }
        return Ok(store);
    }
    let bucket = kv::Config {
        bucket: BUCKET.to_owned(),
        description: "What analytics-server has stored, by stream and consumer".to_owned(),
        history: 1,
        // Whatever the stream's: a checkpoint that NATS forgets is events twice.
        storage: StorageType::File,
        num_replicas,
        ..Default::default()
    };
    jetstream
        .create_key_value(bucket)
        .await
        .map_err(|error| CheckpointError::Unavailable(error.to_string()))
}

/// The record of a stream and a consumer as it is now, without taking it over.
pub async fn peek(
    jetstream: &jetstream::Context,
    stream: &str,
    consumer: &str,
) -> Result<Option<Record>, CheckpointError> {
    let Ok(store) = jetstream.get_key_value(BUCKET).await else {
        return Ok(None);
    };
    let found = read(&store, &key(stream, consumer)).await?;
    Ok(found.map(|(record, _)| record))
}

fn key(stream: &str, consumer: &str) -> String {
    format!("{stream}.{consumer}")
}

async fn read(store: &Store, key: &str) -> Result<Option<(Record, u64)>, CheckpointError> {
    let entry = store
        .entry(key)
        .await
        .map_err(|error| CheckpointError::Unavailable(error.to_string()))?;
    let Some(Entry {
        value,
        revision,
        operation: Operation::Put,
        ..
    }) = entry
    else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&value).map_err(|error| CheckpointError::Corrupt {
        key: key.to_owned(),
        error: error.to_string(),
    })?;
    Ok(Some((record, revision)))
}

fn to_json(record: &Record) -> Bytes {
    // Strings and numbers cannot fail to become JSON.
    serde_json::to_vec(record).unwrap_or_default().into()
}

#[cfg(test)]
mod tests;
