//! The messages of the stream, and what ClickHouse holds of each.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Result, bail};
use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use serde::Serialize;
use time::Date;
use tracing::warn;

use super::Span;
use super::chunk::Chunk;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::clickhouse::stored::{self, Origin, Place};
use crate::clickhouse::tables::DEAD_LETTERS;
use crate::config::Config;
use crate::lane::Lane;
use crate::lane::consume::{Consumer, Delivery, Durable};
use crate::lane::encode::Encoder;
use crate::nats::{Message, StreamId};

/// Interruptions in a row before giving up.
const MOST_INTERRUPTIONS: u32 = 5;

/// What there is to compare with.
pub struct Witness {
    pub jetstream: jetstream::Context,
    pub stream: Stream,
    /// The identity under which its messages are stored.
    pub identity: StreamId,
    /// Up to here everything is stored, according to the checkpoint.
    pub committed: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Comparison {
    /// Name and creation time.
    pub stream: String,
    pub messages: u64,
    /// The sequence up to which everything should be stored.
    pub last: u64,
    pub missing_events: u64,
    /// Including those that were purged.
    pub missing_dead_letters: u64,
    /// The sequence of the first missing event.
    pub first_missing: Option<u64>,
}

/// Reads what the stream of a lane still has of `span`, and looks for it in ClickHouse.
pub async fn compare(
    config: &Config,
    clickhouse: &ClickHouse,
    lane: &Lane,
    witness: Witness,
    span: Span,
) -> Result<Comparison> {
    let Witness {
        jetstream,
        stream,
        identity,
        committed,
    } = witness;
    let max_payload = jetstream.client().server_info().max_payload;
    let mut durable = Durable::new(&lane.stream, max_payload);
    // Separate from the daemon's own, which this must not touch.
    durable.name.push_str("-verify");
    let id = identity.to_string();
    let mut verifier = Verifier {
        clickhouse,
        encoder: Encoder::new(Arc::clone(&lane.kind), id.clone()),
        oldest: Millis(midnight(Span::all(config).first)),
        chunk: Chunk::default(),
        found: Comparison {
            stream: id,
            last: committed,
            ..Comparison::default()
        },
    };
    let mut after = 0;
    let mut interruptions = 0;
    while after < committed {
        // One that breaks the connection again and again is fetched in another form.
        let careful_until = after + u64::from(interruptions > 1);
        let mut consumer = Consumer::new(
            jetstream.clone(),
            stream.clone(),
            durable.clone(),
            after,
            careful_until,
        );
        let outcome = read(&mut consumer, &mut verifier, committed, span).await;
        interruptions = if consumer.last() > after {
            0
        } else {
            interruptions + 1
        };
        after = consumer.last();
        match outcome {
            Ok(()) => break,
            Err(Interrupted::Reading(error)) if interruptions < MOST_INTERRUPTIONS => {
                warn!(error, "reading again from there");
            }
            Err(Interrupted::Reading(error)) => bail!(error),
            Err(Interrupted::Comparing(error)) => return Err(error),
        }
    }
    // It may never have been created.
    let _ = stream.delete_consumer(&durable.name).await;
    verifier.compare().await?;
    Ok(verifier.found)
}

enum Interrupted {
    Reading(String),
    Comparing(anyhow::Error),
}

async fn read(
    consumer: &mut Consumer,
    verifier: &mut Verifier<'_>,
    committed: u64,
    span: Span,
) -> Result<(), Interrupted> {
    while consumer.last() < committed {
        let delivery = consumer
            .next()
            .await
            .map_err(|error| Interrupted::Reading(error.to_string()))?;
        let is_last = delivery.is_last();
        if let Delivery::Message { message, .. } = delivery
            && message.sequence <= committed
        {
            let received = Millis(message.stored_at.div_euclid(1_000_000)).date();
            if (span.first..=span.last).contains(&received) {
                verifier
                    .add(message)
                    .await
                    .map_err(Interrupted::Comparing)?;
            }
        }
        if is_last {
            break;
        }
    }
    Ok(())
}

struct Verifier<'a> {
    clickhouse: &'a ClickHouse,
    encoder: Encoder,
    /// ClickHouse may have dropped what is older.
    oldest: Millis,
    chunk: Chunk,
    found: Comparison,
}

impl Verifier<'_> {
    async fn add(&mut self, message: Message) -> Result<()> {
        let rows = self.encoder.kind().rows(&message);
        if !self.chunk.has_room_for(&message, rows) {
            self.compare().await?;
        }
        self.chunk.add(message, rows);
        Ok(())
    }

    async fn compare(&mut self) -> Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() {
            return Ok(());
        }
        let held = async |table| -> Result<HashSet<Origin>> {
            let stream = &self.found.stream;
            let rows = stored::origins_in(self.clickhouse, table, stream, &chunk.runs).await?;
            Ok(rows.into_iter().collect())
        };
        let events = held(self.encoder.kind().tables().events).await?;
        let letters = held(DEAD_LETTERS).await?;
        self.found.messages += chunk.messages.len() as u64;
        let mut next = Some(Place(0, 0));
        while let Some(from) = next {
            let (piece, after) = self.encoder.piece(&chunk.messages, from);
            let missing = piece.events.iter().filter(|event| {
                let origin = event.source.origin();
                // What ClickHouse refused is a dead letter.
                let is_held = events.contains(&origin) || letters.contains(&origin);
                event.row.time >= self.oldest && !is_held
            });
            for event in missing {
                self.found.missing_events += 1;
                let sequence = event.source.place.0;
                self.found.first_missing.get_or_insert(sequence);
            }
            let of_piece = piece.dead_letters.iter();
            let missing = of_piece.filter(|it| !letters.contains(&it.source.origin()));
            self.found.missing_dead_letters += missing.count() as u64;
            next = after;
        }
        Ok(())
    }
}

/// The day's first instant, in milliseconds since the Unix epoch.
fn midnight(day: Date) -> i64 {
    day.midnight().assume_utc().unix_timestamp() * 1000
}
