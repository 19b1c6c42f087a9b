//! The embedded ClickHouse, as a child process: it may take the memory that large queries
//! need, and a crash in it does not take the daemon down.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::retry::Retry;

/// How long it may take to close after what is held has been stored: service managers send
/// SIGKILL after 30 s or more.
const GRACE: Duration = Duration::from_secs(5);

/// The embedded ClickHouse's process.
pub struct EngineProcess {
    /// That of the child that was started first.
    pid: Option<u32>,
    stop: CancellationToken,
    supervisor: tokio::task::JoinHandle<()>,
}

impl EngineProcess {
    /// Starts it on data below `server.base_dir` and waits until it answers.
    ///
    /// # Errors
    /// If its port is taken or it ends before it answers; it has said why.
    pub async fn start(config: &Config, port: u16, clickhouse: &ClickHouse) -> Result<Self> {
        // Another ClickHouse on this port would answer in place of the child.
        drop(
            TcpListener::bind(("127.0.0.1", port))
                .await
                .with_context(|| {
                    format!("port {port} is taken: set db_url to `embedded:PORT` with another one")
                })?,
        );
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("clickhouse")
            .arg("--path")
            .arg(config.server.base_dir.join("clickhouse"))
            .args(["--port", &port.to_string()])
            // The child ends when this pipe closes, even if the daemon is killed.
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Its own group: Ctrl-C in a terminal must reach the daemon first, which
            // still has events to store.
            .process_group(0)
            .env("ANALYTICS_DB_USER", &config.server.db_user);
        if let Some(password) = &config.server.db_password {
            command.env("ANALYTICS_DB_PASSWORD", password.expose_secret());
        }
        let mut child = command
            .spawn()
            .context("cannot start the embedded ClickHouse")?;
        // Held open here, since waiting for a child closes its standard input.
        let stdin = child.stdin.take();
        let up = async {
            while clickhouse.version().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = up => {}
            status = child.wait() => bail!("the embedded ClickHouse did not start, {}", status?),
        }
        child.stdin = stdin;
        let pid = child.id();
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise(command, child, stop.clone()));
        Ok(Self {
            pid,
            stop,
            supervisor,
        })
    }

    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.supervisor.await;
    }
}

/// Restarts the child whenever it ends, until `stop`.
async fn supervise(mut command: Command, mut child: Child, stop: CancellationToken) {
    let mut retry = Retry::new();
    loop {
        let stdin = child.stdin.take();
        tokio::select! {
            status = child.wait() => {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                error!(status, "the embedded ClickHouse has ended, restarting it");
            }
            () = stop.cancelled() => {
                drop(stdin);
                if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                    // It is built to survive this.
                    let _ = child.kill().await;
                }
                return;
            }
        }
        if stop.run_until_cancelled(retry.pause()).await.is_none() {
            return;
        }
        match command.spawn() {
            Ok(started) => child = started,
            // The old one's end is seen again, after a pause.
            Err(error) => error!(%error, "cannot start the embedded ClickHouse"),
        }
    }
}
