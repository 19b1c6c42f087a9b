//! What is between the stream and ClickHouse during one run of the pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::insert::Stored;
use super::progress::Progress;
use crate::nats::Message;

/// Counts what is received and what becomes of it. When the run has ended, and the last
/// of its tasks with it, what is left goes back to the stream.
pub struct Flow {
    progress: Arc<Progress>,
    events: AtomicUsize,
    bytes: AtomicUsize,
}

impl Flow {
    pub fn new(progress: Arc<Progress>) -> Self {
        Self {
            progress,
            events: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// A message has come, which is this many events.
    pub fn received(&self, message: &Message, events: usize) {
        let bytes = message.size();
        self.events.fetch_add(events, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.progress.metrics.received(events, bytes);
    }

    /// A batch is committed.
    pub fn settled(&self, stored: &Stored) {
        let Stored { batch, .. } = stored;
        self.events.fetch_sub(batch.rows(), Relaxed);
        self.bytes.fetch_sub(batch.bytes, Relaxed);
        self.progress.metrics.settled(&stored.settled());
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let (events, bytes) = (self.events.get_mut(), self.bytes.get_mut());
        self.progress.metrics.returned(*events, *bytes);
    }
}
