//! Where a replay may already be although its letter is not marked: marking may have
//! failed, or the command was ended before it.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result};
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::Stream;
use clickhouse::Row;
use futures_util::StreamExt;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::letter::{self, Letter};
use crate::checkpoint;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::clickhouse::tables::Tables;
use crate::lane::Lane;
use crate::nats::StreamId;

/// Replays that were found, by their id, and where.
pub type Found = HashMap<Uuid, String>;

/// Looks for the replays of `letters` among the messages of the stream. Headers only,
/// and no more of them than are needed:
///
/// - what the daemon has not stored yet;
/// - on subjects of batch messages, all since the oldest letter: an event of a batch
///   does not carry its message's id into ClickHouse.
pub async fn in_stream(
    jetstream: &jetstream::Context,
    stream: &Stream,
    lane: &Lane,
    letters: &[Letter],
) -> Result<Found> {
    let wanted: HashSet<Uuid> = letters.iter().map(Letter::replay_id).collect();
    let id = StreamId::of(stream);
    let consumer = &lane.stream.consumer;
    let committed = match checkpoint::peek(jetstream, &id.name, consumer).await? {
        Some(record) if record.identity_of(&id).is_some() => record.committed,
        _ => 0,
    };
    let not_stored = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: committed + 1,
        },
        ..Default::default()
    };
    let mut found = scan(stream, not_stored, &wanted).await?;

    let may_be = |letter: &&Letter| lane.kind.may_hold_batches(&letter.subject);
    let of_batches = || letters.iter().filter(may_be);
    if let Some(oldest) = of_batches().map(Letter::received_at).min() {
        let subjects: BTreeSet<&str> = of_batches().map(|it| it.subject.as_str()).collect();
        let nanos = i128::from(oldest.0) * 1_000_000;
        let batches = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartTime {
                start_time: OffsetDateTime::from_unix_timestamp_nanos(nanos)?,
            },
            filter_subjects: subjects.into_iter().map(str::to_owned).collect(),
            ..Default::default()
        };
        found.extend(scan(stream, batches, &wanted).await?);
    }
    Ok(found)
}

async fn scan(stream: &Stream, config: OrderedConfig, wanted: &HashSet<Uuid>) -> Result<Found> {
    let config = OrderedConfig {
        headers_only: true,
        ..config
    };
    let mut found = Found::new();
    let consumer = stream.create_consumer(config).await?;
    let mut pending = consumer.cached_info().num_pending;
    if pending == 0 {
        return Ok(found);
    }
    let mut messages = consumer.messages().await?;
    while pending > 0 {
        let message = messages
            .next()
            .await
            .context("the stream ended while it was being searched")??;
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        pending = info.pending;
        let header = |headers: &async_nats::HeaderMap| {
            let id = headers.get(NATS_MESSAGE_ID)?;
            Uuid::try_parse(id.as_str()).ok()
        };
        if let Some(id) = message.headers.as_ref().and_then(header)
            && wanted.contains(&id)
        {
            let place = format!("is in the stream as sequence {}", info.stream_sequence);
            found.insert(id, place);
        }
    }
    Ok(found)
}

/// Looks for the replays of `letters` in ClickHouse: as events, and as letters again.
pub async fn in_clickhouse(
    clickhouse: &ClickHouse,
    tables: &Tables,
    letters: &[Letter],
) -> Result<Found> {
    #[derive(Row, Deserialize)]
    struct Replayed {
        id: String,
        place: String,
    }
    let Some(since) = letters.iter().map(Letter::received_at).min() else {
        return Ok(Found::new());
    };
    let ids: Vec<String> = letters
        .iter()
        .map(|letter| format!("'{}'", letter.replay_id()))
        .collect();
    let (ids, since) = (ids.join(", "), letter::time(Millis(since.0)));
    let Tables { events, time, .. } = tables;
    // Nothing is ordered by the id: the times keep the search to the partitions that a
    // replay can be in.
    let sql = format!(
        "SELECT toString(event_id) AS id, 'is in {events}' AS place FROM {events}
         WHERE {time} >= {since} - INTERVAL 31 DAY AND received_at >= {since} AND event_id IN ({ids})
         UNION ALL
         SELECT JSONExtractString(headers, '{NATS_MESSAGE_ID}', 1) AS id,
             concat('has become dead letter ', toString(stream_seq), '/', toString(batch_index)) AS place
         FROM dead_letters WHERE received_at >= {since} AND id IN ({ids})"
    );
    let rows: Vec<Replayed> = clickhouse.rows(&sql, &[]).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((Uuid::try_parse(&row.id).ok()?, row.place)))
        .collect())
}
