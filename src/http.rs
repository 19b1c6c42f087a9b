//! The daemon's HTTP interface: `/health`, `/livez`, `/readyz` and `/metrics`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State as Connection;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clickhouse::ClickHouse;
use crate::clickhouse::client::describe;
use crate::metrics::Metrics;
use crate::pipeline::Progress;

/// How long a question about health may wait for ClickHouse.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the daemon's main task may show nothing. It never works for longer without waiting for something.
const STUCK: Duration = Duration::from_secs(30);

/// What the endpoints tell.
pub struct Health {
    nats: OnceLock<Client>,
    clickhouse: ClickHouse,
    progress: Arc<Progress>,
    shutdown: CancellationToken,
    prepared: AtomicBool,
    running: AtomicBool,
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
            prepared: AtomicBool::new(false),
            running: AtomicBool::new(false),
            beat: Mutex::new(Instant::now()),
        }
    }

    /// Says that there is a connection to NATS, whose state is told from now on.
    pub fn connected(&self, nats: Client) {
        let _ = self.nats.set(nats);
    }

    /// Says that ClickHouse's tables are as they must be.
    pub fn prepared(&self) {
        self.prepared.store(true, Relaxed);
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

    async fn report(&self) -> (StatusCode, Value) {
        let nats = self.nats();
        let clickhouse = self.clickhouse().await;
        let clickhouse = clickhouse.and(self.progress.held_up_by().map_or(Ok(()), Err));
        let schema = match self.prepared.load(Relaxed) {
            true => Ok(()),
            false => Err("not looked at yet"),
        };
        let pipeline = match (self.running.load(Relaxed), self.shutdown.is_cancelled()) {
            (_, true) => Err("stopping"),
            (true, false) => Ok(()),
            (false, false) => Err("not running"),
        };
        let status = if nats.is_err() || pipeline.is_err() {
            "unhealthy"
        } else if clickhouse.is_err() || schema.is_err() {
            "degraded"
        } else {
            "healthy"
        };
        let (stored, dead_letters) = self.metrics().stored();
        let report = json!({
            "status": status,
            "service": "analytics-server",
            "version": env!("CARGO_PKG_VERSION"),
            "role": if self.progress.is_standing_by() { "standby" } else { "active" },
            "nats": told(nats),
            "clickhouse": told(clickhouse),
            "schema": told(schema),
            "pipeline": told(pipeline),
            "lag": {
                "pending": self.metrics().consumer_pending.get(),
                "ack_pending": self.metrics().consumer_ack_pending.get(),
            },
            "last_insert": self.metrics().last_stored().map(rfc3339),
            "events": {
                "stored": stored,
                "dead_letters": dead_letters,
                "expired": self.metrics().expired.get(),
            },
        });
        let code = match status {
            "unhealthy" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        (code, report)
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

fn rfc3339(unix_seconds: f64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos((unix_seconds * 1e9) as i128);
    let time = time.map(|time| time.truncate_to_millisecond().format(&Rfc3339));
    time.ok().and_then(Result::ok).unwrap_or_default()
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
        let (status, report) = health.report().await;
        (status, Json(report))
    };
    let alive = async |State(health): State<Arc<Health>>| probe(health.is_alive());
    let ready = async |State(health): State<Arc<Health>>| probe(health.is_ready());
    let routes = Router::new()
        .route("/health", get(report))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", metrics());
    // Accept errors are handled inside; it does not return.
    let _ = axum::serve(listener, routes.with_state(health)).await;
}

/// Answers `/metrics` alone until the process ends.
pub async fn serve_metrics(listener: TcpListener, health: Arc<Health>) {
    let routes = Router::new().route("/metrics", metrics());
    let _ = axum::serve(listener, routes.with_state(health)).await;
}

fn metrics() -> MethodRouter<Arc<Health>> {
    get(async |State(health): State<Arc<Health>>| {
        let figures = health.figures().await;
        let format = (header::CONTENT_TYPE, prometheus::TEXT_FORMAT);
        ([format], figures).into_response()
    })
}
