//! The data's path: consume → decode → batch → insert → commit → ack.
//!
//! Two tasks. One reads messages and cuts them into batches; the other records a
//! batch in the checkpoint, inserts it, commits it and acknowledges it. Between
//! them stands one batch: when ClickHouse is slow, nothing more is pulled.
//!
//! Whatever goes wrong with NATS ends [`run`] with an error, and running it again
//! goes on at the checkpoint. There is no other way of recovering, so that the
//! one there is gets used every day.

pub mod batch;
pub mod checkpoint;
pub mod consume;
pub mod decode;
pub mod insert;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_nats::{Client, Subject};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, enabled};

use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::nats::{self, StreamError, StreamId};
use batch::{Batch, Batcher, Limits};
use checkpoint::{Checkpoint, CheckpointError, Recorded};
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
    #[error("reading stopped unexpectedly")]
    ReaderStopped,
}

impl PipelineError {
    /// Whether running again cannot help, or must not be tried.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Checkpoint(CheckpointError::Fenced { .. } | CheckpointError::Corrupt { .. })
        )
    }
}

/// What went through since the process started, in events.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events of messages that were decoded, bad ones included.
    pub received: AtomicU64,
    /// Rows in `analytics_events`.
    pub stored: AtomicU64,
    /// Rows in `dead_letters`.
    pub dead_letters: AtomicU64,
}

/// What the pipeline works with.
#[derive(Clone)]
pub struct Pipeline {
    pub config: Arc<Config>,
    pub nats: Client,
    pub clickhouse: ClickHouse,
    /// This instance's name in the checkpoint.
    pub owner: String,
    pub counters: Arc<Counters>,
}

impl Pipeline {
    /// Carries events until `shutdown`, then stores what is held and returns.
    ///
    /// # Errors
    /// After one that is not [final](PipelineError::is_final), run it again.
    pub async fn run(&self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let messaging = &self.config.integrations.messaging;
        let jetstream = async_nats::jetstream::new(self.nats.clone());
        let stream = nats::open_stream(&jetstream, messaging).await?;
        let id = StreamId::of(&stream);
        let bucket = checkpoint::open_bucket(&jetstream, &messaging.jetstream).await?;
        let checkpoint = Checkpoint::take_over(
            bucket,
            &messaging.jetstream.consumer_name,
            &self.owner,
            id.clone(),
            stream.cached_info().state.last_sequence,
        )
        .await?;

        let settings = consume::Settings {
            name: messaging.jetstream.consumer_name.clone(),
            subjects: nats::covering_set(messaging.subjects.all()),
            max_payload: self.nats.server_info().max_payload,
        };
        let (consumer, pending) = Consumer::start(stream, settings, checkpoint.committed()).await?;
        let analytics = &self.config.features.analytics;
        let limits = Limits {
            rows: analytics.batch_size.get(),
            bytes: usize::try_from(analytics.batch_max_bytes.as_u64()).unwrap_or(usize::MAX),
            interval: analytics.flush_interval,
        };
        let reader = Reader {
            consumer,
            decoder: Decoder::new(
                &id.to_string(),
                &messaging.subjects.analytics_events,
                &messaging.subjects.analytics_batch,
            ),
            batcher: Batcher::new(limits, checkpoint.in_flight().iter().cloned()),
            counters: Arc::clone(&self.counters),
        };
        let (sender, batches) = mpsc::channel(1);
        let reader =
            AbortOnDropHandle::new(tokio::spawn(reader.run(pending, sender, shutdown.clone())));

        let stream = id.to_string();
        self.write(&stream, batches, checkpoint).await?;
        match reader.await {
            Ok(outcome) => outcome,
            Err(_) => Err(PipelineError::ReaderStopped),
        }
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
        let Self {
            clickhouse,
            counters,
            ..
        } = self.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            insert.send(&clickhouse).await;
            counters.stored.fetch_add(insert.rows() as u64, Relaxed);
            counters
                .dead_letters
                .fetch_add(insert.dead_letters() as u64, Relaxed);
            Stored { recorded, ack }
        }));
        async { task.await.map_err(|_| PipelineError::ReaderStopped) }
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
    counters: Arc<Counters>,
}

impl Reader {
    /// Sends batches until `shutdown`, and what is held then as the last one.
    /// `pending` messages stand in the stream at the start.
    async fn run(
        mut self,
        pending: u64,
        batches: mpsc::Sender<Batch>,
        shutdown: CancellationToken,
    ) -> Result<(), PipelineError> {
        if pending == 0 {
            send(&batches, self.batcher.end_of_stream()).await;
        }
        loop {
            let complete = tokio::select! {
                delivery = self.consumer.next() => self.take(delivery?),
                () = sleep_until(self.batcher.deadline()) => self.batcher.flush().into_iter().collect(),
                () = shutdown.cancelled() => {
                    send(&batches, self.batcher.flush().into_iter().collect()).await;
                    return Ok(());
                }
            };
            if !send(&batches, complete).await {
                // The writing half has ended, and says why.
                return Ok(());
            }
        }
    }

    fn take(&mut self, Delivery { message, pending }: Delivery) -> Vec<Batch> {
        let decoded = self.decoder.decode(&message);
        let events = decoded.events.len() + decoded.dead_letters.len();
        self.counters.received.fetch_add(events as u64, Relaxed);
        if enabled!(tracing::Level::DEBUG) {
            log(&message, &decoded);
        }
        let mut complete = self.batcher.push(&message, decoded, Instant::now());
        if pending == 0 {
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
