//! Recounting views, and building days of them again: for whoever owns the checkpoint.
//!
//! A day is built from what the events are at that moment, and swapped in later. Nobody
//! may insert in between: not this instance, which has nothing in flight meanwhile, and
//! no other, which has to take the checkpoint over first. So the checkpoint is confirmed
//! by a write before each statement, and what comes late nevertheless is made to fail by
//! [`Recount::clear`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clickhouse::error::Error;
use futures_util::FutureExt;
use time::Date;
use tracing::{info, warn};

use super::checkpoint::{Checkpoint, CheckpointError, Range, Record};
use super::fault;
use super::progress::Progress;
use super::question::{ask, process};
use crate::clickhouse::ClickHouse;
use crate::clickhouse::client::describe;
use crate::clickhouse::quote::quote_string;
use crate::clickhouse::rebuild::{self, Rebuild};
use crate::clickhouse::views::{self, View};

/// How often ClickHouse is asked whether a statement of an earlier rebuild still runs.
const LOOK: Duration = Duration::from_millis(200);

/// Numbers the rebuilds of this process: no two share a table.
static ATTEMPTS: AtomicU32 = AtomicU32::new(1);

#[derive(Debug, thiserror::Error)]
pub enum RecountError {
    /// It may pass.
    #[error("{}", describe(.0))]
    ClickHouse(Error),
    /// It does not pass: the checkpoint cannot be written, or is another instance's.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

// Not a source: the message says it all, and would say it twice.
impl From<Error> for RecountError {
    fn from(error: Error) -> Self {
        Self::ClickHouse(error)
    }
}

/// What became of a day of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Exact,
    Rebuilt,
    /// It differs, and holds rows that nothing in the stored events explains: they are
    /// not this program's to delete.
    Left,
}

pub struct Recount<'a> {
    /// Patient: it reads whole days.
    clickhouse: ClickHouse,
    checkpoint: &'a Checkpoint,
    progress: &'a Progress,
}

impl<'a> Recount<'a> {
    pub fn new(
        clickhouse: &ClickHouse,
        checkpoint: &'a Checkpoint,
        progress: &'a Progress,
    ) -> Self {
        Self {
            clickhouse: clickhouse.patient(),
            checkpoint,
            progress,
        }
    }

    /// Recounts the views' days that these ranges' rows are in, and builds again those
    /// that differ. Nothing may be in flight meanwhile.
    pub async fn of_ranges(&self, ranges: &[Range]) -> Result<(), CheckpointError> {
        let started = Instant::now();
        let filter = filter(&self.checkpoint.stream().to_string(), ranges);
        loop {
            let before = self.process().await;
            let fates = self
                .until_answered("recounting the views", || self.each(&filter))
                .await?;
            self.clear().await?;
            // What was swapped in while ClickHouse died may be half done.
            if before != self.process().await {
                continue;
            }
            let count = |fate| fates.iter().filter(|other| **other == fate).count();
            info!(
                days = fates.len(),
                rebuilt = count(Fate::Rebuilt),
                left = count(Fate::Left),
                ms = started.elapsed().as_millis() as u64,
                "views recounted, since ClickHouse may have lost their rows of an insert"
            );
            let change = |record: &mut Record| record.incarnation.process = before;
            return self.checkpoint.change(change).await;
        }
    }

    /// What becomes of each view's days of the rows that `filter` selects.
    async fn each(&self, filter: &str) -> Result<Vec<Fate>, RecountError> {
        // Of a try before this one: where a right is missing, there are many.
        self.drop_leftovers().await?;
        let mut fates = Vec::new();
        let mut done: Vec<(View, BTreeSet<Date>)> = Vec::new();
        for view in views::reached(&self.clickhouse).await?.compared {
            let source = done.iter().find(|(other, _)| view.is_filled_by(other));
            let of_source = source.map(|(_, days)| days.clone()).unwrap_or_default();
            let days = view.days_of(&self.clickhouse, filter, &of_source).await;
            let days = days.map_err(|error| named(&view, &error))?;
            for day in days.iter().filter(|day| view.keeps(**day)) {
                match self.put_right(&view, *day).await {
                    Ok(fate) => fates.push(fate),
                    Err(RecountError::ClickHouse(error)) => return Err(named(&view, &error)),
                    Err(lost) => return Err(lost),
                }
            }
            done.push((view, days));
        }
        Ok(fates)
    }

    /// Builds a day of a view again, if it is not what the view's SELECT says.
    pub async fn put_right(&self, view: &View, day: Date) -> Result<Fate, RecountError> {
        let clickhouse = &self.clickhouse;
        if view.is_exact(clickhouse, day).await? {
            return Ok(Fate::Exact);
        }
        fault::at("after-compare");
        if self.has_unexplained(view, day).await? {
            return Ok(Fate::Left);
        }
        warn!(view = view.name, %day, "a view differs from the events: building the day again");
        let attempt = ATTEMPTS.fetch_add(1, Relaxed);
        let owner = self.checkpoint.owner();
        let rebuild = Rebuild::new(view, day, clickhouse.database(), owner, attempt);
        self.checkpoint.confirm_by_writing().await?;
        rebuild.create(clickhouse).await?;
        fault::at("after-create");
        self.checkpoint.confirm_by_writing().await?;
        rebuild.fill(clickhouse).await?;
        fault::at("after-fill");
        // Somebody may have brought rows of his own meanwhile, and midnight may have passed.
        if self.has_unexplained(view, day).await? || !view.keeps(day) {
            return Ok(Fate::Left);
        }
        self.checkpoint.change(Record::recount_in_flight).await?;
        fault::during("during-swap", rebuild.swap(clickhouse)).await?;
        fault::at("after-swap");
        Ok(Fate::Rebuilt)
    }

    /// Whether a day holds rows that are not this program's to delete.
    async fn has_unexplained(&self, view: &View, day: Date) -> Result<bool, RecountError> {
        let unexplained = view.unexplained(&self.clickhouse, day).await?;
        if unexplained > 0 {
            warn!(
                view = view.name, %day, unexplained,
                "a view differs from the events, and holds rows that no event explains: left as it is"
            );
        }
        Ok(unexplained > 0)
    }

    /// Makes sure that no statement of a rebuild can take effect after this, whoever sent
    /// it: drops the tables that it needs, and waits for those that run.
    pub async fn clear(&self) -> Result<(), CheckpointError> {
        self.until_answered("clearing what rebuilds have left", || async {
            self.drop_leftovers().await?;
            let waiting = self.progress.hold_up();
            while rebuild::runs(&self.clickhouse).await? {
                waiting.say("a rebuild of an earlier writer still runs".to_owned());
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        })
        .await
    }

    async fn drop_leftovers(&self) -> Result<(), RecountError> {
        for beside in rebuild::leftovers(&self.clickhouse).await? {
            self.checkpoint.confirm_by_writing().await?;
            rebuild::drop(&self.clickhouse, &beside).await?;
        }
        Ok(())
    }

    /// Tries until ClickHouse has an answer, or the checkpoint is lost.
    async fn until_answered<T, Trying: Future<Output = Result<T, RecountError>>>(
        &self,
        what: &'static str,
        mut attempt: impl FnMut() -> Trying,
    ) -> Result<T, CheckpointError> {
        ask(self.progress, what, || {
            attempt().map(|outcome| match outcome {
                Ok(done) => Ok(Ok(done)),
                Err(RecountError::Checkpoint(lost)) => Ok(Err(lost)),
                Err(RecountError::ClickHouse(error)) => Err(error),
            })
        })
        .await
    }

    async fn process(&self) -> String {
        process(&self.clickhouse, self.progress).await
    }
}

/// An error with the view that it is about: it may be one of an operator's.
fn named(view: &View, error: &Error) -> RecountError {
    let name = &view.name;
    RecountError::ClickHouse(Error::Other(
        format!("view `{name}`: {}", describe(error)).into(),
    ))
}

/// The rows of these ranges.
fn filter(stream: &str, ranges: &[Range]) -> String {
    let ranges: Vec<String> = ranges
        .iter()
        .map(|range| format!("stream_seq BETWEEN {} AND {}", range.first, range.last))
        .collect();
    format!(
        "stream = {} AND ({})",
        quote_string(stream),
        ranges.join(" OR ")
    )
}
