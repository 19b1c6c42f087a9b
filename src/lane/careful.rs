//! When messages are fetched one by one.
//!
//! A message that the client library cannot take breaks its connection, each time it is
//! sent. It shows as runs, one after another, that end with an error and have stored
//! nothing of what is waiting in the stream.

use tracing::warn;

use crate::checkpoint::Record;

/// Fruitless runs after which messages are fetched one by one: NATS may have been
/// away for the first ones.
const FRUITLESS: u32 = 3;

#[derive(Debug, Default)]
pub struct Careful {
    /// What was committed at the start of the last run.
    last_committed: Option<u64>,
    /// Successive runs that have stored nothing of what was waiting.
    fruitless: u32,
}

impl Careful {
    /// Up to where the run that is starting has to fetch messages one by one: past the next
    /// ones, if none of them was stored for some runs; otherwise not at all.
    pub fn until(&mut self, record: &Record, last_sequence: u64) -> u64 {
        let committed = record.committed;
        let stood_still = self.last_committed.replace(committed) == Some(committed);
        let something_waits = last_sequence > committed;
        self.fruitless = if stood_still && something_waits {
            self.fruitless + 1
        } else {
            0
        };
        if self.fruitless < FRUITLESS {
            return committed;
        }
        warn!(
            after = committed,
            "nothing gets through: fetching messages one by one"
        );
        let recorded = record.in_flight.last().map(|recorded| recorded.range.last);
        recorded.unwrap_or(committed + 1)
    }

    /// Another instance has been active: what it has stored says nothing about the runs of
    /// this one.
    pub fn forget(&mut self) {
        self.last_committed = None;
    }
}
