//! Kinds of events. A kind says what a message holds, what its events become as rows, and
//! which tables these go to. All that happens between the stream and ClickHouse is the
//! same for every kind.

pub mod analytics;

use std::time::SystemTime;

use bytes::Bytes;

use crate::clickhouse::native::Columns;
use crate::clickhouse::tables::Tables;
use crate::dead_letter::Unfit;
use crate::event::{Row, Source};
use crate::nats::Message;

/// What is particular to one kind of event.
///
/// It is pure: the same message always becomes the same rows, which is what lets
/// ClickHouse recognise a repeated insert.
pub trait Kind: Send + Sync {
    /// Where its rows go.
    fn tables(&self) -> &'static Tables;

    /// The event types that metrics tell apart.
    fn event_types(&self) -> &'static [&'static str];

    /// How many rows a message becomes, dead letters among them.
    fn rows(&self, message: &Message) -> usize;

    /// Whether messages on this subject may be batch messages.
    fn may_hold_batches(&self, subject: &str) -> bool;

    /// A batch message of this one event.
    fn batch_of(&self, event: Bytes) -> Bytes;

    /// What a message holds.
    fn contents<'a>(&self, message: &'a Message) -> Contents<'a>;

    /// Writes rows of messages of `stream`, the stream's identity.
    fn writer<'a>(&'a self, stream: &'a str) -> Box<dyn Writer + 'a>;

    /// Made-up events for `send` and `bench`, the same for the same seed; or what the
    /// configuration has to say for them to be made.
    fn samples(&self, seed: u64) -> Result<Box<dyn Samples>, String>;
}

/// What a message holds.
pub enum Contents<'a> {
    /// It is one event.
    Event,
    /// It is a batch message: the bytes of each of its events, in order.
    Batch(Box<dyn Iterator<Item = Bytes> + 'a>),
    /// It should be a batch message and cannot be read, for this reason.
    Unreadable(String),
}

/// Turns events into rows of the kind's table.
pub trait Writer {
    /// Adds the row of an event, or says why there is none.
    fn write(&mut self, source: &Source) -> Result<Row, Unfit>;

    /// All rows that were added.
    fn finish(self: Box<Self>) -> Columns;
}

/// Events as people in front of their screens would cause them, one after another.
pub trait Samples {
    /// What happens next, of one type or, mostly, of any.
    fn next(&mut self, now: SystemTime, event_type: Option<&str>) -> Sample;
}

/// A message to publish.
pub struct Sample {
    pub subject: String,
    pub payload: Vec<u8>,
}
