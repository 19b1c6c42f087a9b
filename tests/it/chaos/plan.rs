//! Which fault comes next, and how many there were.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Debug, Display};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Each kind of fault once, in order, then any, some more often than others, until the
/// time is up.
pub struct Plan<F> {
    kinds: Vec<(F, u32)>,
    first_round: VecDeque<F>,
    end: Instant,
    rng: SmallRng,
}

impl<F: Copy + Debug> Plan<F> {
    /// Each of the `kinds` with its weight.
    pub fn new(kinds: &[(F, u32)], seed: u64, duration: Duration) -> Self {
        Self {
            kinds: kinds.to_vec(),
            first_round: kinds.iter().map(|(kind, _)| *kind).collect(),
            end: Instant::now() + duration,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Adds kinds that take too long for the first round.
    pub fn later(mut self, kinds: &[(F, u32)]) -> Self {
        self.kinds.extend(kinds);
        self
    }

    /// Leaves out the kinds whose names do not contain this; none is left out where it is
    /// empty.
    pub fn only(mut self, name: &str) -> Self {
        let is_named = |kind: &F| format!("{kind:?}").contains(name);
        self.kinds.retain(|(kind, _)| is_named(kind));
        self.first_round.retain(is_named);
        self
    }

    pub fn next(&mut self) -> Option<F> {
        if let Some(kind) = self.first_round.pop_front() {
            return Some(kind);
        }
        if Instant::now() > self.end || self.kinds.is_empty() {
            return None;
        }
        let total = self.kinds.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.random_range(0..total);
        let kind = self.kinds.iter().find(|(_, weight)| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        kind.map(|(kind, _)| *kind)
    }

    /// Any number below `count`.
    pub fn any_of(&mut self, count: usize) -> usize {
        self.rng.random_range(0..count)
    }

    /// Any time between the two, in milliseconds.
    pub fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(least..=most))
    }

    pub async fn pause(&mut self, least: u64, most: u64) {
        tokio::time::sleep(self.between(least, most)).await;
    }
}

/// What was broken and how often, reported as it happens.
pub struct Tally {
    started: Instant,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            counts: Mutex::default(),
        }
    }

    /// Counts one more, of a kind such as `ClickHouse killed`.
    pub fn count(&self, kind: impl Display) {
        let kind = kind.to_string();
        eprintln!("[{:7.1} s] {kind}", self.elapsed().as_secs_f64());
        *self.counts.lock().unwrap().entry(kind).or_default() += 1;
    }

    pub fn count_of(&self, kind: &str) -> u64 {
        self.counts.lock().unwrap().get(kind).copied().unwrap_or(0)
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The kinds in order of their names.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap().clone()
    }
}
