//! From messages to rows and dead letters. Pure.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use time::Date;
use tracing::debug;

use super::tally::Tally;
use crate::clickhouse::native::Columns;
use crate::dead_letter::{DeadLetter, Reason, Unfit};
use crate::event::{Event, Source};
use crate::kind::{Contents, Kind, Writer};
use crate::nats::Message;

/// Hands over each event of a message as it was sent, from the one with the index `first`
/// on, until `take` breaks. A message that cannot be read is one letter. A batch message
/// without events gives nothing.
pub fn each_source<B>(
    kind: &dyn Kind,
    message: &Message,
    first: u32,
    mut take: impl FnMut(Result<Source, DeadLetter>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let whole = match kind.contents(message) {
        Contents::Batch(events) => {
            for (index, payload) in (0..).zip(events).skip(first as usize) {
                take(Ok(Source::of_batch(message, index, payload)))?;
            }
            return ControlFlow::Continue(());
        }
        Contents::Event => Ok(Source::whole(message)),
        Contents::Unreadable(error) => {
            let unfit = Unfit::new(Reason::Undecodable, error);
            Err(DeadLetter::new(Source::whole(message), unfit))
        }
    };
    match first {
        0 => take(whole),
        _ => ControlFlow::Continue(()),
    }
}

/// What a run of messages becomes: each of its events a row or a dead letter.
#[derive(Default)]
pub struct Run {
    pub columns: Columns,
    /// What the rows are made from, in their order.
    pub events: Vec<Event>,
    pub dead_letters: Vec<DeadLetter>,
    /// The events, by type and producer.
    pub tally: Tally,
    /// The days of the events.
    pub days: BTreeSet<Date>,
}

/// A run while it is being decoded.
pub struct Decoding<'a> {
    writer: Box<dyn Writer + 'a>,
    run: Run,
}

impl<'a> Decoding<'a> {
    /// Of messages of `stream`, the stream's identity.
    pub fn new(kind: &'a dyn Kind, stream: &'a str) -> Self {
        Self {
            writer: kind.writer(stream),
            run: Run::default(),
        }
    }

    /// Adds an event of a message.
    pub fn add(&mut self, message: &Message, sent: Result<Source, DeadLetter>) {
        let fate = match sent {
            Ok(source) => match self.writer.write(&source) {
                Ok(row) => Ok(Event { source, row }),
                Err(unfit) => Err(DeadLetter::new(source, unfit)),
            },
            Err(letter) => Err(letter),
        };
        log(message, &fate);
        match fate {
            Ok(event) => {
                self.run.tally.add(&event);
                self.run.days.insert(event.row.time.date());
                self.run.events.push(event);
            }
            Err(letter) => self.run.dead_letters.push(letter),
        }
    }

    pub fn finish(self) -> Run {
        Run {
            columns: self.writer.finish(),
            ..self.run
        }
    }
}

/// One line per event. Never the payload: it holds what users wrote.
fn log(message: &Message, fate: &Result<Event, DeadLetter>) {
    let (subject, sequence, size) = (
        message.subject.as_str(),
        message.sequence,
        message.payload.len(),
    );
    match fate {
        Ok(event) => debug!(
            subject,
            sequence,
            size,
            event_type = event.row.event_type,
            "event"
        ),
        Err(letter) => debug!(
            subject,
            sequence,
            size,
            reason = letter.reason.as_str(),
            "dead letter"
        ),
    }
}
