//! The table `writers`: who inserts into which table.

use std::time::Duration;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::client::ClickHouse;
use super::quote::{quote_identifier, quote_string};

/// An active instance of a lane, as it registers.
#[derive(Debug, Clone)]
pub struct Registration {
    pub table: &'static str,
    /// The stream's identity.
    pub stream: String,
    pub consumer: String,
    /// The instance's name.
    pub owner: String,
}

/// A lane that is registered.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Registered {
    pub stream: String,
    pub consumer: String,
    pub owner: String,
    /// When it last registered, by ClickHouse's clock, in milliseconds since the Unix epoch.
    pub at: i64,
}

/// Records that an instance inserts, or that it no longer does.
pub async fn register(
    clickhouse: &ClickHouse,
    registration: &Registration,
    active: bool,
) -> Result<(), Error> {
    let Registration {
        table,
        stream,
        consumer,
        owner,
    } = registration;
    let [table, stream, consumer, owner] =
        [*table, stream.as_str(), consumer, owner].map(quote_string);
    // ClickHouse's clock: the only one that all instances have in common.
    let sql = format!(
        "INSERT INTO {} SETTINGS async_insert = 0
         SELECT {table}, {stream}, {consumer}, {owner}, now64(3, 'UTC'), {active}",
        quote_identifier("writers")
    );
    clickhouse.execute(&sql).await
}

/// The lanes that have registered for this table within `lease`, and have not said since that they
/// have stopped.
pub async fn active(
    clickhouse: &ClickHouse,
    table: &str,
    lease: Duration,
) -> Result<Vec<Registered>, Error> {
    clickhouse
        .rows(
            "SELECT stream, consumer, last.1 AS owner, toUnixTimestamp64Milli(last.2) AS at FROM
             (
                 SELECT stream, consumer, argMax((owner, at, active), at) AS last
                 FROM writers WHERE table_name = {table:String} GROUP BY stream, consumer
             )
             WHERE last.3 AND abs(toUnixTimestamp64Milli(now64(3)) - at) < {lease:Int64}
             ORDER BY stream, consumer",
            &[("table", table), ("lease", &lease.as_millis().to_string())],
        )
        .await
}
