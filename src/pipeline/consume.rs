//! Reading the stream: every message after a given sequence, in stream order,
//! none left out.
//!
//! Anything odd ends the reading with an error: a gap, an error of the client, a
//! consumer that somebody deleted. The pipeline then starts again at its
//! checkpoint, which also finds out whether another instance has taken over.

use std::str::FromStr;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{ConsumerErrorKind, Stream};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::prelude::{BASE64_STANDARD, Engine};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tracing::debug;

use super::decode::Message;
use crate::config::Messaging;
use crate::nats::covering_set;

/// Messages asked for at a time. A few times as many can be on their way, which
/// must be less than what a subscription holds (65,536), or some would be dropped.
const PULL_MESSAGES: usize = 10_000;

/// Bytes asked for at a time, unless one message can be larger.
const PULL_BYTES: usize = 8 * 1024 * 1024;

/// How often JetStream says that it is alive when there is nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long the stream may be silent before the consumer is asked whether
/// something was sent that did not arrive.
const SILENCE: Duration = Duration::from_secs(10);

/// JetStream sends again what is not acknowledged for this long. Nothing needs
/// it: what was lost on the way is read again from the checkpoint. So it is longer
/// than ClickHouse may be away without a storm of repeats.
const ACK_WAIT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    #[error("cannot put consumer `{name}` in place: {error}")]
    Consumer { name: String, error: String },
    #[error("reading the stream was interrupted after sequence {after}: {reason}")]
    Interrupted { after: u64, reason: String },
}

/// What the durable consumer is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The durable's name.
    pub name: String,
    /// None of them covers another.
    pub subjects: Vec<String>,
    /// The largest payload that NATS takes, in bytes.
    pub max_payload: usize,
}

impl Settings {
    pub fn new(messaging: &Messaging, max_payload: usize) -> Self {
        Self {
            name: messaging.jetstream.consumer_name.clone(),
            subjects: covering_set(messaging.subjects.all()),
            max_payload,
        }
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Delivery {
    Message {
        message: Message,
        /// Nothing followed it in the stream when it was sent.
        is_last: bool,
    },
    /// Nothing stands in the stream after where the reading started.
    EndOfStream,
}

/// The durable consumer, read by this instance alone.
pub struct Consumer {
    stream: Stream,
    jetstream: jetstream::Context,
    settings: Settings,
    /// The last stream sequence that was handed on.
    last: u64,
    /// Up to this sequence messages are fetched one by one.
    careful_until: u64,
    /// `None` until the consumer was put in place.
    messages: Option<Messages>,
}

struct Messages {
    stream: pull::Stream,
    /// The consumer sequence that comes next; another one means that messages
    /// were lost on the way, or that the consumer is somebody else's by now.
    next: u64,
}

impl Consumer {
    /// Will read `stream` after the sequence `last`.
    ///
    /// A message that the client library cannot take breaks its connection, each
    /// time it is sent. `careful_until` is above `last` when that may be the case:
    /// messages up to there are fetched one by one, in a form that is taken.
    pub fn new(
        jetstream: jetstream::Context,
        stream: Stream,
        settings: Settings,
        last: u64,
        careful_until: u64,
    ) -> Self {
        Self {
            stream,
            jetstream,
            settings,
            last,
            careful_until,
            messages: None,
        }
    }

    /// What comes next. May be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Result<Delivery, ConsumeError> {
        while self.last < self.careful_until {
            match self.fetch().await? {
                Some(message) => {
                    self.last = message.sequence;
                    return Ok(Delivery::Message {
                        message,
                        is_last: false,
                    });
                }
                None => self.careful_until = self.last,
            }
        }
        if self.messages.is_none() {
            let (messages, pending) = self.put_in_place().await?;
            self.messages = Some(messages);
            if pending == 0 {
                return Ok(Delivery::EndOfStream);
            }
        }
        self.receive().await
    }

    /// The next message of the pull consumer.
    async fn receive(&mut self) -> Result<Delivery, ConsumeError> {
        let after = self.last;
        let interrupted = |reason: String| ConsumeError::Interrupted { after, reason };
        loop {
            let Some(messages) = &mut self.messages else {
                return Err(interrupted("the consumer is not in place".to_owned()));
            };
            let Ok(received) = tokio::time::timeout(SILENCE, messages.stream.next()).await else {
                self.look_for_lost_messages().await?;
                continue;
            };
            let message = match received {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(interrupted(error.to_string())),
                None => return Err(interrupted("the subscription ended".to_owned())),
            };
            let info = message
                .info()
                .map_err(|error| interrupted(format!("a message without metadata: {error}")))?;
            if info.consumer_sequence != messages.next {
                return Err(interrupted("messages were lost on the way".to_owned()));
            }
            messages.next += 1;
            let (sequence, is_last) = (info.stream_sequence, info.pending == 0);
            if sequence <= after {
                debug!(sequence, "a repeat, dropped");
                continue;
            }
            let stored_at = nanoseconds(info.published);
            self.last = sequence;
            let jetstream::Message { message, .. } = message;
            return Ok(Delivery::Message {
                message: Message {
                    sequence,
                    stored_at,
                    subject: message.subject,
                    headers: message.headers.unwrap_or_default(),
                    payload: message.payload,
                    reply: message.reply,
                },
                is_last,
            });
        }
    }

    /// Puts the consumer at `last + 1`; returns how many messages stand there, too.
    ///
    /// It is deleted and made again: attaching to it as it is would go on *after*
    /// what it has sent and nobody acknowledged.
    async fn put_in_place(&self) -> Result<(Messages, u64), ConsumeError> {
        let name = &self.settings.name;
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
        let consumer = create(&self.stream, &self.settings, self.last).await?;
        let pending = consumer.cached_info().num_pending;
        let stream = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .max_bytes_per_batch(PULL_BYTES.max(2 * self.settings.max_payload))
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok((Messages { stream, next: 1 }, pending))
    }

    /// What was lost together with a connection shows in no gap while nothing
    /// follows it, so the consumer is asked what it has sent.
    async fn look_for_lost_messages(&self) -> Result<(), ConsumeError> {
        let interrupted = |reason: String| ConsumeError::Interrupted {
            after: self.last,
            reason,
        };
        let info = self
            .stream
            .consumer_info(&self.settings.name)
            .await
            .map_err(|error| interrupted(error.to_string()))?;
        if info.delivered.stream_sequence > self.last || info.num_pending > 0 {
            return Err(interrupted("messages were lost on the way".to_owned()));
        }
        Ok(())
    }

    /// The next message, by a request whose answer is JSON, with its headers in a
    /// form that nothing parses on the way. `None` at the end of the stream.
    async fn fetch(&self) -> Result<Option<Message>, ConsumeError> {
        let mut next: Option<Stored> = None;
        for subject in &self.settings.subjects {
            let request = GetMessage {
                seq: self.last + 1,
                next_by_subj: subject,
            };
            let api = format!("STREAM.MSG.GET.{}", self.stream.cached_info().config.name);
            let interrupted = |reason: String| ConsumeError::Interrupted {
                after: self.last,
                reason,
            };
            match self.jetstream.request(api, &request).await {
                Ok(Response::Ok(GotMessage { message })) => {
                    if next.as_ref().is_none_or(|next| message.seq < next.seq) {
                        next = Some(message);
                    }
                }
                Ok(Response::Err { error })
                    if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {}
                Ok(Response::Err { error }) => return Err(interrupted(error.to_string())),
                Err(error) => return Err(interrupted(error.to_string())),
            }
        }
        let Some(stored) = next else {
            return Ok(None);
        };
        let undecodable = |error: base64::DecodeError| ConsumeError::Interrupted {
            after: self.last,
            reason: error.to_string(),
        };
        let headers = BASE64_STANDARD.decode(&stored.hdrs).map_err(undecodable)?;
        let payload = BASE64_STANDARD.decode(&stored.data).map_err(undecodable)?;
        Ok(Some(Message {
            sequence: stored.seq,
            stored_at: nanoseconds(stored.time),
            subject: stored.subject.into(),
            headers: readable_headers(&headers),
            payload: payload.into(),
            reply: None,
        }))
    }
}

/// A request to `$JS.API.STREAM.MSG.GET`, as nats-server documents it.
#[derive(Serialize)]
struct GetMessage<'a> {
    seq: u64,
    next_by_subj: &'a str,
}

#[derive(Deserialize)]
struct GotMessage {
    message: Stored,
}

/// Headers and data are base64, and left out where there are none.
#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
}

/// The headers of a message as it stands in the stream, but for those that the
/// client library refuses: names and values that are not text, or no pair at all.
fn readable_headers(raw: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in raw.split(|byte| *byte == b'\n').skip(1) {
        let Some((name, value)) = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once(':'))
        else {
            continue;
        };
        if !name.is_empty()
            && let (Ok(name), Ok(value)) = (
                HeaderName::from_str(name),
                HeaderValue::from_str(value.trim()),
            )
        {
            headers.append(name, value);
        }
    }
    headers
}

/// Nanoseconds since the Unix epoch, which reach to the year 2262.
fn nanoseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// Makes the durable, which must be missing, to read after the sequence `last`.
pub async fn create(
    stream: &Stream,
    settings: &Settings,
    last: u64,
) -> Result<PullConsumer, ConsumeError> {
    stream
        .create_consumer(config(settings, last))
        .await
        .map_err(|error| ConsumeError::Consumer {
            name: settings.name.clone(),
            error: error.to_string(),
        })
}

/// The durable as it is put in place to read after the sequence `last`.
fn config(settings: &Settings, last: u64) -> pull::Config {
    let mut config = pull::Config {
        durable_name: Some(settings.name.clone()),
        description: Some(
            "Put in place by analytics-server at every start, at its checkpoint".to_owned(),
        ),
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: last + 1,
        },
        // One acknowledgement a batch.
        ack_policy: AckPolicy::All,
        ack_wait: ACK_WAIT,
        // The daemon bounds what is in flight itself, by bytes.
        max_ack_pending: -1,
        ..Default::default()
    };
    // Servers before 2.10 do not know the plural.
    match settings.subjects.as_slice() {
        [subject] => config.filter_subject.clone_from(subject),
        subjects => config.filter_subjects = subjects.to_vec(),
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_cannot_be_read_are_left_out_and_the_others_kept() {
        let raw = b"NATS/1.0\r\nNats-Msg-Id: 17\r\nX: \xff\r\nno pair\r\n: nameless\r\nb: 1\r\nb: 2\r\n\r\n";
        let headers = readable_headers(raw);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), "17");
        assert_eq!(headers.get_all("b").count(), 2);
    }
}
