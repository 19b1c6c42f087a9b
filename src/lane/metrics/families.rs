//! The metrics' names, help texts and buckets, and the series that are there from the start.

use std::sync::Mutex;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Result, exponential_buckets,
};

use super::{Books, ERROR_CLASSES, Metrics, Role, Stage, stage_of};
use crate::clickhouse::tables::DEAD_LETTERS;
use crate::dead_letter::Reason;
use crate::lane::Lane;
use crate::lane::batch::Flush;
use crate::lane::tally::{OTHER, UNKNOWN_SERVICE};
use crate::metrics::{PREFIX, Registry};

impl Metrics {
    /// The figures of a lane, which the registry shows from now on.
    ///
    /// # Errors
    /// When there is a lane of this name.
    pub fn new(registry: &Registry, lane: &Lane) -> Result<Self> {
        let make = Families {
            registry,
            lane: lane.name,
        };
        let metrics = Self {
            books: Books::default(),
            tables: lane.kind.tables(),
            services: Mutex::new([UNKNOWN_SERVICE, OTHER].map(str::to_owned).into()),
            messages_received: make.counter(
                "messages_received_total",
                "Messages received from JetStream",
            )?,
            received: make.counter(
                "events_received_total",
                "Events received; received = stored + dead letters + in flight + returned",
            )?,
            returned: make.counter(
                "events_returned_total",
                "Events that an interruption gave back to the stream, which sends them again",
            )?,
            in_flight: make.gauge("events_in_flight", "Events received and not yet stored")?,
            in_flight_bytes: make.gauge(
                "in_flight_bytes",
                "Bytes of messages received and not yet stored",
            )?,
            processed: make.counters(
                "events_processed_total",
                "Events stored as rows, by type (other: not in the contract) and producer",
                &["event_type", "service"],
            )?,
            stored: make.counters("events_stored_total", "Rows stored, by table", &["table"])?,
            errors: make.counters(
                "events_processing_errors_total",
                "Events that could not be stored as rows, by what was wrong and where it was found",
                &["error_type", "stage"],
            )?,
            dead_letters: make.counters(
                "dead_letters_total",
                "Dead letters stored, by reason",
                &["reason"],
            )?,
            stages: make.histograms(
                "events_processing_duration_seconds",
                "Time that a batch takes in each stage; in decode, a part of one",
                &["stage"],
                powers_of_two(0.001, 17)?,
            )?,
            batches: make.counters(
                "batches_total",
                "Batches stored, by what completed them",
                &["flush_reason"],
            )?,
            batch_rows: make.histogram(
                "batch_rows",
                "Events of a batch",
                powers_of_two(1.0, 20)?,
            )?,
            batch_bytes: make.histogram(
                "batch_bytes",
                "Bytes of a batch's messages",
                powers_of_two(1024.0, 19)?,
            )?,
            freshness: make.histogram(
                "freshness_seconds",
                "Time from when JetStream stored a batch's oldest message until it was stored in ClickHouse",
                powers_of_two(0.0625, 20)?,
            )?,
            last_stored: make.time(
                "last_stored_timestamp_seconds",
                "When a batch was stored last, in Unix time; 0 before the first",
            )?,
            insert_retries: make.counters(
                "insert_retries_total",
                "Inserts that are sent again, by class: unknown (perhaps stored), unavailable",
                &["error_class"],
            )?,
            insert_duration: make.histogram(
                "insert_duration_seconds",
                "Time of an insert that succeeded",
                powers_of_two(0.002, 16)?,
            )?,
            role: make.gauges("role", "1 for the role of this instance", &["role"])?,
            lag: Mutex::default(),
            expired: make.counter(
                "events_expired_total",
                "Messages that the stream dropped before they were stored",
            )?,
            ranges: make.gauge("in_flight_ranges", "Batches recorded and not yet committed")?,
            checkpoint_writes: make
                .counter("checkpoint_writes_total", "Writes of the checkpoint")?,
            checkpoint_takeovers: make.counter(
                "checkpoint_takeovers_total",
                "Times that this instance took the checkpoint",
            )?,
            consumer_pending: make.gauge(
                "consumer_pending",
                "Messages that the consumer has not sent",
            )?,
            consumer_ack_pending: make.gauge(
                "consumer_ack_pending",
                "Messages sent by the consumer and not acknowledged",
            )?,
            stream_bytes: make.gauge("stream_bytes", "Bytes in the stream")?,
            stream_max_bytes: make.gauge(
                "stream_max_bytes",
                "Bytes that the stream may hold; 0: no limit",
            )?,
        };
        metrics.begin_every_series(lane.kind.event_types());
        registry.add_books(metrics.books.clone());
        Ok(metrics)
    }

    fn begin_every_series(&self, event_types: &[&str]) {
        for event_type in event_types.iter().chain([&OTHER]) {
            self.processed
                .with_label_values(&[*event_type, UNKNOWN_SERVICE]);
        }
        for reason in Reason::ALL.map(Reason::as_str) {
            self.dead_letters.with_label_values(&[reason]);
        }
        for reason in Reason::ALL {
            let series = [reason.as_str(), stage_of(reason).as_str()];
            self.errors.with_label_values(&series);
        }
        for table in [self.tables.events, DEAD_LETTERS] {
            self.stored.with_label_values(&[table]);
        }
        for class in ERROR_CLASSES {
            self.insert_retries.with_label_values(&[class]);
        }
        for stage in Stage::ALL.map(Stage::as_str) {
            self.stages.with_label_values(&[stage]);
        }
        for flush in Flush::ALL.map(Flush::as_str) {
            self.batches.with_label_values(&[flush]);
        }
        for role in Role::ALL.map(Role::as_str) {
            self.role.with_label_values(&[role]);
        }
    }
}

/// Makes metrics with the label `lane`.
struct Families<'a> {
    registry: &'a Registry,
    lane: &'a str,
}

impl Families<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{PREFIX}{name}"), help).const_label("lane", self.lane)
    }

    fn add<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M> {
        self.registry.add(metric.clone())?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::with_opts(self.opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.add(IntGauge::with_opts(self.opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(self.opts(name, help), labels)?)
    }

    fn time(&self, name: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::with_opts(self.opts(name, help))?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets);
        self.add(Histogram::with_opts(opts)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets);
        self.add(HistogramVec::new(opts, labels)?)
    }
}

fn powers_of_two(first: f64, count: usize) -> Result<Vec<f64>> {
    exponential_buckets(first, 2.0, count)
}
