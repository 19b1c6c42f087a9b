//! Storing a batch: sending it until ClickHouse says that it has it, and counting
//! where that may not be true.
//!
//! A range goes as a whole, under one token. What was sent more than once is
//! counted afterwards: ClickHouse writes a token down before the rows are safe, so one
//! that was killed in between drops the repeat of rows that it has lost. What is
//! missing goes under a token of its own. What ClickHouse refuses is halved, down to
//! the rows at fault, which become dead letters. Every such change is in the checkpoint
//! before it is made. A large message goes in pieces (`pieces.rs`).

mod parts;
mod pieces;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::encode::{Content, Encoded, Encoder, Piece, Summary};
use super::error::Lost;
use super::fault;
use super::metrics::{Settled, Stage};
use super::sole_writer::SoleWriter;
use super::store::Store;
use super::tally::Tally;
use crate::checkpoint::{Checkpoint, History, InFlight, Part, Recorded, Rows};
use crate::clickhouse::InsertError;
use crate::clickhouse::native::{Block, Millis};
use crate::clickhouse::stored::Origin;
use crate::clickhouse::tables::{DEAD_LETTERS, Tables};
use crate::retry::Retry;

use parts::{Selected, Step};
pub use parts::{first_parts, whole};

/// What every insert needs.
pub struct Inserter {
    pub store: Store,
    pub checkpoint: Arc<Checkpoint>,
    pub sole_writer: Arc<SoleWriter>,
    /// For rows that have to be sent without the rest of their batch.
    pub encoder: Arc<Encoder>,
    /// ClickHouse drops rows that are older, so they are never missing.
    pub retention: Duration,
}

/// A batch that ClickHouse has and the checkpoint does not know of yet.
#[must_use = "what is stored is committed, then acknowledged"]
pub struct Stored {
    pub batch: Summary,
    pub in_flight: InFlight,
    pub history: History,
}

impl Stored {
    /// What it counts as.
    pub fn settled(&self) -> Settled<'_> {
        let letters = self.batch.dead_letters.iter();
        Settled {
            events: &self.batch.events,
            dead_letters: letters.map(|(reason, count)| (*reason, *count)).collect(),
            bytes: self.batch.bytes,
            flush: self.batch.flush,
            age: self.age(),
        }
    }

    /// Seconds since JetStream stored the oldest message.
    fn age(&self) -> f64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since_epoch.unwrap_or_default().as_secs_f64();
        now - self.batch.range.first_stored_at as f64 / 1e9
    }
}

/// A batch while it is being stored.
struct Storing {
    /// Of what is stored so far.
    summary: Summary,
    /// As the record has it.
    in_flight: InFlight,
    history: History,
}

/// How a part ended.
enum Outcome {
    Stored,
    /// ClickHouse said that it had the rows, and does not have them.
    Missing,
    /// The tables are not those that may have been inserted into: they do not know the
    /// token.
    Exchanged,
    Refused(String),
}

/// What came of sending the same bytes, once or repeatedly.
enum Sent {
    /// Taken: by the first attempt of this run, or by a later one.
    Taken {
        again: bool,
    },
    Refused {
        again: bool,
        error: String,
    },
    /// Between two attempts, the tables were exchanged.
    Exchanged,
}

impl Inserter {
    /// Returns once ClickHouse has everything of the batch. `may_be_there` says that it
    /// may have some of it under a token that nobody knows any more.
    ///
    /// # Errors
    /// When this instance must not insert any more.
    pub async fn store(
        &self,
        batch: Encoded,
        recorded: Recorded,
        may_be_there: bool,
    ) -> Result<Stored, Lost> {
        let started = Instant::now();
        let _stage = self.store.progress.metrics.stage(Stage::Insert);
        let Recorded {
            in_flight,
            recovered,
        } = recorded;
        let mut history = History::of(&in_flight, recovered);
        history.looked_for |= may_be_there;
        let mut storing = Storing {
            summary: batch.summary,
            in_flight,
            history,
        };
        match batch.content {
            Content::Rows(piece) => {
                let parts = match storing.in_flight.parts.as_slice() {
                    [] => whole(&piece),
                    parts => parts.to_vec(),
                };
                let steps = Step::all(parts, recovered);
                self.store_piece(&mut storing, &piece, steps, &[]).await?;
            }
            Content::Messages(messages) => {
                info!(
                    first = storing.summary.range.first,
                    last = storing.summary.range.last,
                    bytes = storing.summary.bytes,
                    "batch goes in pieces"
                );
                self.store_in_pieces(&mut storing, &messages, recovered)
                    .await?;
            }
        }
        let Storing {
            summary,
            in_flight,
            history,
        } = storing;
        info!(
            rows = summary.events.total(),
            first = summary.range.first,
            last = summary.range.last,
            bytes = summary.bytes,
            insert_ms = started.elapsed().as_millis() as u64,
            "batch stored"
        );
        Ok(Stored {
            batch: summary,
            in_flight,
            history,
        })
    }

    /// Whether a view may not hold what it should of a batch.
    pub async fn is_suspect(&self, stored: &Stored) -> bool {
        let Stored {
            in_flight, history, ..
        } = stored;
        // Asked after a repeat only.
        let process = match history.repeated {
            true => self.store.process().await,
            false => String::new(),
        };
        in_flight.may_be_miscounted(*history, &process)
    }

    /// Returns once ClickHouse has every row of the steps. `rest` are the parts of the
    /// batch that come after them.
    async fn store_piece(
        &self,
        storing: &mut Storing,
        piece: &Piece,
        mut steps: VecDeque<Step>,
        rest: &[Part],
    ) -> Result<(), Lost> {
        let Storing {
            summary,
            in_flight,
            history,
        } = storing;
        summary.add(piece);
        while let Some(step) = steps.front() {
            match self.take(piece, in_flight, step, history).await? {
                Outcome::Stored => {
                    if step.part.rows == Rows::Refused {
                        summary.refused(&Tally::of(step.events(piece)));
                    }
                    steps.pop_front();
                    continue;
                }
                Outcome::Missing => {
                    warn!(
                        batch.first = in_flight.range.first,
                        batch.last = in_flight.range.last,
                        "ClickHouse has lost rows that it said it has: inserting them again"
                    );
                    // The views may have them.
                    history.looked_for = true;
                    parts::again(&mut steps);
                }
                Outcome::Exchanged => {
                    warn!(
                        batch.first = in_flight.range.first,
                        batch.last = in_flight.range.last,
                        "the tables are others than those of an earlier attempt: inserting what they do not hold"
                    );
                    history.looked_for = true;
                    in_flight.incarnation.tables = self.store.reached().await;
                    parts::all_again(&mut steps);
                }
                Outcome::Refused(error) => parts::split(&mut steps, piece, error),
            }
            self.record(in_flight, &steps, rest).await?;
        }
        Ok(())
    }

    /// Writes down what is to be inserted, and how, and into which tables. What is stored
    /// is left out: the record stays small.
    async fn record(
        &self,
        in_flight: &mut InFlight,
        steps: &VecDeque<Step>,
        rest: &[Part],
    ) -> Result<(), Lost> {
        in_flight.parts = steps.iter().map(|step| step.part).collect();
        in_flight.parts.extend(rest);
        self.checkpoint
            .change(|record| record.change(in_flight))
            .await?;
        fault::at("after-change");
        Ok(())
    }

    /// Sends a part, or what is missing of it.
    async fn take(
        &self,
        piece: &Piece,
        in_flight: &mut InFlight,
        step: &Step,
        history: &mut History,
    ) -> Result<Outcome, Lost> {
        let Step {
            part, recovered, ..
        } = step;
        let mut selected = step.select(piece);
        if *recovered && self.are_exchanged(in_flight).await {
            return Ok(Outcome::Exchanged);
        }
        if part.attempt > 0 {
            let all = selected.len();
            self.keep_missing(&mut selected, part).await;
            history.looked_for |= selected.len() < all;
        }
        if selected.is_empty() {
            return Ok(Outcome::Stored);
        }
        let token = in_flight.token(self.checkpoint.stream(), part);
        let block = selected.block(piece, &self.encoder);
        let (again, refusal) = match self.send(part.rows, &block, &token, in_flight).await? {
            Sent::Taken { again } => (again, None),
            Sent::Refused { again, error } => (again, Some(error)),
            Sent::Exchanged => return Ok(Outcome::Exchanged),
        };
        history.repeated |= again;
        if again || *recovered || refusal.is_some() {
            // Also what was refused: an earlier attempt may have been taken and not answered.
            self.keep_missing(&mut selected, part).await;
            if !selected.is_empty() {
                return Ok(refusal.map_or(Outcome::Missing, Outcome::Refused));
            }
        }
        if part.rows != Rows::Events {
            warn!(
                first = in_flight.range.first,
                last = in_flight.range.last,
                dead_letters = block.rows,
                "dead letters stored"
            );
        }
        Ok(Outcome::Stored)
    }

    /// Same bytes, same token, until there is a definite answer: ClickHouse drops
    /// what it has.
    async fn send(
        &self,
        rows: Rows,
        block: &Block,
        token: &str,
        in_flight: &mut InFlight,
    ) -> Result<Sent, Lost> {
        let table = table_of(rows, self.store.tables);
        let mut retry = Retry::new();
        let blocker = self.store.progress.blocker();
        let mut again = false;
        loop {
            self.sole_writer.confirm().await?;
            // Whoever was frozen must not continue with what its successor has done. A repeat
            // may come hours later, when the token is forgotten: no clock is asked then.
            if again {
                self.checkpoint.confirm_by_writing().await?;
                if self.are_exchanged(in_flight).await {
                    return Ok(Sent::Exchanged);
                }
            } else {
                self.checkpoint.confirm().await?;
            }
            let started = Instant::now();
            let insert = self.store.clickhouse.insert(table, block, token);
            let error = match fault::during("during-insert", insert).await {
                Ok(()) => {
                    let took = started.elapsed().as_secs_f64();
                    self.store.progress.metrics.insert_duration.observe(took);
                    return Ok(Sent::Taken { again });
                }
                Err(InsertError::Refused(error)) if rows == Rows::Events => {
                    return Ok(Sent::Refused { again, error });
                }
                Err(error) => error,
            };
            again = true;
            if matches!(error, InsertError::HalfDone(_))
                && !in_flight.incarnation.process.is_empty()
            {
                // There is no process with which it can be trusted: it is recounted, also by
                // whoever continues it.
                in_flight.incarnation.process.clear();
                self.checkpoint
                    .change(|record| record.change(in_flight))
                    .await?;
            }
            let unknown = matches!(error, InsertError::Unknown(_));
            self.store.progress.metrics.insert_failed(unknown);
            if retry.is_news(&error) {
                warn!(
                    %error,
                    table,
                    batch.first = in_flight.range.first,
                    batch.rows = block.rows,
                    "insert failed, retrying"
                );
            }
            blocker.say(format!("insert into {table} fails: {error}"));
            retry.pause().await;
        }
    }

    /// Whether the tables are not the ones that there were when the range was recorded:
    /// moved, restored from a backup, or with another view.
    async fn are_exchanged(&self, in_flight: &InFlight) -> bool {
        let before = &in_flight.incarnation.tables;
        // A record by an older build does not say.
        !before.is_empty() && *before != self.store.reached().await
    }

    /// Leaves what ClickHouse does not hold.
    async fn keep_missing(&self, selected: &mut Selected<'_>, part: &Part) {
        let stream = self.encoder.stream();
        let (first, last) = (part.first, part.last);
        // An event may be a dead letter, by refusal or by an older build, and replayed.
        let tables = match part.rows {
            Rows::Events => self.store.tables.inserted_into().to_vec(),
            Rows::DeadLetters | Rows::Refused => vec![DEAD_LETTERS],
        };
        let mut held: HashSet<Origin> = HashSet::new();
        for table in tables {
            let origins = self.store.origins_between(table, stream, first, last);
            held.extend(origins.await);
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let oldest = since_epoch
            .unwrap_or_default()
            .saturating_sub(self.retention);
        let oldest = Millis(oldest.as_millis() as i64);
        selected.keep_missing(&held, oldest);
    }
}

/// The table that rows go to.
fn table_of(rows: Rows, tables: &Tables) -> &'static str {
    match rows {
        Rows::Events => tables.events,
        Rows::DeadLetters | Rows::Refused => DEAD_LETTERS,
    }
}
