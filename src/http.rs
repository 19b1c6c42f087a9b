//! The daemon's HTTP interface: `/health`, `/livez`, `/readyz` and `/metrics`.

mod listen;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::Client;
use async_nats::connection::State as Connection;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clickhouse::ClickHouse;
use crate::clickhouse::client::describe;
use crate::metrics::{Lag, Metrics, Role};
use crate::pipeline::Progress;

/// How long a question about health may wait for ClickHouse.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the daemon's main task may show nothing. It never works for longer without
/// waiting for something.
const STUCK: Duration = Duration::from_secs(30);

/// For so long an interruption is told of. It comes again within less, where a cause stays.
const RECENT: Duration = Duration::from_secs(15);

/// What `/health` answers. Of NATS, ClickHouse, the schema and the pipeline it says `ok`,
/// or what is wrong.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub status: Status,
    pub service: String,
    pub version: String,
    /// Neither at the start, and while the pipeline was interrupted.
    pub role: Option<Role>,
    pub nats: String,
    pub clickhouse: String,
    pub schema: String,
    pub pipeline: String,
    /// As the active instance has seen it last.
    pub lag: Option<Lag>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_insert: Option<OffsetDateTime>,
    /// Since the start of the process.
    pub events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Healthy,
    /// ClickHouse is away or does not take what it is sent, or the pipeline starts again and
    /// again: the stream holds the events.
    Degraded,
    /// NATS is away, or the pipeline does not run.
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
    fn code(self) -> StatusCode {
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

/// What the endpoints tell.
pub struct Health {
    nats: OnceLock<Client>,
    clickhouse: ClickHouse,
    progress: Arc<Progress>,
    shutdown: CancellationToken,
    /// Whether the schema is as it must be.
    schema: Mutex<Result<(), String>>,
    running: AtomicBool,
    /// When the pipeline was interrupted last, and by what.
    interrupted: Mutex<Option<(SystemTime, String)>>,
    beat: Mutex<Instant>,
}

impl Health {
    pub fn new(
        clickhouse: ClickHouse,
        progress: Arc<Progress>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            nats: OnceLock::new(),
            clickhouse,
            progress,
            shutdown,
            schema: Mutex::new(Err("not looked at yet".to_owned())),
            running: AtomicBool::new(false),
            interrupted: Mutex::default(),
            beat: Mutex::new(Instant::now()),
        }
    }

    /// Says that there is a connection to NATS, whose state is told from now on.
    pub fn connected(&self, nats: Client) {
        let _ = self.nats.set(nats);
    }

    /// Says whether ClickHouse's tables are as they must be, or why nobody knows.
    pub fn prepared(&self, schema: Result<(), String>) {
        *self.schema.lock().unwrap_or_else(PoisonError::into_inner) = schema;
    }

    /// Says that the pipeline starts again, and why.
    pub fn interrupted(&self, reason: &impl fmt::Display) {
        let interruption = (SystemTime::now(), format!("interrupted: {reason}"));
        *self
            .interrupted
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(interruption);
    }

    /// Says that the pipeline runs, for as long as the guard lives.
    pub fn running(&self) -> Running<'_> {
        self.running.store(true, Relaxed);
        Running(self)
    }

    /// Shows that the daemon's main task goes on.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn metrics(&self) -> &Metrics {
        &self.progress.metrics
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

    /// The last interruption, until something was stored or it is long ago.
    fn interruption(&self) -> Result<(), String> {
        let interrupted = self.interrupted.lock();
        let interrupted = interrupted.unwrap_or_else(PoisonError::into_inner).clone();
        let Some((at, reason)) = interrupted else {
            return Ok(());
        };
        let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stored = self.metrics().last_stored().unwrap_or_default();
        let is_over = stored > since_epoch.as_secs_f64()
            || self.metrics().role() == Some(Role::Standby)
            || at.elapsed().is_ok_and(|elapsed| elapsed > RECENT);
        if is_over { Ok(()) } else { Err(reason) }
    }

    /// Whether the daemon's loop goes on. What it waits for does not matter: a restart
    /// would not bring it.
    fn is_alive(&self) -> Result<(), &'static str> {
        let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        match beat.elapsed() < STUCK {
            true => Ok(()),
            false => Err("the main task is stuck"),
        }
    }

    /// Whether it can do its work. ClickHouse may be away: the stream holds the events.
    fn is_ready(&self) -> Result<(), &'static str> {
        match self.shutdown.is_cancelled() {
            true => Err("stopping"),
            false => self.nats().map_err(|_| "NATS is away"),
        }
    }

    async fn report(&self) -> Report {
        let nats = self.nats();
        let clickhouse = self.clickhouse().await;
        let clickhouse = clickhouse.and(self.progress.held_up_by().map_or(Ok(()), Err));
        let schema = self.schema.lock();
        let schema = schema.unwrap_or_else(PoisonError::into_inner).clone();
        let pipeline = match (self.running.load(Relaxed), self.shutdown.is_cancelled()) {
            (_, true) => Err("stopping"),
            (true, false) => Ok(()),
            (false, false) => Err("not running"),
        };
        let interruption = self.interruption();
        let status = if nats.is_err() || pipeline.is_err() {
            Status::Unhealthy
        } else if clickhouse.is_err() || schema.is_err() || interruption.is_err() {
            Status::Degraded
        } else {
            Status::Healthy
        };
        let metrics = self.metrics();
        let (stored, dead_letters) = metrics.stored();
        Report {
            status,
            service: "analytics-server".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: metrics.role(),
            nats: told(nats),
            clickhouse: told(clickhouse),
            schema: told(schema),
            pipeline: told(pipeline.map_err(str::to_owned).and(interruption)),
            lag: metrics.lag(),
            last_insert: metrics.last_stored().and_then(in_milliseconds),
            events: Events {
                stored,
                dead_letters,
                expired: metrics.expired.get(),
            },
        }
    }

    async fn figures(&self) -> String {
        let clickhouse = self.clickhouse().await;
        self.metrics()
            .set_up(self.nats().is_ok(), clickhouse.is_ok());
        self.metrics().render()
    }
}

fn told(state: Result<(), impl Into<String>>) -> String {
    state.map_or_else(Into::into, |()| "ok".to_owned())
}

fn in_milliseconds(unix_seconds: f64) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::from_unix_timestamp_nanos((unix_seconds * 1e9) as i128);
    time.ok().map(OffsetDateTime::truncate_to_millisecond)
}

fn probe(state: Result<(), &'static str>) -> (StatusCode, String) {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// While it lives, the pipeline counts as running.
pub struct Running<'a>(&'a Health);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, Relaxed);
    }
}

/// Answers all endpoints until the process ends.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let report = async |State(health): State<Arc<Health>>| {
        let report = health.report().await;
        (report.status.code(), Json(report))
    };
    let alive = async |State(health): State<Arc<Health>>| probe(health.is_alive());
    let ready = async |State(health): State<Arc<Health>>| probe(health.is_ready());
    let routes = Router::new()
        .route("/health", get(report))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", metrics());
    listen::serve(listener, routes.with_state(health)).await;
}

/// Answers `/metrics` alone until the process ends.
pub async fn serve_metrics(listener: TcpListener, health: Arc<Health>) {
    let routes = Router::new().route("/metrics", metrics());
    listen::serve(listener, routes.with_state(health)).await;
}

fn metrics() -> MethodRouter<Arc<Health>> {
    get(async |State(health): State<Arc<Health>>| {
        let figures = health.figures().await;
        let format = (header::CONTENT_TYPE, prometheus::TEXT_FORMAT);
        ([format], figures).into_response()
    })
}
