//! From a message to rows and dead letters. Pure: the same message always
//! becomes the same rows, which is what lets a repeated insert be recognised.

use std::borrow::Cow;

use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use prost::{DecodeError, Message as _};
use uuid::Uuid;

use super::message::Message;
use crate::clickhouse::native::Millis;
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
    /// For the stream with this identity (name and creation time), whose events
    /// arrive on `events_subject` (such as `fechatter.analytics.>`) and whose
    /// batches arrive on `batch_subject`.
    pub fn new(stream: &str, events_subject: &str, batch_subject: &str) -> Self {
        let prefix = events_subject
            .find(['>', '*'])
            .map_or("", |wildcard| &events_subject[..wildcard]);
        Self {
            stream: stream.to_owned(),
            batch_subject: batch_subject.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    /// How many rows a message becomes.
    pub fn rows(&self, message: &Message) -> usize {
        if !self.is_batch(message) {
            return 1;
        }
        BatchMessage::decode(message.payload.clone()).map_or(1, |batch| batch.events.len())
    }

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
    pub fn each(&self, message: &Message, mut each: impl FnMut(Fate)) {
        let whole = || self.source(message, None, message.payload.clone());
        if !self.is_batch(message) {
            return each(self.event(whole()));
        }
        match BatchMessage::decode(message.payload.clone()) {
            Ok(batch) => {
                for (index, bytes) in (0..).zip(batch.events) {
                    each(self.event(self.source(message, Some(index), bytes)));
                }
            }
            Err(error) => each(Err(undecodable(whole(), &error))),
        }
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
mod tests {
    use async_nats::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::pb;
    use crate::pipeline::message::Headers;

    const NOW: i64 = 1_795_000_000_000;

    fn message(subject: &str, payload: impl Into<Bytes>) -> Message {
        Message {
            sequence: 7,
            stored_at: NOW * 1_000_000 + 999_999,
            subject: subject.into(),
            headers: Headers::default(),
            payload: payload.into(),
            reply: None,
        }
    }

    fn decoder() -> Decoder {
        Decoder::new(
            "ANALYTICS@1",
            "fechatter.analytics.>",
            "fechatter.analytics.batch",
        )
    }

    fn context(client_id: &str) -> pb::EventContext {
        pb::EventContext {
            client_id: client_id.to_owned(),
            ..Default::default()
        }
    }

    fn bytes_of(context: Option<pb::EventContext>) -> Bytes {
        AnalyticsEvent {
            context,
            event_type: None,
        }
        .encode_to_vec()
        .into()
    }

    fn batch_of(events: &[Bytes]) -> Bytes {
        BatchMessage {
            events: events.to_vec(),
        }
        .encode_to_vec()
        .into()
    }

    #[test]
    fn a_bad_event_of_a_batch_leaves_its_neighbours_alone() {
        let good = bytes_of(Some(context("a")));
        let payload = batch_of(&[
            good.clone(),
            bytes_of(None),
            Bytes::from_static(b"\xff"),
            good,
        ]);
        let decoded = decoder().decode(&message("fechatter.analytics.batch", payload));

        let stored: Vec<u32> = decoded
            .events
            .iter()
            .map(|event| event.source.place.1)
            .collect();
        assert_eq!(stored, [0, 3]);
        let dead: Vec<_> = decoded
            .dead_letters
            .iter()
            .map(|letter| (letter.source.place.1, letter.reason))
            .collect();
        assert_eq!(
            dead,
            [(1, Reason::MissingContext), (2, Reason::Undecodable)]
        );
        assert_eq!(decoded.dead_letters[1].source.payload.as_ref(), b"\xff");
        assert_eq!(decoded.dead_letters[1].source.payload_is, PayloadIs::Event);
        assert_ne!(decoded.events[0].source.id, decoded.events[1].source.id);
    }

    #[test]
    fn a_batch_that_cannot_be_read_is_one_letter_with_the_whole_message() {
        let message = message("fechatter.analytics.batch", Bytes::from_static(b"\xff"));
        let decoded = decoder().decode(&message);
        let [letter] = decoded.dead_letters.as_slice() else {
            panic!("not one letter: {:?}", decoded.dead_letters);
        };
        assert_eq!(letter.source.payload_is, PayloadIs::Message);
    }

    #[test]
    fn an_unknown_type_is_named_by_its_subject_and_keeps_its_bytes() {
        let payload = bytes_of(Some(context("a")));
        for (subject, name) in [
            ("fechatter.analytics.poll.created", "poll_created"),
            ("fechatter.analytics.a-b.C.$x", "a-b_C_$x"),
            ("elsewhere.poll", "elsewhere_poll"),
        ] {
            let decoded = decoder().decode(&message(subject, payload.clone()));
            assert_eq!(decoded.events[0].event_type, name);
            assert_eq!(decoded.events[0].source.payload, payload);
        }
        let decoded = decoder().decode(&message(
            "fechatter.analytics.batch",
            batch_of(std::slice::from_ref(&payload)),
        ));
        assert_eq!(decoded.events[0].event_type, "unknown");
        assert_eq!(decoded.events[0].source.payload, payload);
    }

    #[test]
    fn the_id_is_the_header_where_that_is_a_uuid_and_is_derived_otherwise() {
        let id = Uuid::from_u128(5);
        let payload = bytes_of(Some(context("a")));
        let with_header = |subject, header: &str, payload| {
            let mut message = message(subject, payload);
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, header);
            message.headers = Headers::from(&headers);
            decoder().decode(&message).events[0].source.id
        };
        let subject = "fechatter.analytics.app.start";
        let derived = decoder().decode(&message(subject, payload.clone())).events[0]
            .source
            .id;

        assert_eq!(with_header(subject, &id.to_string(), payload.clone()), id);
        assert_eq!(with_header(subject, "order-17", payload.clone()), derived);
        let batch = batch_of(std::slice::from_ref(&payload));
        assert_ne!(
            with_header("fechatter.analytics.batch", &id.to_string(), batch),
            id
        );

        let recreated = Decoder::new(
            "ANALYTICS@2",
            "fechatter.analytics.>",
            "fechatter.analytics.batch",
        );
        assert_ne!(
            recreated.decode(&message(subject, payload)).events[0]
                .source
                .id,
            derived
        );
    }

    #[test]
    fn a_clock_is_believed_only_where_it_can_be_true() {
        let received = Millis(NOW);
        assert_eq!(server_ts(0, received), received);
        assert_eq!(server_ts(NOW - 30 * DAY, received).0, NOW - 30 * DAY);
        assert_eq!(server_ts(NOW - 30 * DAY - 1, received), received);
        assert_eq!(server_ts(NOW + 5 * MINUTE, received).0, NOW + 5 * MINUTE);
        assert_eq!(server_ts(NOW + 5 * MINUTE + 1, received), received);
        assert_eq!(server_ts(i64::MIN, received), received);

        assert_eq!(client_ts(1, received).0, 1);
        assert_eq!(client_ts(4_102_444_799_999, received).0, 4_102_444_799_999);
        for lie in [0, -1, 4_102_444_800_000, i64::MIN, i64::MAX] {
            assert_eq!(client_ts(lie, received), received);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_event_or_one_dead_letter(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let decoded = decoder().decode(&message("fechatter.analytics.user.login", bytes));
            prop_assert_eq!(decoded.events.len() + decoded.dead_letters.len(), 1);
        }

        #[test]
        fn every_event_of_a_batch_has_one_fate_and_its_own_index(
            events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20),
        ) {
            let events: Vec<Bytes> = events.into_iter().map(Bytes::from).collect();
            let decoded = decoder().decode(&message("fechatter.analytics.batch", batch_of(&events)));
            let mut indexes: Vec<u32> = decoded.events.iter().map(|event| event.source.place.1)
                .chain(decoded.dead_letters.iter().map(|letter| letter.source.place.1))
                .collect();
            indexes.sort_unstable();
            prop_assert_eq!(indexes, (0..events.len() as u32).collect::<Vec<_>>());
        }
    }
}
