//! What the checkpoint says. Pure: how it is written is elsewhere.

use serde::{Deserialize, Serialize};

use crate::clickhouse::stored::Place;
use crate::nats::{Message, StreamId};

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
    /// Events, for the kind's table.
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

/// Which ClickHouse it was that a range was sent to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// The process. One that was killed in the middle of an insert may know a token
    /// whose rows it lost, from the table or from a view alone.
    #[serde(default, rename = "clickhouse")]
    pub process: String,
    /// The tables that an insert reaches, by their uuids. Other tables know none of their
    /// tokens.
    #[serde(default)]
    pub tables: String,
}

/// A range that may have been inserted, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    #[serde(flatten)]
    pub range: Range,
    /// It is part of the range's tokens.
    #[serde(default)]
    pub generation: u32,
    /// The ClickHouse at the time when it was recorded: it has been sent to no earlier one.
    #[serde(flatten)]
    pub incarnation: Incarnation,
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

    /// Whether what a view holds of the range may differ from what the table holds,
    /// once the table has all of it: `process` is the ClickHouse process that answered
    /// last.
    pub fn may_be_miscounted(&self, history: History, process: &str) -> bool {
        history.looked_for || (history.repeated && self.incarnation.process != process)
    }
}

/// What is known about how a range got into ClickHouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Some of it was sent more than once, or may have been.
    pub repeated: bool,
    /// It was looked for before it was sent, since it may have been there under a token
    /// that nobody knows any more, or some of it was found.
    pub looked_for: bool,
}

impl History {
    /// The history of a range before this instance sends any of it. What is recorded
    /// under another attempt was looked for by the previous writer, and perhaps not
    /// found.
    pub fn of(in_flight: &InFlight, recovered: bool) -> Self {
        Self {
            repeated: recovered,
            looked_for: recovered && in_flight.parts.iter().any(|part| part.attempt > 0),
        }
    }
}

/// What is in the bucket, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The instance that writes; empty when it has handed over.
    pub owner: String,
    /// The stream's creation time: the sequences of a re-created stream are different ones.
    pub stream_created: String,
    /// That of ranges to come. It is raised when something was stored that the record
    /// does not know of, so that no earlier token is used again.
    pub generation: u32,
    /// Everything up to this stream sequence is stored.
    pub committed: u64,
    /// When JetStream stored that message, in nanoseconds since the Unix epoch;
    /// 0 where that is not known.
    #[serde(default)]
    pub committed_stored_at: i64,
    /// Ranges that may have been inserted, in order.
    pub in_flight: Vec<InFlight>,
    /// The ClickHouse that ranges to come are sent to.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// Some of what was committed before, each a sequence and when its message was
    /// stored: the further back, the fewer. Where the stream has lost its tail, the last
    /// of them that is still in it says up to where everything is as it was.
    #[serde(default)]
    pub landmarks: Vec<(u64, i64)>,
    /// Up to this sequence ClickHouse may hold what `committed` does not cover, since the
    /// record went back: ranges to come are looked for before they are sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub look_until: u64,
    /// The creation time that NATS gives for the stream, where it is not
    /// `stream_created`: a stream that was restored keeps the identity under which its
    /// messages are stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub restored: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
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
            incarnation: Incarnation::default(),
            landmarks: Vec::new(),
            look_until: 0,
            restored: String::new(),
        }
    }

    /// The ranges that may have been inserted, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        self.in_flight
            .iter()
            .map(|in_flight| in_flight.range.clone())
    }

    /// The identity under which the messages of `stream` are stored, `None` where the
    /// record is about another stream of that name.
    pub fn identity_of(&self, stream: &StreamId) -> Option<StreamId> {
        let is_known = [&self.stream_created, &self.restored].contains(&&stream.created);
        is_known.then(|| StreamId {
            name: stream.name.clone(),
            created: self.stream_created.clone(),
        })
    }

    /// The last sequence that the record covers, and when it was stored.
    pub fn end(&self) -> (u64, i64) {
        let in_flight = self.in_flight.last().map(|last| &last.range);
        in_flight.map_or((self.committed, self.committed_stored_at), |range| {
            (range.last, range.last_stored_at)
        })
    }

    /// Adds a range that is about to be inserted, or finds it if it is already there.
    /// The flag says that it was found: it may have been inserted before.
    pub fn begin(&mut self, range: &Range, parts: Vec<Part>) -> (InFlight, bool) {
        let found = self.in_flight.iter().find(|other| other.range == *range);
        if let Some(found) = found {
            return (found.clone(), true);
        }
        let in_flight = InFlight {
            range: range.clone(),
            generation: self.generation,
            incarnation: self.incarnation.clone(),
            parts,
        };
        self.in_flight.push(in_flight.clone());
        (in_flight, false)
    }

    /// Writes down how a range is inserted from now on. Where the tables turned out to be
    /// different ones, ranges to come go into these, too.
    pub fn change(&mut self, changed: &InFlight) {
        let mut in_flight = self.in_flight.iter_mut();
        let Some(in_flight) = in_flight.find(|other| other.range == changed.range) else {
            return;
        };
        let tables = &changed.incarnation.tables;
        if in_flight.incarnation.tables != *tables {
            self.incarnation.tables.clone_from(tables);
        }
        in_flight.clone_from(changed);
    }

    /// A day of a view that was built a moment ago is about to be swapped in. An instance
    /// that was replaced may have inserted one of these ranges in between, if its last
    /// insert came late: its rows are not in that day, and the view knows the token. So
    /// each of them is counted once more when it is stored.
    pub fn recount_in_flight(&mut self) {
        for in_flight in &mut self.in_flight {
            in_flight.incarnation.process.clear();
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
        if self.look_until <= self.committed {
            self.look_until = 0;
        }
        self.landmarks.push((range.last, range.last_stored_at));
        self.thin_out_landmarks();
    }

    /// Leaves landmarks whose distances from the last one grow, so that there are a few
    /// dozen of them however long the stream is.
    fn thin_out_landmarks(&mut self) {
        let mut index = self.landmarks.len().saturating_sub(2);
        while index > 0 {
            let distance = |of: usize| self.committed.saturating_sub(self.landmarks[of].0);
            if distance(index - 1) <= 4 * distance(index + 1) {
                self.landmarks.remove(index);
            }
            index -= 1;
        }
    }

    /// The messages that the record knows, each by its sequence and when it was stored,
    /// the last one first. Everything up to any of them was as it is now when it was read.
    pub fn known_messages(&self) -> impl Iterator<Item = (u64, i64)> {
        let in_flight = self.in_flight.iter().rev();
        let in_flight = in_flight.map(|in_flight| &in_flight.range);
        in_flight
            .map(|range| (range.last, range.last_stored_at))
            .chain([(self.committed, self.committed_stored_at)])
            .chain(self.landmarks.iter().rev().copied())
            .filter(|(_, stored_at)| *stored_at != 0)
    }

    /// Forgets everything after the sequence `last`, whose message was stored at
    /// `stored_at`, or 0 where that is not known: the stream may give those sequences to
    /// other messages, or they are to be read again.
    pub fn cut_off(&mut self, last: u64, stored_at: i64) {
        if self.committed > last {
            self.committed = last;
            self.committed_stored_at = stored_at;
        }
        self.in_flight.retain(|range| range.range.last <= last);
        self.landmarks.retain(|(sequence, _)| *sequence <= last);
    }

    /// No earlier token may be used again.
    pub fn raise_generation(&mut self, now_seconds: u32) {
        // The time rather than one more: a lost record does not say how high it was.
        self.generation = now_seconds.max(self.generation + 1);
    }
}
