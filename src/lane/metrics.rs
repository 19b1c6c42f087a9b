//! The figures of one lane: each has the label `lane`.
//!
//! At any time, received = stored + dead letters + in flight + returned.

mod families;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::{
    Gauge, Histogram, HistogramTimer, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec,
};
use serde::{Deserialize, Serialize};

use super::batch::Flush;
use super::tally::{OTHER, Tally};
use crate::clickhouse::tables::{DEAD_LETTERS, Tables};
use crate::dead_letter::Reason;
use crate::metrics::Books;

/// Producers that are told apart, the unknown one and the others among them: their names
/// are not ours to choose.
const MOST_SERVICES: usize = 64;

/// A part of the work, which takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Messages into columns, a few hundred at a time.
    Decode,
    /// Columns into a block, with the messages that were left.
    Encode,
    /// The range into the checkpoint.
    Record,
    /// The block into ClickHouse, with all its repeats and counts.
    Insert,
    /// The range out of the checkpoint.
    Commit,
}

impl Stage {
    const ALL: [Self; 5] = [
        Self::Decode,
        Self::Encode,
        Self::Record,
        Self::Insert,
        Self::Commit,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Encode => "encode",
            Self::Record => "record",
            Self::Insert => "insert",
            Self::Commit => "commit",
        }
    }
}

/// What waits in the stream, in messages.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Lag {
    /// The consumer has not sent them.
    pub pending: i64,
    /// It has, and they are not acknowledged.
    pub ack_pending: i64,
}

/// What an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The checkpoint is its own.
    Active,
    /// The checkpoint is another instance's.
    Standby,
}

impl Role {
    const ALL: [Self; 2] = [Self::Active, Self::Standby];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Standby => "standby",
        }
    }
}

/// What a committed batch became.
pub struct Settled<'a> {
    /// Events that are rows now, by type and producer.
    pub events: &'a Tally,
    pub dead_letters: Vec<(Reason, usize)>,
    /// Bytes of its messages.
    pub bytes: usize,
    pub flush: Flush,
    /// Seconds from when JetStream stored the oldest message until now.
    pub age: f64,
}

/// The lane's figures since the process started.
pub struct Metrics {
    books: Books,
    tables: &'static Tables,
    /// Producers that are told apart.
    services: Mutex<BTreeSet<String>>,
    messages_received: IntCounter,
    received: IntCounter,
    returned: IntCounter,
    in_flight: IntGauge,
    in_flight_bytes: IntGauge,
    processed: IntCounterVec,
    stored: IntCounterVec,
    errors: IntCounterVec,
    dead_letters: IntCounterVec,
    stages: HistogramVec,
    batches: IntCounterVec,
    batch_rows: Histogram,
    batch_bytes: Histogram,
    freshness: Histogram,
    last_stored: Gauge,
    insert_retries: IntCounterVec,
    role: IntGaugeVec,
    lag: Mutex<Option<Lag>>,
    consumer_pending: IntGauge,
    consumer_ack_pending: IntGauge,
    /// Insert attempts that succeeded.
    pub insert_duration: Histogram,
    /// Messages that the stream dropped before they were stored.
    pub expired: IntCounter,
    /// Batches that are in the checkpoint and not committed.
    pub ranges: IntGauge,
    pub checkpoint_writes: IntCounter,
    pub checkpoint_takeovers: IntCounter,
    pub stream_bytes: IntGauge,
    /// 0 where the stream has no limit.
    pub stream_max_bytes: IntGauge,
}

/// The classes of [`Metrics::insert_failed`].
const ERROR_CLASSES: [&str; 2] = ["unknown", "unavailable"];

impl Metrics {
    /// Counts a message, with its events and bytes.
    pub fn received(&self, events: usize, bytes: usize) {
        let _books = self.books.open();
        self.messages_received.inc();
        self.received.inc_by(events as u64);
        self.in_flight.add(events as i64);
        self.in_flight_bytes.add(bytes as i64);
    }

    /// Counts what is given back to the stream.
    pub fn returned(&self, events: usize, bytes: usize) {
        let _books = self.books.open();
        self.returned.inc_by(events as u64);
        self.in_flight.sub(events as i64);
        self.in_flight_bytes.sub(bytes as i64);
    }

    /// Counts a batch that is committed.
    pub fn settled(&self, settled: &Settled<'_>) {
        let _books = self.books.open();
        let mut rows = 0;
        for (service, event_type, count) in settled.events.iter() {
            let service = self.service(service);
            let series = [event_type, service.as_str()];
            self.processed.with_label_values(&series).inc_by(count);
            rows += count;
        }
        let mut letters = 0;
        for (reason, count) in &settled.dead_letters {
            let (reason, stage, count) = (reason.as_str(), stage_of(*reason), *count as u64);
            self.dead_letters.with_label_values(&[reason]).inc_by(count);
            let series = [reason, stage.as_str()];
            self.errors.with_label_values(&series).inc_by(count);
            letters += count;
        }
        for (table, count) in [(self.tables.events, rows), (DEAD_LETTERS, letters)] {
            self.stored.with_label_values(&[table]).inc_by(count);
        }
        self.in_flight.sub((rows + letters) as i64);
        self.in_flight_bytes.sub(settled.bytes as i64);
        self.batches
            .with_label_values(&[settled.flush.as_str()])
            .inc();
        self.batch_rows.observe((rows + letters) as f64);
        self.batch_bytes.observe(settled.bytes as f64);
        self.freshness.observe(settled.age.max(0.0));
        self.last_stored.set(unix_seconds());
    }

    /// Rows stored: events and dead letters.
    pub fn stored(&self) -> (u64, u64) {
        let of = |table| self.stored.with_label_values(&[table]).get();
        (of(self.tables.events), of(DEAD_LETTERS))
    }

    /// When a batch was last stored, in Unix time; `None` before the first.
    pub fn last_stored(&self) -> Option<f64> {
        Some(self.last_stored.get()).filter(|at| *at > 0.0)
    }

    /// Measures a stage until what it returns is dropped.
    pub fn stage(&self, stage: Stage) -> HistogramTimer {
        self.stages
            .with_label_values(&[stage.as_str()])
            .start_timer()
    }

    /// Counts an insert that is sent again; `unknown` when it may have been stored.
    pub fn insert_failed(&self, unknown: bool) {
        let [of_unknown, of_unavailable] = ERROR_CLASSES;
        let class = if unknown { of_unknown } else { of_unavailable };
        self.insert_retries.with_label_values(&[class]).inc();
    }

    /// What this instance is; `None` while it is neither.
    pub fn role(&self) -> Option<Role> {
        let is = |role: &Role| self.role.with_label_values(&[role.as_str()]).get() == 1;
        Role::ALL.into_iter().find(is)
    }

    /// Says what this instance is; true when that is news.
    pub fn set_role(&self, role: Option<Role>) -> bool {
        let is_news = self.role() != role;
        for other in Role::ALL {
            let is = i64::from(role == Some(other));
            self.role.with_label_values(&[other.as_str()]).set(is);
        }
        if role != Some(Role::Active) {
            self.forget_the_stream();
        }
        is_news
    }

    /// Says what waits in the stream.
    pub fn set_lag(&self, lag: Lag) {
        self.consumer_pending.set(lag.pending);
        self.consumer_ack_pending.set(lag.ack_pending);
        *self.lag.lock().unwrap_or_else(PoisonError::into_inner) = Some(lag);
    }

    /// What waits in the stream; `None` where another instance knows, or nobody yet.
    pub fn lag(&self) -> Option<Lag> {
        *self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only the active instance knows what waits, and what it has recorded.
    fn forget_the_stream(&self) {
        *self.lag.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for gauge in [
            &self.ranges,
            &self.consumer_pending,
            &self.consumer_ack_pending,
            &self.stream_bytes,
            &self.stream_max_bytes,
        ] {
            gauge.set(0);
        }
    }

    /// The producer's label.
    fn service(&self, name: &str) -> String {
        let mut known = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) || known.len() < MOST_SERVICES {
            known.insert(name.to_owned());
            return name.to_owned();
        }
        OTHER.to_owned()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Where an event is found to be unfit.
fn stage_of(reason: Reason) -> Stage {
    match reason {
        Reason::Refused => Stage::Insert,
        Reason::Undecodable | Reason::MissingContext | Reason::MissingClientId => Stage::Decode,
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
