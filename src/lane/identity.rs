//! Which stream it is: the identity under which its messages are stored.
//!
//! A stream that was deleted and created again is another one, as its creation time
//! shows. But one that was restored from a backup may have another creation time, too: in
//! a cluster, and wherever it was copied. Its messages are the old ones, each under its
//! sequence and with the time at which it was first stored, and what ClickHouse holds of
//! them would be stored once more. So a stream whose creation time nobody knows is
//! compared with the rows of earlier streams of that name.

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use tracing::warn;

use super::store::Store;
use crate::checkpoint::Record;
use crate::clickhouse::stored::Witness;
use crate::nats::{StoredMessageError, StreamId, stored_message};

/// The identity of `stream`: that of the record, if it knows the creation time; that of an
/// earlier stream, if this one holds a message of it; otherwise one of its own.
pub async fn of(
    jetstream: &jetstream::Context,
    stream: &Stream,
    record: Option<&Record>,
    store: &Store,
) -> Result<StreamId, StoredMessageError> {
    let current = StreamId::of(stream);
    if let Some(known) = record.and_then(|record| record.identity_of(&current)) {
        return Ok(known);
    }
    if let Some(record) = record
        && holds_what_is_known(jetstream, &current, record).await?
    {
        let known = StreamId {
            created: record.stream_created.clone(),
            ..current.clone()
        };
        say(&current, &known);
        return Ok(known);
    }
    let state = &stream.cached_info().state;
    let sequences = state.first_sequence..=state.last_sequence;
    let witnesses = store.witnesses(&current.name, sequences).await;
    // Rows under the current creation time are without doubt this stream's.
    let own = current.to_string();
    if witnesses.iter().any(|witness| witness.stream == own) {
        return Ok(current);
    }
    for Witness {
        stream: earlier,
        stream_seq,
        received_at,
    } in witnesses
    {
        let found = stored_message(jetstream, &current.name, stream_seq, ">").await?;
        let is_same = found.is_some_and(|message| {
            let milliseconds = message.stored_at.div_euclid(1_000_000);
            message.sequence == stream_seq && milliseconds == received_at
        });
        if is_same && let Some((_, created)) = earlier.split_once('@') {
            let known = StreamId {
                created: created.to_owned(),
                ..current.clone()
            };
            say(&current, &known);
            return Ok(known);
        }
    }
    Ok(current)
}

/// Whether the stream has a message that the record of an earlier one knows, as it was.
async fn holds_what_is_known(
    jetstream: &jetstream::Context,
    stream: &StreamId,
    record: &Record,
) -> Result<bool, StoredMessageError> {
    for (sequence, stored_at) in record.known_messages() {
        let found = stored_message(jetstream, &stream.name, sequence, ">").await?;
        if found.is_some_and(|it| it.sequence == sequence && it.stored_at == stored_at) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn say(current: &StreamId, known: &StreamId) {
    warn!(
        stream = %current, earlier = %known,
        "the stream was restored, and holds messages that are stored under its earlier \
         creation time: going on under that"
    );
}
