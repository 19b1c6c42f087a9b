//! What a look shows. Pure, except for the printing.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Error, Result};
use bytesize::ByteSize;
use indicatif::{FormattedDuration, HumanCount};
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use super::Look;
use super::figures::Figures;
use crate::clickhouse::tables::DEAD_LETTERS;
use crate::http::{HealthReport, LaneReport};
use crate::lane::metrics::Role;

/// Serialized, it is the command's JSON.
#[derive(Serialize)]
pub struct Overview<'a> {
    address: SocketAddr,
    health: &'a HealthReport,
    /// On Linux only.
    process: Option<Process>,
    /// Seconds from the previous look to this one.
    last_seconds: f64,
    lanes: Vec<LaneOverview<'a>>,
}

#[derive(Serialize)]
struct LaneOverview<'a> {
    lane: &'a str,
    #[serde(skip)]
    health: &'a LaneReport,
    in_flight: InFlight,
    /// `None` if another instance knows.
    stream: Option<Stream>,
    /// By reason.
    dead_letters: BTreeMap<String, u64>,
    #[serde(skip)]
    last_seconds: f64,
    /// From the previous look to this one.
    last: Span,
    since_start: Span,
}

/// The daemon's. Prometheus' library counts in whole seconds.
#[derive(Serialize)]
struct Process {
    uptime_seconds: u64,
    cpu_seconds: u64,
    memory_bytes: u64,
}

/// Received and not yet stored.
#[derive(Serialize)]
struct InFlight {
    events: u64,
    /// Of messages.
    bytes: u64,
    /// Batches that are recorded.
    ranges: u64,
}

#[derive(Serialize)]
struct Stream {
    bytes: u64,
    /// `None` if the stream has no limit.
    max_bytes: Option<u64>,
}

/// What happened over some time.
#[derive(Serialize)]
struct Span {
    received: u64,
    stored: u64,
    dead_letters: u64,
    returned: u64,
    expired: u64,
    insert_retries: u64,
    /// A batch's, on average. These and all below are `None` if there was no batch.
    batch_rows: Option<f64>,
    batch_bytes: Option<f64>,
    insert_seconds: Option<f64>,
    insert_seconds_p95: Option<f64>,
    freshness_seconds_p50: Option<f64>,
    freshness_seconds_p95: Option<f64>,
}

impl Span {
    fn new(figures: &Figures) -> Self {
        Self {
            received: figures.count("events_received_total"),
            stored: figures
                .of("events_stored_total")
                .filter(|(table, _)| *table != DEAD_LETTERS)
                .map(|(_, rows)| rows)
                .sum(),
            dead_letters: figures.sum("dead_letters_total"),
            returned: figures.count("events_returned_total"),
            expired: figures.count("events_expired_total"),
            insert_retries: figures.sum("insert_retries_total"),
            batch_rows: figures.mean("batch_rows"),
            batch_bytes: figures.mean("batch_bytes"),
            insert_seconds: figures.mean("insert_duration_seconds"),
            insert_seconds_p95: figures.quantile("insert_duration_seconds", 0.95),
            freshness_seconds_p50: figures.quantile("freshness_seconds", 0.5),
            freshness_seconds_p95: figures.quantile("freshness_seconds", 0.95),
        }
    }
}

impl<'a> Overview<'a> {
    pub fn between(address: SocketAddr, before: &Look, now: &'a Look) -> Self {
        let figures = &now.figures;
        let unix_seconds = OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
        let process = figures.start().map(|start| Process {
            uptime_seconds: unix_seconds.saturating_sub(start),
            cpu_seconds: figures.count("process_cpu_seconds_total"),
            memory_bytes: figures.count("process_resident_memory_bytes"),
        });
        let lanes = now.health.lanes.iter();
        let last_seconds = now.at.duration_since(before.at).as_secs_f64();
        Self {
            address,
            health: &now.health,
            process,
            last_seconds,
            lanes: lanes
                .map(|lane| LaneOverview::between(lane, &before.figures, figures, last_seconds))
                .collect(),
        }
    }

    pub fn print(&self, as_json: bool) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        if as_json {
            writeln!(stdout, "{}", serde_json::to_string(self)?)?;
        } else {
            write!(stdout, "{self}")?;
        }
        Ok(stdout.flush()?)
    }
}

pub fn print_error(error: &Error, as_json: bool) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let error = format!("{error:#}");
    if as_json {
        writeln!(stdout, "{}", json!({ "error": error }))?;
    } else {
        writeln!(stdout, "{error}")?;
    }
    Ok(stdout.flush()?)
}

impl fmt::Display for Overview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (health, address) = (self.health, self.address);
        let (version, status) = (&health.version, health.status);
        writeln!(f, "analytics-server {version} at {address}: {status}\n")?;
        let process = self.process.as_ref().map(|process| {
            let up = FormattedDuration(Duration::from_secs(process.uptime_seconds));
            let share = process.cpu_seconds as f64 / process.uptime_seconds.max(1) as f64 * 100.0;
            let memory = size(process.memory_bytes);
            format!("up {up}, {share:.0} % CPU on average, {memory}")
        });
        for (name, state) in [
            ("NATS", Some(&health.nats)),
            ("ClickHouse", Some(&health.clickhouse)),
            ("schema", Some(&health.schema)),
            ("process", process.as_ref()),
        ] {
            if let Some(state) = state {
                writeln!(f, "{name:<14}{state}")?;
            }
        }
        self.lanes.iter().try_for_each(|lane| write!(f, "\n{lane}"))
    }
}

impl<'a> LaneOverview<'a> {
    fn between(health: &'a LaneReport, before: &Figures, now: &Figures, last_seconds: f64) -> Self {
        let since_before = now.since(before).of_lane(&health.lane);
        let figures = now.of_lane(&health.lane);
        let dead_letters = figures.of("dead_letters_total");
        Self {
            lane: &health.lane,
            health,
            in_flight: InFlight {
                events: figures.count("events_in_flight"),
                bytes: figures.count("in_flight_bytes"),
                ranges: figures.count("in_flight_ranges"),
            },
            stream: health.lag.map(|_| Stream {
                bytes: figures.count("stream_bytes"),
                max_bytes: Some(figures.count("stream_max_bytes")).filter(|max| *max > 0),
            }),
            dead_letters: dead_letters
                .map(|(reason, number)| (reason.to_owned(), number))
                .collect(),
            last_seconds,
            last: Span::new(&since_before),
            since_start: Span::new(&figures),
        }
    }
}

impl fmt::Display for LaneOverview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.health.role.map(Role::as_str);
        let role = role.unwrap_or("neither active nor standby");
        writeln!(f, "lane {}: {}, {role}", self.lane, self.health.status)?;
        self.state()
            .try_for_each(|(name, state)| writeln!(f, "{name:<14}{state}"))?;
        let span = format!("last {:.0} s", self.last_seconds);
        writeln!(f, "{:<14}{span:>14}{:>16}", "", "since start")?;
        self.table()
            .try_for_each(|(name, last, all)| writeln!(f, "{name:<14}{last:>14}{all:>16}"))
    }
}

impl LaneOverview<'_> {
    /// How it is now: names and states.
    fn state(&self) -> impl Iterator<Item = (&str, String)> {
        let health = self.health;
        let dead_letters = self.dead_letters.iter().filter(|(_, number)| **number > 0);
        [
            ("pipeline", health.pipeline.clone()),
            (
                "lag",
                health.lag.as_ref().map_or_else(
                    || self.not_known(),
                    |lag| {
                        let [pending, ack_pending] = [lag.pending, lag.ack_pending]
                            .map(|lag| HumanCount(lag.unsigned_abs()));
                        format!("{pending} messages to come, {ack_pending} not acknowledged")
                    },
                ),
            ),
            (
                "in flight",
                format!(
                    "{} events, {}, {} batches recorded",
                    HumanCount(self.in_flight.events),
                    size(self.in_flight.bytes),
                    self.in_flight.ranges
                ),
            ),
            (
                "stream",
                match self.stream {
                    Some(Stream {
                        bytes,
                        max_bytes: Some(max),
                    }) => {
                        let share = bytes as f64 / max as f64 * 100.0;
                        format!("{} of {}, {share:.0} %", size(bytes), size(max))
                    }
                    Some(Stream { bytes, .. }) => size(bytes),
                    None => self.not_known(),
                },
            ),
            (
                "last insert",
                health.last_insert.map_or("none yet".to_owned(), |at| {
                    let ago = (OffsetDateTime::now_utc() - at).as_seconds_f64();
                    format!("{} ago", duration(ago.max(0.0)))
                }),
            ),
        ]
        .into_iter()
        .chain(dead_letters.map(|(reason, number)| {
            let number = HumanCount(*number);
            ("dead letters", format!("{number} {reason}"))
        }))
    }

    /// For what the active instance asks JetStream for.
    fn not_known(&self) -> String {
        match self.health.role {
            Some(Role::Standby) => "known to the active instance".to_owned(),
            Some(Role::Active) | None => "not known yet".to_owned(),
        }
    }

    /// What happened: names, since the previous look and since the start.
    fn table(&self) -> impl Iterator<Item = (&'static str, String, String)> {
        let spans = [&self.last, &self.since_start];
        let count = |name, of: fn(&Span) -> u64| {
            let [last, all] = spans.map(of);
            let rate = match self.last_seconds {
                0.0 => "-".to_owned(),
                seconds => format!("{}/s", rate(last as f64 / seconds)),
            };
            (name, rate, HumanCount(all).to_string())
        };
        let mean = |name, of: fn(&Span) -> Option<f64>, write: fn(f64) -> String| {
            let [last, all] = spans.map(|span| of(span).map_or("-".to_owned(), write));
            (name, last, all)
        };
        [
            count("received", |span| span.received),
            count("stored", |span| span.stored),
            count("dead letters", |span| span.dead_letters),
            count("given back", |span| span.returned),
            count("expired", |span| span.expired),
            count("retries", |span| span.insert_retries),
            mean("batch rows", |span| span.batch_rows, rate),
            mean(
                "batch bytes",
                |span| span.batch_bytes,
                |bytes| size(bytes as u64),
            ),
            mean("insert mean", |span| span.insert_seconds, duration),
            mean("insert p95", |span| span.insert_seconds_p95, duration),
            mean("freshness p50", |span| span.freshness_seconds_p50, duration),
            mean("freshness p95", |span| span.freshness_seconds_p95, duration),
        ]
        .into_iter()
    }
}

/// Small ones with a decimal: one event in two seconds is not none.
fn rate(number: f64) -> String {
    if number.fract() != 0.0 && number < 10.0 {
        format!("{number:.1}")
    } else {
        HumanCount(number.round() as u64).to_string()
    }
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().si().to_string()
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        1.0..120.0 => format!("{seconds:.1} s"),
        _ => FormattedDuration(Duration::from_secs_f64(seconds)).to_string(),
    }
}
