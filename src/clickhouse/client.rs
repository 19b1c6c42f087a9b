//! The one place that talks to ClickHouse.

use std::time::Duration;

use clickhouse::error::Error;
use clickhouse::query::{BytesCursor, Query};
use clickhouse::{Client, Compression, Row, RowOwned, RowRead};
use secrecy::ExposeSecret;
use tracing::{Instrument, Span, info_span};

use super::codes::{self, Class};
use super::native::Block;
use super::quote::quote_identifier;
use super::transport;
use crate::config::{self, Address, Config};
use crate::tls;

/// A ClickHouse server and the database that the daemon writes to.
#[derive(Clone)]
pub struct ClickHouse {
    client: Client,
    /// With no database selected. Selecting one, even `default`, requires a right to it.
    server: Client,
    address: Address,
    user: String,
    database: String,
    /// For blocks.
    compression: Compression,
    insert_timeout: Duration,
    /// How long any other statement may take.
    timeout: Duration,
}

/// Why an insert did not report success. The variants say what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// A timeout, a broken connection, a proxy's answer: the block may have been stored. Only the
    /// same bytes with the same token may be sent again.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// As above, but ClickHouse itself answered, after the insert had begun: the token may stand
    /// for rows that are missing, since it is written first. That does not take a restart; a part
    /// that cannot be put in place is enough.
    #[error("{0}")]
    HalfDone(String),
    /// A row's value is at fault, and none of the block is stored.
    #[error("{0}")]
    Refused(String),
    /// ClickHouse answered with an error that is not the data's fault, before it began.
    /// Only the same bytes with the same token may be sent again.
    #[error("{0}")]
    Unavailable(String),
}

/// How many bytes are compressed and sent at a time.
pub const PIECE: usize = 1024 * 1024;

/// How long ClickHouse may take to accept more bytes of an insert.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How long any other statement of the daemon's own may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a statement that reads or writes a whole day may take: giving up on the client side
/// does not end it.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(3600);

/// What an insert asks for besides its token and [`OWN_SETTINGS`].
const INSERT_SETTINGS: [(&str, &str); 6] = [
    // Answer when the rows are stored, not when they are queued.
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    // Without it a view counts a repeated block again.
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    // A column that the table lacks would be discarded.
    ("input_format_skip_unknown_fields", "0"),
    // A quiet stream's first batch may hold many days, a partition each in
    // the views' targets.
    ("max_partitions_per_insert_block", "0"),
    // Without it an insert whose view failed would be reported as stored.
    ("materialized_views_ignore_errors", "0"),
];

/// What each of the daemon's own statements asks for: limits and filters that a profile sets for
/// analysts would abort an insert or a recount every time, or cut an answer short.
const OWN_SETTINGS: [(&str, &str); 19] = [
    ("max_execution_time", "0"),
    ("max_rows_to_read", "0"),
    ("max_bytes_to_read", "0"),
    ("max_rows_to_read_leaf", "0"),
    ("max_bytes_to_read_leaf", "0"),
    ("max_rows_to_group_by", "0"),
    ("max_rows_to_sort", "0"),
    ("max_bytes_to_sort", "0"),
    ("max_result_rows", "0"),
    ("max_result_bytes", "0"),
    ("max_rows_in_set", "0"),
    ("max_bytes_in_set", "0"),
    ("max_rows_in_distinct", "0"),
    ("max_bytes_in_distinct", "0"),
    ("limit", "0"),
    ("offset", "0"),
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
    // An answer from a minute ago is not good enough.
    ("use_query_cache", "0"),
];

/// What an insert runs under, besides its token. `guarantees` checks whether the server grants it.
pub fn insert_settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    INSERT_SETTINGS.into_iter().chain(OWN_SETTINGS)
}

impl ClickHouse {
    pub fn new(config: &Config) -> Self {
        let server = &config.server;
        let address = server.db_url.address();
        let client = match &server.db_tls_ca_file {
            Some(authority) => transport::trusting(authority),
            None => Client::default(),
        };
        let client = client
            .with_url(address.expose())
            .with_user(&server.db_user)
            // For answers: they are short.
            .with_compression(Compression::None)
            .with_product_info("analytics-server", env!("CARGO_PKG_VERSION"));
        let client = match &server.db_password {
            Some(password) => client.with_password(password.expose_secret()),
            None => client,
        };
        Self {
            client: client.clone().with_database(&server.db_name),
            server: client,
            user: server.db_user.clone(),
            database: server.db_name.clone(),
            compression: match config.features.analytics.compression {
                config::Compression::Auto if address.is_local() => Compression::None,
                config::Compression::Auto | config::Compression::Lz4 => Compression::Lz4,
                config::Compression::None => Compression::None,
            },
            insert_timeout: config.features.analytics.insert_timeout,
            timeout: TIMEOUT,
            address,
        }
    }

    /// The same server, for statements that read or write a whole day.
    pub fn patient(&self) -> Self {
        Self {
            timeout: PATIENT_TIMEOUT,
            ..self.clone()
        }
    }

    /// One of the daemon's own statements.
    fn own(&self, sql: &str) -> Query {
        let settings = OWN_SETTINGS.into_iter();
        settings.fold(self.client.query_raw(sql), |query, (name, value)| {
            query.with_setting(name, value)
        })
    }

    /// The same server with no database selected: for creating it.
    pub fn without_database(&self) -> Self {
        Self {
            client: self.server.clone(),
            ..self.clone()
        }
    }

    /// Where the server is, without secrets.
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// Inserts one block. `token` is the deduplication token: a block that
    /// ClickHouse and its views have already seen under it is dropped. It is also the query's id:
    /// ClickHouse refuses a repeat while an attempt is still running.
    pub async fn insert(&self, table: &str, block: &Block, token: &str) -> Result<(), InsertError> {
        let inserting = self.insert_within_span(table, block, token);
        inserting.instrument(span()).await
    }

    async fn insert_within_span(
        &self,
        table: &str,
        block: &Block,
        token: &str,
    ) -> Result<(), InsertError> {
        let mut insert = self
            .client
            .clone()
            .with_compression(self.compression)
            .insert_formatted_with(format!("INSERT INTO {table} FORMAT Native"))
            .with_setting("query_id", token)
            .with_setting("insert_deduplication_token", token)
            .with_timeouts(Some(SEND_TIMEOUT), Some(self.insert_timeout));
        for (name, value) in insert_settings() {
            insert = insert.with_setting(name, value);
        }
        let mut rest = block.bytes.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE));
            insert.send(piece).await.map_err(insert_error)?;
        }
        insert.end().await.map_err(insert_error)
    }

    async fn limited<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::time::timeout(self.timeout, answer.instrument(span()))
            .await
            .unwrap_or(Err(Error::TimedOut))
    }

    /// Runs a statement that returns nothing.
    pub async fn execute(&self, sql: &str) -> Result<(), Error> {
        self.limited(self.own(sql).execute()).await
    }

    /// Runs a query; `parameters` fill in its `{name:Type}`.
    pub async fn rows<T: RowOwned + RowRead>(
        &self,
        sql: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        let mut query = self.own(sql);
        for (name, value) in parameters {
            query = query.param(name, value);
        }
        self.limited(query.fetch_all()).await
    }

    /// Runs a query with no database selected, under these settings.
    pub async fn rows_under<T: RowOwned + RowRead>(
        &self,
        settings: impl Iterator<Item = (&'static str, &'static str)>,
        sql: &str,
    ) -> Result<Vec<T>, Error> {
        let server = self.without_database();
        let mut query = server.client.query_raw(sql);
        for (name, value) in settings {
            query = query.with_setting(name, value);
        }
        self.limited(query.fetch_all()).await
    }

    /// Runs any statement and streams what it returns in `format`.
    pub fn stream(&self, sql: &str, format: &str) -> Result<BytesCursor, Error> {
        self.client.query_raw(sql).fetch_bytes(format)
    }

    /// Which process answers: a different one after ClickHouse was restarted.
    ///
    /// # Errors
    /// Also if the user cannot see it: every process would look like the one before.
    pub async fn process(&self) -> Result<String, Error> {
        self.visible_process().await?.ok_or_else(|| {
            let user = quote_identifier(&self.user);
            let missing = format!(
                "this user cannot see which ClickHouse process answers: \
                 GRANT SELECT ON system.processes TO {user}"
            );
            Error::Other(missing.into())
        })
    }

    /// Which process answers, `None` if the user cannot see it.
    ///
    /// ClickHouse gives the tables of `system` ids that it makes up at startup; the embedded engine
    /// gives one only to the database. Both are visible to anyone who may read `system.processes`.
    pub async fn visible_process(&self) -> Result<Option<String>, Error> {
        #[derive(Row, serde::Deserialize)]
        struct Process {
            process: String,
        }
        let rows: Vec<Process> = self
            .without_database()
            .rows(
                "SELECT toString(uuid) AS process FROM
                 (
                     SELECT uuid, 1 AS rank FROM system.tables
                     WHERE database = 'system' AND name = 'processes'
                     UNION ALL
                     SELECT uuid, 2 AS rank FROM system.databases WHERE name = 'system'
                 )
                 WHERE uuid != '00000000-0000-0000-0000-000000000000'
                 ORDER BY rank LIMIT 1",
                &[],
            )
            .await?;
        Ok(rows.into_iter().next().map(|row| row.process))
    }

    /// The server's version, which shows that it answers and lets the user in.
    pub async fn version(&self) -> Result<String, Error> {
        #[derive(Row, serde::Deserialize)]
        struct Version {
            version: String,
        }
        let rows: Vec<Version> = self
            .without_database()
            .rows("SELECT version() AS version", &[])
            .await?;
        rows.into_iter()
            .next()
            .map(|row| row.version)
            .ok_or(Error::RowNotFound)
    }
}

/// The crate records what it does into whatever span is current. In a lane's, which lasts as
/// long as the daemon, that would add up.
fn span() -> Span {
    info_span!("clickhouse")
}

fn insert_error(error: Error) -> InsertError {
    let Error::BadResponse(answer) = error else {
        return InsertError::Unknown(describe(&error));
    };
    let shown = codes::without_data(&answer);
    match codes::class_of(&answer) {
        Class::Refused => InsertError::Refused(shown),
        _ if codes::came_after_begin(&answer) => InsertError::HalfDone(shown),
        Class::Unavailable => InsertError::Unavailable(shown),
        Class::Unknown => InsertError::Unknown(shown),
    }
}

/// ClickHouse adds a stack trace if it is configured to.
fn first_line(answer: &str) -> String {
    answer.lines().next().unwrap_or_default().to_owned()
}

/// An error with its causes, as the crate's network errors say little themselves,
/// and with what to do about it if that is known.
pub fn describe(error: &Error) -> String {
    if let Error::BadResponse(answer) = error {
        let line = first_line(answer);
        let code = codes::of_answer(answer);
        if let Some(codes::AUTHENTICATION_FAILED | codes::REQUIRED_PASSWORD) = code {
            return format!("{line}: set server.db_user and ANALYTICS_DB_PASSWORD");
        }
        return line;
    }
    if let Some(fault) = tls::fault(error) {
        return fault.to_string();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Whether nobody answered at all, as opposed to an answer that was an error.
pub fn is_unreachable(error: &Error) -> bool {
    matches!(error, Error::Network(_) | Error::TimedOut) && tls::fault(error).is_none()
}
