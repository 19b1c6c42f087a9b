//! A time by both clocks.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A time by both clocks: one of them stands still while the machine is suspended, and
/// the other is set by people.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// Whether less than this has passed, by either clock.
    pub fn is_younger_than(&self, age: Duration) -> bool {
        self.monotonic.elapsed() < age && self.wall.elapsed().is_ok_and(|passed| passed < age)
    }
}
