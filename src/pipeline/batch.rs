//! Cutting the stream into batches. Pure: time is an argument.
//!
//! A batch is a contiguous run of stream sequences. Where it is cut is free, but
//! for a batch that may have been inserted before: that one must be cut exactly
//! where it was, or its token would stand for other rows.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::Subject;
use tokio::time::Instant;

use super::checkpoint::Range;
use super::decode::{Decoded, Message};
use crate::dead_letter::DeadLetter;
use crate::event::Event;

/// What one insert carries.
#[derive(Debug)]
pub struct Batch {
    pub range: Range,
    pub events: Vec<Event>,
    pub dead_letters: Vec<DeadLetter>,
    /// Bytes of the messages, payloads and headers.
    pub bytes: usize,
    /// Where the last acknowledgement goes; `None` when there is no message to
    /// acknowledge.
    pub ack: Option<Subject>,
}

impl Batch {
    fn empty(range: Range) -> Self {
        Self {
            range,
            events: Vec::new(),
            dead_letters: Vec::new(),
            bytes: 0,
            ack: None,
        }
    }

    fn add(&mut self, message: &Message, decoded: Decoded) {
        self.events.extend(decoded.events);
        self.dead_letters.extend(decoded.dead_letters);
        self.bytes += message.size();
        if message.reply.is_some() {
            self.ack.clone_from(&message.reply);
        }
    }

    fn rows(&self) -> usize {
        self.events.len() + self.dead_letters.len()
    }
}

/// When a batch is full.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
    /// Age of the batch's first message here.
    pub interval: Duration,
}

/// Takes messages in stream order and gives batches in stream order.
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    /// Ranges that were recorded before a restart, in order: cut again as they were.
    recorded: VecDeque<Range>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    batch: Batch,
    deadline: Instant,
}

impl Batcher {
    pub fn new(limits: Limits, recorded: impl IntoIterator<Item = Range>) -> Self {
        Self {
            limits,
            recorded: recorded.into_iter().collect(),
            open: None,
        }
    }

    /// Adds a message; returns the batches that this completes, mostly none.
    #[must_use = "a batch that is dropped is lost"]
    pub fn push(&mut self, message: &Message, decoded: Decoded, now: Instant) -> Vec<Batch> {
        let mut complete = Vec::new();
        while let Some(range) = self.recorded.front() {
            if message.sequence <= range.last {
                let last = range.last;
                self.open_recorded(now).batch.add(message, decoded);
                if message.sequence == last {
                    complete.extend(self.close_recorded());
                }
                return complete;
            }
            // The rest of this range is no longer in the stream.
            complete.extend(self.close_recorded());
        }

        let open = self.open.get_or_insert_with(|| Open {
            batch: Batch::empty(Range::starting_at(message)),
            deadline: now + self.limits.interval,
        });
        open.batch.add(message, decoded);
        open.batch.range.extend_to(message);
        if open.batch.rows() >= self.limits.rows || open.batch.bytes >= self.limits.bytes {
            complete.extend(self.flush());
        }
        complete
    }

    /// When the open batch must be flushed. `None` while there is none, and while
    /// a recorded range is being read again: only its end may end it.
    pub fn deadline(&self) -> Option<Instant> {
        self.open
            .as_ref()
            .filter(|_| self.recorded.is_empty())
            .map(|open| open.deadline)
    }

    /// Completes the open batch, full or not; a recorded range stays open.
    pub fn flush(&mut self) -> Option<Batch> {
        if !self.recorded.is_empty() {
            return None;
        }
        self.open.take().map(|open| open.batch)
    }

    /// Whether every recorded range was cut again.
    pub fn is_recovered(&self) -> bool {
        self.recorded.is_empty()
    }

    /// Completes every recorded range: nothing that is in the stream follows,
    /// so what is missing from them is gone.
    #[must_use = "a batch that is dropped is lost"]
    pub fn end_of_stream(&mut self) -> Vec<Batch> {
        std::iter::from_fn(|| self.close_recorded()).collect()
    }

    fn open_recorded(&mut self, now: Instant) -> &mut Open {
        let recorded = &self.recorded;
        self.open.get_or_insert_with(|| Open {
            batch: Batch::empty(recorded[0].clone()),
            deadline: now,
        })
    }

    fn close_recorded(&mut self) -> Option<Batch> {
        let range = self.recorded.pop_front()?;
        let open = self.open.take().map(|open| open.batch);
        Some(open.unwrap_or_else(|| Batch::empty(range)))
    }
}

#[cfg(test)]
mod tests;
