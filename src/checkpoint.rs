//! The checkpoint: one record in a JetStream KV bucket that says who writes, up
//! to where everything is stored, and which ranges may have been inserted.
//!
//! It is written by compare-and-set before a batch is sent to ClickHouse. A write that
//! meets an unexpected revision means that another instance has taken over: the record
//! is the fence and the lease, and nothing else is.

mod bucket;
mod moment;
mod record;

use std::pin::pin;
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use prometheus::IntCounter;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::nats::StreamId;
use bucket::{Conflict, read, write};

pub use bucket::{
    NAME as BUCKET, delete_empty as delete_empty_bucket, exists as bucket_exists, forget, identity,
    open as open_bucket, peek,
};
pub use moment::Moment;
pub use record::{History, InFlight, Incarnation, Part, Range, Record, Rows};

/// How often a standby looks at the record: a clean stop hands over within that time.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Another instance has written the record. This one must stop inserting.
    #[error("another instance, {owner}, has taken over")]
    Fenced { owner: String },
    /// NATS did not answer, or not with what is needed.
    #[error("cannot reach the checkpoint: {0}")]
    Unavailable(String),
    #[error(
        "bucket `{}` is in memory or has a max_age, and a lost checkpoint means a long comparison with \
         ClickHouse: create it again with file storage and no max_age",
        bucket::NAME
    )]
    Forgetful,
    #[error(
        "the checkpoint `{key}` in bucket `{}` cannot be read: {error}",
        bucket::NAME
    )]
    Corrupt { key: String, error: String },
}

/// What a record is found by, and who wants it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// This instance's name, which no other instance has.
    pub owner: String,
    /// The identity under which the stream's messages are stored.
    pub stream: StreamId,
    /// The creation time that NATS gives for it, a different one after a restore.
    pub created: String,
    /// The durable consumer's name.
    pub consumer: String,
    /// A record whose revision has not changed for this long is nobody's.
    pub lease_timeout: Duration,
    /// Takes the record even from an active instance, which then stands by.
    pub at_once: bool,
    /// Counts the writes of the record.
    pub writes: IntCounter,
}

impl Claim {
    fn key(&self) -> String {
        bucket::key(&self.stream.name, &self.consumer)
    }
}

/// What was found when it was this instance's turn.
#[derive(Debug)]
pub enum Turn {
    /// There is no record.
    Vacant,
    Found(Box<Written>),
}

/// A record and the revision that it has in the bucket.
#[derive(Debug, Clone)]
pub struct Written {
    pub record: Record,
    pub revision: u64,
}

/// Waits until the record is this instance's to take: it is its own, was handed
/// over, or has not changed for the length of the lease. `standing_by` is called with
/// another owner.
pub async fn wait_for_turn(
    store: &Store,
    claim: &Claim,
    standing_by: impl Fn(&str),
) -> Result<Turn, CheckpointError> {
    // By this clock alone: what another machine's clock says does not matter.
    let mut seen: Option<(u64, Instant)> = None;
    loop {
        let Some(Written { record, revision }) = read(store, &claim.key()).await? else {
            return Ok(Turn::Vacant);
        };
        let still_since = match seen {
            Some((seen, since)) if seen == revision => since,
            _ => Instant::now(),
        };
        seen = Some((revision, still_since));
        let free = claim.at_once
            || record.owner.is_empty()
            || record.owner == claim.owner
            || still_since.elapsed() >= claim.lease_timeout;
        if free {
            return Ok(Turn::Found(Box::new(Written { record, revision })));
        }
        standing_by(&record.owner);
        tokio::time::sleep(LOOK.min(claim.lease_timeout / 4)).await;
    }
}

/// The record, as this instance owns it.
#[derive(Debug)]
pub struct Checkpoint {
    store: Store,
    claim: Claim,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    written: Written,
    /// When the record was last known to be this instance's.
    confirmed: Moment,
}

/// A range that is in the checkpoint and not yet in ClickHouse, or not for certain. It
/// ends with [`Checkpoint::commit`].
#[must_use = "a recorded range is inserted, then committed"]
#[derive(Debug)]
pub struct Recorded {
    pub in_flight: InFlight,
    /// It was there before: it may have been inserted.
    pub recovered: bool,
}

impl Checkpoint {
    /// Makes the record this instance's. From now on, a write by any other instance
    /// fails. `None` when somebody else has written it meanwhile.
    ///
    /// `found` is what [`wait_for_turn`] found; `last` is what this instance wrote
    /// last, in the life of this process, and that is believed where NATS has lost or
    /// rolled back the record.
    pub async fn take_over(
        store: Store,
        claim: Claim,
        found: Turn,
        last: Option<Written>,
    ) -> Result<Option<Self>, CheckpointError> {
        let (mut record, revision) = match (found, last) {
            (Turn::Vacant, Some(last)) => {
                warn!("the checkpoint is gone: writing it again as it was");
                (last.record, None)
            }
            (Turn::Vacant, None) => (Record::new(&claim.owner, &claim.stream), None),
            (Turn::Found(found), Some(last))
                if found.record.owner == claim.owner && found.revision < last.revision =>
            {
                warn!("the checkpoint was rolled back: writing it again as it was");
                (last.record, Some(found.revision))
            }
            (Turn::Found(found), _) => (found.record, Some(found.revision)),
        };
        if record.owner != claim.owner && !record.owner.is_empty() {
            info!(
                previous_owner = record.owner,
                "taken from another instance, whose lease has run out, or for a repair"
            );
        }
        if record.stream_created != claim.stream.created {
            let gone: Vec<_> = record.in_flight.iter().map(|gone| &gone.range).collect();
            warn!(
                stream = %claim.stream, ?gone,
                "the stream is not the one of the checkpoint: starting at its beginning"
            );
            record = Record::new(&claim.owner, &claim.stream);
        }
        record.owner.clone_from(&claim.owner);
        record.restored = match claim.created == claim.stream.created {
            true => String::new(),
            false => claim.created.clone(),
        };
        match write(&store, &claim.key(), &record, revision).await? {
            Ok(revision) => Ok(Some(Self {
                state: Mutex::new(State {
                    written: Written { record, revision },
                    confirmed: Moment::now(),
                }),
                store,
                claim,
            })),
            Err(Conflict) => Ok(None),
        }
    }

    pub fn stream(&self) -> &StreamId {
        &self.claim.stream
    }

    /// This instance's name, which no other instance has.
    pub fn owner(&self) -> &str {
        &self.claim.owner
    }

    /// The record as it is now.
    pub async fn record(&self) -> Record {
        self.state.lock().await.written.record.clone()
    }

    /// What a later [take-over](Self::take_over) by this process starts from.
    pub async fn last(&self) -> Written {
        self.state.lock().await.written.clone()
    }

    /// Records a range. Only then may it be sent to ClickHouse. `parts` say how, unless
    /// it is sent as a whole.
    pub async fn begin(
        &self,
        range: &Range,
        parts: Vec<Part>,
    ) -> Result<Recorded, CheckpointError> {
        let mut state = self.state.lock().await;
        let (in_flight, recovered) = state.written.record.begin(range, parts);
        if !recovered {
            self.write(&mut state).await?;
        }
        Ok(Recorded {
            in_flight,
            recovered,
        })
    }

    /// Changes the record. Only then may what it says be done.
    pub async fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), CheckpointError> {
        let mut state = self.state.lock().await;
        change(&mut state.written.record);
        self.write(&mut state).await
    }

    /// Says that ranges are stored for good, in the table and in every view.
    /// Ranges are committed in order.
    pub async fn commit(
        &self,
        ranges: impl IntoIterator<Item = Range>,
    ) -> Result<(), CheckpointError> {
        let mut state = self.state.lock().await;
        for range in ranges {
            state.written.record.retire(&range);
        }
        self.write(&mut state).await
    }

    /// Makes sure that the record is still this instance's. An instance that was
    /// frozen finds out here, before it sends what its successor has sent.
    pub async fn confirm(&self) -> Result<(), CheckpointError> {
        self.confirm_after(self.claim.lease_timeout / 2).await
    }

    /// As [`confirm`](Self::confirm), but not by the clock: before what must not be done
    /// once another instance has taken over.
    pub async fn confirm_by_writing(&self) -> Result<(), CheckpointError> {
        self.confirm_after(Duration::ZERO).await
    }

    /// Keeps the lease until the work is done.
    ///
    /// # Errors
    /// When the lease is lost, which ends the work.
    pub async fn keep_during<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, CheckpointError> {
        let beat = self.claim.lease_timeout / 4;
        let mut work = pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(beat, &mut work).await {
                return Ok(done);
            }
            let mut confirming = pin!(self.confirm_after(beat));
            tokio::select! {
                confirmed = &mut confirming => confirmed?,
                done = &mut work => {
                    // A write that is dropped half-way leaves a revision that nobody knows.
                    confirming.await?;
                    return Ok(done);
                }
            }
        }
    }

    async fn confirm_after(&self, age: Duration) -> Result<(), CheckpointError> {
        let mut state = self.state.lock().await;
        if state.confirmed.is_younger_than(age) {
            return Ok(());
        }
        self.write(&mut state).await
    }

    /// Gives the record to whoever wants it, with what is in flight.
    pub async fn hand_over(&self) -> Result<(), CheckpointError> {
        self.change(|record| record.owner.clear()).await
    }

    /// Writes the record if it is still at the revision that this instance wrote.
    async fn write(&self, state: &mut State) -> Result<(), CheckpointError> {
        let key = self.claim.key();
        let Written { record, revision } = &mut state.written;
        match write(&self.store, &key, record, Some(*revision)).await? {
            Ok(written) => *revision = written,
            Err(Conflict) => return Err(self.fenced(&key).await),
        }
        self.claim.writes.inc();
        state.confirmed = Moment::now();
        Ok(())
    }

    async fn fenced(&self, key: &str) -> CheckpointError {
        match read(&self.store, key).await {
            // A write whose answer was lost, or a bucket that was created again.
            Ok(Some(found)) if found.record.owner == self.claim.owner => {
                CheckpointError::Unavailable(
                    "it is not at the revision that was written".to_owned(),
                )
            }
            Ok(Some(found)) => CheckpointError::Fenced {
                owner: found.record.owner,
            },
            Ok(None) => CheckpointError::Unavailable("it is gone".to_owned()),
            Err(error) => error,
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
