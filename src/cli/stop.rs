//! Stopping by signal.

use std::io;

use futures_util::future::select_all;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What a closed terminal sends, in addition to what stops every program: for those that
/// have nothing to reload.
pub fn all() -> [SignalKind; 3] {
    let [terminate, interrupt] = orders();
    [terminate, interrupt, SignalKind::hangup()]
}

/// SIGTERM and SIGINT.
pub fn orders() -> [SignalKind; 2] {
    [SignalKind::terminate(), SignalKind::interrupt()]
}

/// The first one of `signals` asks for an orderly stop, which `what_follows` describes; the
/// second ends the process at once.
pub fn on_signals(
    signals: &[SignalKind],
    shutdown: CancellationToken,
    what_follows: &'static str,
) -> io::Result<()> {
    let signals = signals.iter().map(|kind| signal(*kind));
    let mut signals = signals.collect::<io::Result<Vec<Signal>>>()?;
    tokio::spawn(async move {
        let mut next = async || {
            let all = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            select_all(all).await;
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
