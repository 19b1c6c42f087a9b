//! Sending a batch to ClickHouse until it says that it has it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tracing::{info, warn};

use super::Progress;
use super::batch::Batch;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Block;
use crate::retry::Retry;
use crate::{dead_letter, event};

/// A batch as the blocks that carry it. The events are encoded once: what is
/// sent again is the same bytes.
#[derive(Debug)]
pub struct Insert {
    token: String,
    events: Option<Block>,
    dead_letters: Option<Block>,
    first: u64,
    last: u64,
    /// Bytes of the messages.
    bytes: usize,
}

impl Insert {
    /// `stream` is the stream's identity, the value of the column of that name.
    pub fn new(stream: &str, batch: &Batch, token: &str) -> Self {
        let Batch {
            range,
            events,
            dead_letters,
            bytes,
            ..
        } = batch;
        // ClickHouse takes an empty block for the end of an insert.
        Self {
            token: token.to_owned(),
            events: (!events.is_empty()).then(|| event::block(stream, events, *bytes)),
            dead_letters: (!dead_letters.is_empty())
                .then(|| dead_letter::block(stream, dead_letters)),
            first: range.first,
            last: range.last,
            bytes: *bytes,
        }
    }

    /// Returns once ClickHouse has everything. Dead letters go first: their
    /// range must not be committed without them.
    pub async fn send(&self, clickhouse: &ClickHouse, progress: &Progress) {
        let started = Instant::now();
        if let Some(block) = &self.dead_letters {
            self.insert(clickhouse, "dead_letters", block, progress)
                .await;
            progress.dead_letters.fetch_add(block.rows as u64, Relaxed);
            warn!(
                first = self.first,
                last = self.last,
                dead_letters = block.rows,
                "dead letters stored"
            );
        }
        let rows = self.events.as_ref().map_or(0, |block| block.rows);
        if let Some(block) = &self.events {
            self.insert(clickhouse, "analytics_events", block, progress)
                .await;
            progress.stored.fetch_add(rows as u64, Relaxed);
        }
        info!(
            rows,
            first = self.first,
            last = self.last,
            bytes = self.bytes,
            insert_ms = started.elapsed().as_millis() as u64,
            "batch stored"
        );
    }

    /// Same bytes, same token, until it works: ClickHouse drops what it has. An
    /// error that is not about the data passes, and one that seems to be must not
    /// lose any.
    async fn insert(
        &self,
        clickhouse: &ClickHouse,
        table: &str,
        block: &Block,
        progress: &Progress,
    ) {
        let mut retry = Retry::new();
        let hold_up = progress.hold_up();
        while let Err(error) = clickhouse.insert(table, block, &self.token).await {
            if retry.is_news(&error) {
                warn!(
                    %error,
                    table,
                    batch.first = self.first,
                    batch.rows = block.rows,
                    "insert failed, retrying"
                );
            }
            hold_up.say(format!("insert into {table} fails: {error}"));
            retry.pause().await;
        }
    }
}
