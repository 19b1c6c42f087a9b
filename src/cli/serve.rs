mod second_lane;
mod start;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::engine::EngineProcess;
use super::reload::Reload;
use super::stop;
use super::telemetry::Filter;
use crate::clickhouse::ClickHouse;
use crate::config::{Config, Database};
use crate::http::{self, Health};
use crate::lane::batch::Limits;
use crate::lane::{Lane, Pipeline, Progress};
use crate::metrics::Registry;
use crate::retry;

/// How often the main task shows that it is still running.
const BEAT: Duration = Duration::from_secs(1);

pub async fn run(config: Config, path: Option<PathBuf>, filter: Filter) -> Result<ExitCode> {
    let reload = Reload::new(&config, path, filter);
    let shutdown = CancellationToken::new();
    // A second signal loses nothing; some work is only done again.
    stop::on_signals(&stop::orders(), shutdown.clone(), "storing what is held")?;
    let limits = reload.limits();
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload.reload();
        }
    });

    let host = config.server.host;
    let listener = listen(host, config.server.port, "server.port").await?;
    let clickhouse = ClickHouse::new(&config);
    let registry = Registry::new()?;
    let lanes = Lane::all(&config).into_iter();
    let lanes = lanes
        .map(|lane| (lane, clickhouse.clone()))
        .chain(second_lane::of_test(&config)?);
    let lanes = lanes.map(|(lane, clickhouse)| {
        let progress = Progress::new(&registry, &lane)?;
        Ok((lane, clickhouse, Arc::new(progress)))
    });
    let lanes: Vec<(Lane, ClickHouse, Arc<Progress>)> = lanes.collect::<Result<_>>()?;
    let all: Vec<_> = lanes
        .iter()
        .map(|(.., progress)| Arc::clone(progress))
        .collect();
    let health = Arc::new(Health::new(
        clickhouse.clone(),
        registry,
        all.clone(),
        shutdown.clone(),
    ));
    info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "analytics-server listens");
    if let Some(port) = config.observability.metrics.port {
        let listener = listen(host, port, "observability.metrics.port").await?;
        info!(address = %listener.local_addr()?, "metrics are served here, too");
        tokio::spawn(http::serve_metrics(listener, Arc::clone(&health)));
    }
    // Not only once both servers are there: they may be away for hours.
    notify(NotifyState::Ready);
    let stopping = shutdown.clone();
    tokio::spawn(async move {
        stopping.cancelled().await;
        notify(NotifyState::Stopping);
    });
    // Answers until the very end, so that a slow stop can be watched.
    tokio::spawn(http::serve(listener, Arc::clone(&health)));

    let engine = match config.server.db_url {
        Database::Embedded { port } => {
            let starting = EngineProcess::start(&config, port, &clickhouse);
            let Some(engine) = shutdown.run_until_cancelled(starting).await else {
                return Ok(ExitCode::SUCCESS);
            };
            Some(engine?)
        }
        Database::Server(_) => None,
    };
    let outcome = tokio::select! {
        outcome = carry(&config, lanes, limits, &health, &shutdown) => outcome,
        // In the same task: it shows that this one is still running.
        never = beat(&health) => match never {},
    };
    if let Some(engine) = engine {
        engine.stop().await;
    }
    outcome?;
    for progress in all {
        let (stored, dead_letters) = progress.metrics.stored();
        info!(lane = progress.lane, stored, dead_letters, "stopped");
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows again and again that the task in which this is polled is still running.
async fn beat(health: &Health) -> Infallible {
    loop {
        health.beat();
        notify(NotifyState::Watchdog);
        tokio::time::sleep(BEAT).await;
    }
}

/// Tells systemd, if that started this process.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        debug!(%error, "cannot notify systemd");
    }
}

async fn listen(host: IpAddr, port: u16, key: &str) -> Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address} ({key})"))
}

/// Waits for both servers, brings the schema up to date, then runs all lanes until
/// `shutdown`.
async fn carry(
    config: &Config,
    lanes: Vec<(Lane, ClickHouse, Arc<Progress>)>,
    limits: watch::Receiver<Limits>,
    health: &Health,
    shutdown: &CancellationToken,
) -> Result<()> {
    let connecting = start::connect(&config.integrations.messaging);
    let Some(nats) = shutdown.run_until_cancelled(connecting).await else {
        return Ok(());
    };
    let nats = nats?;
    health.connected(nats.clone());

    let clickhouse = ClickHouse::new(config);
    let configured = Lane::all(config);
    let preparing = retry::until_ok("preparing ClickHouse", || async {
        let prepared = start::prepare(&clickhouse, config, &configured).await;
        prepared.inspect_err(|error| health.prepared(Err(error.to_string())))
    });
    let Some(done) = shutdown.run_until_cancelled(preparing).await else {
        return Ok(());
    };
    for done in done? {
        info!("schema: applied {done}");
    }
    health.prepared(Ok(()));

    let settings = &config.features.analytics;
    let pipelines = lanes.into_iter().map(|(lane, clickhouse, progress)| {
        Pipeline::new(lane, settings, nats.clone(), clickhouse, progress)
            .with_limits(limits.clone())
    });
    run_all(pipelines, shutdown).await
}

/// Runs every lane until `shutdown`. One that cannot continue leaves the others alone; the
/// daemon ends with the last of them.
async fn run_all(
    pipelines: impl Iterator<Item = Pipeline>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let run = async |pipeline: Pipeline| {
        let lane = pipeline.lane().name;
        (lane, pipeline.keep_running(shutdown).await)
    };
    let mut running: FuturesUnordered<_> = pipelines.map(run).collect();
    while let Some((lane, outcome)) = running.next().await {
        match outcome {
            Err(error) if running.is_empty() => return Err(error.into()),
            Err(error) => error!(lane, %error, "a lane cannot continue; the others do"),
            Ok(()) => {}
        }
    }
    Ok(())
}
