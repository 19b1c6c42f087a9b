//! A request in its blocking thread, and the bodies on their way to it and from it.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::compression::decoder;
use super::engine::Engine;
use super::exception::Exception;
use super::execute::{Output, execute};
use super::libchdb::Statistics;
use super::query_ids::QueryIds;
use super::request::Parsed;

/// A client that sends nothing for this long has gone without a word; as ClickHouse's
/// `http_receive_timeout`.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds for reading what nobody wants.
const DRAIN_BYTES: usize = 64 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Pieces of a body on their way to or from the engine. More would only be memory.
const PIECES_IN_FLIGHT: usize = 4;

/// Moves a body to the engine, no faster than it reads. The body's end is sent
/// explicitly, so that a body that breaks off is never taken for a complete one.
pub async fn pump(body: Body, to: mpsc::Sender<BodyPiece>, cut_off: &CancellationToken) {
    let mut body = body.into_data_stream();
    let wanted = tokio::select! {
        () = deliver(&mut body, &to) => true,
        () = cut_off.cancelled() => true,
        () = to.closed() => false,
    };
    if !wanted {
        drain(body).await;
    }
}

async fn deliver(body: &mut BodyDataStream, to: &mpsc::Sender<BodyPiece>) {
    loop {
        let piece = match timeout(RECEIVE_TIMEOUT, body.next()).await {
            Ok(Some(Ok(bytes))) => BodyPiece::Data(bytes),
            Ok(None) => BodyPiece::End,
            // Dropping `to` without an end tells the reader.
            Ok(Some(Err(_))) | Err(_) => return,
        };
        let ended = matches!(piece, BodyPiece::End);
        if to.send(piece).await.is_err() {
            // Leaves it to `closed`.
            return std::future::pending().await;
        }
        if ended {
            return;
        }
    }
}

/// Reads a body that nobody wants: many clients read an answer only when they have
/// sent everything, and lose it if the connection is reset before.
pub async fn drain(mut body: BodyDataStream) {
    let read = async {
        let mut drained = 0;
        while drained < DRAIN_BYTES
            && let Some(Ok(bytes)) = body.next().await
        {
            drained += bytes.len();
        }
    };
    // What is left then is lost with the connection.
    let _ = timeout(DRAIN_TIME, read).await;
}

/// A piece of a body.
pub enum BodyPiece {
    Data(Bytes),
    End,
}

/// The body as the blocking thread reads it.
struct BodyReader {
    pieces: mpsc::Receiver<BodyPiece>,
    current: Bytes,
    ended: bool,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(BodyPiece::Data(bytes)) => self.current = bytes,
                Some(BodyPiece::End) => self.ended = true,
                None => {
                    return Err(io::Error::other(Exception::new(
                        210,
                        "NETWORK_ERROR",
                        "The request's body broke off",
                    )));
                }
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// A request in its blocking thread. Dropped before its end, its SELECT is killed.
pub struct Running {
    pub engine: Engine,
    tag: String,
    output: mpsc::Receiver<Output>,
    cut_off: CancellationToken,
    ended: bool,
}

/// What there is when a response begins.
pub struct Begun {
    pub format: Option<String>,
    pub pieces: Vec<Bytes>,
    /// `None`: more is to come.
    pub statistics: Option<Statistics>,
}

impl Running {
    /// Takes the request out of `parsed` and starts it; the sender takes its body.
    pub fn start(
        engine: &Engine,
        query_ids: &QueryIds,
        cut_off: &CancellationToken,
        parsed: &mut Parsed,
    ) -> (Self, mpsc::Sender<BodyPiece>) {
        let (to_body, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        let (to_output, output) = mpsc::channel(PIECES_IN_FLIGHT);
        let request = std::mem::take(&mut parsed.request);
        let running = Self {
            engine: engine.clone(),
            tag: request.tag.clone(),
            output,
            cut_off: cut_off.clone(),
            ended: false,
        };
        let (engine, encoding) = (engine.clone(), parsed.body);
        let query_id = query_ids.take(&parsed.query_id);
        tokio::task::spawn_blocking(move || {
            let body = BodyReader {
                pieces,
                current: Bytes::new(),
                ended: false,
            };
            let lease = query_id.and_then(|query_id| Ok((query_id, engine.connect()?)));
            // The id is free before the client can know: it may come again at once.
            let last = match lease {
                Ok((_query_id, mut lease)) => execute(
                    &mut lease.connection,
                    &request,
                    decoder(encoding, body),
                    &to_output,
                ),
                Err(exception) => Some(Output::Failed(exception)),
            };
            if let Some(last) = last {
                // A client that is gone needs no last word.
                let _ = to_output.blocking_send(last);
            }
        });
        (running, to_body)
    }

    pub async fn next(&mut self) -> Output {
        let output = tokio::select! {
            output = self.output.recv() => output,
            () = self.cut_off.cancelled() => None,
        };
        let output = output.unwrap_or_else(|| {
            let message = "The server is stopping, or the query's thread has ended";
            Output::Failed(Exception::new(236, "ABORTED", message))
        });
        self.ended = matches!(output, Output::Done(_) | Output::Failed(_));
        output
    }

    /// Waits for the end, or for more than `limit` bytes of the result.
    pub async fn begin(&mut self, limit: usize) -> Result<Begun, Exception> {
        let mut begun = Begun {
            format: None,
            pieces: Vec::new(),
            statistics: None,
        };
        let mut bytes = 0;
        while bytes <= limit {
            match self.next().await {
                Output::Format(format) => begun.format = Some(format),
                Output::Data(piece) => {
                    bytes = bytes.saturating_add(piece.len());
                    begun.pieces.push(piece);
                }
                Output::Done(statistics) => {
                    begun.statistics = Some(statistics);
                    return Ok(begun);
                }
                Output::Failed(exception) => return Err(exception),
            }
        }
        Ok(begun)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (engine, tag) = (self.engine.clone(), std::mem::take(&mut self.tag));
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(move || engine.kill(&tag));
        }
    }
}
