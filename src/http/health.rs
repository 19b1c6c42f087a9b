//! What the daemon says about its own health.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State as Connection;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::clickhouse::ClickHouse;
use crate::clickhouse::client::describe;
use crate::lane::Progress;
use crate::lane::metrics::{Lag, Role};
use crate::metrics::Registry;

/// How long a health check may wait for ClickHouse.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the daemon's main task may show no sign of life. It never works for longer
/// without waiting for something.
const STUCK: Duration = Duration::from_secs(30);

/// What `/health` answers. For NATS, ClickHouse, the schema and each lane's pipeline, it
/// says `ok` or what is wrong.
#[derive(Debug, Serialize, Deserialize)]
pub struct HealthReport {
    pub status: Status,
    pub service: String,
    pub version: String,
    pub nats: String,
    pub clickhouse: String,
    pub schema: String,
    pub lanes: Vec<LaneReport>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct LaneReport {
    pub lane: String,
    pub status: Status,
    /// `None` at the start, and while the lane is interrupted.
    pub role: Option<Role>,
    pub pipeline: String,
    /// As the active instance last saw it.
    pub lag: Option<Lag>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_insert: Option<OffsetDateTime>,
    /// Since the start of the process.
    pub events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Healthy,
    /// ClickHouse is away or does not accept what it is sent, or a lane does not run or
    /// starts again and again: the stream holds the events.
    Degraded,
    /// NATS is away, or no lane runs.
    Unhealthy,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        })
    }
}

impl Status {
    pub fn code(self) -> StatusCode {
        match self {
            Self::Healthy | Self::Degraded => StatusCode::OK,
            Self::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Events {
    pub stored: u64,
    pub dead_letters: u64,
    pub expired: u64,
}

/// What the endpoints report.
pub struct Health {
    nats: OnceLock<Client>,
    clickhouse: ClickHouse,
    registry: Registry,
    lanes: Vec<Arc<Progress>>,
    shutdown: CancellationToken,
    /// Whether the schema is as it must be.
    schema: Mutex<Result<(), String>>,
    beat: Mutex<Instant>,
}

impl Health {
    /// For a daemon with these lanes, whose figures the registry shows.
    pub fn new(
        clickhouse: ClickHouse,
        registry: Registry,
        lanes: Vec<Arc<Progress>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            nats: OnceLock::new(),
            clickhouse,
            registry,
            lanes,
            shutdown,
            schema: Mutex::new(Err("not looked at yet".to_owned())),
            beat: Mutex::new(Instant::now()),
        }
    }

    /// Says that there is a connection to NATS, whose state is reported from now on.
    pub fn connected(&self, nats: Client) {
        let _ = self.nats.set(nats);
    }

    /// Says whether ClickHouse's tables are as they must be, or why nobody knows.
    pub fn prepared(&self, schema: Result<(), String>) {
        *self.schema.lock().unwrap_or_else(PoisonError::into_inner) = schema;
    }

    /// Shows that the daemon's main task is still running.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn nats(&self) -> Result<(), &'static str> {
        match self.nats.get().map(Client::connection_state) {
            Some(Connection::Connected) => Ok(()),
            Some(_) => Err("connection lost"),
            None => Err("not connected yet"),
        }
    }

    async fn clickhouse(&self) -> Result<(), String> {
        match tokio::time::timeout(PATIENCE, self.clickhouse.version()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Whether the daemon's loop is still running. What it waits for does not matter: a
    /// restart would not bring it.
    pub fn is_alive(&self) -> Result<(), &'static str> {
        let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        match beat.elapsed() < STUCK {
            true => Ok(()),
            false => Err("the main task is stuck"),
        }
    }

    /// Whether it can do its work. ClickHouse may be away: the stream holds the events.
    pub fn is_ready(&self) -> Result<(), &'static str> {
        match self.shutdown.is_cancelled() {
            true => Err("stopping"),
            false => self.nats().map_err(|_| "NATS is away"),
        }
    }

    pub async fn report(&self) -> HealthReport {
        let nats = self.nats();
        let blocked = self.lanes.iter().find_map(|lane| lane.blocked_by());
        let clickhouse = self.clickhouse().await;
        let clickhouse = clickhouse.and(blocked.map_or(Ok(()), Err));
        let schema = self.schema.lock();
        let schema = schema.unwrap_or_else(PoisonError::into_inner).clone();
        let lanes: Vec<LaneReport> = self.lanes.iter().map(|lane| self.lane(lane)).collect();
        let of_lanes = || lanes.iter().map(|lane| lane.status);
        let no_lane_runs = of_lanes().min() == Some(Status::Unhealthy);
        let status = if nats.is_err() || no_lane_runs {
            Status::Unhealthy
        } else if clickhouse.is_err()
            || schema.is_err()
            || of_lanes().any(|status| status != Status::Healthy)
        {
            Status::Degraded
        } else {
            Status::Healthy
        };
        HealthReport {
            status,
            service: "analytics-server".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nats: told(nats),
            clickhouse: told(clickhouse),
            schema: told(schema),
            lanes,
        }
    }

    fn lane(&self, lane: &Progress) -> LaneReport {
        let running = match self.shutdown.is_cancelled() {
            true => Err("stopping".to_owned()),
            false => lane.running(),
        };
        let interruption = lane.interruption();
        let status = match (&running, &interruption) {
            (Err(_), _) => Status::Unhealthy,
            (Ok(()), Some(_)) => Status::Degraded,
            (Ok(()), None) => Status::Healthy,
        };
        let metrics = &lane.metrics;
        let (stored, dead_letters) = metrics.stored();
        LaneReport {
            lane: lane.lane.to_owned(),
            status,
            role: metrics.role(),
            pipeline: told(running.and(interruption.map_or(Ok(()), Err))),
            lag: metrics.lag(),
            last_insert: metrics.last_stored().and_then(in_milliseconds),
            events: Events {
                stored,
                dead_letters,
                expired: metrics.expired.get(),
            },
        }
    }

    /// What `/metrics` answers.
    pub async fn figures(&self) -> String {
        let clickhouse = self.clickhouse().await;
        self.registry
            .set_up(self.nats().is_ok(), clickhouse.is_ok());
        self.registry.render()
    }
}

fn told(state: Result<(), impl Into<String>>) -> String {
    state.map_or_else(Into::into, |()| "ok".to_owned())
}

fn in_milliseconds(unix_seconds: f64) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::from_unix_timestamp_nanos((unix_seconds * 1e9) as i128);
    time.ok().map(OffsetDateTime::truncate_to_millisecond)
}
