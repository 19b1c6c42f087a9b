//! The messages that are compared at a time, in memory that does not grow with them.

use std::ops::RangeInclusive;

use crate::nats::Message;

/// How many messages, which may be empty.
const MESSAGES: usize = 20_000;

/// Bytes of the messages.
const BYTES: usize = 16 * 1024 * 1024;

/// Rows that they become; ClickHouse's rows for them are held, too, at about 100 bytes a row. A
/// batch message of 1 MiB may become 150,000 rows and more.
const ROWS: usize = 100_000;

/// Runs of sequences without a gap. What ClickHouse holds of messages that are gone from the stream
/// is not asked for, so each run is a condition of the statement.
const RUNS: usize = 500;

/// Messages in stream order, within these bounds or one message alone.
#[derive(Debug, Default)]
pub struct Chunk {
    pub messages: Vec<Message>,
    /// Their sequences.
    pub runs: Vec<RangeInclusive<u64>>,
    bytes: usize,
    rows: usize,
}

impl Chunk {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether a message that becomes `rows` rows stays within the bounds.
    pub fn has_room_for(&self, message: &Message, rows: usize) -> bool {
        self.messages.len() < MESSAGES
            && self.bytes + message.size() <= BYTES
            && self.rows + rows <= ROWS
            && (self.runs.len() < RUNS || self.is_next(message))
    }

    pub fn add(&mut self, message: Message, rows: usize) {
        let sequence = message.sequence;
        match self.runs.last_mut() {
            Some(run) if run.end() + 1 == sequence => *run = *run.start()..=sequence,
            _ => self.runs.push(sequence..=sequence),
        }
        self.bytes += message.size();
        self.rows += rows;
        self.messages.push(message);
    }

    /// Whether the message follows without a gap.
    fn is_next(&self, message: &Message) -> bool {
        let last = self.messages.last();
        last.is_some_and(|last| last.sequence + 1 == message.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::Headers;

    fn message(sequence: u64, bytes: usize) -> Message {
        Message {
            sequence,
            stored_at: 0,
            subject: "s".into(),
            headers: Headers::default(),
            payload: vec![0; bytes].into(),
            reply: None,
        }
    }

    /// How many messages of this many bytes and rows fit, `step` sequences from one to the next.
    fn fit(bytes: usize, rows: usize, step: usize) -> usize {
        let mut chunk = Chunk::default();
        for sequence in (1..).step_by(step) {
            let message = message(sequence, bytes);
            if !chunk.has_room_for(&message, rows) {
                break;
            }
            chunk.add(message, rows);
        }
        chunk.messages.len()
    }

    #[test]
    fn every_bound_ends_a_chunk() {
        assert_eq!(fit(10, 1, 1), MESSAGES);
        assert_eq!(fit(BYTES / 4, 1, 1), 3);
        assert_eq!(fit(10, ROWS / 4, 1), 4);
        assert_eq!(fit(10, 1, 2), RUNS);
    }

    #[test]
    fn sequences_without_a_gap_are_one_run() {
        let mut chunk = Chunk::default();
        for sequence in [3, 4, 5, 8, 10, 11] {
            chunk.add(message(sequence, 1), 1);
        }
        assert_eq!(chunk.runs, [3..=5, 8..=8, 10..=11]);
    }
}
