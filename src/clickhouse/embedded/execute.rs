//! One request on one connection: its database, settings and statement, with the
//! body as rows or as the rest of the text. Blocking, for a thread of its own.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::engine::TAG_SETTING;
use super::exception::Exception;
use super::formats::Header;
use super::libchdb::{self, Connection, QueryResult, Statistics};
use super::statement::Statement;
use crate::clickhouse::quote::{quote_identifier, quote_string};

/// An INSERT's rows must begin within these bytes; ClickHouse's `max_query_size`.
const MAX_INSERT_TEXT_BYTES: u64 = 256 * 1024;

/// A bound for memory. The engine's own limit, `max_query_size`, is lower and can
/// be raised by a setting.
const MAX_TEXT_BYTES: u64 = 64 * 1024 * 1024;

/// Large enough that the engine's parser runs in long stretches.
const APPEND_BYTES: usize = 1024 * 1024;

/// Pieces of a result that was computed as a whole.
const PIECE_BYTES: usize = 1024 * 1024;

/// What a request asks for, apart from its body.
#[derive(Debug, Default)]
pub struct Request {
    /// The query in the URL; the body follows it.
    pub query: String,
    pub database: Option<String>,
    pub default_format: Option<String>,
    pub settings: Vec<(String, String)>,
    /// Query parameters, without the prefix `param_`.
    pub parameters: Vec<(String, String)>,
    pub external_tables: Vec<ExternalTable>,
    /// GET must not write.
    pub readonly: bool,
    /// Names the running query to [`super::engine::Engine::kill`].
    pub tag: String,
}

/// Rows sent along with a query, as a temporary table.
#[derive(Debug)]
pub struct ExternalTable {
    pub name: String,
    pub structure: String,
    pub format: String,
    pub rows: Bytes,
}

/// What a request produces, in this order; `Done` or `Failed` comes last.
#[derive(Debug)]
pub enum Output {
    Format(String),
    Data(Bytes),
    Done(Statistics),
    Failed(Exception),
}

/// Why a request ends early.
enum Stop {
    Failed(Exception),
    /// Nobody reads the output any more.
    ClientGone,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Failed(exception)
    }
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Self::Failed(Exception::from_engine(text))
    }
}

impl From<io::Error> for Stop {
    /// The body broke off, or could not be unpacked.
    fn from(error: io::Error) -> Self {
        Self::Failed(match error.downcast::<Exception>() {
            Ok(exception) => exception,
            Err(error) => Exception::new(
                33,
                "CANNOT_READ_ALL_DATA",
                format_args!("Cannot read the request's body: {error}"),
            ),
        })
    }
}

/// Runs the request, sends what it produces, and returns the last word, unless nobody
/// is there to take it. An INSERT whose body breaks off is cancelled, and so is a
/// SELECT whose output nobody takes.
pub fn execute(
    connection: &mut Connection,
    request: &Request,
    body: impl Read,
    output: &mpsc::Sender<Output>,
) -> Option<Output> {
    match run(connection, request, body, output) {
        Ok(statistics) => Some(Output::Done(statistics)),
        Err(Stop::Failed(exception)) => Some(Output::Failed(exception)),
        Err(Stop::ClientGone) => None,
    }
}

fn run(
    connection: &mut Connection,
    request: &Request,
    mut body: impl Read,
    output: &mpsc::Sender<Output>,
) -> Result<Statistics, Stop> {
    prepare(connection, request)?;
    let (text, statement) = read_statement(&request.query, &mut body)?;
    let (end, format, streamed) = match statement {
        Statement::Insert { end, format, data } => {
            let insert = libchdb::Statement {
                sql: &text[..end],
                format: &format,
                parameters: &request.parameters,
            };
            return insert_rows(connection, insert, (&text[data..]).chain(body));
        }
        Statement::Select { end, format } => (end, format, true),
        Statement::Other { end, format } => (end, format, false),
    };
    let default = request.default_format.as_deref().unwrap_or("TabSeparated");
    let statement = libchdb::Statement {
        sql: &text[..end],
        format: default,
        parameters: &request.parameters,
    };
    let format = format.as_deref().unwrap_or(default);
    let output = Sink { output, format };
    match Header::of(format).filter(|_| streamed) {
        Some(header) => stream(connection, statement, header, &output),
        None => whole(connection, statement, &output),
    }
}

/// Gives the connection the request's database, settings and tables.
fn prepare(connection: &mut Connection, request: &Request) -> Result<(), Stop> {
    if let Some(database) = &request.database {
        command(connection, &format!("USE {}", quote_identifier(database)))?;
    }
    for table in &request.external_tables {
        let name = quote_identifier(&table.name);
        let structure = &table.structure;
        command(
            connection,
            &format!("CREATE TEMPORARY TABLE {name} ({structure})"),
        )?;
        let sql = format!("INSERT INTO {name}");
        let insert = libchdb::Statement {
            sql: sql.as_bytes(),
            format: &table.format,
            parameters: &[],
        };
        insert_rows(connection, insert, &table.rows[..])?;
    }
    let mut set = format!("SET {TAG_SETTING} = {}", quote_string(&request.tag));
    let readonly = request.readonly.then_some(("readonly", "2"));
    let settings = request
        .settings
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()));
    for (name, value) in settings.chain(readonly) {
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            let message = format_args!("Unknown setting '{name}'");
            return Err(Exception::new(115, "UNKNOWN_SETTING", message).into());
        }
        set.push_str(&format!(", {name} = {}", quote_string(value)));
    }
    command(connection, &set)
}

fn command(connection: &mut Connection, sql: &str) -> Result<(), Stop> {
    let statement = libchdb::Statement {
        sql: sql.as_bytes(),
        format: "Null",
        parameters: &[],
    };
    connection.query(statement)?;
    Ok(())
}

/// The statement, with as much of the body as belongs to its text.
fn read_statement(query: &str, body: &mut impl Read) -> Result<(Vec<u8>, Statement), Stop> {
    let mut text = query.as_bytes().to_vec();
    if !text.is_empty() {
        text.push(b'\n');
        if let Ok(insert @ Statement::Insert { .. }) = Statement::parse(&text) {
            return Ok((text, insert));
        }
    }
    body.take(MAX_INSERT_TEXT_BYTES).read_to_end(&mut text)?;
    if let insert @ Statement::Insert { .. } = Statement::parse(&text)? {
        return Ok((text, insert));
    }
    let rest = body.take(MAX_TEXT_BYTES).read_to_end(&mut text)?;
    if rest as u64 == MAX_TEXT_BYTES {
        let message = "Query is too large";
        return Err(Exception::new(229, "QUERY_IS_TOO_LARGE", message).into());
    }
    let statement = Statement::parse(&text)?;
    Ok((text, statement))
}

fn insert_rows(
    connection: &mut Connection,
    statement: libchdb::Statement<'_>,
    mut rows: impl Read,
) -> Result<Statistics, Stop> {
    let mut insert = connection.insert(statement)?;
    let mut buffer = vec![0; APPEND_BYTES];
    loop {
        // `?` drops the insert, which cancels it: half a body must not be committed.
        match rows.read(&mut buffer) {
            Ok(0) => return Ok(insert.finish()?),
            Ok(length) => insert.append(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a result, its format first.
struct Sink<'a> {
    output: &'a mpsc::Sender<Output>,
    format: &'a str,
}

impl Sink<'_> {
    fn start(&self) -> Result<(), Stop> {
        self.send(Output::Format(self.format.to_owned()))
    }

    fn data(&self, bytes: &[u8]) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(Output::Data(Bytes::copy_from_slice(bytes)))
    }

    fn send(&self, output: Output) -> Result<(), Stop> {
        self.output
            .blocking_send(output)
            .map_err(|_| Stop::ClientGone)
    }
}

fn stream(
    connection: &mut Connection,
    statement: libchdb::Statement<'_>,
    header: Header,
    output: &Sink<'_>,
) -> Result<Statistics, Stop> {
    let mut stream = connection.stream(statement)?;
    let mut total = Statistics::default();
    let mut first = true;
    while let Some(piece) = stream.next_piece()? {
        if first {
            output.start()?;
        }
        let bytes = piece.bytes();
        // The last piece has no header, unless it is the first one too.
        let repeats_header = !first && piece.rows() > 0;
        output.data(if repeats_header {
            header.strip(bytes)
        } else {
            bytes
        })?;
        first = false;
        add(&mut total, &piece);
    }
    Ok(total)
}

/// A streamed piece says what it holds, not what was read for it.
fn add(total: &mut Statistics, piece: &QueryResult) {
    let piece = piece.statistics();
    total.rows_read += piece.result_rows;
    total.bytes_read += piece.result_bytes;
    total.result_rows += piece.result_rows;
    total.result_bytes += piece.result_bytes;
}

fn whole(
    connection: &mut Connection,
    statement: libchdb::Statement<'_>,
    output: &Sink<'_>,
) -> Result<Statistics, Stop> {
    let result = connection.query(statement)?;
    let bytes = result.bytes();
    if !bytes.is_empty() {
        output.start()?;
    }
    for piece in bytes.chunks(PIECE_BYTES) {
        output.data(piece)?;
    }
    Ok(result.statistics())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_in_the_url_leaves_the_body_alone() {
        let mut body = b"rows".as_slice();
        let Ok((text, statement)) = read_statement("INSERT INTO t FORMAT CSV", &mut body) else {
            panic!("not a statement");
        };
        assert!(matches!(statement, Statement::Insert { data, .. } if data == text.len()));
        assert_eq!(body, b"rows");
    }

    #[test]
    fn a_query_continues_in_the_body() {
        let mut body = b"1 FORMAT CSV".as_slice();
        let Ok((text, statement)) = read_statement("SELECT", &mut body) else {
            panic!("not a statement");
        };
        assert_eq!(text, b"SELECT\n1 FORMAT CSV");
        assert!(matches!(statement, Statement::Select { format: Some(f), .. } if f == "CSV"));
    }
}
