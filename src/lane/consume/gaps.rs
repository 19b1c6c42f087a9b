//! What the stream has dropped before it was read.

use std::ops::RangeInclusive;

/// Gaps in the sequences, in stream order.
#[derive(Debug)]
pub struct Gaps {
    /// Whether a sequence that the consumer passes over is gone, rather than that of a
    /// message on another subject.
    reads_whole_stream: bool,
    /// `None` while nobody asks for them.
    kept: Option<Vec<RangeInclusive<u64>>>,
}

impl Gaps {
    pub fn new(reads_whole_stream: bool) -> Self {
        Self {
            reads_whole_stream,
            kept: None,
        }
    }

    /// From now on, gaps are kept until they are taken.
    pub fn gather(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// Whether somebody asks for gaps, and what the consumer passes over is one.
    pub fn are_wanted(&self) -> bool {
        self.reads_whole_stream && self.kept.is_some()
    }

    /// The consumer moved on from the message `last` to `next`, and passed over those in
    /// between.
    pub fn passed_over(&mut self, last: u64, next: u64) {
        if self.reads_whole_stream && next > last + 1 {
            self.dropped(last, next - 1);
        }
    }

    /// The stream says that what follows `last` is gone up to `end`. What was gone before
    /// anything was read was never this consumer's.
    pub fn dropped(&mut self, last: u64, end: u64) {
        if last > 0
            && let Some(kept) = &mut self.kept
        {
            kept.push(last + 1..=end);
        }
    }

    /// The first one since they were last taken.
    pub fn first(&self) -> Option<RangeInclusive<u64>> {
        self.kept.as_ref()?.first().cloned()
    }

    /// All since they were last taken.
    pub fn take(&mut self) -> Vec<RangeInclusive<u64>> {
        self.kept.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// There are messages that the consumer does not read: what it passed over, and will
    /// pass over, says nothing.
    pub fn distrust(&mut self) {
        self.reads_whole_stream = false;
        self.take();
    }
}
