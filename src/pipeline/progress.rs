//! What went through since the process started, and what holds it up: the
//! pipeline's side of `/health` and `/metrics`.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::metrics::Metrics;

#[derive(Debug, Default)]
pub struct Progress {
    pub metrics: Metrics,
    /// The last sequence that is known to have expired.
    expired_until: AtomicU64,
    /// Why what is asked of ClickHouse does not succeed, insert or question, by its number.
    held_up_by: Mutex<Vec<(u64, String)>>,
    asked: AtomicU64,
}

impl Progress {
    /// Why what is asked of ClickHouse does not succeed; `None` when all is well.
    pub fn held_up_by(&self) -> Option<String> {
        self.reasons().first().map(|(_, reason)| reason.clone())
    }

    /// Lets an insert or a question say why it does not succeed, for as long as it is tried.
    pub fn hold_up(&self) -> HoldUp<'_> {
        HoldUp {
            progress: self,
            number: self.asked.fetch_add(1, Relaxed),
        }
    }

    /// The part of a gap that was not told of before: each start after an interruption
    /// finds it again.
    pub fn new_among_expired(&self, gap: RangeInclusive<u64>) -> Option<RangeInclusive<u64>> {
        let (first, last) = gap.into_inner();
        let until = self.expired_until.fetch_max(last, Relaxed);
        let new = first.max(until + 1)..=last;
        (!new.is_empty()).then_some(new)
    }

    fn reasons(&self) -> MutexGuard<'_, Vec<(u64, String)>> {
        self.held_up_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was said ends with what said it, also when that is given up half-way.
pub struct HoldUp<'a> {
    progress: &'a Progress,
    number: u64,
}

impl HoldUp<'_> {
    pub fn say(&self, reason: String) {
        let mut reasons = self.progress.reasons();
        reasons.retain(|(other, _)| *other != self.number);
        reasons.push((self.number, reason));
    }
}

impl Drop for HoldUp<'_> {
    fn drop(&mut self) {
        let number = self.number;
        self.progress
            .reasons()
            .retain(|(other, _)| *other != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_holds_nothing_up_and_leaves_others_alone() {
        let progress = Progress::default();
        let (one, other) = (progress.hold_up(), progress.hold_up());
        one.say("no such table".to_owned());
        other.say("no such database".to_owned());
        drop(one);
        assert_eq!(progress.held_up_by().as_deref(), Some("no such database"));
        drop(other);
        assert_eq!(progress.held_up_by(), None);
    }
}
