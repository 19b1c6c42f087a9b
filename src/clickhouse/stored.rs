//! What ClickHouse holds of a stream, by the rows' place in it.

use std::ops::RangeInclusive;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::{Deserialize, Serialize};

use super::client::ClickHouse;
use super::codes;
use super::reach::Name;
use super::row_policy;
use super::tables::Tables;

/// A row's place in the stream: its message's sequence, and its index within a batch message. In
/// JSON, `[sequence, index]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place(pub u64, pub u32);

/// A row's origin in a stream. The time is part of it: a stream that lost its tail gives the
/// same sequences to other messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Row, Deserialize)]
pub struct Origin {
    pub stream_seq: u64,
    pub batch_index: u32,
    /// Milliseconds since the Unix epoch.
    pub received_at: i64,
}

/// The rows of `table` with places from `first` to `last`.
pub async fn origins_between(
    clickhouse: &ClickHouse,
    table: &str,
    stream: &str,
    first: Place,
    last: Place,
) -> Result<Vec<Origin>, Error> {
    // The skip index only knows sequences.
    let sequences = is_in(&[first.0..=last.0]);
    let place = |Place(sequence, index)| format!("({sequence}, {index})");
    let which = format!(
        "{sequences} AND (stream_seq, batch_index) BETWEEN {} AND {}",
        place(first),
        place(last)
    );
    origins(clickhouse, table, stream, &which).await
}

/// The rows of `table` with sequences in these runs, a few hundred at most: the statement names
/// them.
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

async fn may_see_all(clickhouse: &ClickHouse, tables: &Tables) -> Result<(), Error> {
    for table in tables.inserted_into() {
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
/// Quick if there is none: the skip index rules the parts out.
pub async fn last_after(
    clickhouse: &ClickHouse,
    tables: &Tables,
    stream: &str,
    sequence: u64,
) -> Result<Option<u64>, Error> {
    #[derive(Row, Deserialize)]
    struct Last {
        last: u64,
    }
    may_see_all(clickhouse, tables).await?;
    let mut last = 0;
    for table in tables.inserted_into() {
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

/// A row of a stream with a given name, whatever its creation time.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Witness {
    /// The stream's identity.
    pub stream: String,
    pub stream_seq: u64,
    /// Milliseconds since the Unix epoch.
    pub received_at: i64,
}

/// Rows of each stream of this name among these sequences, the newest stream first: those at its
/// first and its last sequences. Several of each, since individual messages may have been deleted,
/// and those at the end may belong to a stream that has lost them.
pub async fn witnesses(
    clickhouse: &ClickHouse,
    tables: &Tables,
    name: &str,
    first: u64,
    last: u64,
) -> Result<Vec<Witness>, Error> {
    may_see_all(clickhouse, tables).await?;
    let [events, dead_letters] = tables.inserted_into();
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
                         SELECT stream, stream_seq, received_at FROM {events} WHERE {which}
                         UNION ALL
                         SELECT stream, stream_seq, received_at FROM {dead_letters} WHERE {which}
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

/// Whether anything of the stream is stored: the search ends as soon as something is found.
pub async fn holds_any(
    clickhouse: &ClickHouse,
    tables: &Tables,
    stream: &str,
) -> Result<bool, Error> {
    may_see_all(clickhouse, tables).await?;
    let [events, dead_letters] = tables.inserted_into();
    let found = count(
        clickhouse,
        &format!(
            "SELECT count() AS count FROM
             (
                 (SELECT 1 FROM {events} WHERE stream = {{stream:String}} LIMIT 1)
                 UNION ALL
                 (SELECT 1 FROM {dead_letters} WHERE stream = {{stream:String}} LIMIT 1)
             )"
        ),
        &[("stream", stream)],
    )
    .await?;
    Ok(found > 0)
}

/// How many gaps one statement asks about, at 70 bytes a gap: ClickHouse accepts 256 KiB, and
/// proxies may accept less.
const GAPS: usize = 500;

/// How many sequences of these gaps are stored, as events or dead letters. The gaps are in
/// stream order.
///
/// Usually none is, nor anything between them; finding that out takes one query, however many gaps
/// there are.
pub async fn sequences(
    clickhouse: &ClickHouse,
    tables: &Tables,
    stream: &str,
    gaps: &[RangeInclusive<u64>],
) -> Result<u64, Error> {
    let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else {
        return Ok(0);
    };
    let span = *first.start()..=*last.end();
    let in_span = sequences_in(clickhouse, tables, stream, &[span]).await?;
    if in_span == 0 || gaps.len() == 1 {
        return Ok(in_span);
    }
    let mut stored = 0;
    for gaps in gaps.chunks(GAPS) {
        stored += sequences_in(clickhouse, tables, stream, gaps).await?;
    }
    Ok(stored)
}

async fn sequences_in(
    clickhouse: &ClickHouse,
    tables: &Tables,
    stream: &str,
    gaps: &[RangeInclusive<u64>],
) -> Result<u64, Error> {
    let [events, dead_letters] = tables.inserted_into();
    let is_in_gaps = is_in(gaps);
    let which = format!("stream = {{stream:String}} AND ({is_in_gaps})");
    count(
        clickhouse,
        &format!(
            "SELECT uniqExact(stream_seq) AS count FROM
             (
                 SELECT stream_seq FROM {events} WHERE {which}
                 UNION ALL
                 SELECT stream_seq FROM {dead_letters} WHERE {which}
             )"
        ),
        &[("stream", stream)],
    )
    .await
}

/// Whether an insert of the stream is running: its token, which is the query's id, starts with the
/// stream. The embedded engine shows its own ids: there, inserts into the same tables count.
pub async fn inserts_run(
    clickhouse: &ClickHouse,
    tables: &Tables,
    stream: &str,
) -> Result<bool, Error> {
    let [events, dead_letters] = tables.inserted_into();
    let running = count(
        clickhouse,
        &format!(
            "SELECT count() AS count FROM system.processes
             WHERE query_kind = 'Insert' AND current_database = currentDatabase()
                 AND (startsWith(query_id, {{stream:String}}) OR client_name = 'chDB client'
                     AND match(query, '^INSERT INTO ({events}|{dead_letters}) '))"
        ),
        &[("stream", stream)],
    )
    .await?;
    Ok(running > 0)
}

/// Whether the user may ask what [`inserts_run`] asks.
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
