//! An event on its way, whatever its kind.

use async_nats::Subject;
use bytes::Bytes;

use crate::clickhouse::native::Millis;
use crate::clickhouse::stored::{Origin, Place};
use crate::nats::{Headers, Message};

/// An event as it was sent, and where it came from: what it is decoded from, and
/// decoded from again where a part of its batch has to be sent by itself.
#[derive(Debug, Clone)]
pub struct Source {
    pub place: Place,
    pub subject: Subject,
    /// When JetStream stored the message.
    pub received_at: Millis,
    /// The message's headers.
    pub headers: Headers,
    /// The event's own bytes.
    pub payload: Bytes,
    /// Whether they were a message, or one of a batch message.
    pub payload_is: PayloadIs,
}

impl Source {
    /// A whole message, which is one event or cannot be read.
    pub fn whole(message: &Message) -> Self {
        Self::new(message, 0, message.payload.clone(), PayloadIs::Message)
    }

    /// The event with this index in a batch message.
    pub fn of_batch(message: &Message, index: u32, payload: Bytes) -> Self {
        Self::new(message, index, payload, PayloadIs::Event)
    }

    fn new(message: &Message, index: u32, payload: Bytes, payload_is: PayloadIs) -> Self {
        Self {
            place: Place(message.sequence, index),
            subject: message.subject.clone(),
            received_at: Millis(message.stored_at.div_euclid(1_000_000)),
            headers: message.headers.clone(),
            payload,
            payload_is,
        }
    }

    /// Which row it becomes.
    pub fn origin(&self) -> Origin {
        Origin {
            stream_seq: self.place.0,
            batch_index: self.place.1,
            received_at: self.received_at.0,
        }
    }

    /// Bytes of subject, headers and payload.
    pub fn size(&self) -> usize {
        self.subject.len() + self.headers.size() + self.payload.len()
    }
}

/// What the bytes of an event or of a dead letter are. Subject and index do not tell
/// which: the first event of a batch message and a batch message that cannot be read have
/// the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadIs {
    /// The payload of a whole message.
    Message,
    /// One event of a batch message.
    Event,
}

impl PayloadIs {
    /// The value of the column `payload_is`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Event => "event",
        }
    }
}

/// An event that became a row: what is kept of it while the row is on its way.
#[derive(Debug, Clone)]
pub struct Event {
    pub source: Source,
    pub row: Row,
}

/// What has to be known about a row in addition to its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// When the event happened. The row's day and its age count from here.
    pub time: Millis,
    /// The event's type, where it is one that the kind names.
    pub event_type: Option<&'static str>,
}
