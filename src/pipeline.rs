//! The data's path: consume → batch → decode → encode → insert → commit → ack.
//!
//! Two tasks. One reads messages and cuts them into batches; the other records a
//! batch in the checkpoint, inserts it, commits it and acknowledges it. Between
//! them, other tasks decode and encode. One batch waits there at the most: when
//! ClickHouse is slow, nothing more is pulled.
//!
//! Whatever goes wrong with NATS ends [`Pipeline::run`] with an error, and running it
//! again goes on at the checkpoint. There is no other way of recovering, so that the
//! one there is gets used every day.

mod ahead;
pub mod batch;
pub mod checkpoint;
pub mod consume;
pub mod decode;
pub mod encode;
mod error;
mod fault;
mod flow;
mod identity;
pub mod insert;
mod lag;
pub mod message;
mod metadata;
mod progress;
mod question;
mod read;
pub mod recount;
pub mod recover;
pub mod tally;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::metrics::Role;
use crate::nats::{self, StreamId};
use ahead::Ahead;
use batch::{Batcher, Limits};
use checkpoint::{Checkpoint, Claim, Turn, Written};
use consume::Consumer;
use decode::Decoder;
use encode::Encoder;
use flow::Flow;
use insert::Inserter;
use read::{Reader, Until};
use recover::RecoverError;
use write::Writer;

pub use error::PipelineError;
pub use progress::Progress;

/// How long a stop may take to store what is held: service managers send SIGKILL
/// after 30 s or more.
const GRACE: Duration = Duration::from_secs(18);

/// Fruitless runs after which messages are fetched one by one: NATS may have been
/// away for the first ones.
const FRUITLESS: u32 = 3;

/// Carries events from the stream into ClickHouse.
pub struct Pipeline {
    config: Arc<Config>,
    nats: Client,
    clickhouse: ClickHouse,
    /// This instance's name in the checkpoint.
    owner: String,
    progress: Arc<Progress>,
    limits: watch::Receiver<Limits>,
    /// What this instance has written to the checkpoint, unless another one has
    /// taken over since.
    last: Option<Written>,
    /// What was committed at the start of the last run.
    last_committed: Option<u64>,
    /// Runs in a row that ended with an error and had stored nothing of what waited.
    fruitless: u32,
}

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
            limits: watch::Sender::new(Limits::of(&config.features.analytics)).subscribe(),
            config,
            nats,
            clickhouse,
            owner,
            progress,
            last: None,
            last_committed: None,
            fruitless: 0,
        }
    }

    /// With limits of batches that may change, instead of the configuration's.
    pub fn with_limits(self, limits: watch::Receiver<Limits>) -> Self {
        Self { limits, ..self }
    }

    /// Carries events until `shutdown`, then stores what is held, hands over and
    /// returns. While another instance works, it stands by.
    ///
    /// # Errors
    /// After one that is not [final](PipelineError::is_final), run it again.
    pub async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let taking_over = self.take_over(false);
        let Some(lead) = shutdown.run_until_cancelled(taking_over).await else {
            return Ok(());
        };
        let lead = lead?;
        let checkpoint = Arc::clone(&lead.checkpoint);
        let lag = lag::watch(
            lead.stream.clone(),
            self.config
                .integrations
                .messaging
                .jetstream
                .consumer_name
                .clone(),
            Arc::clone(&self.progress),
        );
        let carrying = async {
            tokio::select! {
                outcome = self.carry(lead, Until::Shutdown(shutdown.clone())) => outcome,
                never = lag => match never {},
                () = grace_over(shutdown) => {
                    warn!("stopping with batches that ClickHouse did not take; they are recorded and go first at the next start");
                    Ok(())
                }
            }
        };
        let outcome = checkpoint.keep_during(carrying).await;
        let outcome = outcome.map_err(PipelineError::from).flatten();
        self.progress.metrics.set_role(None);
        self.remember(&checkpoint, &outcome).await;
        if outcome.is_ok()
            && let Err(error) = checkpoint.hand_over().await
        {
            debug!(%error, "the checkpoint was not handed over: others wait for the lease to run out");
        }
        outcome
    }

    /// As [`run`](Self::run), but ends by itself when everything up to the sequence
    /// `last` is committed, without waiting for a batch to reach its age.
    pub async fn run_until(&mut self, last: u64) -> Result<(), PipelineError> {
        let lead = self.take_over(false).await?;
        let checkpoint = Arc::clone(&lead.checkpoint);
        self.carry_until(lead, last).await?;
        checkpoint.hand_over().await?;
        Ok(())
    }

    /// Takes the checkpoint, also from an instance that works, and stores what is in
    /// flight. No other instance inserts until the checkpoint is handed over, or
    /// nobody [keeps](Checkpoint::keep_during) it any more.
    pub async fn settle(&mut self) -> Result<Arc<Checkpoint>, PipelineError> {
        let lead = self.take_over(true).await?;
        let checkpoint = Arc::clone(&lead.checkpoint);
        let end = checkpoint.record().await.end().0;
        self.carry_until(lead, end).await?;
        Ok(checkpoint)
    }

    /// Reads the stream again from `first` up to where everything is stored, and
    /// inserts what ClickHouse does not hold. Cut off half-way, whoever takes the
    /// checkpoint over goes on with it.
    pub async fn store_again(
        &mut self,
        checkpoint: &Arc<Checkpoint>,
        first: u64,
    ) -> Result<(), PipelineError> {
        let jetstream = jetstream::new(self.nats.clone());
        let stream = nats::open_stream(&jetstream, &self.config.integrations.messaging).await?;
        let committed = checkpoint.record().await.committed;
        checkpoint
            .change(|record| {
                record.look_until = record.look_until.max(record.end().0);
                record.cut_off(first.saturating_sub(1), 0);
                // The tokens of before stand for rows that may be gone.
                record.raise_generation(recover::now_seconds());
            })
            .await?;
        let lead = Lead {
            jetstream,
            stream,
            checkpoint: Arc::clone(checkpoint),
        };
        self.carry_until(lead, committed).await
    }

    /// Carries events up to the sequence `last`, and keeps the checkpoint.
    async fn carry_until(&mut self, lead: Lead, last: u64) -> Result<(), PipelineError> {
        let checkpoint = Arc::clone(&lead.checkpoint);
        let carrying = self.carry(lead, Until::Sequence(last));
        checkpoint.keep_during(carrying).await?
    }

    /// Waits until it is this instance's turn to write, then makes the checkpoint
    /// its own.
    async fn take_over(&mut self, at_once: bool) -> Result<Lead, PipelineError> {
        let config = Arc::clone(&self.config);
        let messaging = &config.integrations.messaging;
        let jetstream = jetstream::new(self.nats.clone());
        let mut patient = false;
        loop {
            let stream = nats::open_stream(&jetstream, messaging).await?;
            let num_replicas = stream.cached_info().config.num_replicas;
            let bucket = checkpoint::open_bucket(&jetstream, num_replicas).await?;
            let current = StreamId::of(&stream);
            let mut claim = Claim {
                owner: self.owner.clone(),
                created: current.created.clone(),
                stream: current,
                consumer: messaging.jetstream.consumer_name.clone(),
                lease_timeout: config.features.analytics.lease_timeout,
                at_once,
                writes: self.progress.metrics.checkpoint_writes.clone(),
            };
            let turn = checkpoint::wait_for_turn(&bucket, &claim, |owner| {
                if self.progress.metrics.set_role(Some(Role::Standby)) {
                    info!(owner, "standing by: another instance works");
                }
            })
            .await?;
            // Until here it was none, or stood by.
            if self.progress.metrics.set_role(None) {
                // What this instance once wrote is history.
                self.last = None;
            }
            // As it is after the record was read: the record must not speak of more.
            let Some(stream) = nats::find_stream(&jetstream, &claim.stream.name).await? else {
                continue;
            };
            let record = match &turn {
                Turn::Found(found) => Some(found.as_ref()),
                Turn::Vacant => self.last.as_ref(),
            };
            claim.created = StreamId::of(&stream).created;
            claim.stream = identity::of(
                &jetstream,
                &stream,
                record.map(|written| &written.record),
                &self.clickhouse,
                &self.progress,
            )
            .await
            .map_err(RecoverError::from)?;
            let is_lost = matches!(turn, Turn::Vacant)
                && self.last.is_none()
                && recover::is_known(&self.clickhouse, &claim.stream, &self.progress).await;
            if is_lost && !patient {
                warn!(
                    "there is no checkpoint, though ClickHouse holds rows of this stream: waiting whether an instance still works"
                );
                tokio::time::sleep(claim.lease_timeout).await;
                patient = true;
                continue;
            }
            let taken = Checkpoint::take_over(bucket, claim, turn, self.last.clone()).await?;
            if let Some(checkpoint) = taken {
                self.progress.metrics.checkpoint_takeovers.inc();
                self.progress.metrics.set_role(Some(Role::Active));
                return Ok(Lead {
                    jetstream,
                    stream,
                    checkpoint: Arc::new(checkpoint),
                });
            }
            // Somebody else wrote in between, or what was read was stale.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Carries events, as the one instance that does.
    async fn carry(&mut self, lead: Lead, until: Until) -> Result<(), PipelineError> {
        let Lead {
            jetstream,
            stream,
            checkpoint,
        } = lead;
        let reconciling = recover::reconcile(
            &checkpoint,
            &jetstream,
            &stream,
            &self.clickhouse,
            &self.progress,
        );
        let Some(check_until) = until.unless_over(reconciling).await else {
            return Ok(());
        };
        let check_until = check_until?;
        let record = checkpoint.record().await;
        let ranges = record.in_flight.len();
        self.progress.metrics.ranges.set(ranges as i64);
        info!(
            stream = %checkpoint.stream(),
            committed = record.committed,
            in_flight = ranges,
            "checkpoint taken over"
        );

        let last_sequence = stream.cached_info().state.last_sequence;
        let careful_until = self.careful_until(&record, last_sequence);
        let messaging = &self.config.integrations.messaging;
        let analytics = &self.config.features.analytics;
        let max_payload = self.nats.server_info().max_payload;
        let settings = consume::Settings::new(messaging, max_payload);
        let limits = *self.limits.borrow_and_update();
        let stream_id = checkpoint.stream().to_string();
        let decoder = Decoder::new(&stream_id, &messaging.subjects);
        let encoder = Arc::new(Encoder::new(stream_id, decoder.clone()));
        let in_flight = record.in_flight.into_iter().map(|recorded| recorded.range);
        let flow = Arc::new(Flow::new(Arc::clone(&self.progress)));
        let reader = Reader {
            decoder,
            consumer: Consumer::new(jetstream, stream, settings, record.committed, careful_until),
            batcher: Batcher::new(limits, in_flight),
            ahead: Ahead::new(
                Arc::clone(&encoder),
                analytics.decode_workers,
                Arc::clone(&self.progress),
            ),
            clickhouse: self.clickhouse.clone(),
            progress: Arc::clone(&self.progress),
            flow: Arc::clone(&flow),
            limits: self.limits.clone(),
        };
        let inserter = Inserter {
            clickhouse: self.clickhouse.clone(),
            checkpoint,
            progress: Arc::clone(&self.progress),
            encoder,
            retention: Duration::from_secs(u64::from(analytics.retention_days.get()) * 24 * 3600),
        };
        let writer = Writer {
            nats: self.nats.clone(),
            inserter: Arc::new(inserter),
            max_in_flight: analytics.max_in_flight.get(),
            check_until,
            flow,
        };
        let (sender, batches) = mpsc::channel(1);
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run(sender, until)));
        writer.run(batches).await?;
        reader.await.unwrap_or(Err(PipelineError::TaskFailed))
    }

    /// Up to where messages are fetched one by one: past the next ones, where
    /// nothing of them was stored for some runs.
    fn careful_until(&mut self, record: &checkpoint::Record, last_sequence: u64) -> u64 {
        let committed = record.committed;
        let stood_still = self.last_committed.replace(committed) == Some(committed);
        let something_waits = last_sequence > committed;
        self.fruitless = if stood_still && something_waits {
            self.fruitless + 1
        } else {
            0
        };
        if self.fruitless < FRUITLESS {
            return committed;
        }
        warn!(
            after = committed,
            "nothing gets through: fetching messages one by one"
        );
        let recorded = record.in_flight.last().map(|recorded| recorded.range.last);
        recorded.unwrap_or(committed + 1)
    }

    async fn remember(&mut self, checkpoint: &Checkpoint, outcome: &Result<(), PipelineError>) {
        let fenced = matches!(outcome, Err(error) if error.is_fenced());
        self.last = if fenced {
            self.last_committed = None;
            None
        } else {
            Some(checkpoint.last().await)
        };
    }
}

/// What the instance that works has.
struct Lead {
    jetstream: jetstream::Context,
    stream: Stream,
    checkpoint: Arc<Checkpoint>,
}

async fn grace_over(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
}
