//! The metrics' names, help texts and buckets, and the series that are there from the start.

use std::sync::Mutex;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, exponential_buckets,
};

use super::{
    DEPENDENCIES, ERROR_CLASSES, Metrics, OTHER, Role, Stage, TABLES, UNKNOWN_SERVICE, stage_of,
};
use crate::dead_letter::Reason;
use crate::event::TYPE_NAMES;
use crate::pipeline::batch::Flush;

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            registered(
                &registry,
                IntCounter::new(format!("analytics_{name}"), help),
            )
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let opts = Opts::new(format!("analytics_{name}"), help);
            registered(&registry, IntCounterVec::new(opts, labels))
        };
        let gauge = |name: &str, help: &str| {
            registered(&registry, IntGauge::new(format!("analytics_{name}"), help))
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let opts = Opts::new(format!("analytics_{name}"), help);
            registered(&registry, IntGaugeVec::new(opts, &[label]))
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let opts = HistogramOpts::new(format!("analytics_{name}"), help).buckets(buckets);
            registered(&registry, Histogram::with_opts(opts))
        };

        let processed = counters(
            "events_processed_total",
            "Events stored as rows, by type (other: not in the contract) and producer",
            &["event_type", "service"],
        );
        let stored = counters("events_stored_total", "Rows stored, by table", &["table"]);
        let errors = counters(
            "events_processing_errors_total",
            "Events that could not be stored as rows, by what was wrong and where it was found",
            &["error_type", "stage"],
        );
        let dead_letters = counters(
            "dead_letters_total",
            "Dead letters stored, by reason",
            &["reason"],
        );
        let batches = counters(
            "batches_total",
            "Batches stored, by what completed them",
            &["flush_reason"],
        );
        let insert_retries = counters(
            "insert_retries_total",
            "Inserts that are sent again, by class: unknown (perhaps stored), unavailable",
            &["error_class"],
        );
        let role = gauges("role", "1 for the role of this instance", "role");
        let dependency_up = gauges("dependency_up", "Whether a server answers", "dependency");
        let stages = HistogramOpts::new(
            "analytics_events_processing_duration_seconds",
            "Time that a batch takes in each stage; in decode, a part of one",
        )
        .buckets(powers_of_two(0.001, 17));
        let stages = registered(&registry, HistogramVec::new(stages, &["stage"]));
        let build = Opts::new("analytics_build_info", "1, with the version");
        let build = registered(&registry, IntGaugeVec::new(build, &["version"]));

        for event_type in TYPE_NAMES.into_iter().chain([OTHER]) {
            processed.with_label_values(&[event_type, UNKNOWN_SERVICE]);
        }
        for reason in Reason::ALL {
            dead_letters.with_label_values(&[reason.as_str()]);
            errors.with_label_values(&[reason.as_str(), stage_of(reason).as_str()]);
        }
        for stage in Stage::ALL {
            stages.with_label_values(&[stage.as_str()]);
        }
        for flush in Flush::ALL {
            batches.with_label_values(&[flush.as_str()]);
        }
        for (family, labels) in [(&stored, TABLES), (&insert_retries, ERROR_CLASSES)] {
            for label in labels {
                family.with_label_values(&[label]);
            }
        }
        for role_of in Role::ALL {
            role.with_label_values(&[role_of.as_str()]);
        }
        for dependency in DEPENDENCIES {
            dependency_up.with_label_values(&[dependency]);
        }
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        register(
            &registry,
            prometheus::process_collector::ProcessCollector::for_self(),
        );

        Self {
            books: Mutex::default(),
            services: Mutex::new([UNKNOWN_SERVICE, OTHER].map(str::to_owned).into()),
            messages_received: counter(
                "messages_received_total",
                "Messages received from JetStream",
            ),
            received: counter(
                "events_received_total",
                "Events received; received = stored + dead letters + in flight + returned",
            ),
            returned: counter(
                "events_returned_total",
                "Events that an interruption gave back to the stream, which sends them again",
            ),
            in_flight: gauge("events_in_flight", "Events received and not yet stored"),
            in_flight_bytes: gauge(
                "in_flight_bytes",
                "Bytes of messages received and not yet stored",
            ),
            batch_rows: histogram("batch_rows", "Events of a batch", powers_of_two(1.0, 20)),
            batch_bytes: histogram(
                "batch_bytes",
                "Bytes of a batch's messages",
                powers_of_two(1024.0, 19),
            ),
            freshness: histogram(
                "freshness_seconds",
                "Time from when JetStream stored a batch's oldest message until it was stored in ClickHouse",
                powers_of_two(0.0625, 20),
            ),
            last_stored: registered(
                &registry,
                Gauge::new(
                    "analytics_last_stored_timestamp_seconds",
                    "When a batch was stored last, in Unix time; 0 before the first",
                ),
            ),
            insert_duration: histogram(
                "insert_duration_seconds",
                "Time of an insert that succeeded",
                powers_of_two(0.002, 16),
            ),
            expired: counter(
                "events_expired_total",
                "Messages that the stream dropped before they were stored",
            ),
            ranges: gauge("in_flight_ranges", "Batches recorded and not yet committed"),
            checkpoint_writes: counter("checkpoint_writes_total", "Writes of the checkpoint"),
            checkpoint_takeovers: counter(
                "checkpoint_takeovers_total",
                "Times that this instance took the checkpoint",
            ),
            consumer_pending: gauge(
                "consumer_pending",
                "Messages that the consumer has not sent",
            ),
            consumer_ack_pending: gauge(
                "consumer_ack_pending",
                "Messages sent by the consumer and not acknowledged",
            ),
            stream_bytes: gauge("stream_bytes", "Bytes in the stream"),
            stream_max_bytes: gauge(
                "stream_max_bytes",
                "Bytes that the stream may hold; 0: no limit",
            ),
            lag: Mutex::default(),
            processed,
            stored,
            errors,
            dead_letters,
            stages,
            batches,
            insert_retries,
            role,
            dependency_up,
            registry,
        }
    }
}

/// # Panics
/// When a name or a label is not one, or is there twice: every start would.
fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<M>,
) -> M {
    let metric = match made {
        Ok(metric) => metric,
        Err(error) => panic!("a metric cannot be made: {error}"),
    };
    register(registry, metric.clone());
    metric
}

fn register(registry: &Registry, metric: impl Collector + 'static) {
    if let Err(error) = registry.register(Box::new(metric)) {
        panic!("a metric cannot be registered: {error}");
    }
}

fn powers_of_two(first: f64, count: usize) -> Vec<f64> {
    exponential_buckets(first, 2.0, count).unwrap_or_default()
}
