use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::engine::Engine;
use super::reload::Reload;
use super::stop;
use super::telemetry::Filter;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::guarantees::{self, Finding};
use crate::clickhouse::migrations::MigrationError;
use crate::config::{Config, Database};
use crate::http::{self, Health};
use crate::nats::{self, ConnectError};
use crate::pipeline::batch::Limits;
use crate::pipeline::{Pipeline, Progress};
use crate::retry::{self, Retry};
use crate::versions::{self, Verdict};

/// How often the main task shows that it goes on.
const BEAT: Duration = Duration::from_secs(1);

pub async fn run(config: Config, path: Option<PathBuf>, filter: Filter) -> Result<ExitCode> {
    let reload = Reload::new(&config, path, filter);
    let config = Arc::new(config);
    let shutdown = CancellationToken::new();
    // By a second signal nothing is lost, only done again.
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
    let progress = Arc::new(Progress::default());
    let health = Arc::new(Health::new(
        clickhouse.clone(),
        Arc::clone(&progress),
        shutdown.clone(),
    ));
    info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "analytics-server listens");
    if let Some(port) = config.observability.metrics.port {
        let listener = listen(host, port, "observability.metrics.port").await?;
        info!(address = %listener.local_addr()?, "metrics are served here, too");
        tokio::spawn(http::serve_metrics(listener, Arc::clone(&health)));
    }
    // Not when both servers are there: they may be away for hours.
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
            let starting = Engine::start(&config, port, &clickhouse);
            let Some(engine) = shutdown.run_until_cancelled(starting).await else {
                return Ok(ExitCode::SUCCESS);
            };
            Some(engine?)
        }
        Database::Server(_) => None,
    };
    let outcome = tokio::select! {
        outcome = carry(&config, clickhouse, limits, Arc::clone(&progress), &health, &shutdown) => outcome,
        // In the same task: it shows that this one goes on.
        never = beat(&health) => match never {},
    };
    if let Some(engine) = engine {
        engine.stop().await;
    }
    outcome?;
    let (stored, dead_letters) = progress.metrics.stored();
    info!(stored, dead_letters, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Shows again and again that the task goes on in which this is polled.
async fn beat(health: &Health) -> Infallible {
    loop {
        health.beat();
        notify(NotifyState::Watchdog);
        tokio::time::sleep(BEAT).await;
    }
}

/// Tells systemd, where it has started this process.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        debug!(%error, "systemd was not told");
    }
}

async fn listen(host: IpAddr, port: u16, key: &str) -> Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address} ({key})"))
}

/// Waits for both servers, brings the schema up to date, then runs the pipeline
/// until `shutdown`.
async fn carry(
    config: &Arc<Config>,
    clickhouse: ClickHouse,
    limits: watch::Receiver<Limits>,
    progress: Arc<Progress>,
    health: &Health,
    shutdown: &CancellationToken,
) -> Result<()> {
    let messaging = &config.integrations.messaging;
    let connecting = retry::until_ok("connecting to NATS", || async {
        match nats::connect(messaging).await {
            // Waiting does not bring a file.
            Err(missing @ ConnectError::Credentials { .. }) => Ok(Err(missing)),
            Err(other) => Err(other),
            Ok(client) => Ok(Ok(client)),
        }
    });
    let Some(nats) = shutdown.run_until_cancelled(connecting).await else {
        return Ok(());
    };
    let nats = nats?;
    info!(address = %messaging.nats_url, version = nats.server_info().version, "connected to NATS");
    match versions::NATS.judge(&nats.server_info().version) {
        Verdict::Fine => {}
        Verdict::Untried(detail) => warn!("{detail}"),
        Verdict::TooOld { detail, remedy } => bail!("{detail}: {remedy}"),
    }
    health.connected(nats.clone());

    let preparing = retry::until_ok("preparing ClickHouse", || async {
        let prepared = prepare(&clickhouse, config).await;
        prepared.inspect_err(|error| health.prepared(Err(error.to_string())))
    });
    let Some(done) = shutdown.run_until_cancelled(preparing).await else {
        return Ok(());
    };
    for done in done? {
        info!("schema: applied {done}");
    }
    health.prepared(Ok(()));

    let pipeline = Pipeline::new(Arc::clone(config), nats, clickhouse, owner(), progress);
    keep_running(pipeline.with_limits(limits), health, shutdown).await
}

/// Brings the schema up to date and looks whether exactly once can rest on it;
/// returns what was done. The outer error passes, the inner one does not.
async fn prepare(
    clickhouse: &ClickHouse,
    config: &Config,
) -> Result<Result<Vec<String>>, MigrationError> {
    let mut findings = guarantees::of_server(clickhouse).await?;
    if let Some(refusal) = refusal(&findings) {
        return Ok(Err(refusal));
    }
    let done = match super::migrate::apply(clickhouse, config).await {
        Err(changed @ MigrationError::Changed { .. }) => return Ok(Err(changed.into())),
        outcome => outcome?,
    };
    findings.extend(guarantees::of_tables(clickhouse).await?);
    if let Some(refusal) = refusal(&findings) {
        return Ok(Err(refusal));
    }
    for finding in findings {
        warn!("{finding}");
    }
    Ok(Ok(done))
}

/// All that exactly once cannot do without, and what mends it.
fn refusal(findings: &[Finding]) -> Option<anyhow::Error> {
    let fatal: Vec<String> = findings
        .iter()
        .filter(|finding| finding.fatal)
        .map(|finding| format!("\n  {}\n    → {}", finding.detail, finding.remedy))
        .collect();
    (!fatal.is_empty()).then(|| {
        anyhow!(
            "events would not be stored exactly once on this ClickHouse:{}",
            fatal.concat()
        )
    })
}

/// Runs the pipeline again whenever NATS interrupts it, until `shutdown`.
async fn keep_running(
    mut pipeline: Pipeline,
    health: &Health,
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut retry = Retry::new();
    let _running = health.running();
    while !shutdown.is_cancelled() {
        let started = Instant::now();
        let Err(error) = pipeline.run(shutdown).await else {
            break;
        };
        if error.is_final() {
            return Err(error.into());
        }
        health.interrupted(&error);
        if started.elapsed() > retry::LONGEST_PAUSE {
            // It had worked: this is another interruption, not the same one.
            retry = Retry::new();
        }
        if retry.is_news(&error) {
            warn!(%error, "interrupted, going on at the checkpoint");
        }
        retry.pause().await;
    }
    Ok(())
}

/// This instance's name in the checkpoint: for a person, and unlike any other.
pub fn owner() -> String {
    let host = std::env::var("HOSTNAME")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() {
        "unknown-host"
    } else {
        host
    };
    format!("{host}-{}-{}", std::process::id(), Uuid::new_v4().simple())
}
