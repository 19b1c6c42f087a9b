//! The reading half: consume, batch, and the start of encoding.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::PipelineError;
use super::ahead::{Ahead, Encoding};
use super::batch::{Batch, Batcher, Flush, Limits};
use super::consume::{ConsumeError, Consumer, Delivery};
use super::decode::Decoder;
use super::flow::Flow;
use super::progress::Progress;
use super::question::ask;
use crate::clickhouse::{ClickHouse, stored};

/// How long to go on reading.
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
    pub decoder: Decoder,
    pub batcher: Batcher,
    pub ahead: Ahead,
    /// For what the stream has dropped.
    pub clickhouse: ClickHouse,
    pub progress: Arc<Progress>,
    pub flow: Arc<Flow>,
    /// Those of the batcher, when they change.
    pub limits: watch::Receiver<Limits>,
}

impl Reader {
    /// Sends batches until it is over or an error comes, and what is held then as
    /// the last one: what was read before an error has nothing to do with it.
    pub async fn run(
        mut self,
        batches: mpsc::Sender<Encoding>,
        until: Until,
    ) -> Result<(), PipelineError> {
        self.consumer.gather_gaps();
        let outcome = loop {
            if matches!(until, Until::Sequence(last) if self.consumer.last() >= last) {
                break Ok(());
            }
            if self.batcher.is_empty() || batches.capacity() == 0 {
                // Nothing is held beside what is in flight and the batch that waits for
                // its turn, but for the message that did not fit into it.
                match until.unless_over(batches.reserve()).await {
                    Some(Ok(_)) => {}
                    // The writing half has ended, and says why.
                    Some(Err(_)) => return Ok(()),
                    None => break Ok(()),
                }
            }
            let complete = match self.next(&until).await {
                None => break Ok(()),
                Some(None) => self.batcher.flush(Flush::Age).into_iter().collect(),
                Some(Some(Ok(Delivery::Dropped))) => {
                    self.report_expired().await?;
                    continue;
                }
                Some(Some(Ok(delivery))) => {
                    let is_last = delivery.is_last();
                    let complete = self.take(delivery);
                    if !self.send(&batches, complete).await? {
                        return Ok(());
                    }
                    // What the end closes, and what ends at it, must not be a guess.
                    let matters = !self.batcher.is_recovered() || until.is_bounded();
                    if !is_last || !matters {
                        continue;
                    }
                    match self.consumer.is_at_end().await {
                        Ok(false) => continue,
                        Ok(true) => {}
                        Err(error) => break Err(error.into()),
                    }
                    let complete = self.batcher.end_of_stream();
                    if until.is_bounded() {
                        self.send(&batches, complete).await?;
                        break Ok(());
                    }
                    complete
                }
                Some(Some(Err(error))) => break Err(error.into()),
            };
            if !self.send(&batches, complete).await? {
                return Ok(());
            }
        };
        let rest = self.batcher.flush(Flush::End).into_iter().collect();
        self.send(&batches, rest).await?;
        outcome
    }

    /// What comes next: `Some(None)` when the open batch is due, `None` when it is over.
    async fn next(&mut self, until: &Until) -> Option<Option<Result<Delivery, ConsumeError>>> {
        if !until.is_over()
            && let Some(delivery) = self.consumer.arrived()
        {
            return Some(Some(delivery));
        }
        let next = async {
            tokio::select! {
                delivery = self.consumer.next() => Some(delivery),
                () = sleep_until(self.batcher.deadline()) => None,
            }
        };
        until.unless_over(next).await
    }

    /// False when nobody takes batches any more.
    async fn send(
        &mut self,
        batches: &mpsc::Sender<Encoding>,
        complete: Vec<Batch>,
    ) -> Result<bool, ConsumeError> {
        // Before what follows a gap is committed: from then on nobody would find it again.
        if !complete.is_empty() {
            self.report_expired().await?;
        }
        for batch in complete {
            // One that has to wait here takes no more room than its messages.
            let Ok(turn) = batches.reserve().await else {
                return Ok(false);
            };
            turn.send(self.ahead.encode(batch));
        }
        Ok(true)
    }

    fn take(&mut self, delivery: Delivery) -> Vec<Batch> {
        let message = match delivery {
            Delivery::Message { message, .. } => message,
            Delivery::EndOfStream | Delivery::Dropped => return Vec::new(),
        };
        debug!(
            subject = message.subject.as_str(),
            sequence = message.sequence,
            size = message.payload.len(),
            "received"
        );
        if self.limits.has_changed().unwrap_or(false) {
            self.batcher.set_limits(*self.limits.borrow_and_update());
        }
        let rows = self.decoder.rows(&message);
        self.flow.received(&message, rows);
        let complete = self.batcher.push(message, rows, Instant::now());
        // What is complete comes first: what was decoded ahead belongs to it.
        if complete.is_empty()
            && let Some(messages) = self.batcher.take_chunk()
        {
            self.ahead.decode(messages);
        }
        complete
    }

    /// Tells of messages that are neither in the stream nor in ClickHouse: once for all
    /// gaps of a batch, since there may be as many as messages.
    async fn report_expired(&mut self) -> Result<(), ConsumeError> {
        let gaps = self.consumer.take_gaps().await?.into_iter();
        let gaps = gaps.filter_map(|gap| self.progress.new_among_expired(gap));
        let gaps: Vec<_> = gaps.collect();
        let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else {
            return Ok(());
        };
        let (first, last) = (first.start(), last.end());
        let stored = ask(&self.progress, "asking ClickHouse what it holds", || {
            stored::sequences(&self.clickhouse, self.ahead.stream(), &gaps)
        })
        .await;
        let dropped: u64 = gaps.iter().map(|gap| gap.end() - gap.start() + 1).sum();
        let expired = dropped.saturating_sub(stored);
        if expired > 0 {
            self.progress.metrics.expired.inc_by(expired);
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
