//! Fechatter's events: `AnalyticsEvent` in protobuf, each a row of `analytics_events`.

mod batch_message;
mod columns;
pub mod sample;
pub mod types;

use std::borrow::Cow;
use std::time::SystemTime;

use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;

use super::{Contents, Kind, Sample, Samples, Writer};
use crate::clickhouse::native::{self, Millis};
use crate::clickhouse::stored::Place;
use crate::clickhouse::tables::Tables;
use crate::config::Subjects;
use crate::dead_letter::{Reason, Unfit};
use crate::event::{PayloadIs, Row, Source};
use crate::nats::Message;
use crate::pb::AnalyticsEvent;
use columns::{Columns, Event};
use sample::Population;
use types::Type;

const TABLES: Tables = Tables {
    events: "analytics_events",
    time: "server_ts",
    targets: &[
        ("daily_active_users", "date"),
        ("event_counts_by_type", "date"),
        ("message_statistics", "date"),
        ("error_tracking", "date"),
        ("session_totals", "date"),
    ],
};

/// The kind, with the subjects that say what a message is.
#[derive(Debug, Clone)]
pub struct Analytics {
    batch_subject: String,
    /// As it is configured: it may end without a wildcard.
    events_subject: String,
}

impl Analytics {
    pub fn new(subjects: &Subjects) -> Self {
        Self {
            batch_subject: subjects.analytics_batch.clone(),
            events_subject: subjects.analytics_events.clone(),
        }
    }

    /// The event that was sent.
    fn decode<'a>(&self, stream: &str, source: &'a Source) -> Result<Event<'a>, Unfit> {
        let AnalyticsEvent {
            context,
            event_type: kind,
        } = AnalyticsEvent::decode(source.payload.as_ref())
            .map_err(|error| Unfit::new(Reason::Undecodable, error))?;
        let Some(context) = context else {
            let error = "the event has no context";
            return Err(Unfit::new(Reason::MissingContext, error));
        };
        if context.client_id.is_empty() {
            let error = "the event's context has no client_id";
            return Err(Unfit::new(Reason::MissingClientId, error));
        }
        Ok(Event {
            id: event_id(stream, source),
            client_ts: client_ts(context.client_ts, source.received_at),
            server_ts: server_ts(context.server_ts, source.received_at),
            event_type: match &kind {
                Some(kind) => Cow::Borrowed(Type::of(kind).name()),
                None => self.type_from_subject(source),
            },
            source,
            context,
            kind,
        })
    }

    /// `fechatter.analytics.poll.created` → `poll_created`. The subject of a
    /// batch says nothing about the events in it.
    fn type_from_subject(&self, source: &Source) -> Cow<'static, str> {
        if source.payload_is == PayloadIs::Event {
            return Cow::Borrowed("unknown");
        }
        let wildcard = self.events_subject.find(['>', '*']);
        let prefix = &self.events_subject[..wildcard.unwrap_or(0)];
        let subject = source.subject.as_str();
        let name = subject.strip_prefix(prefix).unwrap_or(subject);
        Cow::Owned(name.replace('.', "_"))
    }
}

impl Kind for Analytics {
    fn tables(&self) -> &'static Tables {
        &TABLES
    }

    fn event_types(&self) -> &'static [&'static str] {
        Type::NAMES
    }

    fn rows(&self, message: &Message) -> usize {
        if !self.may_hold_batches(&message.subject) {
            return 1;
        }
        batch_message::count(&message.payload).unwrap_or(1)
    }

    fn may_hold_batches(&self, subject: &str) -> bool {
        subject == self.batch_subject
    }

    fn batch_of(&self, event: Bytes) -> Bytes {
        let events = vec![event];
        BatchMessage { events }.encode_to_vec().into()
    }

    fn contents<'a>(&self, message: &'a Message) -> Contents<'a> {
        if !self.may_hold_batches(&message.subject) {
            return Contents::Event;
        }
        match batch_message::count(&message.payload) {
            Ok(_) => Contents::Batch(Box::new(batch_message::events(&message.payload))),
            Err(error) => Contents::Unreadable(error.to_string()),
        }
    }

    fn writer<'a>(&'a self, stream: &'a str) -> Box<dyn Writer + 'a> {
        Box::new(RowWriter {
            kind: self,
            stream,
            columns: Columns::default(),
        })
    }

    fn samples(&self, seed: u64) -> Result<Box<dyn Samples>, String> {
        let Some(prefix) = self.events_subject.strip_suffix('>') else {
            let error = "subjects.analytics_events must end with `>` to send every type of event";
            return Err(error.to_owned());
        };
        Ok(Box::new(Chat {
            prefix: prefix.to_owned(),
            population: Population::new(seed),
        }))
    }
}

struct RowWriter<'a> {
    kind: &'a Analytics,
    stream: &'a str,
    columns: Columns,
}

impl Writer for RowWriter<'_> {
    fn write(&mut self, source: &Source) -> Result<Row, Unfit> {
        let event = self.kind.decode(self.stream, source)?;
        self.columns.push(&event);
        Ok(Row {
            time: event.server_ts,
            event_type: event.kind.as_ref().map(|kind| Type::of(kind).name()),
        })
    }

    fn finish(self: Box<Self>) -> native::Columns {
        self.columns.finish()
    }
}

/// Sample events and where they go.
struct Chat {
    prefix: String,
    population: Population,
}

impl Samples for Chat {
    fn next(&mut self, now: SystemTime, event_type: Option<&str>) -> Sample {
        let event_type = event_type.and_then(Type::named);
        let happening = self.population.event(now, event_type);
        Sample {
            subject: format!("{}{}", self.prefix, happening.subject),
            payload: happening.event.encode_to_vec(),
        }
    }
}

/// The id that the producer gave, or one that the same stored message always gets.
fn event_id(stream: &str, source: &Source) -> Uuid {
    /// Any fixed value does; it keeps these ids apart from other version 5 ids.
    const NAMESPACE: Uuid = Uuid::from_u128(0x8f4e_11a2_52c7_4d0e_9a36_6b1f_c0de_0001);

    if source.payload_is == PayloadIs::Message
        && let Some(id) = source.headers.get(NATS_MESSAGE_ID.as_ref())
        && let Ok(id) = Uuid::try_parse(id)
    {
        return id;
    }
    let Place(sequence, index) = source.place;
    let name = format!("{stream}/{sequence}/{index}");
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
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
    // 0 is "not set", even in a stream whose messages are from 1970.
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
