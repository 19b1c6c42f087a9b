//! From a batch of messages to the block that inserts it. Pure.
//!
//! Messages are decoded straight into columns. What stays beside the block is each
//! event's own bytes, a fraction of the decoded event: it is decoded once more where
//! its row has to be sent by itself.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use async_nats::Subject;
use time::Date;
use tracing::debug;

use super::batch::{Batch, Flush, PIECE};
use super::checkpoint::Range;
use super::decode::{Decoder, Fate};
use super::message::Message;
use super::tally::Tally;
use crate::clickhouse::native::{Block, Millis};
use crate::dead_letter::{self, DeadLetter, Reason};
use crate::event::{Columns, Event, Place, Source};

/// A batch on its way to ClickHouse.
#[derive(Debug)]
pub struct Encoded {
    /// Nothing is counted yet.
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
    pub sources: Vec<Source>,
    /// Rows of `analytics_events`.
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

/// Encodes the batches of one stream.
pub struct Encoder {
    decoder: Decoder,
    /// The stream's identity, as it stands in rows.
    stream: String,
}

impl Encoder {
    /// `stream` is the stream's identity, as it stands in rows.
    pub fn new(stream: String, decoder: Decoder) -> Self {
        Self { decoder, stream }
    }

    /// The stream's identity, as it stands in rows.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Decodes messages, all of a batch or some.
    pub fn decode(&self, messages: Vec<Message>) -> Run {
        let mut run = Run {
            sources: Vec::with_capacity(messages.len()),
            ..Run::default()
        };
        for message in messages {
            self.decoder.each(&message, |fate| {
                log(&message, &fate);
                run.add(fate);
            });
        }
        run
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
        let mut run = Run::default();
        let (mut rows, mut bytes) = (0, 0);
        let next = messages.iter().try_for_each(|message| {
            let first = match message.sequence.cmp(&from.0) {
                Ordering::Less => return ControlFlow::Continue(()),
                Ordering::Equal => from.1,
                Ordering::Greater => 0,
            };
            self.decoder.each_source(message, first, |source| {
                let (place, size) = match &source {
                    Ok(source) => (source.place, source.size()),
                    Err(letter) => (letter.source.place, letter.source.size()),
                };
                if rows > 0 && (rows == PIECE.0 || bytes + size > PIECE.1) {
                    return ControlFlow::Break(place);
                }
                rows += 1;
                bytes += size;
                let fate = source.and_then(|source| self.decoder.event(source));
                log(message, &fate);
                run.add(fate);
                ControlFlow::Continue(())
            })
        });
        (self.join(vec![run]), next.break_value())
    }

    fn join(&self, runs: Vec<Run>) -> Piece {
        let mut sources = Vec::with_capacity(runs.iter().map(|run| run.sources.len()).sum());
        let mut dead_letters = Vec::new();
        let mut tally = Tally::default();
        let mut days = BTreeSet::new();
        let mut columns = Vec::with_capacity(runs.len());
        for run in runs {
            columns.push(run.columns);
            sources.extend(run.sources);
            dead_letters.extend(run.dead_letters);
            tally.extend(&run.tally);
            days.extend(run.days);
        }
        Piece {
            sources,
            block: Columns::block(&self.stream, columns),
            dead_letters,
            tally,
            days,
        }
    }

    /// The block of some events of a batch.
    pub fn block(&self, sources: &[&Source]) -> Block {
        let mut columns = Columns::default();
        for source in sources {
            columns.push(&self.event(source));
        }
        Columns::block(&self.stream, vec![columns])
    }

    /// The block of dead letters.
    pub fn block_of_letters(&self, letters: &[DeadLetter]) -> Block {
        dead_letter::block(&self.stream, letters)
    }

    /// When an event of a batch happened.
    pub fn server_ts(&self, source: &Source) -> Millis {
        self.event(source).server_ts
    }

    /// Some events of a batch, by type and producer.
    pub fn tally(&self, sources: &[&Source]) -> Tally {
        let mut tally = Tally::default();
        for source in sources {
            tally.add(&self.event(source));
        }
        tally
    }

    /// An event of a batch, as it was decoded before. Left out, it would be lost.
    fn event(&self, source: &Source) -> Event {
        match self.decoder.event(source.clone()) {
            Ok(event) => event,
            Err(letter) => unreachable!("an event is a dead letter now: {}", letter.error),
        }
    }
}

/// What a run of messages becomes.
#[derive(Default)]
pub struct Run {
    columns: Columns,
    sources: Vec<Source>,
    dead_letters: Vec<DeadLetter>,
    tally: Tally,
    days: BTreeSet<Date>,
}

impl Run {
    fn add(&mut self, fate: Fate) {
        match fate {
            Ok(event) => {
                self.columns.push(&event);
                self.tally.add(&event);
                self.days.insert(event.server_ts.date());
                self.sources.push(event.source);
            }
            Err(letter) => self.dead_letters.push(*letter),
        }
    }
}

/// One line an event. Never the payload: it holds what users wrote.
fn log(message: &Message, fate: &Fate) {
    let (subject, sequence, size) = (
        message.subject.as_str(),
        message.sequence,
        message.payload.len(),
    );
    match fate {
        Ok(event) => debug!(subject, sequence, size, event_type = %event.event_type, "event"),
        Err(letter) => debug!(
            subject,
            sequence,
            size,
            reason = letter.reason.as_str(),
            "dead letter"
        ),
    }
}

#[cfg(test)]
mod tests;
