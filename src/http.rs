//! The daemon's HTTP interface: `/health`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State as Connection;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::clickhouse::ClickHouse;
use crate::clickhouse::client::describe;
use crate::pipeline::Progress;

/// How long a question about health may wait for ClickHouse.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `/health` tells.
pub struct Health {
    nats: OnceLock<Client>,
    clickhouse: ClickHouse,
    progress: Arc<Progress>,
    running: AtomicBool,
}

impl Health {
    pub fn new(clickhouse: ClickHouse, progress: Arc<Progress>) -> Self {
        Self {
            nats: OnceLock::new(),
            clickhouse,
            progress,
            running: AtomicBool::new(false),
        }
    }

    /// Says that there is a connection to NATS, whose state is told from now on.
    pub fn connected(&self, nats: Client) {
        let _ = self.nats.set(nats);
    }

    /// Says that the pipeline runs, for as long as the guard lives.
    pub fn running(&self) -> Running<'_> {
        self.running.store(true, Relaxed);
        Running(self)
    }

    /// Rows and dead letters stored since the process started.
    pub fn counts(&self) -> (u64, u64) {
        let progress = &self.progress;
        (
            progress.stored.load(Relaxed),
            progress.dead_letters.load(Relaxed),
        )
    }

    async fn report(&self) -> (StatusCode, Value) {
        let nats = match self.nats.get().map(Client::connection_state) {
            Some(Connection::Connected) => Ok(()),
            Some(_) => Err("connection lost".to_owned()),
            None => Err("not connected yet".to_owned()),
        };
        let clickhouse = match tokio::time::timeout(PATIENCE, self.clickhouse.version()).await {
            Ok(Ok(_)) => self.progress.held_up_by().map_or(Ok(()), Err),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err("no answer".to_owned()),
        };
        let pipeline = self
            .running
            .load(Relaxed)
            .then_some(())
            .ok_or_else(|| "not running".to_owned());
        let healthy = nats.is_ok() && clickhouse.is_ok() && pipeline.is_ok();
        let (stored, dead_letters) = self.counts();
        let expired = self.progress.expired.load(Relaxed);
        let role = match self.progress.is_standing_by() {
            true => "standby",
            false => "active",
        };
        let report = json!({
            "status": if healthy { "healthy" } else { "unhealthy" },
            "service": "analytics-server",
            "version": env!("CARGO_PKG_VERSION"),
            "role": role,
            "nats": told(nats),
            "clickhouse": told(clickhouse),
            "pipeline": told(pipeline),
            "events": { "stored": stored, "dead_letters": dead_letters, "expired": expired },
        });
        let status = if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (status, report)
    }
}

fn told(state: Result<(), String>) -> String {
    state.map_or_else(|reason| reason, |()| "ok".to_owned())
}

/// While it lives, the pipeline counts as running.
pub struct Running<'a>(&'a Health);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, Relaxed);
    }
}

/// Answers until the process ends.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let routes = Router::new()
        .route(
            "/health",
            get(async |State(health): State<Arc<Health>>| {
                let (status, report) = health.report().await;
                (status, Json(report))
            }),
        )
        .with_state(health);
    // Accept errors are handled inside; it does not return.
    let _ = axum::serve(listener, routes).await;
}
