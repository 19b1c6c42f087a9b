//! What the publishers write, and what has to come of it. The rules are repeated here
//! on purpose: an oracle that asked the daemon's decoder would agree with it.

use std::time::{Duration, SystemTime};

use analytics_server::internal::Population;
use analytics_server::pb::AnalyticsEvent;
use prost::Message as _;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use uuid::Uuid;

/// A message before it has a place in the stream.
#[derive(Clone)]
pub struct Draft {
    /// Its `Nats-Msg-Id`, the same however often it is sent.
    pub id: String,
    pub subject: String,
    pub payload: Vec<u8>,
    /// The rows that have to come of it: place in the message, and the row's id where
    /// the producer decides it.
    pub events: Vec<(u32, Option<Uuid>)>,
    /// The dead letters that have to come of it: place in the message, and the reason.
    pub dead_letters: Vec<(u32, &'static str)>,
}

/// `BatchRecordEventsRequest` from events that need not be events.
#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(bytes = "vec", repeated, tag = "1")]
    events: Vec<Vec<u8>>,
}

/// Bytes that are one event of a batch or a whole message, and their fate.
struct Written {
    subject: String,
    bytes: Vec<u8>,
    dead_because: Option<&'static str>,
}

/// Writes messages of all kinds; the same seed writes the same ones.
pub struct Author {
    rng: SmallRng,
    population: Population,
    /// Events happened on any of this many days up to now.
    days: u64,
    /// What subjects begin with.
    prefix: &'static str,
}

impl Author {
    pub fn new(seed: u64, days: u64, prefix: &'static str) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            population: Population::new(seed),
            days,
            prefix,
        }
    }

    pub fn write(&mut self) -> Draft {
        let id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid();
        match self.rng.random_range(0..1000) {
            0..40 => self.batch(id),
            // Some producers have ids of another kind; the row then gets one of the daemon's.
            40..60 => self.single(format!("order-{id}"), None),
            _ => self.single(id.to_string(), Some(id)),
        }
    }

    fn single(&mut self, id: String, row_id: Option<Uuid>) -> Draft {
        let written = self.event();
        let (events, dead_letters) = match written.dead_because {
            None => (vec![(0, row_id)], Vec::new()),
            Some(reason) => (Vec::new(), vec![(0, reason)]),
        };
        Draft {
            id,
            subject: format!("{}{}", self.prefix, written.subject),
            payload: written.bytes,
            events,
            dead_letters,
        }
    }

    /// Up to 30 events in one message, possibly none; or something that is not a batch at
    /// all.
    fn batch(&mut self, id: Uuid) -> Draft {
        let mut draft = Draft {
            id: id.to_string(),
            subject: format!("{}batch", self.prefix),
            payload: Vec::new(),
            events: Vec::new(),
            dead_letters: Vec::new(),
        };
        if self.rng.random_bool(0.05) {
            draft.payload = self.no_message();
            draft.dead_letters.push((0, "undecodable"));
            return draft;
        }
        let mut batch = Batch { events: Vec::new() };
        for index in 0..self.rng.random_range(0..30) {
            let written = self.event();
            batch.events.push(written.bytes);
            match written.dead_because {
                None => draft.events.push((index, None)),
                Some(reason) => draft.dead_letters.push((index, reason)),
            }
        }
        draft.payload = batch.encode_to_vec();
        draft
    }

    /// Nearly always an event; now and then one of a type that nobody knows yet, or a bad
    /// one.
    fn event(&mut self) -> Written {
        let moment = self.moment();
        let sample = self.population.event(moment, None);
        let (subject, mut event) = (sample.subject, sample.event);
        let (bytes, dead_because) = match self.rng.random_range(0..1000) {
            0..4 => (self.no_message(), Some("undecodable")),
            4..8 => {
                event.context = None;
                (event.encode_to_vec(), Some("missing_context"))
            }
            8..12 => {
                let context = event.context.get_or_insert_default();
                context.client_id.clear();
                (event.encode_to_vec(), Some("missing_client_id"))
            }
            12..40 => return self.unknown_type(event),
            40..60 => {
                let context = event.context.get_or_insert_default();
                context.server_ts = *[0, -1, i64::MIN, i64::MAX].choose(&mut self.rng).unwrap();
                (event.encode_to_vec(), None)
            }
            _ => (event.encode_to_vec(), None),
        };
        Written {
            subject,
            bytes,
            dead_because,
        }
    }

    fn unknown_type(&mut self, mut event: AnalyticsEvent) -> Written {
        event.event_type = None;
        let mut bytes = event.encode_to_vec();
        // Field 60, which no known type has, with three bytes.
        bytes.extend([0xe2, 0x03, 0x03, b'n', b'e', b'w']);
        let subjects = ["poll.created", "poll.closed", "call.started"];
        Written {
            subject: (*subjects.choose(&mut self.rng).unwrap()).to_owned(),
            bytes,
            dead_because: None,
        }
    }

    fn no_message(&mut self) -> Vec<u8> {
        vec![0xff; self.rng.random_range(1..60)]
    }

    fn moment(&mut self) -> SystemTime {
        let days = self.rng.random_range(0..self.days);
        SystemTime::now() - Duration::from_secs(days * 24 * 3600)
    }
}
