//! Where to continue: what the record says, compared with the stream and, independently
//! of it, with ClickHouse.
//!
//! The record may have been lost or rolled back with the bucket, and the stream may
//! have lost its tail in a power failure and given its sequences to other messages.
//! Then rows may be stored that the record does not know of. Up to the last of
//! them, only what ClickHouse does not hold is inserted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use tracing::{error, info, warn};

use super::error::PipelineError;
use super::lead::Lead;
use super::recount::Recount;
use super::store::Store;
use crate::checkpoint::{Incarnation, Record};
use crate::nats::{StoredMessageError, stored_message};

/// How often ClickHouse is asked whether inserts of an earlier writer still run.
const LOOK: Duration = Duration::from_millis(200);

/// Brings the record, which is this instance's, in line with the stream and with
/// ClickHouse. Returns the sequence up to which only what is missing may be
/// inserted; 0 where the record can be believed.
pub async fn reconcile(lead: &Lead, store: &Store) -> Result<u64, PipelineError> {
    let Lead {
        jetstream,
        stream,
        checkpoint,
        sole_writer,
    } = lead;
    let identity = checkpoint.stream().to_string();
    let record = checkpoint.record().await;
    let last_sequence = stream.cached_info().state.last_sequence;
    let end = record.end().0;

    // What an earlier writer has sent may still be under way, though the writer is
    // gone. Only when it has ended does ClickHouse say what there is.
    Recount::new(store, checkpoint, sole_writer).clear().await?;
    quiet(store, &identity).await;

    let cut_off = last_common(jetstream, stream, &record).await?;
    if let Some((last, _)) = cut_off {
        error!(
            from = last + 1,
            to = end,
            "the stream has lost its tail and gives its sequences to other messages; \
             ClickHouse keeps what it has of the lost ones"
        );
    }
    let stored = store.last_after(&identity, end).await;
    if let Some(stored) = stored {
        warn!(
            checkpoint = end,
            clickhouse = stored,
            "ClickHouse holds more than the checkpoint knows of: inserting what is missing up to there"
        );
        if stored > last_sequence {
            error!(
                stream = last_sequence,
                clickhouse = stored,
                "ClickHouse holds sequences that the stream does not have any more"
            );
        }
    }
    if record.committed > 0 && !store.holds_any(&identity).await {
        warn!(
            committed = record.committed,
            "ClickHouse holds nothing of this stream, though the checkpoint says that it is stored: \
             if ClickHouse was emptied or exchanged, `verify --repair` brings back what the stream still has"
        );
    }
    // Also what an earlier writer that went back in the record did not get to.
    let check_until = stored.or(cut_off.map(|_| end)).unwrap_or(0);
    let check_until = check_until.max(record.look_until);

    let incarnation = Incarnation {
        process: store.process().await,
        tables: store.reached().await,
    };
    checkpoint
        .change(|record| {
            if let Some((last, stored_at)) = cut_off {
                record.cut_off(last, stored_at);
            }
            if check_until > 0 {
                record.raise_generation(now_seconds());
                record.look_until = check_until;
            }
            if stored.is_some() {
                // An old record's: their tokens may be forgotten by now.
                record.in_flight.clear();
            }
            // Ranges in flight keep the one under which they were sent.
            record.incarnation = incarnation;
        })
        .await?;
    Ok(check_until)
}

/// The last message that the record and the stream have in common, its sequence and when it
/// was stored, where the stream has lost its tail after it; 0 where there is none.
///
/// Its time tells a message from another one that took its place. That times increase
/// cannot be relied on: after a power failure, NATS' clock may be behind. A message that
/// is missing among others was deleted by itself, and says nothing.
async fn last_common(
    jetstream: &jetstream::Context,
    stream: &Stream,
    record: &Record,
) -> Result<Option<(u64, i64)>, StoredMessageError> {
    let info = stream.cached_info();
    let (state, name) = (&info.state, &info.config.name);
    let (end, stored_at) = record.end();
    // What has expired is not looked for, nor is anything whose time nobody knows.
    if end < state.first_sequence || (stored_at == 0 && end <= state.last_sequence) {
        return Ok(None);
    }
    let mut is_lost = end > state.last_sequence;
    for (sequence, stored_at) in record.known_messages() {
        if sequence < state.first_sequence {
            return Ok(is_lost.then_some((sequence, stored_at)));
        }
        if sequence > state.last_sequence {
            continue;
        }
        let found = stored_message(jetstream, name, sequence, ">").await?;
        if let Some(found) = found.filter(|found| found.sequence == sequence) {
            if found.stored_at == stored_at {
                return Ok(is_lost.then_some((sequence, stored_at)));
            }
            is_lost = true;
        }
    }
    Ok(is_lost.then_some((0, 0)))
}

/// Waits until no insert of the stream runs: one whose sender is gone may still be under way.
async fn quiet(store: &Store, stream: &str) {
    let blocker = store.progress.blocker();
    let mut said = false;
    while store.inserts_run(stream).await {
        if !said {
            info!("waiting for the inserts of an earlier writer");
            blocker.say("inserts of an earlier writer still run".to_owned());
            said = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub fn now_seconds() -> u32 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    // Until the year 2106.
    since_epoch.map_or(0, |elapsed| elapsed.as_secs() as u32)
}
