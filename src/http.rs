//! The daemon's HTTP interface: `/health`, `/livez`, `/readyz` and `/metrics`.

mod health;
mod listen;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use tokio::net::TcpListener;

pub use health::{Health, HealthReport, LaneReport, Status};

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

fn probe(state: Result<(), &'static str>) -> (StatusCode, String) {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn metrics() -> MethodRouter<Arc<Health>> {
    get(async |State(health): State<Arc<Health>>| {
        let figures = health.figures().await;
        let format = (header::CONTENT_TYPE, prometheus::TEXT_FORMAT);
        ([format], figures).into_response()
    })
}
