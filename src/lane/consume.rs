//! Reading the stream: every message after a given sequence, in stream order,
//! none left out.
//!
//! Anything odd ends the reading with an error: a gap in what was delivered, an error of
//! the client, a consumer that somebody deleted. The pipeline then starts again at its
//! checkpoint, which also finds out whether another instance has taken over.
//!
//! A gap in the stream itself is what it has dropped. JetStream sends a consumer all that
//! there is for it in stream order, and none is lost on the way; so where the consumer
//! reads all of the stream's subjects, a sequence that is passed over is gone.

mod durable;
mod gaps;
mod metadata;

use std::ops::RangeInclusive;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{ConsumerErrorKind, State, Stream};
use async_nats::jetstream::{self, ErrorCode};
use futures_util::{FutureExt, StreamExt};
use tracing::debug;

use crate::nats::{Arena, Headers, Message, StoredMessage, covering_set, covers, stored_message};
use gaps::Gaps;
use metadata::Metadata;

pub use durable::{Durable, create};

/// Messages asked for at a time. A few times as many can be in transit, which must be
/// less than what a subscription holds (65,536), or some would be dropped.
const PULL_MESSAGES: usize = 5_000;

/// Bytes asked for at a time, unless one message can be larger.
const PULL_BYTES: usize = 8 * 1024 * 1024;

/// How often JetStream says that it is alive when there is nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long the stream may be silent before the consumer is asked whether
/// something was sent that did not arrive.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    #[error("cannot put consumer `{name}` in place: {error}")]
    Consumer { name: String, error: String },
    #[error("reading the stream was interrupted after sequence {after}: {reason}")]
    Interrupted { after: u64, reason: String },
}

/// What comes next.
#[derive(Debug)]
pub enum Delivery {
    Message {
        message: Message,
        /// Nothing followed it in the stream when it was sent.
        is_last: bool,
    },
    /// There is nothing in the stream after where the reading started.
    EndOfStream,
    /// The stream has dropped what came next; whether a message follows is not known.
    Dropped,
}

/// The durable consumer, read by this instance alone.
pub struct Consumer {
    stream: Stream,
    jetstream: jetstream::Context,
    durable: Durable,
    /// The last stream sequence that was handed on.
    last: u64,
    phase: Phase,
    arena: Arena,
    gaps: Gaps,
}

/// How far the reading has come; each phase follows the one before it.
enum Phase {
    /// Where the reading starts has yet to be compared with where the stream does.
    New {
        careful_until: u64,
    },
    /// Messages up to this sequence are fetched one by one.
    Careful {
        until: u64,
    },
    /// The consumer has yet to be put in place.
    Ready,
    Pulling(Box<Messages>),
}

struct Messages {
    stream: pull::Stream,
    /// The consumer sequence that comes next; another one means that messages
    /// were lost on the way, or that the consumer is somebody else's by now.
    next: u64,
}

impl Delivery {
    /// Whether nothing followed it in the stream.
    pub fn is_last(&self) -> bool {
        matches!(
            self,
            Self::EndOfStream | Self::Message { is_last: true, .. }
        )
    }
}

impl Consumer {
    /// The last stream sequence that was handed on, or is known to be gone.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Will read `stream` after the sequence `last`.
    ///
    /// A message that the client library cannot take breaks its connection, each
    /// time it is sent. `careful_until` is above `last` when that may be the case:
    /// messages up to there are fetched one by one, in a form that is taken.
    pub fn new(
        jetstream: jetstream::Context,
        stream: Stream,
        durable: Durable,
        last: u64,
        careful_until: u64,
    ) -> Self {
        let subjects = &stream.cached_info().config.subjects;
        let subjects = covering_set(subjects.iter().map(String::as_str));
        Self {
            gaps: Gaps::new(subjects == durable.subjects),
            stream,
            jetstream,
            durable,
            last,
            phase: Phase::New { careful_until },
            arena: Arena::default(),
        }
    }

    /// What comes next. May be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Result<Delivery, ConsumeError> {
        loop {
            match self.phase {
                Phase::New { careful_until } => {
                    let dropped = self.look_for_start().await?;
                    self.phase = Phase::Careful {
                        until: careful_until,
                    };
                    if dropped {
                        return Ok(Delivery::Dropped);
                    }
                }
                Phase::Careful { until } if self.last < until => match self.fetch().await? {
                    Some(message) => {
                        self.pass_on_to(message.sequence);
                        return Ok(Delivery::Message {
                            message,
                            is_last: false,
                        });
                    }
                    None => self.phase = Phase::Ready,
                },
                Phase::Careful { .. } => self.phase = Phase::Ready,
                Phase::Ready => {
                    let (messages, pending) = self.put_in_place().await?;
                    self.phase = Phase::Pulling(Box::new(messages));
                    if pending == 0 {
                        return Ok(Delivery::EndOfStream);
                    }
                }
                Phase::Pulling(_) => return self.receive().await,
            }
        }
    }

    /// From now on, what the stream has dropped before it was read is kept until
    /// [`take_gaps`](Self::take_gaps) is called.
    pub fn gather_gaps(&mut self) {
        self.gaps.gather();
    }

    /// What the stream has dropped before it was read, in stream order, since this was
    /// last called.
    ///
    /// The first of them is compared with the stream. Sequences that a consumer passes
    /// over need not be gone where there are messages on a subject that the stream has
    /// or had in addition to those of its configuration: such messages are never
    /// reported.
    ///
    /// # Errors
    /// Also, every time, when the stream still has a message that the consumer passed
    /// over.
    pub async fn take_gaps(&mut self) -> Result<Vec<RangeInclusive<u64>>, ConsumeError> {
        let Some(gap) = self.gaps.first() else {
            return Ok(Vec::new());
        };
        let found = self.stored_from(*gap.start()).await?;
        let Some(found) = found.filter(|found| gap.contains(&found.sequence)) else {
            return Ok(self.gaps.take());
        };
        let subjects = &self.durable.subjects;
        if subjects.iter().any(|own| covers(own, &found.subject)) {
            let reason = format!("message {} was left out", found.sequence);
            return Err(self.interrupted(reason));
        }
        self.gaps.distrust();
        Ok(Vec::new())
    }

    /// Moves on to this sequence, past what the stream has dropped before it.
    fn pass_on_to(&mut self, sequence: u64) {
        self.gaps.passed_over(self.last, sequence);
        self.last = sequence;
    }

    /// Whether the stream itself says that nothing follows. A consumer's own word is
    /// not enough: in a cluster it may be behind the stream.
    pub async fn is_at_end(&self) -> Result<bool, ConsumeError> {
        Ok(self.fetch().await?.is_none())
    }

    /// What comes next, if it is here already and can be handed on as it is. Under load
    /// it is, and needs no timers.
    pub fn arrived(&mut self) -> Option<Result<Delivery, ConsumeError>> {
        let Phase::Pulling(messages) = &mut self.phase else {
            return None;
        };
        let received = messages.stream.next().now_or_never()?;
        self.accept(received).transpose()
    }

    /// The next message of the pull consumer.
    async fn receive(&mut self) -> Result<Delivery, ConsumeError> {
        loop {
            let Phase::Pulling(messages) = &mut self.phase else {
                return Err(self.interrupted("the consumer is not in place"));
            };
            let Ok(received) = tokio::time::timeout(SILENCE, messages.stream.next()).await else {
                self.look_for_lost_messages().await?;
                if self.look_for_dropped_end().await? {
                    return Ok(Delivery::Dropped);
                }
                continue;
            };
            if let Some(delivery) = self.accept(received)? {
                return Ok(delivery);
            }
        }
    }

    /// A message of the pull consumer. `None` for a repeat.
    fn accept(
        &mut self,
        received: Option<Result<jetstream::Message, pull::MessagesError>>,
    ) -> Result<Option<Delivery>, ConsumeError> {
        let message = match received {
            Some(Ok(message)) => message.message,
            Some(Err(error)) => return Err(self.interrupted(error)),
            None => return Err(self.interrupted("the subscription ended")),
        };
        let metadata = message.reply.as_deref().and_then(Metadata::parse);
        let (Some(metadata), Phase::Pulling(messages)) = (metadata, &mut self.phase) else {
            return Err(self.interrupted("a message without metadata"));
        };
        if metadata.consumer_sequence != messages.next {
            return Err(self.interrupted("messages were lost on the way"));
        }
        messages.next += 1;
        let sequence = metadata.stream_sequence;
        if sequence <= self.last {
            debug!(sequence, "a repeat, dropped");
            return Ok(None);
        }
        self.pass_on_to(sequence);
        let message = Message {
            sequence,
            stored_at: metadata.stored_at,
            subject: self.arena.subject(message.subject),
            headers: match &message.headers {
                Some(headers) => self.arena.headers(headers),
                None => Headers::default(),
            },
            payload: self.arena.bytes(&message.payload),
            reply: message.reply,
        };
        Ok(Some(Delivery::Message {
            message,
            is_last: metadata.pending == 0,
        }))
    }

    fn interrupted(&self, reason: impl ToString) -> ConsumeError {
        ConsumeError::Interrupted {
            after: self.last,
            reason: reason.to_string(),
        }
    }

    /// Whether the stream starts after where the reading does. If so, the reading moves
    /// on to there.
    async fn look_for_start(&mut self) -> Result<bool, ConsumeError> {
        let first = self.state().await?.first_sequence;
        if self.last == 0 || first <= self.last + 1 {
            return Ok(false);
        }
        self.gaps.dropped(self.last, first - 1);
        self.last = first - 1;
        Ok(true)
    }

    /// Whether the stream had messages after the last one and has none now. If so, they
    /// are passed over.
    async fn look_for_dropped_end(&mut self) -> Result<bool, ConsumeError> {
        if !self.gaps.are_wanted() {
            return Ok(false);
        }
        let end = self.state().await?.last_sequence;
        // In this order: what comes in between has a sequence beyond that end.
        if end <= self.last || self.stored_from(self.last + 1).await?.is_some() {
            return Ok(false);
        }
        self.gaps.dropped(self.last, end);
        self.last = end;
        Ok(true)
    }

    async fn state(&self) -> Result<State, ConsumeError> {
        let info = self.stream.get_info().await;
        Ok(info.map_err(|error| self.interrupted(error))?.state)
    }

    /// The first message at or after `sequence`, on whatever subject.
    async fn stored_from(&self, sequence: u64) -> Result<Option<StoredMessage>, ConsumeError> {
        let stream = &self.stream.cached_info().config.name;
        stored_message(&self.jetstream, stream, sequence, ">")
            .await
            .map_err(|error| self.interrupted(error))
    }

    /// Puts the consumer at `last + 1`; also returns how many messages wait there.
    ///
    /// It is deleted and created again: attaching to it as it is would continue *after*
    /// what it has sent and nobody has acknowledged.
    async fn put_in_place(&self) -> Result<(Messages, u64), ConsumeError> {
        let name = &self.durable.name;
        let failed = |error: String| ConsumeError::Consumer {
            name: name.clone(),
            error,
        };
        if let Err(error) = self.stream.delete_consumer(name).await {
            match error.kind() {
                ConsumerErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND => {}
                _ => return Err(failed(error.to_string())),
            }
        }
        let consumer = create(&self.stream, &self.durable, self.last).await?;
        let pending = consumer.cached_info().num_pending;
        let stream = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .max_bytes_per_batch(PULL_BYTES.max(2 * self.durable.max_payload))
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok((Messages { stream, next: 1 }, pending))
    }

    /// What was lost together with a connection shows in no gap while nothing
    /// follows it, so the consumer is asked what it has sent.
    async fn look_for_lost_messages(&self) -> Result<(), ConsumeError> {
        let info = self
            .stream
            .consumer_info(&self.durable.name)
            .await
            .map_err(|error| self.interrupted(error))?;
        if info.delivered.stream_sequence > self.last || info.num_pending > 0 {
            return Err(self.interrupted("messages were lost on the way"));
        }
        Ok(())
    }

    /// The next message, by request. `None` at the end of the stream.
    async fn fetch(&self) -> Result<Option<Message>, ConsumeError> {
        let stream = &self.stream.cached_info().config.name;
        let mut next: Option<StoredMessage> = None;
        for subject in &self.durable.subjects {
            let found = stored_message(&self.jetstream, stream, self.last + 1, subject)
                .await
                .map_err(|error| self.interrupted(error))?;
            let is_nearer = |found: &StoredMessage| {
                next.as_ref()
                    .is_none_or(|next| found.sequence < next.sequence)
            };
            if let Some(found) = found.filter(is_nearer) {
                next = Some(found);
            }
        }
        Ok(next.map(|stored| Message {
            sequence: stored.sequence,
            stored_at: stored.stored_at,
            subject: stored.subject.into(),
            headers: Headers::from(&stored.headers),
            payload: stored.payload,
            reply: None,
        }))
    }
}
