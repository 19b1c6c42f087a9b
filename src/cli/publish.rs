//! Publishing sample events: many publishes under way at a time, each one confirmed.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::{self, context::PublishAckFuture};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use crate::kind::Sample;
use crate::retry::Retry;

/// Publishes under way at a time; JetStream answers each.
const WINDOW: usize = 1024;

/// A message to publish.
pub struct Outgoing {
    id: Uuid,
    subject: String,
    payload: Vec<u8>,
}

/// A message that is in the stream.
pub struct Published {
    pub id: Uuid,
    pub sequence: u64,
    /// Bytes of the payload.
    pub bytes: usize,
    /// Just before it was sent.
    pub sent: Instant,
}

/// Publishes what `next` gives until that is `None`; `stored` is called for each message,
/// in the same order.
pub async fn publish(
    jetstream: &jetstream::Context,
    mut next: impl AsyncFnMut() -> Option<Outgoing>,
    mut stored: impl FnMut(Published),
) -> Result<()> {
    // One for all: what keeps one message from being stored does so for the others, too.
    let failures = Mutex::new(Retry::new());
    let mut window = FuturesOrdered::new();
    // The first one goes alone: it shows whether a right is missing.
    let mut most = 1;
    while let Some(message) = next().await {
        let sent = Instant::now();
        let ack = message.publish(jetstream).await;
        window.push_back(confirm(jetstream, message, sent, ack, &failures));
        if window.len() >= most
            && let Some(published) = window.next().await
        {
            stored(published?);
            most = WINDOW;
        }
    }
    while let Some(published) = window.next().await {
        stored(published?);
    }
    Ok(())
}

impl Outgoing {
    pub fn new(Sample { subject, payload }: Sample) -> Self {
        Self {
            id: Uuid::new_v4(),
            subject,
            payload,
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

/// Waits for JetStream's answer, publishing again if there is none. What goes wrong is
/// logged if it is news among `failures`.
async fn confirm(
    jetstream: &jetstream::Context,
    message: Outgoing,
    sent: Instant,
    mut ack: Result<PublishAckFuture, jetstream::context::PublishError>,
    failures: &Mutex<Retry>,
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
        let error = match answer {
            Ok(ack) => return Ok(published(ack.sequence)),
            Err(error) => error,
        };
        let is_news = {
            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.is_news(&error)
        };
        if is_news {
            tracing::warn!(%error, "publishing failed, retrying");
        }
        retry.pause().await;
        ack = message.publish(jetstream).await;
    }
    let answer = ack?.await.with_context(|| {
        let subject = &message.subject;
        format!(
            "cannot publish to `{subject}` (is the NATS user allowed to, and does a stream have the subject?)"
        )
    })?;
    Ok(published(answer.sequence))
}

/// Draws on stderr, and only if that is a terminal.
pub fn progress_bar(events: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} events, {per_sec}, {eta} left",
    );
    ProgressBar::new(events).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
