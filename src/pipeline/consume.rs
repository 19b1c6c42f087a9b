//! Reading the stream: every message after a given sequence, in stream order,
//! none left out.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{ConsumerErrorKind, Stream};
use async_nats::jetstream::{self, ErrorCode};
use futures_util::StreamExt;
use tracing::{debug, warn};

use super::decode::Message;

/// Messages asked for at a time. Twice as many can be on their way, which must
/// be less than what a subscription holds (65,536), or some would be dropped.
const PULL_MESSAGES: usize = 10_000;

/// Bytes asked for at a time, or one message of the largest size that NATS takes.
const PULL_BYTES: usize = 8 * 1024 * 1024;

/// How often JetStream says that it is alive when there is nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long the stream may be silent before it is asked whether something was
/// sent that did not arrive.
const SILENCE: Duration = Duration::from_secs(10);

/// JetStream sends again what is not acknowledged for this long. Nothing needs
/// it: what was lost on the way is fetched by repositioning. So it is longer
/// than ClickHouse may be away without a storm of repeats.
const ACK_WAIT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    #[error("cannot put consumer `{name}` in place: {error}")]
    Consumer { name: String, error: String },
    #[error("a message without JetStream's metadata: {0}")]
    NotJetStream(String),
}

/// What tells a consumer's messages from another's.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The durable's name.
    pub name: String,
    /// None of them covers another.
    pub subjects: Vec<String>,
    /// The largest payload that NATS takes, in bytes.
    pub max_payload: usize,
}

/// A message and how many of the stream follow it.
#[derive(Debug)]
pub struct Delivery {
    pub message: Message,
    pub pending: u64,
}

/// The durable consumer, read by this instance alone.
pub struct Consumer {
    stream: Stream,
    settings: Settings,
    /// The last stream sequence that was handed on; what is at or below it is a
    /// repeat.
    last: u64,
    /// `None` when the consumer must be put in place at `last + 1` first.
    messages: Option<Messages>,
}

struct Messages {
    stream: pull::Stream,
    /// The consumer sequence that comes next; another one means that messages
    /// were lost on the way.
    next: u64,
}

impl Consumer {
    /// Reads `stream` after the sequence `last`. Returns how many messages stand
    /// there, too.
    pub async fn start(
        stream: Stream,
        settings: Settings,
        last: u64,
    ) -> Result<(Self, u64), ConsumeError> {
        let mut consumer = Self {
            stream,
            settings,
            last,
            messages: None,
        };
        let pending = consumer.reposition().await?;
        Ok((consumer, pending))
    }

    /// The next message. May be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Result<Delivery, ConsumeError> {
        loop {
            let Some(messages) = &mut self.messages else {
                self.reposition().await?;
                continue;
            };
            let Ok(received) = tokio::time::timeout(SILENCE, messages.stream.next()).await else {
                self.look_for_lost_tail().await?;
                continue;
            };
            let message = match received {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    warn!(%error, after = self.last, "reading the stream was interrupted, going on after the last message");
                    self.messages = None;
                    continue;
                }
                None => {
                    self.messages = None;
                    continue;
                }
            };
            let info = message
                .info()
                .map_err(|error| ConsumeError::NotJetStream(error.to_string()))?;
            let (sequence, place) = (info.stream_sequence, info.consumer_sequence);
            if place != messages.next {
                warn!(
                    after = self.last,
                    "messages were lost on the way, reading them again"
                );
                self.messages = None;
                continue;
            }
            messages.next += 1;
            if sequence <= self.last {
                debug!(sequence, "a repeat, dropped");
                continue;
            }
            self.last = sequence;
            let pending = info.pending;
            let stored_at = i64::try_from(info.published.unix_timestamp_nanos())
                .map_err(|error| ConsumeError::NotJetStream(error.to_string()))?;
            return Ok(Delivery {
                message: to_message(sequence, stored_at, message),
                pending,
            });
        }
    }

    /// Puts the consumer at `last + 1`; returns how many messages stand there.
    ///
    /// It is deleted and made again: attaching to it as it is would go on *after*
    /// what it has sent and nobody acknowledged.
    async fn reposition(&mut self) -> Result<u64, ConsumeError> {
        let name = &self.settings.name;
        let failed = |error: String| ConsumeError::Consumer {
            name: name.clone(),
            error,
        };
        self.messages = None;
        if let Err(error) = self.stream.delete_consumer(name).await {
            match error.kind() {
                ConsumerErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND => {}
                _ => return Err(failed(error.to_string())),
            }
        }
        let consumer = self
            .stream
            .create_consumer(config(&self.settings, self.last))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let pending = consumer.cached_info().num_pending;
        let stream = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .max_bytes_per_batch(PULL_BYTES.max(2 * self.settings.max_payload))
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| failed(error.to_string()))?;
        self.messages = Some(Messages { stream, next: 1 });
        Ok(pending)
    }

    /// The last messages sent may have been lost with a connection: no later one
    /// shows the gap, so the consumer is asked what it has sent.
    async fn look_for_lost_tail(&mut self) -> Result<(), ConsumeError> {
        let name = &self.settings.name;
        match self.stream.consumer_info(name).await {
            Ok(info) if info.delivered.stream_sequence <= self.last => {}
            Ok(_) => {
                warn!(
                    after = self.last,
                    "messages were lost on the way, reading them again"
                );
                self.messages = None;
            }
            Err(error) => {
                warn!(%error, consumer = name, "the consumer does not answer, putting it in place again");
                self.messages = None;
            }
        }
        Ok(())
    }
}

/// The durable as it is put in place to read after the sequence `last`.
pub fn config(settings: &Settings, last: u64) -> pull::Config {
    pull::Config {
        durable_name: Some(settings.name.clone()),
        description: Some(
            "Put in place by analytics-server at every start, at its checkpoint".to_owned(),
        ),
        filter_subjects: settings.subjects.clone(),
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: last + 1,
        },
        // One acknowledgement a batch.
        ack_policy: AckPolicy::All,
        ack_wait: ACK_WAIT,
        // The daemon bounds what is in flight itself, by bytes.
        max_ack_pending: -1,
        ..Default::default()
    }
}

fn to_message(sequence: u64, stored_at: i64, message: jetstream::Message) -> Message {
    let jetstream::Message { message, .. } = message;
    Message {
        sequence,
        stored_at,
        subject: message.subject,
        headers: message.headers.unwrap_or_default(),
        payload: message.payload,
        reply: message.reply.unwrap_or_else(|| "".into()),
    }
}
