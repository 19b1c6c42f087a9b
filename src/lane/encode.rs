//! From a batch of messages to the block that inserts it. Pure.
//!
//! Messages are decoded straight into columns. What is kept alongside the block is each
//! event's own bytes, a fraction of the decoded event: it is decoded once more where
//! its row has to be sent by itself.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use async_nats::Subject;
use time::Date;

use super::batch::{Batch, Flush, PIECE};
use super::decode::{Decoding, each_source};
use super::tally::Tally;
use crate::checkpoint::Range;
use crate::clickhouse::native::{Block, BlockBuilder, Columns, LowCardinality};
use crate::clickhouse::stored::Place;
use crate::dead_letter::{self, DeadLetter, Reason};
use crate::event::Event;
use crate::kind::Kind;
use crate::nats::Message;

pub use super::decode::Run;

/// A batch on its way to ClickHouse.
#[derive(Debug)]
pub struct Encoded {
    /// Nothing is counted in it yet.
    pub summary: Summary,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    /// All rows of the batch.
    Rows(Piece),
    /// Messages of which one is too large to be decoded as a whole.
    Messages(Vec<Message>),
}

/// Rows as ClickHouse takes them: a whole batch, or what is held of it at a time.
#[derive(Debug)]
pub struct Piece {
    /// What the rows of the block are made from, in their order.
    pub events: Vec<Event>,
    /// Rows of the kind's table.
    pub block: Block,
    pub dead_letters: Vec<DeadLetter>,
    /// The events that the block has, by type and producer.
    pub tally: Tally,
    /// The days of the events.
    pub days: BTreeSet<Date>,
}

/// What is left of a batch when its rows are stored.
#[derive(Debug)]
pub struct Summary {
    pub range: Range,
    /// What completed the batch.
    pub flush: Flush,
    /// Bytes of the messages.
    pub bytes: usize,
    /// Where the last acknowledgement goes; `None` when there is no message to
    /// acknowledge.
    pub ack: Option<Subject>,
    /// The days of the events.
    pub days: BTreeSet<Date>,
    /// The events, by type and producer.
    pub events: Tally,
    pub dead_letters: BTreeMap<Reason, usize>,
}

impl Summary {
    fn of(batch: &Batch) -> Self {
        Self {
            range: batch.range.clone(),
            flush: batch.flush,
            bytes: batch.bytes,
            ack: batch.ack.clone(),
            days: BTreeSet::new(),
            events: Tally::default(),
            dead_letters: BTreeMap::new(),
        }
    }

    /// Counts rows of the batch.
    pub fn add(&mut self, piece: &Piece) {
        self.days.extend(&piece.days);
        self.events.extend(&piece.tally);
        for letter in &piece.dead_letters {
            *self.dead_letters.entry(letter.reason).or_default() += 1;
        }
    }

    /// Counts events of the batch as dead letters, since ClickHouse has refused them.
    pub fn refused(&mut self, events: &Tally) {
        self.events.subtract(events);
        *self.dead_letters.entry(Reason::Refused).or_default() += events.total() as usize;
    }

    /// Events and dead letters.
    pub fn rows(&self) -> usize {
        self.events.total() as usize + self.dead_letters.values().sum::<usize>()
    }
}

/// Encodes the batches of one stream and one kind.
pub struct Encoder {
    kind: Arc<dyn Kind>,
    /// The stream's identity, as rows have it.
    stream: String,
}

impl Encoder {
    /// `stream` is the stream's identity, as rows have it.
    pub fn new(kind: Arc<dyn Kind>, stream: String) -> Self {
        Self { kind, stream }
    }

    /// The stream's identity, as rows have it.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    pub fn kind(&self) -> &dyn Kind {
        &*self.kind
    }

    /// Decodes messages, all of a batch or some.
    pub fn decode(&self, messages: Vec<Message>) -> Run {
        let mut decoding = self.decoding();
        for message in messages {
            let _: ControlFlow<()> = each_source(&*self.kind, &message, 0, |sent| {
                decoding.add(&message, sent);
                ControlFlow::Continue(())
            });
        }
        decoding.finish()
    }

    fn decoding(&self) -> Decoding<'_> {
        Decoding::new(&*self.kind, &self.stream)
    }

    /// A batch of which the first messages are decoded: `ahead`, in their order.
    /// However it was divided, the same batch gives the same bytes.
    pub fn encode(&self, ahead: Vec<Run>, batch: Batch) -> Encoded {
        let summary = Summary::of(&batch);
        let content = if batch.in_pieces {
            Content::Messages(batch.messages)
        } else {
            let mut runs = ahead;
            runs.push(self.decode(batch.messages));
            Content::Rows(self.join(runs))
        };
        Encoded { summary, content }
    }

    /// The rows of messages from a place on, as many as are held at a time, and the place
    /// of the one that comes next.
    pub fn piece(&self, messages: &[Message], from: Place) -> (Piece, Option<Place>) {
        let mut decoding = self.decoding();
        let (mut rows, mut bytes) = (0, 0);
        let next = messages.iter().try_for_each(|message| {
            let first = match message.sequence.cmp(&from.0) {
                Ordering::Less => return ControlFlow::Continue(()),
                Ordering::Equal => from.1,
                Ordering::Greater => 0,
            };
            each_source(&*self.kind, message, first, |sent| {
                let source = match &sent {
                    Ok(source) => source,
                    Err(letter) => &letter.source,
                };
                let size = source.size();
                if rows > 0 && (rows == PIECE.0 || bytes + size > PIECE.1) {
                    return ControlFlow::Break(source.place);
                }
                rows += 1;
                bytes += size;
                decoding.add(message, sent);
                ControlFlow::Continue(())
            })
        });
        (self.join(vec![decoding.finish()]), next.break_value())
    }

    fn join(&self, runs: Vec<Run>) -> Piece {
        let mut events = Vec::with_capacity(runs.iter().map(|run| run.events.len()).sum());
        let mut dead_letters = Vec::new();
        let mut tally = Tally::default();
        let mut days = BTreeSet::new();
        let mut columns = Vec::with_capacity(runs.len());
        for run in runs {
            columns.push(run.columns);
            events.extend(run.events);
            dead_letters.extend(run.dead_letters);
            tally.extend(&run.tally);
            days.extend(run.days);
        }
        Piece {
            events,
            block: self.block_of_columns(columns),
            dead_letters,
            tally,
            days,
        }
    }

    /// The block of some events of a batch, which are decoded once more.
    ///
    /// # Panics
    /// When an event cannot be decoded any more: left out, it would be lost.
    pub fn block(&self, events: &[&Event]) -> Block {
        let mut writer = self.kind.writer(&self.stream);
        for event in events {
            if let Err(unfit) = writer.write(&event.source) {
                unreachable!("an event is a dead letter now: {}", unfit.error);
            }
        }
        self.block_of_columns(vec![writer.finish()])
    }

    /// The block of dead letters.
    pub fn block_of_letters(&self, letters: &[DeadLetter]) -> Block {
        dead_letter::block(&self.stream, letters)
    }

    /// One part after the other. The same events always give the same bytes.
    fn block_of_columns(&self, parts: Vec<Columns>) -> Block {
        let rows = parts.iter().map(|part| part.rows).sum();
        let mut stream = LowCardinality::default();
        (0..rows).for_each(|row| stream.set(row, &self.stream));
        let stream = Columns {
            rows,
            columns: vec![("stream", stream.into())],
        };
        let size = parts.iter().map(Columns::size).sum::<usize>() + stream.size();
        let mut block = BlockBuilder::new(rows, size);
        block.columns(vec![stream]).columns(parts);
        block.build()
    }
}

#[cfg(test)]
mod tests;
