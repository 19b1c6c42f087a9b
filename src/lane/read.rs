//! The reading half: consume, batch, and the start of encoding.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::PipelineError;
use super::ahead::{Ahead, Encoding};
use super::batch::{Batcher, Cut, Flush, Limits};
use super::consume::{ConsumeError, Consumer, Delivery};
use super::flow::Flow;
use super::store::Store;
use crate::nats::Message;

/// How long to continue reading.
pub enum Until {
    Shutdown(CancellationToken),
    /// Until this sequence was read, or the end of the stream.
    Sequence(u64),
}

impl Until {
    fn is_bounded(&self) -> bool {
        matches!(self, Self::Sequence(_))
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Shutdown(shutdown) if shutdown.is_cancelled())
    }

    /// Whether everything was read up to this sequence.
    fn is_reached_by(&self, sequence: u64) -> bool {
        matches!(self, Self::Sequence(last) if sequence >= *last)
    }

    /// What `work` gives, or `None` where the end comes first.
    pub async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self {
            Self::Shutdown(shutdown) => shutdown.run_until_cancelled(work).await,
            Self::Sequence(_) => Some(work.await),
        }
    }
}

pub struct Reader {
    pub consumer: Consumer,
    pub batcher: Batcher,
    pub ahead: Ahead,
    /// Where the batches go.
    pub batches: mpsc::Sender<Encoding>,
    /// For what the stream has dropped.
    pub store: Store,
    pub flow: Arc<Flow>,
    /// The batcher's limits, when they change.
    pub limits: watch::Receiver<Limits>,
}

/// What comes next.
enum Next {
    Delivery(Result<Delivery, ConsumeError>),
    /// The open batch has waited long enough.
    BatchIsDue,
    Over,
}

/// Why the reading does not continue.
enum Stop {
    /// The writing half has ended, and says why.
    NobodyWrites,
    Interrupted(ConsumeError),
}

impl From<ConsumeError> for Stop {
    fn from(error: ConsumeError) -> Self {
        Self::Interrupted(error)
    }
}

impl Reader {
    /// Sends batches until it is over or an error comes, and what is held then as
    /// the last one: what was read before an error has nothing to do with it.
    pub async fn run(mut self, until: Until) -> Result<(), PipelineError> {
        self.consumer.gather_gaps();
        let mut outcome = self.read(&until).await;
        if !matches!(outcome, Err(Stop::NobodyWrites)) {
            let rest = self.batcher.flush(Flush::End);
            outcome = outcome.and(self.send(rest).await);
        }
        match outcome {
            Ok(()) | Err(Stop::NobodyWrites) => Ok(()),
            Err(Stop::Interrupted(error)) => Err(error.into()),
        }
    }

    async fn read(&mut self, until: &Until) -> Result<(), Stop> {
        while !until.is_reached_by(self.consumer.last()) {
            let delivery = match self.next(until).await? {
                Next::Delivery(delivery) => delivery?,
                Next::BatchIsDue => {
                    let due = self.batcher.flush(Flush::Age);
                    self.send(due).await?;
                    continue;
                }
                Next::Over => return Ok(()),
            };
            let is_last = delivery.is_last();
            match delivery {
                Delivery::Message { message, .. } => {
                    let cuts = self.take(message);
                    self.send(cuts).await?;
                }
                Delivery::Dropped => self.report_expired().await?,
                Delivery::EndOfStream => {}
            }
            if is_last && self.ends_here(until).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn next(&mut self, until: &Until) -> Result<Next, Stop> {
        if self.batcher.is_empty() || self.batches.capacity() == 0 {
            // Nothing is held in addition to what is in flight and the batch that waits
            // for its turn, except the message that did not fit into it.
            match until.unless_over(self.batches.reserve()).await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return Err(Stop::NobodyWrites),
                None => return Ok(Next::Over),
            }
        }
        if !until.is_over()
            && let Some(delivery) = self.consumer.arrived()
        {
            return Ok(Next::Delivery(delivery));
        }
        let next = async {
            tokio::select! {
                delivery = self.consumer.next() => Next::Delivery(delivery),
                () = sleep_until(self.batcher.deadline()) => Next::BatchIsDue,
            }
        };
        Ok(until.unless_over(next).await.unwrap_or(Next::Over))
    }

    /// Completes what the end of the stream completes; true where the reading ends at it,
    /// too. Neither must be a guess.
    async fn ends_here(&mut self, until: &Until) -> Result<bool, Stop> {
        let matters = !self.batcher.is_recovered() || until.is_bounded();
        if !matters || !self.consumer.is_at_end().await? {
            return Ok(false);
        }
        let complete = self.batcher.end_of_stream();
        self.send(complete).await?;
        Ok(until.is_bounded())
    }

    async fn send(&mut self, cuts: impl IntoIterator<Item = Cut>) -> Result<(), Stop> {
        for cut in cuts {
            let batch = match cut {
                Cut::Chunk(messages) => {
                    self.ahead.decode(messages);
                    continue;
                }
                Cut::End(batch) => batch,
            };
            // Before what follows a gap is committed: from then on nobody would find it again.
            self.report_expired().await?;
            // A batch that has to wait here takes no more room than its messages.
            let turn = self.batches.reserve().await;
            let turn = turn.map_err(|_| Stop::NobodyWrites)?;
            turn.send(self.ahead.encode(batch));
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Vec<Cut> {
        debug!(
            subject = message.subject.as_str(),
            sequence = message.sequence,
            size = message.payload.len(),
            "received"
        );
        if self.limits.has_changed().unwrap_or(false) {
            self.batcher.set_limits(*self.limits.borrow_and_update());
        }
        let rows = self.ahead.kind().rows(&message);
        self.flow.received(&message, rows);
        self.batcher.push(message, rows, Instant::now())
    }

    /// Reports messages that are neither in the stream nor in ClickHouse: once for all
    /// gaps of a batch, since there may be as many gaps as messages.
    async fn report_expired(&mut self) -> Result<(), ConsumeError> {
        let progress = &self.store.progress;
        let gaps = self.consumer.take_gaps().await?.into_iter();
        let gaps = gaps.filter_map(|gap| progress.new_among_expired(gap));
        let gaps: Vec<_> = gaps.collect();
        let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else {
            return Ok(());
        };
        let (first, last) = (first.start(), last.end());
        let stored = self.store.sequences(self.ahead.stream(), &gaps).await;
        let dropped: u64 = gaps.iter().map(|gap| gap.end() - gap.start() + 1).sum();
        let expired = dropped.saturating_sub(stored);
        if expired > 0 {
            progress.metrics.expired.inc_by(expired);
            error!(
                first,
                last, expired, "the stream dropped messages before they were stored"
            );
        }
        Ok(())
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
