//! The one place that talks to ClickHouse.

use std::time::Duration;

use clickhouse::error::Error;
use clickhouse::query::BytesCursor;
use clickhouse::{Client, Compression, Row, RowOwned, RowRead};
use secrecy::ExposeSecret;

use super::native::Block;
use crate::config::{Address, Server};

/// A ClickHouse server and the database that the daemon writes to.
#[derive(Clone)]
pub struct ClickHouse {
    client: Client,
    address: Address,
    user: String,
    database: String,
}

/// Why an insert did not say that it worked. The variants are what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// Time-out, broken connection, a proxy's answer: it may have been stored.
    /// Only the same bytes with the same token may be sent again.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// ClickHouse itself answered with an error.
    #[error("{0}")]
    Unavailable(String),
}

/// How long ClickHouse may take to accept more bytes of an insert.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an insert may take after its last byte, its views included. Far
/// shorter than the time in which as many inserts follow as the deduplication
/// window holds.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// How long any other statement of the daemon's own may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What every insert asks for beside its token. `guarantees` looks whether the server
/// grants it.
pub const INSERT_SETTINGS: [(&str, &str); 6] = [
    // Answer when the rows are stored, not when they are queued.
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    // Without it a view counts a repeated block again.
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    // A column that the table lacks would be thrown away.
    ("input_format_skip_unknown_fields", "0"),
    // A quiet stream's first batch may hold many days, a partition each in
    // the views' targets.
    ("max_partitions_per_insert_block", "0"),
    // Without it an insert whose view failed would be reported as stored.
    ("materialized_views_ignore_errors", "0"),
];

async fn limited<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, answer)
        .await
        .unwrap_or(Err(Error::TimedOut))
}

impl ClickHouse {
    pub fn new(server: &Server) -> Self {
        let address = server.db_url.address();
        let client = Client::default()
            .with_url(address.expose())
            .with_user(&server.db_user)
            // A block goes out as it is: compressing costs more than loopback and
            // most local networks do.
            .with_compression(Compression::None)
            .with_product_info("analytics-server", env!("CARGO_PKG_VERSION"));
        let client = match &server.db_password {
            Some(password) => client.with_password(password.expose_secret()),
            None => client,
        };
        Self {
            client: client.with_database(&server.db_name),
            address,
            user: server.db_user.clone(),
            database: server.db_name.clone(),
        }
    }

    /// The same server, without a database chosen: for creating it.
    pub fn without_database(&self) -> Self {
        Self {
            // The crate cannot take a database back; this one always exists.
            client: self.client.clone().with_database("default"),
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
    /// ClickHouse and its views have already seen under it is dropped.
    pub async fn insert(&self, table: &str, block: &Block, token: &str) -> Result<(), InsertError> {
        let mut insert = self
            .client
            .insert_formatted_with(format!("INSERT INTO {table} FORMAT Native"))
            .with_setting("insert_deduplication_token", token)
            .with_timeouts(Some(SEND_TIMEOUT), Some(END_TIMEOUT));
        for (name, value) in INSERT_SETTINGS {
            insert = insert.with_setting(name, value);
        }
        insert
            .send(block.bytes.clone())
            .await
            .map_err(insert_error)?;
        insert.end().await.map_err(insert_error)
    }

    /// Runs a statement that answers nothing.
    pub async fn execute(&self, sql: &str) -> Result<(), Error> {
        limited(self.client.query_raw(sql).execute()).await
    }

    /// Runs a query; `parameters` fill in its `{name:Type}`.
    pub async fn rows<T: RowOwned + RowRead>(
        &self,
        sql: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        let mut query = self.client.query_raw(sql);
        for (name, value) in parameters {
            query = query.param(name, value);
        }
        limited(query.fetch_all()).await
    }

    /// Runs a query, of no database, under the settings of an insert.
    pub async fn rows_as_insert<T: RowOwned + RowRead>(&self, sql: &str) -> Result<Vec<T>, Error> {
        let server = self.without_database();
        let mut query = server.client.query_raw(sql);
        for (name, value) in INSERT_SETTINGS {
            query = query.with_setting(name, value);
        }
        limited(query.fetch_all()).await
    }

    /// Runs any statement and streams what it answers in `format`.
    pub fn stream(&self, sql: &str, format: &str) -> Result<BytesCursor, Error> {
        self.client.query_raw(sql).fetch_bytes(format)
    }

    /// The server's version: that it answers, and lets the user in.
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

/// Whether an error is ClickHouse's own answer, which always starts with its code.
fn insert_error(error: Error) -> InsertError {
    match error {
        Error::BadResponse(answer) if answer.starts_with("Code: ") => {
            InsertError::Unavailable(without_data(&answer))
        }
        error => InsertError::Unknown(describe(&error)),
    }
}

/// ClickHouse's answer to an insert, for the log. Where the error is about a
/// value, ClickHouse quotes it, and it may be what a user wrote: only the code and
/// its name remain then.
fn without_data(answer: &str) -> String {
    let line = first_line(answer);
    let quotes = [
        "CANNOT_",
        "CONSTRAINT",
        "INCORRECT_DATA",
        "TYPE_MISMATCH",
        "TOO_LARGE_",
    ];
    if !quotes.iter().any(|name| line.contains(name)) {
        return line;
    }
    let code = line.split('.').next().unwrap_or_default();
    let name = line.split(['(', ')']).find(|word| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    });
    format!(
        "{code}. ({})",
        name.unwrap_or("the message is left out, it may quote data")
    )
}

/// ClickHouse adds a stack trace where it is set up to.
fn first_line(answer: &str) -> String {
    answer.lines().next().unwrap_or_default().to_owned()
}

/// An error with its causes, as the crate's network errors say little themselves,
/// and with what to do about it where that is known.
pub fn describe(error: &Error) -> String {
    if let Error::BadResponse(answer) = error {
        let line = first_line(answer);
        // AUTHENTICATION_FAILED, REQUIRED_PASSWORD
        if line.starts_with("Code: 516.") || line.starts_with("Code: 194.") {
            return format!("{line}: set server.db_user and ANALYTICS_DB_PASSWORD");
        }
        return line;
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
    matches!(error, Error::Network(_) | Error::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_may_quote_data_is_shown_by_its_code_alone() {
        let quoting = "Code: 469. DB::Exception: Constraint `c` is violated. Column values: \
                       login_email = 'ann@example.org'. (VIOLATED_CONSTRAINT) (version 26.7.2.1)";
        assert_eq!(without_data(quoting), "Code: 469. (VIOLATED_CONSTRAINT)");
        let harmless = "Code: 241. DB::Exception: Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED) (version 26.7)\nstack";
        assert_eq!(without_data(harmless), harmless.lines().next().unwrap());
    }
}
