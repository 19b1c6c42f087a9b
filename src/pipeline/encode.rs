//! From a batch of messages to the block that inserts it. Pure.
//!
//! Messages are decoded straight into columns. What stays beside the block is each
//! event's own bytes, a fraction of the decoded event: it is decoded once more where
//! its row has to be sent by itself.

use std::collections::BTreeSet;

use async_nats::Subject;
use time::Date;
use tracing::debug;

use super::batch::{Batch, Flush};
use super::checkpoint::Range;
use super::decode::{Decoder, Fate};
use super::message::Message;
use super::tally::Tally;
use crate::clickhouse::native::{Block, Millis};
use crate::dead_letter::{self, DeadLetter};
use crate::event::{Columns, Event, Source};

/// A batch as ClickHouse takes it.
#[derive(Debug)]
pub struct Encoded {
    pub range: Range,
    /// What the rows of the block are made from, in their order.
    pub sources: Vec<Source>,
    /// Rows of `analytics_events`.
    pub block: Block,
    pub dead_letters: Vec<DeadLetter>,
    /// The events that the block has, by type and producer.
    pub tally: Tally,
    /// The days of the events.
    pub days: BTreeSet<Date>,
    /// What completed the batch.
    pub flush: Flush,
    /// Bytes of the messages.
    pub bytes: usize,
    /// Where the last acknowledgement goes; `None` when there is no message to
    /// acknowledge.
    pub ack: Option<Subject>,
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
        let mut runs = ahead;
        runs.push(self.decode(batch.messages));
        let mut encoded = Encoded {
            range: batch.range,
            sources: Vec::with_capacity(runs.iter().map(|run| run.sources.len()).sum()),
            block: Block::default(),
            dead_letters: Vec::new(),
            tally: Tally::default(),
            days: BTreeSet::new(),
            flush: batch.flush,
            bytes: batch.bytes,
            ack: batch.ack,
        };
        let mut columns = Vec::with_capacity(runs.len());
        for run in runs {
            columns.push(run.columns);
            encoded.sources.extend(run.sources);
            encoded.dead_letters.extend(run.dead_letters);
            encoded.tally.extend(&run.tally);
            encoded.days.extend(run.days);
        }
        encoded.block = Columns::block(&self.stream, columns);
        encoded
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
