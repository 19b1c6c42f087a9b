//! Accepting and serving HTTP connections.
//!
//! There is no login, so anybody who can reach the port may open connections. Whoever
//! opens many and says nothing must neither take the file descriptors that the pipeline
//! needs nor keep a probe out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

/// Connections that a listener has open at a time: more than probes, scrapes and people
/// with `status` need, and a fraction of the 1,024 file descriptors that a process may
/// have where nobody has raised the limit.
const MOST_CONNECTIONS: usize = 64;

/// How long a client may take for the head of its request, the first or the next one.
/// It is a single packet, which arrives within this time even when it was lost twice.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be accepted. Out of file descriptors, the next
/// attempt would fail as well, and the processor would do nothing else.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A connection, which is closed when this is dropped.
struct Open {
    task: AbortOnDropHandle<()>,
    /// A request has been read whose answer is not ready yet.
    is_answering: Arc<AtomicBool>,
}

/// Serves until it is dropped.
///
/// When all connections are taken, a new one takes the place of the oldest that has no
/// request to be answered: a new client says at once what it wants, and the others may
/// never do so.
pub async fn serve(listener: TcpListener, router: Router) {
    serve_within(HEAD_TIMEOUT, listener, router).await;
}

async fn serve_within(head_timeout: Duration, listener: TcpListener, router: Router) {
    let mut open: Vec<Open> = Vec::new();
    loop {
        let connection = accept(&listener).await;
        open.retain(|other| !other.task.is_finished());
        if open.len() >= MOST_CONNECTIONS {
            let is_idle = |other: &Open| !other.is_answering.load(Relaxed);
            let Some(oldest) = open.iter().position(is_idle) else {
                // Each of them is answered within seconds. This one is closed.
                continue;
            };
            open.remove(oldest);
        }
        open.push(Open::new(connection, router.clone(), head_timeout));
        // Its request may be there by now, and is read before others can push it out.
        tokio::task::yield_now().await;
    }
}

impl Open {
    fn new(connection: TcpStream, router: Router, head_timeout: Duration) -> Self {
        let is_answering = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&is_answering);
        let router = TowerToHyperService::new(router);
        let service = service_fn(move |request| {
            let (router, mark) = (router.clone(), Arc::clone(&mark));
            async move {
                mark.store(true, Relaxed);
                let answer = router.call(request).await;
                mark.store(false, Relaxed);
                answer
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .serve_connection(TokioIo::new(connection), service);
        let task = tokio::spawn(async move {
            if let Err(error) = serving.await {
                debug!(%error, "an HTTP connection ended with an error");
            }
        });
        Self {
            task: AbortOnDropHandle::new(task),
            is_answering,
        }
    }
}

/// The next connection; an error is never the end of listening.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut is_said = false;
    loop {
        let error = match listener.accept().await {
            Ok((connection, _)) => return connection,
            Err(error) => error,
        };
        // A connection that its client has already given up says nothing about the next
        // one.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
        ) {
            continue;
        }
        if !is_said {
            warn!(%error, "no HTTP connection can be accepted, trying again");
            is_said = true;
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    async fn start(head_timeout: Duration, router: Router) -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve_within(head_timeout, listener, router));
        (address, AbortOnDropHandle::new(serving))
    }

    /// Waits until the other side closes it, and returns what it has sent before.
    async fn rest_of(mut connection: TcpStream) -> String {
        let mut rest = Vec::new();
        let limit = Duration::from_secs(60);
        let closed = tokio::time::timeout(limit, connection.read_to_end(&mut rest)).await;
        // By an end or by a reset.
        assert!(closed.is_ok(), "still open");
        String::from_utf8(rest).unwrap()
    }

    #[tokio::test]
    async fn newer_connections_close_the_oldest_but_not_one_that_is_being_answered() {
        let (asked, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let answer = {
            let (asked, go_on) = (Arc::clone(&asked), Arc::clone(&go_on));
            async move || {
                asked.notify_one();
                go_on.notified().await;
                "answered"
            }
        };
        let (address, _server) = start(NEVER, Router::new().route("/", get(answer))).await;

        let mut client = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        client.write_all(request).await.unwrap();
        asked.notified().await;
        let oldest = TcpStream::connect(address).await.unwrap();
        let mut newer = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            newer.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(rest_of(oldest).await, "");
        go_on.notify_one();
        let answer = rest_of(client).await;
        assert!(answer.ends_with("\r\n\r\nanswered"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_without_a_whole_head_is_closed_in_time() {
        let router = Router::new().route("/", get(async || "answered"));
        let (address, _server) = start(Duration::from_millis(100), router).await;
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for (sent, answers) in [("", 0), ("GET / HTTP/1.1\r\nHo", 0), (request, 1)] {
            let mut connection = TcpStream::connect(address).await.unwrap();
            connection.write_all(sent.as_bytes()).await.unwrap();
            let answer = rest_of(connection).await;
            assert_eq!(answer.matches("answered").count(), answers, "{answer}");
        }
    }
}
