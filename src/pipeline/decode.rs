//! From a message to rows and dead letters. Pure: the same message always
//! becomes the same rows, which is what lets a repeated insert be recognised.

mod batch_message;

use std::borrow::Cow;
use std::ops::ControlFlow;

use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use prost::{DecodeError, Message as _};
use uuid::Uuid;

use super::message::Message;
use crate::clickhouse::native::Millis;
use crate::config::Subjects;
use crate::dead_letter::{DeadLetter, PayloadIs, Reason};
use crate::event::{self, Event, Place, Source};
use crate::pb::AnalyticsEvent;

/// What becomes of an event.
pub type Fate = Result<Event, Box<DeadLetter>>;

/// What becomes of a message, each of its events in exactly one of the two.
/// A batch message without events becomes nothing.
#[derive(Debug, Default)]
pub struct Decoded {
    pub events: Vec<Event>,
    pub dead_letters: Vec<DeadLetter>,
}

/// Decodes the messages of one stream.
#[derive(Debug, Clone)]
pub struct Decoder {
    stream: String,
    batch_subject: String,
    /// What an event's subject starts with before the event's name.
    prefix: String,
}

impl Decoder {
    /// For the stream with this identity: its name and creation time.
    pub fn new(stream: &str, subjects: &Subjects) -> Self {
        let events = &subjects.analytics_events;
        let prefix = events
            .find(['>', '*'])
            .map_or("", |wildcard| &events[..wildcard]);
        Self {
            stream: stream.to_owned(),
            batch_subject: subjects.analytics_batch.clone(),
            prefix: prefix.to_owned(),
        }
    }

    /// How many rows a message becomes.
    pub fn rows(&self, message: &Message) -> usize {
        if !self.is_batch(message) {
            return 1;
        }
        batch_message::count(&message.payload).unwrap_or(1)
    }

    /// What becomes of a message, all at once.
    pub fn decode(&self, message: &Message) -> Decoded {
        let mut decoded = Decoded::default();
        self.each(message, |fate| match fate {
            Ok(event) => decoded.events.push(event),
            Err(letter) => decoded.dead_letters.push(*letter),
        });
        decoded
    }

    /// Hands over what becomes of each event of a message, one after the other: an event
    /// is large, and many thousand of them a second are not to be moved about.
    pub fn each(&self, message: &Message, mut take: impl FnMut(Fate)) {
        let _: ControlFlow<()> = self.each_source(message, 0, |source| {
            take(source.and_then(|source| self.event(source)));
            ControlFlow::Continue(())
        });
    }

    /// Hands over each event of a message as it was sent, from the one with the index
    /// `first` on, until `take` breaks off. A message that cannot be read is one letter.
    pub fn each_source<B>(
        &self,
        message: &Message,
        first: u32,
        mut take: impl FnMut(Result<Source, Box<DeadLetter>>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let whole = || self.source(message, None, message.payload.clone());
        let row = if !self.is_batch(message) {
            Ok(whole())
        } else if let Err(error) = batch_message::count(&message.payload) {
            Err(undecodable(whole(), &error))
        } else {
            let events = (0..).zip(batch_message::events(&message.payload));
            for (index, bytes) in events.skip(first as usize) {
                take(Ok(self.source(message, Some(index), bytes)))?;
            }
            return ControlFlow::Continue(());
        };
        if first > 0 {
            return ControlFlow::Continue(());
        }
        take(row)
    }

    fn is_batch(&self, message: &Message) -> bool {
        message.subject.as_str() == self.batch_subject
    }

    /// `index` is the event's place in a batch message, `None` for a message that is
    /// the event.
    fn source(&self, message: &Message, index: Option<u32>, payload: Bytes) -> Source {
        Source {
            id: self.event_id(message, index),
            place: Place(message.sequence, index.unwrap_or(0)),
            subject: message.subject.clone(),
            received_at: Millis(message.stored_at.div_euclid(1_000_000)),
            headers: message.headers.clone(),
            payload,
            payload_is: PayloadIs::at(index),
        }
    }

    /// The event that was sent, or the letter that it becomes.
    pub fn event(&self, source: Source) -> Fate {
        let AnalyticsEvent {
            context,
            event_type: kind,
        } = match AnalyticsEvent::decode(source.payload.as_ref()) {
            Ok(event) => event,
            Err(error) => return Err(undecodable(source, &error)),
        };
        let Some(context) = context else {
            let error = "the event has no context".to_owned();
            return Err(letter(source, Reason::MissingContext, error));
        };
        if context.client_id.is_empty() {
            let error = "the event's context has no client_id".to_owned();
            return Err(letter(source, Reason::MissingClientId, error));
        }
        Ok(Event {
            client_ts: client_ts(context.client_ts, source.received_at),
            server_ts: server_ts(context.server_ts, source.received_at),
            event_type: match &kind {
                Some(kind) => Cow::Borrowed(event::type_name(kind)),
                None => self.type_from_subject(&source),
            },
            source,
            context,
            kind,
        })
    }

    /// The id that the producer gave, or one that the same stored message always gets.
    fn event_id(&self, message: &Message, index: Option<u32>) -> Uuid {
        /// Any fixed value does; it keeps these ids apart from other version 5 ids.
        const NAMESPACE: Uuid = Uuid::from_u128(0x8f4e_11a2_52c7_4d0e_9a36_6b1f_c0de_0001);

        if index.is_none()
            && let Some(id) = message.headers.get(NATS_MESSAGE_ID.as_ref())
            && let Ok(id) = Uuid::try_parse(id)
        {
            return id;
        }
        let name = format!(
            "{}/{}/{}",
            self.stream,
            message.sequence,
            index.unwrap_or(0)
        );
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }

    /// `fechatter.analytics.poll.created` → `poll_created`. The subject of a
    /// batch says nothing about the events in it.
    fn type_from_subject(&self, source: &Source) -> Cow<'static, str> {
        if source.payload_is == PayloadIs::Event {
            return Cow::Borrowed("unknown");
        }
        let subject = source.subject.as_str();
        Cow::Owned(
            subject
                .strip_prefix(&self.prefix)
                .unwrap_or(subject)
                .replace('.', "_"),
        )
    }
}

fn letter(source: Source, reason: Reason, error: String) -> Box<DeadLetter> {
    Box::new(DeadLetter {
        source,
        reason,
        error,
    })
}

fn undecodable(source: Source, error: &DecodeError) -> Box<DeadLetter> {
    letter(source, Reason::Undecodable, error.to_string())
}

/// `BatchRecordEventsRequest` with its events left as bytes: one that cannot be
/// read does not take its neighbours with it, and an unknown one keeps its bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BatchMessage {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub events: Vec<Bytes>,
}

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// As sent where it can be true, otherwise the time of receipt: a lying clock
/// must not spread one insert over many partitions.
fn server_ts(sent: i64, received_at: Millis) -> Millis {
    let believable = received_at.0 - 30 * DAY..=received_at.0 + 5 * MINUTE;
    // 0 is "not set", also in a stream whose messages are from 1970.
    if sent != 0 && believable.contains(&sent) {
        Millis(sent)
    } else {
        received_at
    }
}

/// As sent where it is between 1970 and 2100, both excluded, otherwise the time
/// of receipt.
fn client_ts(sent: i64, received_at: Millis) -> Millis {
    /// 2100-01-01T00:00:00Z.
    const YEAR_2100: i64 = 4_102_444_800_000;
    if (1..YEAR_2100).contains(&sent) {
        Millis(sent)
    } else {
        received_at
    }
}

#[cfg(test)]
mod tests;
