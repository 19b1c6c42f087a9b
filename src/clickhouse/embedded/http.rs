//! ClickHouse's HTTP interface: routes, bodies both ways, and the headers that its
//! clients read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::compression::{Encoder, Encoding};
use super::engine::{About, Engine};
use super::exception::Exception;
use super::execute::Output;
use super::formats::content_type;
use super::libchdb::Statistics;
use super::query_ids::QueryIds;
use super::request::{Credentials, Parsed};
use super::running::{Begun, Running, drain, pump};

/// Requests that are still open at a stop may finish within this time.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Until this much of a result is there, an exception still gets its own status, as
/// with ClickHouse's `buffer_size`.
const RESPONSE_BUFFER_BYTES: usize = 1024 * 1024;

/// A form is read as a whole; other bodies are streamed and have no limit.
const MAX_FORM_BYTES: usize = 256 * 1024 * 1024;

/// hyper throws away what it has not yet written when a body fails, so the text of an
/// exception needs a moment before the cut.
const FLUSH_TIME: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct App {
    engine: Engine,
    credentials: Arc<Credentials>,
    query_ids: QueryIds,
    /// Cuts off what is still open when the grace is over.
    cut_off: CancellationToken,
}

/// Serves until `shutdown`, then lets open requests finish for a moment, closes the
/// engine and returns.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    credentials: Credentials,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let app = App {
        engine: engine.clone(),
        credentials: Arc::new(credentials),
        query_ids: QueryIds::default(),
        cut_off: CancellationToken::new(),
    };
    let cut_off = app.cut_off.clone();
    let router = Router::new()
        .route("/", any(query))
        .route("/ping", get(ok))
        .route("/replicas_status", get(ok))
        .fallback(async || (StatusCode::NOT_FOUND, "There is no handle for this URL\n"))
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .with_state(app);
    let stop = shutdown.clone().cancelled_owned();
    let served = axum::serve(listener, router).with_graceful_shutdown(stop);
    let grace = async {
        shutdown.cancelled().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    let result = tokio::select! {
        result = served.into_future() => result,
        () = grace => Ok(()),
    };
    cut_off.cancel();
    engine.close().await;
    result
}

async fn ok() -> &'static str {
    "Ok.\n"
}

async fn query(State(app): State<App>, request: axum::extract::Request) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && request.uri().query().is_none() {
        return ok().await.into_response();
    }
    let about = app.engine.about();
    let parsed = Parsed::new(request.method(), request.uri(), request.headers());
    let parsed = parsed.and_then(|parsed| {
        parsed.authenticate(&app.credentials)?;
        Ok(parsed)
    });
    let mut response = match parsed {
        Ok(mut parsed) => {
            let response = answer(&app, &mut parsed, request).await;
            let mut response = response.unwrap_or_else(|exception| failure(&exception, about));
            let headers = response.headers_mut();
            insert(headers, "x-clickhouse-query-id", &parsed.query_id);
            response
        }
        Err(exception) => {
            drain(request.into_body().into_data_stream()).await;
            failure(&exception, about)
        }
    };
    let headers = response.headers_mut();
    insert(
        headers,
        "x-clickhouse-server-display-name",
        &about.display_name,
    );
    insert(headers, "x-clickhouse-timezone", &about.timezone);
    response
}

fn failure(exception: &Exception, about: &About) -> Response {
    let body = exception.body(&about.version);
    let mut response = (exception.status(), body).into_response();
    let code = HeaderValue::from(exception.code);
    let headers = response.headers_mut();
    headers.insert("x-clickhouse-exception-code", code);
    response
}

/// A value with bytes that no header may have is left out.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

async fn answer(
    app: &App,
    parsed: &mut Parsed,
    request: axum::extract::Request,
) -> Result<Response, Exception> {
    let body = if is_form(request.headers()) {
        let form = Multipart::from_request(request, &()).await;
        let form = form.map_err(|error| Exception::new(36, "BAD_ARGUMENTS", error))?;
        parsed.form(form).await?;
        Body::empty()
    } else {
        request.into_body()
    };
    let (mut running, to_engine) =
        Running::start(&app.engine, &app.query_ids, &app.cut_off, parsed);
    let pump = pump(body, to_engine, &app.cut_off);
    let limit = match parsed.wait_end_of_query {
        true => usize::MAX,
        false => RESPONSE_BUFFER_BYTES,
    };
    let ((), begun) = tokio::join!(pump, running.begin(limit));
    respond(begun?, running, parsed.response)
}

fn is_form(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    value.is_some_and(|value| value.as_bytes().starts_with(b"multipart/form-data"))
}

fn respond(begun: Begun, running: Running, encoding: Encoding) -> Result<Response, Exception> {
    let format = begun.format;
    let empty = begun.pieces.is_empty() && begun.statistics.is_some();
    // An empty body stays empty, whatever the client accepts.
    let encoding = if empty { Encoding::Identity } else { encoding };
    let tag = Uuid::new_v4().simple().to_string()[..16].to_owned();
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    insert(headers, "x-clickhouse-exception-tag", &tag);
    insert(headers, "x-clickhouse-summary", &summary(begun.statistics));
    let mut kind = "text/plain; charset=UTF-8";
    if let Some(format) = &format {
        insert(headers, "x-clickhouse-format", format);
        kind = content_type(format);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(name) = encoding.content_encoding() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    let mut encoder = Encoder::new(encoding);
    let pieces = begun.pieces.into_iter().map(|piece| encoder.encode(piece));
    let mut ready = pieces.collect::<io::Result<Vec<_>>>().map_err(packing)?;
    *response.body_mut() = if begun.statistics.is_some() {
        ready.push(encoder.finish().map_err(packing)?);
        Body::from(ready.concat())
    } else {
        let first = stream::iter(ready.into_iter().map(Ok));
        let rest = Rest::Open {
            running,
            encoder,
            tag,
        };
        Body::from_stream(first.chain(stream::unfold(rest, Rest::next)))
    };
    Ok(response)
}

fn packing(error: io::Error) -> Exception {
    Exception::new(
        1001,
        "STD_EXCEPTION",
        format_args!("Cannot compress: {error}"),
    )
}

/// ClickHouse writes the numbers as text.
fn summary(statistics: Option<Statistics>) -> String {
    let it = statistics.unwrap_or_default();
    serde_json::json!({
        "read_rows": it.rows_read.to_string(),
        "read_bytes": it.bytes_read.to_string(),
        "written_rows": it.rows_written.to_string(),
        "written_bytes": it.bytes_written.to_string(),
        "total_rows_to_read": "0",
        "result_rows": it.result_rows.to_string(),
        "result_bytes": it.result_bytes.to_string(),
    })
    .to_string()
}

/// The rest of a response whose beginning has been sent.
enum Rest {
    Open {
        running: Running,
        encoder: Encoder,
        tag: String,
    },
    /// Cut off, which shows it to clients that do not look for exceptions.
    Broken,
    Ended,
}

impl Rest {
    async fn next(self) -> Option<(io::Result<Bytes>, Self)> {
        let (mut running, mut encoder, tag) = match self {
            Self::Open {
                running,
                encoder,
                tag,
            } => (running, encoder, tag),
            Self::Broken => {
                tokio::time::sleep(FLUSH_TIME).await;
                return Some((Err(io::ErrorKind::BrokenPipe.into()), Self::Ended));
            }
            Self::Ended => return None,
        };
        Some(match running.next().await {
            Output::Data(piece) => {
                let piece = encoder.encode(piece);
                let open = Self::Open {
                    running,
                    encoder,
                    tag,
                };
                (piece, open)
            }
            // Formats are known before a response begins.
            Output::Format(_) | Output::Done(_) => (encoder.finish(), Self::Ended),
            Output::Failed(exception) => {
                let message = exception.body(&running.engine.about().version);
                (encoder.encode(late_exception(&message, &tag)), Self::Broken)
            }
        })
    }
}

/// An exception in the middle of a result, which the header `X-ClickHouse-Exception-Tag`
/// lets a client find: as in ClickHouse's `WriteBufferFromHTTPServerResponse.cpp`.
fn late_exception(message: &str, tag: &str) -> Bytes {
    let length = message.len();
    let block = "__exception__\r\n";
    format!("\r\n{block}{tag}\r\n{message}{length} {tag}\r\n{block}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_exception_ends_with_its_length_and_tag() {
        let bytes = late_exception("Code: 1. x\n", "tag");
        let expected = "\r\n__exception__\r\ntag\r\nCode: 1. x\n11 tag\r\n__exception__\r\n";
        assert_eq!(bytes, expected);
    }
}
