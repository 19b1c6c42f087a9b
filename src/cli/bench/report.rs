//! What was measured, as numbers a person or a program reads. Pure.

use std::fmt::{self, Write};
use std::time::Duration;

use indicatif::HumanCount;
use serde::Serialize;

use super::usage::{Each, Used};

/// Everything that was measured. Serialized, it is the command's JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Versions; this program's own is one of them.
    pub versions: Each<String>,
    /// False for a development build, which is several times slower.
    pub optimised: bool,
    pub settings: Settings,
    #[serde(flatten)]
    pub load: Load,
    pub mean_payload_bytes: f64,
    /// Pulling and acknowledging.
    pub nats_alone: Speed,
    /// Inserting blocks that are ready.
    pub clickhouse_alone: Speed,
    pub pipeline: Speed,
    /// Which of the two the pipeline could not be faster than.
    pub slower: Slower,
    /// Events a second of the pipeline, divided by those of the slower one.
    pub ratio_to_slower: f64,
    pub latency: Option<Latency>,
}

/// The part of the configuration that decides the speed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Settings {
    pub batch_size: usize,
    pub max_in_flight: usize,
    pub flush_interval_seconds: f64,
}

/// What is in the stream.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Load {
    pub events: u64,
    pub payload_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Slower {
    Nats,
    Clickhouse,
}

/// How fast a load was processed, and with what.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Speed {
    pub seconds: f64,
    pub events_per_second: f64,
    /// Of payloads, in 10^6 bytes.
    pub megabytes_per_second: f64,
    pub cpu_seconds_per_million_events: Each<Option<f64>>,
    pub peak_memory_bytes: Each<Option<u64>>,
}

impl Speed {
    pub fn new(load: Load, used: &Used) -> Self {
        let seconds = used.elapsed.as_secs_f64();
        Self {
            seconds,
            events_per_second: load.events as f64 / seconds,
            megabytes_per_second: load.payload_bytes as f64 / 1e6 / seconds,
            cpu_seconds_per_million_events: used
                .cpu
                .map(|cpu| Some(cpu?.as_secs_f64() * 1e6 / load.events as f64)),
            peak_memory_bytes: used.peak_memory,
        }
    }
}

/// From just before an event is published to when a query finds it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub events: u64,
    /// Events a second that were asked for.
    pub rate: u64,
    /// Those that were published.
    pub events_per_second: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub peak_memory_bytes: Each<Option<u64>>,
}

impl Latency {
    /// From at least one event; `published_for` is how long it took to publish them.
    pub fn new(rate: u64, published_for: Duration, mut each: Vec<Duration>, used: &Used) -> Self {
        each.sort_unstable();
        let milliseconds = |percent| percentile(&each, percent).as_secs_f64() * 1e3;
        Self {
            events: each.len() as u64,
            rate,
            events_per_second: each.len() as f64 / published_for.as_secs_f64(),
            p50_ms: milliseconds(50),
            p95_ms: milliseconds(95),
            p99_ms: milliseconds(99),
            peak_memory_bytes: used.peak_memory,
        }
    }
}

/// The smallest value that at least `percent` of them do not exceed (the nearest rank).
/// Zero if there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

/// What the three measurements gave.
pub struct Speeds {
    pub nats_alone: Speed,
    pub clickhouse_alone: Speed,
    pub pipeline: Speed,
}

impl Report {
    pub fn new(
        versions: Each<String>,
        settings: Settings,
        load: Load,
        speeds: Speeds,
        latency: Option<Latency>,
    ) -> Self {
        let Speeds {
            nats_alone,
            clickhouse_alone,
            pipeline,
        } = speeds;
        let (slower, most) = if nats_alone.events_per_second < clickhouse_alone.events_per_second {
            (Slower::Nats, nats_alone.events_per_second)
        } else {
            (Slower::Clickhouse, clickhouse_alone.events_per_second)
        };
        Self {
            versions,
            optimised: !cfg!(debug_assertions),
            settings,
            load,
            mean_payload_bytes: load.payload_bytes as f64 / load.events as f64,
            nats_alone,
            clickhouse_alone,
            ratio_to_slower: pipeline.events_per_second / most,
            pipeline,
            slower,
            latency,
        }
    }

    fn table(&self, out: &mut impl Write) -> fmt::Result {
        let speeds = [&self.nats_alone, &self.clickhouse_alone, &self.pipeline];
        let mut row = |label: &str, cells: [String; 3]| {
            let [nats, clickhouse, pipeline] = cells;
            let line = format!("{label:<26}{nats:>14}{clickhouse:>18}{pipeline:>16}");
            writeln!(out, "{}", line.trim_end())
        };
        let words = |words: [&str; 3]| words.map(str::to_owned);
        row(
            "",
            words(["NATS alone", "ClickHouse alone", "whole pipeline"]),
        )?;
        row("", words(["pull and ack", "insert blocks", "exactly once"]))?;
        row(
            "events/s",
            speeds.map(|speed| count(speed.events_per_second)),
        )?;
        row(
            "MB/s",
            speeds.map(|speed| format!("{:.1}", speed.megabytes_per_second)),
        )?;
        row(
            "seconds",
            speeds.map(|speed| format!("{:.2}", speed.seconds)),
        )?;
        row("CPU s per million events", words([""; 3]))?;
        for (name, of) in PROCESSES {
            let cpu = speeds.map(|speed| of(speed.cpu_seconds_per_million_events));
            row(name, cpu.map(|cpu| known(cpu, |cpu| format!("{cpu:.2}"))))?;
        }
        row("peak memory, MB", words([""; 3]))?;
        for (name, of) in PROCESSES {
            let peak = speeds.map(|speed| of(speed.peak_memory_bytes.map(as_float)));
            row(name, peak.map(|peak| known(peak, megabytes)))?;
        }
        Ok(())
    }
}

/// A row's label, and which process it is about.
type Row = (&'static str, fn(Each<Option<f64>>) -> Option<f64>);

const PROCESSES: [Row; 3] = [
    ("  analytics-server", |each| each.analytics_server),
    ("  nats-server", |each| each.nats_server),
    ("  ClickHouse", |each| each.clickhouse),
];

/// For a person.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            versions,
            settings,
            load,
            mean_payload_bytes,
            ratio_to_slower,
            ..
        } = self;
        if !self.optimised {
            writeln!(
                f,
                "WARNING: built without optimisation; only a build with --release shows how fast it is\n"
            )?;
        }
        writeln!(
            f,
            "{} events of {mean_payload_bytes:.0} bytes of payload on average",
            HumanCount(load.events)
        )?;
        writeln!(
            f,
            "analytics-server {}, nats-server {}, ClickHouse {}",
            versions.analytics_server, versions.nats_server, versions.clickhouse
        )?;
        writeln!(
            f,
            "batch_size {}, max_in_flight {}, flush_interval_seconds {}\n",
            settings.batch_size, settings.max_in_flight, settings.flush_interval_seconds
        )?;
        self.table(f)?;
        let cpu = PROCESSES.map(|(_, of)| of(self.pipeline.cpu_seconds_per_million_events));
        if cpu.contains(&None) {
            writeln!(
                f,
                "–: not known; --nats-pid and --clickhouse-pid name processes on this machine"
            )?;
        }
        let slower = match self.slower {
            Slower::Nats => "NATS alone",
            Slower::Clickhouse => "ClickHouse alone",
        };
        writeln!(
            f,
            "\nThe whole pipeline runs at {:.0} % of {slower}, the slower of the two.",
            ratio_to_slower * 100.0
        )?;
        if let Some(latency) = &self.latency {
            writeln!(f, "\n{latency}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            events,
            events_per_second,
            p50_ms,
            p95_ms,
            p99_ms,
            peak_memory_bytes,
            ..
        } = self;
        writeln!(
            f,
            "From publishing to queryable, {} events at {} a second:",
            HumanCount(*events),
            count(*events_per_second)
        )?;
        let [p50, p95, p99] = [p50_ms, p95_ms, p99_ms].map(|ms| count(*ms));
        writeln!(f, "p50 {p50} ms, p95 {p95} ms, p99 {p99} ms")?;
        let peaks = PROCESSES
            .map(|(name, of)| {
                let peak = known(of(peak_memory_bytes.map(as_float)), megabytes);
                format!("{} {peak}", name.trim_start())
            })
            .join(", ");
        write!(f, "peak memory, MB: {peaks}")
    }
}

fn as_float(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| bytes as f64)
}

fn megabytes(bytes: f64) -> String {
    count(bytes / 1e6)
}

/// What is not known, such as that of a process on another machine, is a dash.
fn known(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

fn count(value: f64) -> String {
    HumanCount(value.round() as u64).to_string()
}

#[cfg(test)]
mod tests;
