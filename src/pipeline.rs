//! The data's path: consume → decode → batch → insert → commit → ack.
//!
//! Two tasks. One reads messages and cuts them into batches; the other records a
//! batch in the checkpoint, inserts it, commits it and acknowledges it. Between
//! them stands one batch: when ClickHouse is slow, nothing more is pulled.
//!
//! Whatever goes wrong with NATS ends [`Pipeline::run`] with an error, and running it
//! again goes on at the checkpoint. There is no other way of recovering, so that the
//! one there is gets used every day.

pub mod batch;
pub mod checkpoint;
pub mod consume;
pub mod decode;
pub mod insert;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, Subject};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, enabled, warn};

use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::nats::{self, StreamError, StreamId};
use batch::{Batch, Batcher, Limits};
use checkpoint::{Checkpoint, CheckpointError, Claim, Recorded};
use consume::{ConsumeError, Consumer, Delivery};
use decode::{Decoder, Message};
use insert::Insert;

/// Inserts under way at a time: ClickHouse works on one while the next arrives.
const MAX_IN_FLIGHT: usize = 2;

/// The acknowledgement; a lost one costs nothing.
const ACK: &[u8] = b"+ACK";

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    #[error("acknowledging failed: {0}")]
    Ack(#[from] async_nats::PublishError),
    #[error("a task of the pipeline failed, which is a fault of this program")]
    TaskFailed,
}

impl PipelineError {
    /// Whether running again cannot help, or must not be tried.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Checkpoint(
                CheckpointError::Fenced { .. }
                    | CheckpointError::Forgetful
                    | CheckpointError::Corrupt { .. }
            )
        )
    }
}

/// What went through since the process started, in events, and what holds it up.
#[derive(Debug, Default)]
pub struct Progress {
    /// Rows in `analytics_events`.
    pub stored: AtomicU64,
    /// Rows in `dead_letters`.
    pub dead_letters: AtomicU64,
    /// Why the insert under way does not succeed.
    held_up_by: Mutex<Option<String>>,
}

impl Progress {
    /// Why the insert under way does not succeed; `None` when all is well.
    pub fn held_up_by(&self) -> Option<String> {
        self.reason().clone()
    }

    /// Lets an insert say why it does not succeed, for as long as it is under way.
    fn hold_up(&self) -> HoldUp<'_> {
        HoldUp(self)
    }

    fn reason(&self) -> MutexGuard<'_, Option<String>> {
        self.held_up_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an insert said ends with it, also when it is given up half-way.
struct HoldUp<'a>(&'a Progress);

impl HoldUp<'_> {
    fn say(&self, reason: String) {
        *self.0.reason() = Some(reason);
    }
}

impl Drop for HoldUp<'_> {
    fn drop(&mut self) {
        *self.0.reason() = None;
    }
}

/// Carries events from the stream into ClickHouse.
pub struct Pipeline {
    config: Arc<Config>,
    nats: Client,
    clickhouse: ClickHouse,
    /// This instance's name in the checkpoint.
    owner: String,
    progress: Arc<Progress>,
    /// What the checkpoint said at the start of the last run, if it was taken over.
    last_committed: Option<u64>,
    /// Runs in a row that ended with an error and had stored nothing of what waited.
    fruitless: u32,
}

/// Fruitless runs after which messages are fetched one by one: NATS may have been
/// away for the first ones.
const FRUITLESS: u32 = 3;

impl Pipeline {
    /// `owner` is this instance's name in the checkpoint, unlike any other's.
    pub fn new(
        config: Arc<Config>,
        nats: Client,
        clickhouse: ClickHouse,
        owner: String,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            config,
            nats,
            clickhouse,
            owner,
            progress,
            last_committed: None,
            fruitless: 0,
        }
    }

    /// Carries events until `shutdown`, then stores what is held and returns.
    ///
    /// # Errors
    /// After one that is not [final](PipelineError::is_final), run it again.
    pub async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let messaging = &self.config.integrations.messaging;
        let jetstream = async_nats::jetstream::new(self.nats.clone());
        let stream = nats::open_stream(&jetstream, messaging).await?;
        let id = StreamId::of(&stream);
        let info = stream.cached_info();
        let bucket = checkpoint::open_bucket(&jetstream, info.config.num_replicas).await?;
        let claim = Claim {
            owner: &self.owner,
            had_it: self.last_committed.is_some(),
            stream: id.clone(),
            consumer: &messaging.jetstream.consumer_name,
            last_sequence: info.state.last_sequence,
        };
        let checkpoint = Checkpoint::take_over(bucket, claim).await?;

        let committed = checkpoint.committed();
        let stood_still = self.last_committed.replace(committed) == Some(committed);
        let something_waits = info.state.last_sequence > committed;
        self.fruitless = if stood_still && something_waits {
            self.fruitless + 1
        } else {
            0
        };
        let careful_until = if self.fruitless < FRUITLESS {
            committed
        } else {
            warn!(
                after = committed,
                "nothing gets through: fetching messages one by one"
            );
            let recorded = checkpoint.in_flight().last().map(|range| range.last);
            recorded.unwrap_or(committed + 1)
        };
        let max_payload = self.nats.server_info().max_payload;
        let settings = consume::Settings::new(messaging, max_payload);
        let analytics = &self.config.features.analytics;
        let limits = Limits {
            rows: analytics.batch_size.get(),
            bytes: usize::try_from(analytics.batch_max_bytes.as_u64()).unwrap_or(usize::MAX),
            interval: analytics.flush_interval,
        };
        let reader = Reader {
            consumer: Consumer::new(jetstream, stream, settings, committed, careful_until),
            decoder: Decoder::new(
                &id.to_string(),
                &messaging.subjects.analytics_events,
                &messaging.subjects.analytics_batch,
            ),
            batcher: Batcher::new(limits, checkpoint.in_flight().iter().cloned()),
        };
        let (sender, batches) = mpsc::channel(1);
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run(sender, shutdown.clone())));

        self.write(&id.to_string(), batches, checkpoint).await?;
        reader.await.unwrap_or(Err(PipelineError::TaskFailed))
    }

    /// Stores batches as they come, until there are no more.
    async fn write(
        &self,
        stream: &str,
        mut batches: mpsc::Receiver<Batch>,
        mut checkpoint: Checkpoint,
    ) -> Result<(), PipelineError> {
        let mut in_flight = FuturesOrdered::new();
        let mut open = true;
        while open || !in_flight.is_empty() {
            tokio::select! {
                batch = batches.recv(), if open && in_flight.len() < MAX_IN_FLIGHT => match batch {
                    Some(batch) => {
                        let recorded = checkpoint.record(&batch.range).await?;
                        let insert = Insert::new(stream, &batch, recorded.token());
                        in_flight.push_back(self.insert(insert, recorded, batch.ack));
                    }
                    None => open = false,
                },
                Some(stored) = in_flight.next() => {
                    let Stored { recorded, ack } = stored?;
                    checkpoint.commit(recorded).await?;
                    if let Some(ack) = ack {
                        self.nats.publish(ack, ACK.into()).await?;
                    }
                }
            }
        }
        // An acknowledgement that is still in the client's buffer would go down with it.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.nats.flush()).await;
        Ok(())
    }

    /// One insert, on a task of its own so that inserts overlap.
    fn insert(
        &self,
        insert: Insert,
        recorded: Recorded,
        ack: Option<Subject>,
    ) -> impl Future<Output = Result<Stored, PipelineError>> + use<> {
        let (clickhouse, progress) = (self.clickhouse.clone(), Arc::clone(&self.progress));
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            insert.send(&clickhouse, &progress).await;
            Stored { recorded, ack }
        }));
        async { task.await.map_err(|_| PipelineError::TaskFailed) }
    }
}

/// A batch that ClickHouse has and the checkpoint does not know of yet.
#[must_use = "what is stored is committed, then acknowledged"]
struct Stored {
    recorded: Recorded,
    ack: Option<Subject>,
}

/// The reading half: consume, decode, batch.
struct Reader {
    consumer: Consumer,
    decoder: Decoder,
    batcher: Batcher,
}

impl Reader {
    /// Sends batches until `shutdown` or an error, and what is held then as the
    /// last one: what was read before an error has nothing to do with it.
    async fn run(
        mut self,
        batches: mpsc::Sender<Batch>,
        shutdown: CancellationToken,
    ) -> Result<(), PipelineError> {
        let outcome = loop {
            let complete = tokio::select! {
                delivery = self.consumer.next() => match delivery {
                    Ok(delivery) => self.take(delivery),
                    Err(error) => break Err(error.into()),
                },
                () = sleep_until(self.batcher.deadline()) => self.batcher.flush().into_iter().collect(),
                () = shutdown.cancelled() => break Ok(()),
            };
            if !send(&batches, complete).await {
                // The writing half has ended, and says why.
                return Ok(());
            }
        };
        send(&batches, self.batcher.flush().into_iter().collect()).await;
        outcome
    }

    fn take(&mut self, delivery: Delivery) -> Vec<Batch> {
        let Delivery::Message { message, is_last } = delivery else {
            return self.batcher.end_of_stream();
        };
        let decoded = self.decoder.decode(&message);
        if enabled!(tracing::Level::DEBUG) {
            log(&message, &decoded);
        }
        let mut complete = self.batcher.push(&message, decoded, Instant::now());
        if is_last {
            complete.extend(self.batcher.end_of_stream());
        }
        complete
    }
}

/// One line an event. Never the payload: it holds what users wrote.
fn log(message: &Message, decoded: &decode::Decoded) {
    let (subject, sequence, size) = (
        message.subject.as_str(),
        message.sequence,
        message.payload.len(),
    );
    for event in &decoded.events {
        debug!(subject, sequence, size, event_type = %event.event_type, "event");
    }
    for letter in &decoded.dead_letters {
        debug!(
            subject,
            sequence,
            size,
            reason = letter.reason.as_str(),
            "dead letter"
        );
    }
}

/// False when nobody takes batches any more.
async fn send(batches: &mpsc::Sender<Batch>, complete: Vec<Batch>) -> bool {
    for batch in complete {
        if batches.send(batch).await.is_err() {
            return false;
        }
    }
    true
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_that_was_given_up_holds_nothing_up() {
        let progress = Progress::default();
        let insert = progress.hold_up();
        insert.say("no such table".to_owned());
        assert_eq!(progress.held_up_by().as_deref(), Some("no such table"));
        drop(insert);
        assert_eq!(progress.held_up_by(), None);
    }
}
