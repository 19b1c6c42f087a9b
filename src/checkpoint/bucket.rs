//! Where the record is kept: a key in a JetStream KV bucket.

use async_nats::jetstream;
use async_nats::jetstream::kv::{self, CreateErrorKind, Entry, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream::{StorageType, Stream};

use super::{CheckpointError, Record, Written};
use crate::nats::{self, StreamId};

/// The bucket; a record's key is stream and consumer.
pub const NAME: &str = "analytics-checkpoints";

pub fn key(stream: &str, consumer: &str) -> String {
    format!("{stream}.{consumer}")
}

/// Opens the bucket, and creates it when it is missing: on disk, and with as many
/// copies as the stream that it is about.
pub async fn open(
    jetstream: &jetstream::Context,
    num_replicas: usize,
) -> Result<Store, CheckpointError> {
    if let Ok(store) = jetstream.get_key_value(NAME).await {
        remembers(&store)?;
        return Ok(store);
    }
    let bucket = kv::Config {
        bucket: NAME.to_owned(),
        description: "What analytics-server has stored, by stream and consumer".to_owned(),
        history: 1,
        // Whatever the stream's storage is: without this record, everything is compared
        // with ClickHouse.
        storage: StorageType::File,
        num_replicas,
        ..Default::default()
    };
    jetstream
        .create_key_value(bucket)
        .await
        .map_err(|error| CheckpointError::Unavailable(error.to_string()))
}

fn remembers(store: &Store) -> Result<(), CheckpointError> {
    let config = &store.stream.cached_info().config;
    if config.storage == StorageType::File && config.max_age.is_zero() {
        Ok(())
    } else {
        Err(CheckpointError::Forgetful)
    }
}

/// The record of a stream and a consumer as it is now, without taking it over.
pub async fn peek(
    jetstream: &jetstream::Context,
    stream: &str,
    consumer: &str,
) -> Result<Option<Record>, CheckpointError> {
    let unavailable = |error: String| CheckpointError::Unavailable(error);
    if find(jetstream).await?.is_none() {
        return Ok(None);
    }
    let store = jetstream.get_key_value(NAME).await;
    let store = store.map_err(|error| unavailable(error.to_string()))?;
    remembers(&store)?;
    let found = read(&store, &key(stream, consumer)).await?;
    Ok(found.map(|found| found.record))
}

/// The identity under which the stream's messages are stored, as far as the record of this
/// consumer knows.
pub async fn identity(
    jetstream: &jetstream::Context,
    stream: &Stream,
    consumer: &str,
) -> Result<StreamId, CheckpointError> {
    let current = StreamId::of(stream);
    let record = peek(jetstream, &current.name, consumer).await?;
    let known = record.and_then(|record| record.identity_of(&current));
    Ok(known.unwrap_or(current))
}

/// The bucket's underlying stream; `None` where it is missing.
async fn find(jetstream: &jetstream::Context) -> Result<Option<Stream>, CheckpointError> {
    nats::find_stream(jetstream, &format!("KV_{NAME}"))
        .await
        .map_err(|error| CheckpointError::Unavailable(error.to_string()))
}

pub async fn exists(jetstream: &jetstream::Context) -> Result<bool, CheckpointError> {
    Ok(find(jetstream).await?.is_some())
}

/// Takes the record of a stream and a consumer out without a trace, for a stream that
/// was created to be deleted.
pub async fn forget(
    jetstream: &jetstream::Context,
    stream: &str,
    consumer: &str,
) -> Result<(), CheckpointError> {
    let Some(bucket) = find(jetstream).await? else {
        return Ok(());
    };
    // A key's deletion would leave a marker in the bucket for good.
    let subject = format!("$KV.{NAME}.{}", key(stream, consumer));
    let purged = bucket.purge().filter(subject).await;
    purged.map_err(|error| CheckpointError::Unavailable(error.to_string()))?;
    Ok(())
}

/// Deletes the bucket, unless there is something in it.
pub async fn delete_empty(jetstream: &jetstream::Context) -> Result<(), CheckpointError> {
    match find(jetstream).await? {
        Some(bucket) if bucket.cached_info().state.messages == 0 => {
            let deleted = jetstream.delete_key_value(NAME).await;
            deleted.map_err(|error| CheckpointError::Unavailable(error.to_string()))?;
            Ok(())
        }
        _ => Ok(()),
    }
}

pub async fn read(store: &Store, key: &str) -> Result<Option<Written>, CheckpointError> {
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
    Ok(Some(Written { record, revision }))
}

/// The bucket holds another revision than the one that was expected.
pub struct Conflict;

/// Writes the record where it is still at `expected`, or not there for `None`;
/// returns its revision.
pub async fn write(
    store: &Store,
    key: &str,
    record: &Record,
    expected: Option<u64>,
) -> Result<Result<u64, Conflict>, CheckpointError> {
    // Strings and numbers can always be written as JSON.
    let value = serde_json::to_vec(record).unwrap_or_default().into();
    let unavailable = |error: String| Err(CheckpointError::Unavailable(error));
    match expected {
        None => match store.create(key, value).await {
            Ok(revision) => Ok(Ok(revision)),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(Err(Conflict)),
            Err(error) => unavailable(error.to_string()),
        },
        Some(expected) => match store.update(key, value, expected).await {
            Ok(revision) => Ok(Ok(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(Err(Conflict)),
            Err(error) => unavailable(error.to_string()),
        },
    }
}
