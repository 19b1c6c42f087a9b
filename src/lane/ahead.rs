//! Decoding on tasks of their own, while the batch is still being read.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::batch::Batch;
use super::decode::Run;
use super::encode::{Encoded, Encoder};
use super::metrics::Stage;
use super::progress::Progress;
use crate::kind::Kind;
use crate::nats::Message;

/// A batch that is being encoded, while the next one is read.
pub type Encoding = AbortOnDropHandle<Result<Encoded, JoinError>>;

/// The open batch, as far as it is decoded.
pub struct Ahead {
    encoder: Arc<Encoder>,
    progress: Arc<Progress>,
    /// One for each task that may decode at a time.
    workers: Arc<Semaphore>,
    runs: Vec<AbortOnDropHandle<Run>>,
}

impl Ahead {
    pub fn new(encoder: Arc<Encoder>, workers: NonZeroUsize, progress: Arc<Progress>) -> Self {
        Self {
            encoder,
            progress,
            workers: Arc::new(Semaphore::new(workers.get())),
            runs: Vec::new(),
        }
    }

    /// The stream's identity, as rows have it.
    pub fn stream(&self) -> &str {
        self.encoder.stream()
    }

    pub fn kind(&self) -> &dyn Kind {
        self.encoder.kind()
    }

    /// Decodes the next chunk of the open batch.
    pub fn decode(&mut self, messages: Vec<Message>) {
        let (encoder, workers) = (Arc::clone(&self.encoder), Arc::clone(&self.workers));
        let progress = Arc::clone(&self.progress);
        let decoding = async move {
            // It is never closed.
            let _worker = workers.acquire().await;
            let _stage = progress.metrics.stage(Stage::Decode);
            encoder.decode(messages)
        };
        let run = tokio::spawn(decoding.in_current_span());
        self.runs.push(AbortOnDropHandle::new(run));
    }

    /// Encodes the open batch, which has come to its end.
    pub fn encode(&mut self, batch: Batch) -> Encoding {
        let (encoder, progress) = (Arc::clone(&self.encoder), Arc::clone(&self.progress));
        let runs = std::mem::take(&mut self.runs);
        Encoding::new(tokio::spawn(async move {
            let mut ahead = Vec::with_capacity(runs.len());
            for run in runs {
                ahead.push(run.await?);
            }
            let encode = move || {
                let _stage = progress.metrics.stage(Stage::Encode);
                encoder.encode(ahead, batch)
            };
            tokio::task::spawn_blocking(encode).await
        }))
    }
}
