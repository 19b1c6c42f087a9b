//! A ClickHouse for the tests: the one that TEST_CLICKHOUSE_URL names, or the embedded
//! engine, which dies with the test process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clickhouse::Client;
use uuid::Uuid;

use super::{LIMIT, signal};

/// The HTTP interface that every test shares.
pub fn url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| match std::env::var("TEST_CLICKHOUSE_URL") {
        Ok(url) => url,
        Err(_) => shared_server(),
    })
}

/// Its port on the loopback address.
pub fn port() -> u16 {
    let (_, port) = url().rsplit_once(':').expect("a port");
    port.trim_end_matches('/').parse().expect("a port")
}

/// A client on a fresh database of the shared server.
pub async fn fresh_database() -> Client {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("test_{}_{count}", std::process::id());
    let client = Client::default().with_url(url());
    let create = format!("CREATE DATABASE {name}");
    client.query(&create).execute().await.expect("a database");
    client.with_database(name)
}

/// Statics are never dropped: the shell that starts the server removes its directory
/// when it has ended, which is when this process has.
fn shared_server() -> String {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory").keep();
        let server = command(&directory, free_port());
        let mut shell = Command::new("sh");
        shell
            .args(["-c", r#""$@"; rm -rf "$0""#])
            .arg(&directory)
            .arg(server.get_program())
            .args(server.get_args())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped());
        Server::spawn(&mut shell)
    });
    server.url.clone()
}

/// A server process of a test's own.
pub struct Server {
    pub url: String,
    child: Child,
}

impl Server {
    /// Starts the embedded engine on `path` and waits until it answers.
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, &[])
    }

    pub fn start_with(path: &Path, arguments: &[&str]) -> Self {
        Self::spawn(command(path, free_port()).args(arguments))
    }

    /// Starts the server that `command` describes and waits until it answers.
    pub fn spawn(command: &mut Command) -> Self {
        let mut arguments = command.get_args().map(|it| it.to_string_lossy());
        let port = arguments
            .find(|it| it == "--port")
            .and_then(|_| arguments.next());
        let port = port.and_then(|it| it.parse().ok()).expect("a port");
        let mut child = command
            .arg("--exit-with-parent")
            .spawn()
            .expect("the server's process");
        let start = Instant::now();
        while !answers(port) {
            if let Some(status) = child.try_wait().expect("the server's state") {
                panic!("the server ended with {status}");
            }
            assert!(start.elapsed() < LIMIT, "the server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            url: format!("http://127.0.0.1:{port}"),
            child,
        }
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Ends the server as a power failure would.
    pub fn kill9(mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("the server's end");
    }

    /// Asks the server to end, and waits until it has.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        wait_for_exit(&mut self.child)
    }

    /// Closes the server's standard input, as the death of its parent does.
    pub fn orphan(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        wait_for_exit(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone after `kill9` and `terminate`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's command line, its standard input open for as long as the child lives.
pub fn command(path: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_analytics-server"));
    command
        .arg("clickhouse")
        .arg("--path")
        .arg(path)
        .args(["--port", &port.to_string()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped());
    command
}

pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the server's state") {
            return status;
        }
        assert!(start.elapsed() < LIMIT, "the server does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A port that a server can have again after it was killed. Connections to it that fail
/// meanwhile take ports of their own from the range that the system keeps for that, and
/// `free_port` gives one of these: sooner or later one of them would sit on it.
pub fn lasting_port() -> u16 {
    let any = || 15_000 + (Uuid::new_v4().as_u128() % 17_000) as u16;
    std::iter::repeat_with(any)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a port")
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let request = b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.ends_with("Ok.\n")
}

/// An HTTP request byte by byte, for what no client would do.
pub struct RawRequest {
    stream: TcpStream,
}

impl RawRequest {
    /// Sends the head of a request whose body comes in chunks.
    pub fn open(url: &str, method_and_target: &str, headers: &str) -> Self {
        let address = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let head = format!(
            "{method_and_target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).expect("a request");
        Self { stream }
    }

    pub fn chunk(&mut self, bytes: &[u8]) {
        let size = format!("{:x}\r\n", bytes.len());
        let chunk = [size.as_bytes(), bytes, b"\r\n"].concat();
        self.stream.write_all(&chunk).expect("a chunk");
    }

    /// Ends the body; the connection stays open, with the answer unread.
    pub fn end_body(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").expect("the end");
    }

    /// Ends the body and returns the answer: its head in lower case, and its body.
    pub fn end(mut self) -> (String, String) {
        self.end_body();
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_lowercase(), body.to_owned())
    }
}

/// Posts `sql` and returns the answer's head, in lower case, and its body.
pub fn post(url: &str, target: &str, headers: &str, sql: &str) -> (String, String) {
    let mut request = RawRequest::open(url, &format!("POST {target}"), headers);
    request.chunk(sql.as_bytes());
    request.end()
}
