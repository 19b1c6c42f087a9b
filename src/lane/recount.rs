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

use super::error::Lost;
use super::fault;
use super::sole_writer::SoleWriter;
use super::store::Store;
use crate::checkpoint::{Checkpoint, CheckpointError, Range, Record};
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
    /// It does not pass.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl From<CheckpointError> for RecountError {
    fn from(error: CheckpointError) -> Self {
        Self::Lost(error.into())
    }
}

// Not a source: the message says it all, and a source would say it twice.
impl From<Error> for RecountError {
    fn from(error: Error) -> Self {
        Self::ClickHouse(error)
    }
}

/// Views with days of each.
pub type DaysOfViews = Vec<(View, BTreeSet<Date>)>;

/// What became of days of views.
#[derive(Debug, Default)]
pub struct Outcome {
    pub days: usize,
    pub rebuilt: usize,
    /// They hold rows that no event explains.
    pub left: usize,
}

/// What became of a day of a view.
enum Fate {
    Exact,
    Rebuilt,
    /// It differs, and holds rows that nothing in the stored events explains: they are
    /// not this program's to delete.
    Left,
}

pub struct Recount<'a> {
    /// Patient: it reads whole days.
    store: Store,
    checkpoint: &'a Checkpoint,
    sole_writer: &'a SoleWriter,
}

impl<'a> Recount<'a> {
    pub fn new(store: &Store, checkpoint: &'a Checkpoint, sole_writer: &'a SoleWriter) -> Self {
        Self {
            store: store.patient(),
            checkpoint,
            sole_writer,
        }
    }

    /// Recounts the views' days that these ranges' rows are in, and builds again those
    /// that differ. Nothing may be in flight meanwhile.
    pub async fn of_ranges(&self, ranges: &[Range]) -> Result<(), Lost> {
        let started = Instant::now();
        let filter = filter(&self.checkpoint.stream().to_string(), ranges);
        loop {
            let before = self.store.process().await;
            let outcome = self
                .until_answered("recounting the views", || async {
                    self.put_right(&self.days_of(&filter).await?).await
                })
                .await?;
            // What was being swapped in when ClickHouse died may be half done.
            if before != self.store.process().await {
                continue;
            }
            info!(
                days = outcome.days,
                rebuilt = outcome.rebuilt,
                left = outcome.left,
                ms = started.elapsed().as_millis() as u64,
                "views recounted, since ClickHouse may have lost their rows of an insert"
            );
            let change = |record: &mut Record| record.incarnation.process = before;
            return Ok(self.checkpoint.change(change).await?);
        }
    }

    /// Each view's days of the rows that `filter` selects.
    async fn days_of(&self, filter: &str) -> Result<DaysOfViews, RecountError> {
        let Store {
            clickhouse, tables, ..
        } = &self.store;
        let mut found: DaysOfViews = Vec::new();
        for view in views::reached(clickhouse, tables).await?.compared {
            let source = found.iter().find(|(other, _)| view.is_filled_by(other));
            let of_source = source.map(|(_, days)| days.clone()).unwrap_or_default();
            let days = view.days_of(clickhouse, filter, &of_source).await;
            let days = days.map_err(|error| named(&view, &error))?;
            found.push((view, days));
        }
        Ok(found)
    }

    /// Compares days of views, each view after the one that fills its source, and builds
    /// again those that are not what the view's SELECT says. Nothing may be in flight
    /// meanwhile.
    pub async fn put_right(&self, days_of_views: &DaysOfViews) -> Result<Outcome, RecountError> {
        // Those of an earlier attempt: where a permission is missing, there are many.
        self.drop_leftovers().await?;
        let mut outcome = Outcome::default();
        for (view, days) in days_of_views {
            for day in days.iter().filter(|day| view.keeps(**day)) {
                outcome.days += 1;
                match self.put_day_right(view, *day).await {
                    Ok(Fate::Exact) => {}
                    Ok(Fate::Rebuilt) => outcome.rebuilt += 1,
                    Ok(Fate::Left) => outcome.left += 1,
                    Err(RecountError::ClickHouse(error)) => return Err(named(view, &error)),
                    Err(lost) => return Err(lost),
                }
            }
        }
        self.clear().await?;
        Ok(outcome)
    }

    async fn put_day_right(&self, view: &View, day: Date) -> Result<Fate, RecountError> {
        let Store {
            clickhouse, tables, ..
        } = &self.store;
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
        let beside = rebuild::beside(clickhouse, tables, owner, attempt);
        let rebuild = Rebuild::new(view, day, beside);
        self.confirm().await?;
        rebuild.create(clickhouse).await?;
        fault::at("after-create");
        self.confirm().await?;
        rebuild.fill(clickhouse).await?;
        fault::at("after-fill");
        // Somebody may have added rows of their own meanwhile, and midnight may have passed.
        if self.has_unexplained(view, day).await? || !view.keeps(day) {
            return Ok(Fate::Left);
        }
        self.sole_writer.confirm().await.map_err(Lost::from)?;
        self.checkpoint.change(Record::recount_in_flight).await?;
        fault::during("during-swap", rebuild.swap(clickhouse)).await?;
        fault::at("after-swap");
        Ok(Fate::Rebuilt)
    }

    /// Makes sure that nobody else inserts.
    async fn confirm(&self) -> Result<(), Lost> {
        self.sole_writer.confirm().await?;
        Ok(self.checkpoint.confirm_by_writing().await?)
    }

    /// Whether a day holds rows that are not this program's to delete.
    async fn has_unexplained(&self, view: &View, day: Date) -> Result<bool, RecountError> {
        let unexplained = view.unexplained(&self.store.clickhouse, day).await?;
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
    pub async fn clear(&self) -> Result<(), Lost> {
        self.until_answered("clearing what rebuilds have left", || async {
            self.drop_leftovers().await?;
            let blocker = self.store.progress.blocker();
            while rebuild::runs(&self.store.clickhouse, self.store.tables).await? {
                blocker.say("a rebuild of an earlier writer still runs".to_owned());
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        })
        .await
    }

    async fn drop_leftovers(&self) -> Result<(), RecountError> {
        for beside in rebuild::leftovers(&self.store.clickhouse, self.store.tables).await? {
            self.confirm().await?;
            rebuild::drop(&self.store.clickhouse, &beside).await?;
        }
        Ok(())
    }

    /// Tries until ClickHouse has an answer, or the checkpoint is lost.
    async fn until_answered<T, Trying: Future<Output = Result<T, RecountError>>>(
        &self,
        what: &'static str,
        mut attempt: impl FnMut() -> Trying,
    ) -> Result<T, Lost> {
        self.store
            .ask(what, || {
                attempt().map(|outcome| match outcome {
                    Ok(done) => Ok(Ok(done)),
                    Err(RecountError::Lost(lost)) => Ok(Err(lost)),
                    Err(RecountError::ClickHouse(error)) => Err(error),
                })
            })
            .await
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
