//! Decoding on tasks of their own, while the batch is still being read.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::batch::Batch;
use super::encode::{Encoded, Encoder, Run};
use super::message::Message;
use super::progress::Progress;
use crate::metrics::Stage;

/// A batch that is being encoded, while the next one is read.
pub type Encoding = AbortOnDropHandle<Result<Encoded, JoinError>>;

/// The open batch, as far as it is decoded.
pub struct Ahead {
    encoder: Arc<Encoder>,
    progress: Arc<Progress>,
    /// One for each task that may decode at a time.
    workers: Arc<Semaphore>,
    runs: Vec<AbortOnDropHandle<Run>>,
    /// Messages of the open batch that they are made from.
    taken: usize,
}

impl Ahead {
    pub fn new(encoder: Arc<Encoder>, workers: NonZeroUsize, progress: Arc<Progress>) -> Self {
        Self {
            encoder,
            progress,
            workers: Arc::new(Semaphore::new(workers.get())),
            runs: Vec::new(),
            taken: 0,
        }
    }

    /// The stream's identity, as it stands in rows.
    pub fn stream(&self) -> &str {
        self.encoder.stream()
    }

    /// Decodes the next messages of the open batch.
    pub fn decode(&mut self, messages: Vec<Message>) {
        self.taken += messages.len();
        let (encoder, workers) = (Arc::clone(&self.encoder), Arc::clone(&self.workers));
        let progress = Arc::clone(&self.progress);
        let run = tokio::spawn(async move {
            // It is never closed.
            let _worker = workers.acquire().await;
            let _stage = progress.metrics.stage(Stage::Decode);
            encoder.decode(messages)
        });
        self.runs.push(AbortOnDropHandle::new(run));
    }

    /// Encodes the open batch, which has come to its end.
    ///
    /// # Panics
    /// When what was decoded ahead is of another batch: its rows would be stored under
    /// the wrong token.
    pub fn encode(&mut self, batch: Batch) -> Encoding {
        assert_eq!(
            std::mem::take(&mut self.taken),
            batch.taken,
            "messages of another batch were decoded ahead"
        );
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
