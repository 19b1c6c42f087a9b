//! Deliberate faults, for tests: the process ends or stops at a step of the delivery
//! protocol, where no signal from outside would hit it.
//!
//! `ANALYTICS_FAULT=kill@after-record:3` ends it at the third pass of that step,
//! `freeze@…` stops it until SIGCONT. Only debug builds look at it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

struct Fault {
    signal: &'static str,
    step: String,
    passes_left: AtomicU32,
}

static FAULT: LazyLock<Option<Fault>> = LazyLock::new(|| {
    if !cfg!(debug_assertions) {
        return None;
    }
    let fault = std::env::var("ANALYTICS_FAULT").ok()?;
    let (action, place) = fault.split_once('@')?;
    let (step, pass) = place.split_once(':').unwrap_or((place, "1"));
    Some(Fault {
        signal: match action {
            "kill" => "-KILL",
            "freeze" => "-STOP",
            _ => return None,
        },
        step: step.to_owned(),
        passes_left: AtomicU32::new(pass.parse().ok()?),
    })
});

/// A step at which a fault may happen.
pub fn at(step: &str) {
    if let Some(fault) = due(step) {
        strike(fault);
    }
}

/// A fault while `work` is under way.
pub async fn during<T>(step: &str, work: impl Future<Output = T>) -> T {
    let Some(fault) = due(step) else {
        return work.await;
    };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(Duration::from_millis(2)) => strike(fault),
    }
    work.await
}

fn due(step: &str) -> Option<&'static Fault> {
    let fault = FAULT.as_ref().filter(|fault| fault.step == step)?;
    // Wraps around after the last one, and is then far from it.
    (fault.passes_left.fetch_sub(1, Relaxed) == 1).then_some(fault)
}

fn strike(fault: &Fault) {
    let pid = std::process::id().to_string();
    let _ = std::process::Command::new("kill")
        .args([fault.signal, &pid])
        .status();
}
