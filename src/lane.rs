//! A lane: one stream and one kind of event, with its own consumer, checkpoint, lease,
//! batches and tables.
//!
//! The path is consume → batch → decode → encode → insert → commit → ack, a file each. Two
//! tasks walk it. One reads messages and cuts them into batches; the other records a
//! batch in the checkpoint, inserts it, commits it and acknowledges it. Between
//! them, other tasks decode and encode. At most one batch waits there: when
//! ClickHouse is slow, nothing more is pulled.
//!
//! Whatever goes wrong with NATS ends [`Pipeline::run`] with an error, and running it
//! again continues from the checkpoint. That is the only way of recovering, so it gets
//! used every day.

mod ahead;
pub mod batch;
mod careful;
pub mod consume;
mod decode;
pub mod encode;
mod error;
mod fault;
mod flow;
mod identity;
pub mod insert;
mod lag;
mod lead;
pub mod metrics;
mod progress;
mod read;
pub mod recount;
mod recover;
mod sole_writer;
mod store;
mod tally;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span, debug, info, info_span, warn};

use crate::checkpoint::Written;
use crate::clickhouse::ClickHouse;
use crate::config::{Analytics as Settings, Config};
use crate::kind::Kind;
use crate::kind::analytics::Analytics;
use crate::nats::{self, StreamSpec};
use crate::retry::{self, Retry};
use ahead::Ahead;
use batch::{Batcher, Limits};
use careful::Careful;
use consume::{Consumer, Durable};
use encode::Encoder;
use flow::Flow;
use insert::Inserter;
use read::{Reader, Until};
use write::Writer;

use error::Lost;

pub use error::PipelineError;
pub use lead::Lead;
pub use progress::Progress;
pub use sole_writer::lease as writer_lease;
pub use store::Store;

/// How long a stop may take to store what is held: service managers send SIGKILL
/// after 30 s or more.
const GRACE: Duration = Duration::from_secs(18);

/// One stream and one kind of event, as they are configured.
#[derive(Clone)]
pub struct Lane {
    /// Its name in metrics, in `/health` and in the commands.
    pub name: &'static str,
    pub stream: StreamSpec,
    pub kind: Arc<dyn Kind>,
}

impl Lane {
    /// The span of its log lines, which names it.
    pub fn span(&self) -> Span {
        info_span!("pipeline", lane = self.name)
    }

    /// The lane of fechatter's events.
    pub fn first(config: &Config) -> Self {
        let mut lanes = Self::all(config);
        lanes.swap_remove(0)
    }

    /// The tables that lanes insert into.
    pub fn inserted_into(lanes: &[Self]) -> Vec<&'static str> {
        let tables = lanes
            .iter()
            .flat_map(|lane| lane.kind.tables().inserted_into());
        tables.collect()
    }

    /// Every lane of a configuration.
    pub fn all(config: &Config) -> Vec<Self> {
        let messaging = &config.integrations.messaging;
        vec![Self {
            name: "analytics",
            stream: StreamSpec::new(
                &messaging.jetstream,
                messaging.subjects.all(),
                "Analytics events of fechatter",
            ),
            kind: Arc::new(Analytics::new(&messaging.subjects)),
        }]
    }
}

/// Carries the events of a lane from its stream into ClickHouse.
pub struct Pipeline {
    lane: Lane,
    settings: Settings,
    nats: Client,
    store: Store,
    /// This instance's name in the checkpoint, which no other instance has.
    owner: String,
    limits: watch::Receiver<Limits>,
    /// What this instance has written to the checkpoint, unless another one has
    /// taken over since.
    last: Option<Written>,
    careful: Careful,
}

impl Pipeline {
    pub fn new(
        lane: Lane,
        settings: &Settings,
        nats: Client,
        clickhouse: ClickHouse,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            store: Store {
                clickhouse,
                tables: lane.kind.tables(),
                progress,
            },
            lane,
            settings: settings.clone(),
            nats,
            owner: lead::new_owner(),
            limits: watch::Sender::new(Limits::of(settings)).subscribe(),
            last: None,
            careful: Careful::default(),
        }
    }

    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// With batch limits that may change, instead of the configuration's.
    pub fn with_limits(self, limits: watch::Receiver<Limits>) -> Self {
        Self { limits, ..self }
    }

    /// Carries events until `shutdown`, then stores what is held, hands over and
    /// returns. While another instance is active, it stands by.
    ///
    /// # Errors
    /// After one that is not [final](PipelineError::is_final), run it again.
    pub async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let taking_over = self.take_over(false);
        let Some(lead) = shutdown.run_until_cancelled(taking_over).await else {
            return Ok(());
        };
        let lead = lead?;
        let Lead {
            checkpoint,
            sole_writer,
            ..
        } = lead.clone();
        let consumer = self.lane.stream.consumer.clone();
        let progress = Arc::clone(&self.store.progress);
        let lag = lag::watch(lead.stream.clone(), consumer, Arc::clone(&progress));
        let carrying = async {
            tokio::select! {
                outcome = self.carry(lead, Until::Shutdown(shutdown.clone())) => outcome,
                never = lag => match never {},
                () = grace_over(shutdown) => {
                    warn!("stopping with batches that ClickHouse did not take; they are recorded, and are sent first at the next start");
                    Ok(())
                }
            }
        };
        let outcome = checkpoint.keep_during(carrying).await;
        let outcome = outcome.map_err(PipelineError::from).flatten();
        progress.metrics.set_role(None);
        self.remember(&checkpoint, &outcome).await;
        if outcome.is_ok() {
            sole_writer.release().await;
            if let Err(error) = checkpoint.hand_over().await {
                debug!(%error, "the checkpoint was not handed over: others wait for the lease to run out");
            }
        }
        outcome
    }

    /// Runs the lane until `shutdown`, and again whenever it is interrupted.
    ///
    /// # Errors
    /// Those that are [final](PipelineError::is_final).
    pub async fn keep_running(self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let span = self.lane.span();
        self.run_again(shutdown).instrument(span).await
    }

    async fn run_again(mut self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let progress = Arc::clone(&self.store.progress);
        let mut retry = Retry::new();
        progress.set_running(Ok(()));
        while !shutdown.is_cancelled() {
            let started = Instant::now();
            let Err(error) = self.run(shutdown).await else {
                break;
            };
            if error.is_final() {
                progress.set_running(Err(error.to_string()));
                return Err(error);
            }
            progress.set_interrupted(&error);
            if started.elapsed() > retry::LONGEST_PAUSE {
                // It had been working: this is a new interruption, not the same one.
                retry = Retry::new();
            }
            if retry.is_news(&error) {
                warn!(%error, "interrupted, continuing from the checkpoint");
            }
            retry.pause().await;
        }
        progress.set_running(Err("stopped".to_owned()));
        Ok(())
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

    /// Takes the checkpoint, even from an active instance, and stores what is in
    /// flight. No other instance inserts until the checkpoint is handed over, or until
    /// nobody [keeps](crate::checkpoint::Checkpoint::keep_during) it any more.
    pub async fn settle(&mut self) -> Result<Lead, PipelineError> {
        let lead = self.take_over(true).await?;
        let end = lead.checkpoint.record().await.end().0;
        self.carry_until(lead.clone(), end).await?;
        Ok(lead)
    }

    /// Reads the stream again from `first` up to where everything is stored, and
    /// inserts what ClickHouse does not hold. If this is cut off half-way, whoever
    /// takes over the checkpoint continues it.
    pub async fn store_again(&mut self, lead: &Lead, first: u64) -> Result<(), PipelineError> {
        let stream = nats::open_stream(&lead.jetstream, &self.lane.stream).await?;
        let committed = lead.checkpoint.record().await.committed;
        lead.checkpoint
            .change(|record| {
                record.look_until = record.look_until.max(record.end().0);
                record.cut_off(first.saturating_sub(1), 0);
                // The earlier tokens stand for rows that may be gone.
                record.raise_generation(recover::now_seconds());
            })
            .await?;
        let lead = Lead {
            stream,
            ..lead.clone()
        };
        self.carry_until(lead, committed).await
    }

    /// Carries events up to the sequence `last`, and keeps the checkpoint.
    async fn carry_until(&mut self, lead: Lead, last: u64) -> Result<(), PipelineError> {
        let checkpoint = Arc::clone(&lead.checkpoint);
        let carrying = self.carry(lead, Until::Sequence(last));
        checkpoint.keep_during(carrying).await?
    }

    /// Carries events as the active instance: the whole path.
    async fn carry(&mut self, lead: Lead, until: Until) -> Result<(), PipelineError> {
        let Some(check_until) = until
            .unless_over(recover::reconcile(&lead, &self.store))
            .await
        else {
            return Ok(());
        };
        let check_until = check_until?;
        let (sender, batches) = mpsc::channel(1);
        let stream = lead.checkpoint.stream().to_string();
        let encoder = Arc::new(Encoder::new(Arc::clone(&self.lane.kind), stream));
        let flow = Arc::new(Flow::new(Arc::clone(&self.store.progress)));
        let writer = Writer {
            nats: self.nats.clone(),
            inserter: Arc::new(Inserter {
                store: self.store.clone(),
                checkpoint: Arc::clone(&lead.checkpoint),
                sole_writer: Arc::clone(&lead.sole_writer),
                encoder: Arc::clone(&encoder),
                retention: self.settings.retention(),
            }),
            max_in_flight: self.settings.max_in_flight.get(),
            check_until,
            flow: Arc::clone(&flow),
        };
        let record = lead.checkpoint.record().await;
        let ranges = record.in_flight.len();
        self.store.progress.metrics.ranges.set(ranges as i64);
        info!(
            stream = encoder.stream(),
            committed = record.committed,
            in_flight = ranges,
            "checkpoint taken over"
        );
        let durable = Durable::new(&self.lane.stream, self.nats.server_info().max_payload);
        let last_sequence = lead.stream.cached_info().state.last_sequence;
        let careful_until = self.careful.until(&record, last_sequence);
        let limits = *self.limits.borrow_and_update();
        let reader = Reader {
            consumer: Consumer::new(
                lead.jetstream,
                lead.stream,
                durable,
                record.committed,
                careful_until,
            ),
            batcher: Batcher::new(limits, record.ranges()),
            ahead: Ahead::new(
                encoder,
                self.settings.decode_workers,
                Arc::clone(&self.store.progress),
            ),
            batches: sender,
            store: self.store.clone(),
            flow,
            limits: self.limits.clone(),
        };
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run(until).in_current_span()));
        tokio::select! {
            outcome = writer.run(batches) => outcome?,
            Err(not_alone) = lead.sole_writer.keep() => return Err(Lost::from(not_alone).into()),
        }
        reader.await.unwrap_or(Err(PipelineError::TaskFailed))
    }
}

async fn grace_over(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
}
