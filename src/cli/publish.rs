//! Publishing sample events: many publishes under way at a time, each one confirmed.

use std::time::Instant;

use anyhow::{Context, Result};
use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::{self, context::PublishAckFuture};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use uuid::Uuid;

use crate::retry::Retry;
use crate::sample::Sample;

/// Publishes under way at a time; JetStream answers each.
const WINDOW: usize = 1024;

/// A message to publish.
pub struct Outgoing {
    id: Uuid,
    subject: String,
    payload: Vec<u8>,
}

/// A message that stands in the stream.
pub struct Published {
    pub id: Uuid,
    pub sequence: u64,
    /// Bytes of the payload.
    pub bytes: usize,
    /// Just before it was sent.
    pub sent: Instant,
}

/// Publishes what `next` gives until that is `None`; `stored` hears of each message,
/// in the same order.
pub async fn publish(
    jetstream: &jetstream::Context,
    mut next: impl AsyncFnMut() -> Option<Outgoing>,
    mut stored: impl FnMut(Published),
) -> Result<()> {
    let mut window = FuturesOrdered::new();
    while let Some(message) = next().await {
        let sent = Instant::now();
        let ack = message.publish(jetstream).await;
        window.push_back(confirm(jetstream, message, sent, ack));
        if window.len() >= WINDOW
            && let Some(published) = window.next().await
        {
            stored(published?);
        }
    }
    while let Some(published) = window.next().await {
        stored(published?);
    }
    Ok(())
}

impl Outgoing {
    /// `prefix` is what the configured subject has before its `>`.
    pub fn new(prefix: &str, sample: &Sample) -> Self {
        Self {
            id: Uuid::new_v4(),
            subject: format!("{prefix}{}", sample.subject),
            payload: sample.event.encode_to_vec(),
        }
    }

    async fn publish(
        &self,
        jetstream: &jetstream::Context,
    ) -> Result<PublishAckFuture, jetstream::context::PublishError> {
        let mut headers = HeaderMap::new();
        // Also lets JetStream drop the repeat of a publish whose answer was lost.
        headers.insert(NATS_MESSAGE_ID, self.id.to_string());
        jetstream
            .publish_with_headers(self.subject.clone(), headers, self.payload.clone().into())
            .await
    }
}

/// Waits for JetStream's answer, publishing again where there is none.
async fn confirm(
    jetstream: &jetstream::Context,
    message: Outgoing,
    sent: Instant,
    mut ack: Result<PublishAckFuture, jetstream::context::PublishError>,
) -> Result<Published> {
    const TRIES: usize = 5;
    let published = |sequence| Published {
        id: message.id,
        sequence,
        bytes: message.payload.len(),
        sent,
    };
    let mut retry = Retry::new();
    for _ in 1..TRIES {
        let answer = match ack {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(ack) => return Ok(published(ack.sequence)),
            Err(error) if retry.is_news(&error) => {
                tracing::warn!(%error, "publishing failed, retrying")
            }
            Err(_) => {}
        }
        retry.pause().await;
        ack = message.publish(jetstream).await;
    }
    let answer = ack?
        .await
        .with_context(|| format!("cannot publish to `{}`", message.subject))?;
    Ok(published(answer.sequence))
}

/// Draws on stderr, and only where that is a terminal.
pub fn progress_bar(events: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} events, {per_sec}, {eta} left",
    );
    ProgressBar::new(events).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
