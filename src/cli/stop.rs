//! Stopping by signal.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The first SIGTERM, SIGINT or SIGHUP (a terminal that was closed) asks for an orderly stop, which `what_follows` tells
/// of; the second ends the process where it is.
pub fn on_signals(shutdown: CancellationToken, what_follows: &'static str) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        };
        next().await;
        info!("stopping: {what_follows}");
        shutdown.cancel();
        next().await;
        warn!("stopped at once");
        std::process::exit(1);
    });
    Ok(())
}
