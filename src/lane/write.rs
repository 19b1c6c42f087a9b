//! The writing half: record, insert, commit, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::ahead::Encoding;
use super::encode::Encoded;
use super::flow::Flow;
use super::insert::{Inserter, Stored, first_parts};
use super::metrics::Stage;
use super::recount::Recount;
use super::{PipelineError, fault};
use crate::checkpoint::Recorded;

/// The acknowledgement; a lost one costs nothing.
const ACK: &[u8] = b"+ACK";

pub struct Writer {
    pub nats: Client,
    pub inserter: Arc<Inserter>,
    /// Inserts under way at a time.
    pub max_in_flight: usize,
    /// Up to this sequence, ClickHouse may hold what the checkpoint does not know of.
    pub check_until: u64,
    pub flow: Arc<Flow>,
}

impl Writer {
    /// Stores batches as they come, until there are no more.
    pub async fn run(&self, mut batches: mpsc::Receiver<Encoding>) -> Result<(), PipelineError> {
        let mut in_flight = FuturesOrdered::new();
        // Stored, but perhaps not in every view: what comes after them waits.
        let mut suspects: Vec<Stored> = Vec::new();
        // What comes next, until it is encoded.
        let mut next: Option<Encoding> = None;
        let mut open = true;
        while open || next.is_some() || !in_flight.is_empty() {
            let may_begin = in_flight.len() < self.max_in_flight && suspects.is_empty();
            tokio::select! {
                batch = batches.recv(), if open && may_begin && next.is_none() => match batch {
                    Some(encoding) => next = Some(encoding),
                    None => open = false,
                },
                Some(batch) = encoded(&mut next), if may_begin && next.is_some() => {
                    next = None;
                    let batch = batch.map_err(|_| PipelineError::TaskFailed)?;
                    in_flight.push_back(self.begin(batch).await?);
                }
                Some(stored) = in_flight.next() => {
                    let stored: Stored = stored?;
                    fault::at("after-insert");
                    if suspects.is_empty() && !self.inserter.is_suspect(&stored).await {
                        self.commit(vec![stored]).await?;
                    } else {
                        suspects.push(stored);
                    }
                }
            }
            if in_flight.is_empty() && !suspects.is_empty() {
                self.recount(&suspects).await?;
                self.commit(std::mem::take(&mut suspects)).await?;
            }
        }
        // An acknowledgement that is still in the client's buffer would go down with it.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.nats.flush()).await;
        Ok(())
    }

    /// Records a batch and starts to insert it, on a task of its own so that inserts
    /// overlap.
    async fn begin(
        &self,
        batch: Encoded,
    ) -> Result<impl Future<Output = Result<Stored, PipelineError>> + use<>, PipelineError> {
        let range = &batch.summary.range;
        let may_be_there = range.first <= self.check_until;
        let parts = first_parts(&batch, may_be_there);
        let checkpoint = &self.inserter.checkpoint;
        let metrics = &self.inserter.store.progress.metrics;
        let recorded: Recorded = {
            let _stage = metrics.stage(Stage::Record);
            checkpoint.begin(range, parts).await?
        };
        metrics
            .ranges
            .set(checkpoint.record().await.in_flight.len() as i64);
        fault::at("after-record");
        let inserter = Arc::clone(&self.inserter);
        let storing = async move { inserter.store(batch, recorded, may_be_there).await };
        let task = tokio::spawn(storing.in_current_span());
        let task = AbortOnDropHandle::new(task);
        Ok(async {
            match task.await {
                Ok(stored) => Ok(stored?),
                Err(_) => Err(PipelineError::TaskFailed),
            }
        })
    }

    async fn commit(&self, stored: Vec<Stored>) -> Result<(), PipelineError> {
        let ack = stored
            .iter()
            .rev()
            .find_map(|stored| stored.batch.ack.clone());
        let ranges = stored.iter().map(|stored| stored.batch.range.clone());
        let checkpoint = &self.inserter.checkpoint;
        let metrics = &self.inserter.store.progress.metrics;
        {
            let _stage = metrics.stage(Stage::Commit);
            checkpoint.commit(ranges).await?;
        }
        fault::at("after-commit");
        stored.iter().for_each(|stored| self.flow.settled(stored));
        metrics
            .ranges
            .set(checkpoint.record().await.in_flight.len() as i64);
        if let Some(ack) = ack {
            fault::at("before-ack");
            self.nats.publish(ack, ACK.into()).await?;
        }
        Ok(())
    }

    /// Recounts the views' days of `suspects` while nothing is in flight, and builds
    /// again those that differ.
    async fn recount(&self, suspects: &[Stored]) -> Result<(), PipelineError> {
        let Inserter {
            store,
            checkpoint,
            sole_writer,
            ..
        } = &*self.inserter;
        let ranges = suspects.iter().map(|stored| stored.in_flight.range.clone());
        let ranges: Vec<_> = ranges.collect();
        let recount = Recount::new(store, checkpoint, sole_writer);
        Ok(recount.of_ranges(&ranges).await?)
    }
}

/// The next batch, when it is encoded; `None` where there is none.
async fn encoded(next: &mut Option<Encoding>) -> Option<Result<Encoded, JoinError>> {
    match next {
        Some(encoding) => Some(encoding.await.flatten()),
        None => None,
    }
}
