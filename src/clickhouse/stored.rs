//! What ClickHouse holds of a stream, by the rows' place in it.

use std::ops::RangeInclusive;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::client::ClickHouse;
use super::codes;
use super::reach::{INSERTED_INTO, Name};
use super::row_policy;
use crate::event::{Place, Source};

/// A row's origin. The time is part of it: a stream that lost its tail gives the
/// same sequences to other messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Row, Deserialize)]
pub struct Origin {
    pub stream_seq: u64,
    pub batch_index: u32,
    /// Milliseconds since the Unix epoch.
    pub received_at: i64,
}

impl Origin {
    pub fn of(source: &Source) -> Self {
        Self {
            stream_seq: source.place.0,
            batch_index: source.place.1,
            received_at: source.received_at.0,
        }
    }
}

/// The rows of `table` with places from `first` to `last`.
pub async fn origins_between(
    clickhouse: &ClickHouse,
    table: &str,
    stream: &str,
    first: Place,
    last: Place,
) -> Result<Vec<Origin>, Error> {
    // The skip index knows sequences alone.
    let sequences = is_in(&[first.0..=last.0]);
    let place = |Place(sequence, index)| format!("({sequence}, {index})");
    let which = format!(
        "{sequences} AND (stream_seq, batch_index) BETWEEN {} AND {}",
        place(first),
        place(last)
    );
    origins(clickhouse, table, stream, &which).await
}

/// The rows of `table` with sequences in these runs, some hundred at most: they stand in the
/// statement.
pub async fn origins_in(
    clickhouse: &ClickHouse,
    table: &str,
    stream: &str,
    runs: &[RangeInclusive<u64>],
) -> Result<Vec<Origin>, Error> {
    origins(clickhouse, table, stream, &is_in(runs)).await
}

async fn origins(
    clickhouse: &ClickHouse,
    table: &str,
    stream: &str,
    which: &str,
) -> Result<Vec<Origin>, Error> {
    may_see_all_of(clickhouse, table).await?;
    clickhouse
        .rows(
            &format!(
                "SELECT stream_seq, batch_index, toUnixTimestamp64Milli(received_at) AS received_at FROM {table}
                 WHERE stream = {{stream:String}} AND ({which})"
            ),
            &[("stream", stream)],
        )
        .await
}

async fn may_see_all_of(clickhouse: &ClickHouse, table: &str) -> Result<(), Error> {
    row_policy::refuse(clickhouse, &Name::new(clickhouse.database(), table)).await
}

async fn may_see_all(clickhouse: &ClickHouse) -> Result<(), Error> {
    for table in INSERTED_INTO {
        may_see_all_of(clickhouse, table).await?;
    }
    Ok(())
}

/// The condition that a row's sequence is in one of these runs.
fn is_in(runs: &[RangeInclusive<u64>]) -> String {
    let runs = runs
        .iter()
        .map(|run| format!("stream_seq BETWEEN {} AND {}", run.start(), run.end()));
    runs.collect::<Vec<_>>().join(" OR ")
}

/// The last sequence after `sequence` that is stored, as an event or a dead letter.
/// Quick where there is none: the skip index rules the parts out.
pub async fn last_after(
    clickhouse: &ClickHouse,
    stream: &str,
    sequence: u64,
) -> Result<Option<u64>, Error> {
    #[derive(Row, Deserialize)]
    struct Last {
        last: u64,
    }
    may_see_all(clickhouse).await?;
    let mut last = 0;
    for table in INSERTED_INTO {
        let rows: Vec<Last> = clickhouse
            .rows(
                &format!(
                    "SELECT max(stream_seq) AS last FROM {table}
                     WHERE stream = {{stream:String}} AND stream_seq > {{sequence:UInt64}}"
                ),
                &[("stream", stream), ("sequence", &sequence.to_string())],
            )
            .await?;
        last = rows.iter().map(|row| row.last).fold(last, u64::max);
    }
    Ok((last > 0).then_some(last))
}

/// A row of a stream of some name, whatever its creation time.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Witness {
    /// The stream's identity.
    pub stream: String,
    pub stream_seq: u64,
    /// Milliseconds since the Unix epoch.
    pub received_at: i64,
}

/// Rows of each stream of this name among these sequences, the newest stream first: those of
/// its first and its last sequences. Several of each, since single messages may have been
/// deleted, and those of the end may be of a stream that has lost them.
pub async fn witnesses(
    clickhouse: &ClickHouse,
    name: &str,
    first: u64,
    last: u64,
) -> Result<Vec<Witness>, Error> {
    may_see_all(clickhouse).await?;
    let which =
        "startsWith(stream, {name:String}) AND stream_seq BETWEEN {first:UInt64} AND {last:UInt64}";
    let columns = "toString(stream) AS stream, stream_seq, toUnixTimestamp64Milli(received_at) AS received_at";
    clickhouse
        .rows(
            &format!(
                "WITH messages AS
                 (
                     SELECT DISTINCT {columns} FROM
                     (
                         SELECT stream, stream_seq, received_at FROM analytics_events WHERE {which}
                         UNION ALL
                         SELECT stream, stream_seq, received_at FROM dead_letters WHERE {which}
                     )
                 )
                 SELECT DISTINCT stream, stream_seq, received_at FROM
                 (
                     SELECT * FROM messages ORDER BY stream_seq LIMIT 20 BY stream
                     UNION ALL
                     SELECT * FROM messages ORDER BY stream_seq DESC LIMIT 20 BY stream
                 )
                 ORDER BY stream DESC, stream_seq"
            ),
            &[
                ("name", &format!("{name}@")),
                ("first", &first.to_string()),
                ("last", &last.to_string()),
            ],
        )
        .await
}

/// Whether anything of the stream is stored: looked for no longer than until it is found.
pub async fn holds_any(clickhouse: &ClickHouse, stream: &str) -> Result<bool, Error> {
    may_see_all(clickhouse).await?;
    let found = count(
        clickhouse,
        "SELECT count() AS count FROM
         (
             (SELECT 1 FROM analytics_events WHERE stream = {stream:String} LIMIT 1)
             UNION ALL
             (SELECT 1 FROM dead_letters WHERE stream = {stream:String} LIMIT 1)
         )",
        &[("stream", stream)],
    )
    .await?;
    Ok(found > 0)
}

/// Gaps that are asked about in one statement, which is 70 bytes a gap: ClickHouse takes
/// 256 KiB, and proxies may take less.
const GAPS: usize = 500;

/// How many sequences of these gaps are stored, as events or dead letters. The gaps are in
/// stream order.
///
/// Mostly none is, nor anything between them; that is one question, however many gaps
/// there are.
pub async fn sequences(
    clickhouse: &ClickHouse,
    stream: &str,
    gaps: &[RangeInclusive<u64>],
) -> Result<u64, Error> {
    let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else {
        return Ok(0);
    };
    let span = *first.start()..=*last.end();
    let in_span = sequences_in(clickhouse, stream, &[span]).await?;
    if in_span == 0 || gaps.len() == 1 {
        return Ok(in_span);
    }
    let mut stored = 0;
    for gaps in gaps.chunks(GAPS) {
        stored += sequences_in(clickhouse, stream, gaps).await?;
    }
    Ok(stored)
}

async fn sequences_in(
    clickhouse: &ClickHouse,
    stream: &str,
    gaps: &[RangeInclusive<u64>],
) -> Result<u64, Error> {
    let is_in_gaps = is_in(gaps);
    let which = format!("stream = {{stream:String}} AND ({is_in_gaps})");
    count(
        clickhouse,
        &format!(
            "SELECT uniqExact(stream_seq) AS count FROM
             (
                 SELECT stream_seq FROM analytics_events WHERE {which}
                 UNION ALL
                 SELECT stream_seq FROM dead_letters WHERE {which}
             )"
        ),
        &[("stream", stream)],
    )
    .await
}

/// Whether an insert of the stream runs: its token, which is the query's id, starts
/// with the stream. The embedded engine shows its own ids.
pub async fn inserts_run(clickhouse: &ClickHouse, stream: &str) -> Result<bool, Error> {
    let running = count(
        clickhouse,
        "SELECT count() AS count FROM system.processes
         WHERE query_kind = 'Insert' AND current_database = currentDatabase()
             AND (startsWith(query_id, {stream:String}) OR client_name = 'chDB client')",
        &[("stream", stream)],
    )
    .await?;
    Ok(running > 0)
}

/// Whether the user may ask [`inserts_run`].
pub async fn may_see_processes(clickhouse: &ClickHouse) -> Result<bool, Error> {
    let sql = "SELECT count() AS count FROM system.processes";
    match count(&clickhouse.without_database(), sql, &[]).await {
        Ok(_) => Ok(true),
        Err(error) if codes::of(&error) == Some(codes::ACCESS_DENIED) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn count(
    clickhouse: &ClickHouse,
    sql: &str,
    parameters: &[(&str, &str)],
) -> Result<u64, Error> {
    #[derive(Row, Deserialize)]
    struct Count {
        count: u64,
    }
    let rows: Vec<Count> = clickhouse.rows(sql, parameters).await?;
    Ok(rows.iter().map(|row| row.count).sum())
}
