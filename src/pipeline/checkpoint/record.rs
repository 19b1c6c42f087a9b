//! What the checkpoint says. Pure: how it is written stands beside it.

use serde::{Deserialize, Serialize};

use crate::event::Place;
use crate::nats::StreamId;
use crate::pipeline::message::Message;

/// A contiguous run of stream sequences, with when JetStream stored both ends:
/// a stream that lost its tail gives the same sequences to other messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub first: u64,
    pub last: u64,
    /// Nanoseconds since the Unix epoch.
    pub first_stored_at: i64,
    /// Nanoseconds since the Unix epoch.
    pub last_stored_at: i64,
}

impl Range {
    pub fn starting_at(message: &Message) -> Self {
        Self {
            first: message.sequence,
            last: message.sequence,
            first_stored_at: message.stored_at,
            last_stored_at: message.stored_at,
        }
    }

    pub fn extend_to(&mut self, message: &Message) {
        self.last = message.sequence;
        self.last_stored_at = message.stored_at;
    }
}

/// What a part's rows are, and so which table they go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Events, for `analytics_events`.
    Events,
    /// What could not be decoded, for `dead_letters`.
    DeadLetters,
    /// Events that ClickHouse refused, for `dead_letters`.
    Refused,
}

/// A run of a range's rows that is inserted under one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub rows: Rows,
    pub first: Place,
    pub last: Place,
    /// 0: all of its rows are sent. From 1 on: those that ClickHouse does not
    /// hold, under a token that no earlier attempt has used.
    pub attempt: u32,
}

/// A range that may have been inserted, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    #[serde(flatten)]
    pub range: Range,
    /// Stands in its tokens.
    #[serde(default)]
    pub generation: u32,
    /// In the order in which they are inserted. Empty: the range as a whole,
    /// which is how nearly every range goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

impl InFlight {
    /// The deduplication token of a part: stream, generation, both ends of the range
    /// with their storage times, and from the second attempt on the part's own ends.
    pub fn token(&self, stream: &StreamId, part: &Part) -> String {
        let Range {
            first,
            last,
            first_stored_at,
            last_stored_at,
        } = self.range;
        let generation = self.generation;
        let range =
            format!("{stream}/{generation}/{first}@{first_stored_at}-{last}@{last_stored_at}");
        let Part {
            first: Place(first, first_index),
            last: Place(last, last_index),
            attempt,
            ..
        } = part;
        match attempt {
            // The range as a whole, recorded with its parts or without.
            0 => range,
            _ => format!("{range}/{first}.{first_index}-{last}.{last_index}/{attempt}"),
        }
    }
}

/// What stands in the bucket, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The instance that writes; empty when it has handed over.
    pub owner: String,
    /// The stream's creation time: sequences of a re-created stream are others.
    pub stream_created: String,
    /// Of ranges to come. Raised when something was stored that the record does
    /// not know of, so that no token of before is met again.
    pub generation: u32,
    /// Everything up to this stream sequence is stored.
    pub committed: u64,
    /// When JetStream stored that message, in nanoseconds since the Unix epoch;
    /// 0 where that is not known.
    #[serde(default)]
    pub committed_stored_at: i64,
    /// Ranges that may have been inserted, in order.
    pub in_flight: Vec<InFlight>,
    /// The ClickHouse process that was up when everything up to `committed` was
    /// known to be in every view. One that was started since may have lost
    /// views' rows of the ranges in flight.
    #[serde(default)]
    pub clickhouse: String,
}

impl Record {
    pub fn new(owner: &str, stream: &StreamId) -> Self {
        Self {
            owner: owner.to_owned(),
            stream_created: stream.created.clone(),
            generation: 0,
            committed: 0,
            committed_stored_at: 0,
            in_flight: Vec::new(),
            clickhouse: String::new(),
        }
    }

    /// The last sequence that the record speaks of, and when it was stored.
    pub fn end(&self) -> (u64, i64) {
        let in_flight = self.in_flight.last().map(|last| &last.range);
        in_flight.map_or((self.committed, self.committed_stored_at), |range| {
            (range.last, range.last_stored_at)
        })
    }

    /// Adds a range that is about to be inserted, or finds it where it stands.
    /// The flag says that it was found: it may have been inserted before.
    pub fn begin(&mut self, range: &Range, parts: Vec<Part>) -> (InFlight, bool) {
        let found = self.in_flight.iter().find(|other| other.range == *range);
        if let Some(found) = found {
            return (found.clone(), true);
        }
        let in_flight = InFlight {
            range: range.clone(),
            generation: self.generation,
            parts,
        };
        self.in_flight.push(in_flight.clone());
        (in_flight, false)
    }

    /// Writes down how a range is inserted from now on.
    pub fn change(&mut self, changed: &InFlight) {
        for in_flight in &mut self.in_flight {
            if in_flight.range == changed.range {
                in_flight.clone_from(changed);
            }
        }
    }

    /// Takes out a range that is stored.
    ///
    /// # Panics
    /// When it is not the first one: what is before it would count as stored.
    pub fn retire(&mut self, range: &Range) {
        assert_eq!(
            self.in_flight.first().map(|first| &first.range),
            Some(range),
            "ranges are committed in order"
        );
        self.in_flight.retain(|other| other.range != *range);
        self.committed = range.last;
        self.committed_stored_at = range.last_stored_at;
    }

    /// The stream has lost everything after `last`, and gives those sequences to
    /// other messages: nothing is known of what stands there.
    pub fn cut_off(&mut self, last: u64) {
        if self.committed > last {
            self.committed = last;
            // Not known, and never asked for a sequence that is not the end.
            self.committed_stored_at = 0;
        }
        self.in_flight.retain(|range| range.range.last <= last);
    }

    /// No token of before may be met again.
    pub fn raise_generation(&mut self, now_seconds: u32) {
        // The time rather than one more: a lost record does not say how high it was.
        self.generation = now_seconds.max(self.generation + 1);
    }
}
