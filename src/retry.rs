//! Trying again, with growing pauses and without a log line for each attempt.

use std::fmt::Display;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tracing::{info, warn};

/// Long enough to leave a struggling server alone, short enough that nobody
/// waits for the daemon once the server is back.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What keeps failing in the same way is logged again this often.
const REMINDER: Duration = Duration::from_secs(60);

/// The pauses between attempts, and what was logged of their failures.
pub struct Retry {
    pauses: ExponentialBackoff,
    said: Option<(String, Instant)>,
}

impl Retry {
    /// 100 ms, doubling, with jitter so that many clients do not come back at once.
    pub fn new() -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times()
            .build();
        Self { pauses, said: None }
    }

    /// Whether a failure differs from the one before, or has lasted for a while, and so is
    /// worth a log line.
    pub fn is_news(&mut self, error: &impl Display) -> bool {
        let error = error.to_string();
        let old = self
            .said
            .as_ref()
            .is_some_and(|(said, when)| *said == error && when.elapsed() < REMINDER);
        if !old {
            self.said = Some((error, Instant::now()));
        }
        !old
    }

    /// Whether there was a failure to recover from.
    pub fn had_failed(&self) -> bool {
        self.said.is_some()
    }

    pub async fn pause(&mut self) {
        tokio::time::sleep(self.pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

/// Repeats `attempt` until it works. What goes wrong is logged once per change, not once per
/// attempt, and so is the end of it.
pub async fn until_ok<T, E: Display, Attempt: Future<Output = Result<T, E>>>(
    what: &'static str,
    mut attempt: impl FnMut() -> Attempt,
) -> T {
    let mut retry = Retry::new();
    loop {
        match attempt().await {
            Ok(value) => {
                if retry.had_failed() {
                    info!("{what}: works now");
                }
                return value;
            }
            Err(error) => {
                if retry.is_news(&error) {
                    warn!(%error, "{what} failed, retrying");
                }
                retry.pause().await;
            }
        }
    }
}
