//! How a lane is getting on, and what blocks it: its side of `/health` and `/metrics`.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Lane;
use super::metrics::{Metrics, Role};
use crate::metrics::Registry;

/// How long an interruption is reported. It recurs within less while its cause remains.
const RECENT: Duration = Duration::from_secs(15);

/// What a lane has done since the process started, and what it is doing.
#[derive(Debug)]
pub struct Progress {
    /// The lane's name.
    pub lane: &'static str,
    pub metrics: Metrics,
    /// The last sequence that is known to have expired.
    expired_until: AtomicU64,
    /// Why requests to ClickHouse, inserts or queries, do not succeed, by their numbers.
    blocked_by: Mutex<Vec<(u64, String)>>,
    asked: AtomicU64,
    /// Whether it runs, or why not.
    running: Mutex<Result<(), String>>,
    /// When it was last interrupted, and by what.
    interrupted: Mutex<Option<(SystemTime, String)>>,
}

impl Progress {
    /// For a lane whose figures the registry shows from now on.
    ///
    /// # Errors
    /// When there is a lane of this name.
    pub fn new(registry: &Registry, lane: &Lane) -> prometheus::Result<Self> {
        Ok(Self {
            lane: lane.name,
            metrics: Metrics::new(registry, lane)?,
            expired_until: AtomicU64::new(0),
            blocked_by: Mutex::default(),
            asked: AtomicU64::new(0),
            running: Mutex::new(Err("not running".to_owned())),
            interrupted: Mutex::default(),
        })
    }

    /// For a lane whose figures nobody asks for.
    ///
    /// # Errors
    /// When a metric cannot be made, which is a fault of this program.
    pub fn unobserved(lane: &Lane) -> prometheus::Result<Self> {
        Self::new(&Registry::new()?, lane)
    }

    /// Why a request to ClickHouse does not succeed; `None` when all is well.
    pub fn blocked_by(&self) -> Option<String> {
        let reasons = lock(&self.blocked_by);
        reasons.first().map(|(_, reason)| reason.clone())
    }

    /// Lets an insert or a query say why it does not succeed, for as long as it is tried.
    pub fn blocker(&self) -> Blocker<'_> {
        Blocker {
            progress: self,
            number: self.asked.fetch_add(1, Relaxed),
        }
    }

    /// Says whether the lane runs, or why not.
    pub fn set_running(&self, running: Result<(), String>) {
        *lock(&self.running) = running;
    }

    /// Whether the lane runs, or why not.
    pub fn running(&self) -> Result<(), String> {
        lock(&self.running).clone()
    }

    /// Says that the lane starts again, and why.
    pub fn set_interrupted(&self, reason: &impl Display) {
        let interruption = (SystemTime::now(), format!("interrupted: {reason}"));
        *lock(&self.interrupted) = Some(interruption);
    }

    /// The last interruption, until something has been stored or it is long past.
    pub fn interruption(&self) -> Option<String> {
        let (at, reason) = lock(&self.interrupted).clone()?;
        let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stored = self.metrics.last_stored().unwrap_or_default();
        let is_over = stored > since_epoch.as_secs_f64()
            || self.metrics.role() == Some(Role::Standby)
            || at.elapsed().is_ok_and(|elapsed| elapsed > RECENT);
        (!is_over).then_some(reason)
    }

    /// The part of a gap that was not reported before: each start after an interruption
    /// finds it again.
    pub fn new_among_expired(&self, gap: RangeInclusive<u64>) -> Option<RangeInclusive<u64>> {
        let (first, last) = gap.into_inner();
        let until = self.expired_until.fetch_max(last, Relaxed);
        let new = first.max(until + 1)..=last;
        (!new.is_empty()).then_some(new)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said lasts only as long as what said it, even when that is dropped half-way.
pub struct Blocker<'a> {
    progress: &'a Progress,
    number: u64,
}

impl Blocker<'_> {
    pub fn say(&self, reason: String) {
        let mut reasons = lock(&self.progress.blocked_by);
        reasons.retain(|(other, _)| *other != self.number);
        reasons.push((self.number, reason));
    }
}

impl Drop for Blocker<'_> {
    fn drop(&mut self) {
        let number = self.number;
        lock(&self.progress.blocked_by).retain(|(other, _)| *other != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_was_given_up_blocks_nothing_and_leaves_others_alone() {
        let lane = &Lane::all(&Config::default())[0];
        let progress = Progress::unobserved(lane).unwrap();
        let (one, other) = (progress.blocker(), progress.blocker());
        one.say("no such table".to_owned());
        other.say("no such database".to_owned());
        drop(one);
        assert_eq!(progress.blocked_by().as_deref(), Some("no such database"));
        drop(other);
        assert_eq!(progress.blocked_by(), None);
    }
}
