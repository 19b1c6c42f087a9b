//! A ClickHouse whose answers to inserts a test chooses: it stands before the real one
//! and passes on everything else.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{clickhouse, eventually};

/// What becomes of an insert that arrived.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Answered with this status and text, without asking ClickHouse.
    Answer(u16, String),
    /// Not passed on; the connection breaks.
    CutBefore,
    /// Half of it is passed on, then both connections break.
    CutWithin,
    /// Passed on; the connection breaks instead of ClickHouse's answer.
    CutAfter,
    /// Passed on; ClickHouse's answer comes after this time.
    Late(Duration),
    /// Passed on; nothing is answered.
    Hang,
}

impl Fate {
    /// ClickHouse's own words: `Code: 60. DB::Exception: … (UNKNOWN_TABLE) (version …)`.
    pub fn code(code: u16, message: &str, name: &str) -> Self {
        let text = format!("Code: {code}. DB::Exception: {message}. ({name}) (version 26.7.2.1)");
        Self::Answer(500, text)
    }
}

/// Whether anybody is at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Here,
    /// Connections break at once.
    Away,
    /// Connections are taken, and nothing is answered.
    Silent,
}

/// An insert that arrived, once for each attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The statement, such as `INSERT INTO analytics_events FORMAT Native`.
    pub statement: String,
    pub token: String,
    pub query_id: String,
    pub compressed: bool,
    /// Hash of the bytes.
    pub body: u64,
    /// The status of ClickHouse's own answer, if it was asked and has answered.
    pub answer: Option<u16>,
}

pub struct FakeClickHouse {
    pub url: String,
    state: Arc<State>,
    presence: watch::Sender<Presence>,
    _accepting: AbortOnDropHandle<()>,
}

struct State {
    /// Where the real one listens.
    address: String,
    inserts: Mutex<Inserts>,
    presence: watch::Receiver<Presence>,
}

#[derive(Default)]
struct Inserts {
    plans: VecDeque<Vec<Fate>>,
    /// What is left of the plan of each insert, by its statement and token.
    planned: HashMap<(String, String), VecDeque<Fate>>,
    attempts: Vec<Attempt>,
    open: usize,
    most_open: usize,
    /// Connections that came while nobody was at home.
    missed: usize,
}

impl FakeClickHouse {
    pub async fn start() -> Self {
        let real = clickhouse::url().trim_end_matches('/');
        assert!(real.starts_with("http://"), "cannot stand before {real}");
        let address = real.rsplit(['/', '@']).next().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_address = listener.local_addr().unwrap().to_string();
        let (presence, receiver) = watch::channel(Presence::Here);
        let state = Arc::new(State {
            address: address.to_owned(),
            inserts: Mutex::default(),
            presence: receiver,
        });
        Self {
            url: real.replace(address, &own_address),
            state: Arc::clone(&state),
            presence,
            _accepting: AbortOnDropHandle::new(tokio::spawn(accept(listener, state))),
        }
    }

    /// What becomes of the attempts of the next insert that is new, in order; those
    /// after them are passed on, and so is an insert without a plan.
    pub fn plan(&self, fates: impl Into<Vec<Fate>>) {
        self.inserts().plans.push_back(fates.into());
    }

    /// Who comes back breaks the connections that were open.
    pub fn set(&self, presence: Presence) {
        self.presence.send_replace(presence);
    }

    pub fn attempts(&self) -> Vec<Attempt> {
        self.inserts().attempts.clone()
    }

    /// Waits until the first attempt is stored, answered or not.
    pub async fn stores_the_first(&self) {
        eventually("the insert is stored", async || {
            let attempts = self.attempts();
            (attempts.first()?.answer == Some(200)).then_some(())
        })
        .await;
    }

    /// The most inserts that were under way at a time.
    pub fn most_open(&self) -> usize {
        self.inserts().most_open
    }

    /// How many connections came while nobody was at home.
    pub fn missed(&self) -> usize {
        self.inserts().missed
    }

    /// Whatever was sent again was the same bytes.
    pub fn repeats_are_alike(&self) {
        let mut first = HashMap::new();
        for attempt in self.attempts() {
            let key = (attempt.statement.clone(), attempt.token.clone());
            let sent = (attempt.body, attempt.query_id.clone());
            assert_eq!(
                *first.entry(key).or_insert(sent.clone()),
                sent,
                "{attempt:?}"
            );
        }
    }

    fn inserts(&self) -> MutexGuard<'_, Inserts> {
        self.state.inserts()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        // Ends with an error where a client is gone, which is its own business.
        tokio::spawn(async move { state.connection(client).await });
    }
}

impl State {
    fn inserts(&self) -> MutexGuard<'_, Inserts> {
        self.inserts.lock().unwrap()
    }

    async fn connection(&self, client: TcpStream) -> io::Result<()> {
        let mut presence = self.presence.clone();
        let now = *presence.borrow_and_update();
        if now != Presence::Here {
            self.inserts().missed += 1;
            if now == Presence::Silent {
                let _ = presence.changed().await;
            }
            return Ok(());
        }
        tokio::select! {
            answered = self.answer(client) => answered,
            _ = presence.changed() => Ok(()),
        }
    }

    /// Answers one request and closes the connection.
    async fn answer(&self, client: TcpStream) -> io::Result<()> {
        let mut client = BufReader::new(client);
        let request = Request::read(&mut client).await?;
        let mut client = client.into_inner();
        let Some(attempt) = request.insert() else {
            let answer = self.pass_on(&request).await?;
            return client.write_all(&answer).await;
        };
        let (index, fate) = self.arrived(attempt);
        let _open = Open::new(self);
        match &fate {
            Some(Fate::Answer(status, text)) => {
                let length = text.len();
                let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n");
                let answer = format!("{head}Connection: close\r\n\r\n{text}");
                return client.write_all(answer.as_bytes()).await;
            }
            Some(Fate::CutBefore) => return Ok(()),
            Some(Fate::CutWithin) => {
                let mut real = TcpStream::connect(&self.address).await?;
                let bytes = request.bytes();
                let half = bytes.len() - request.body.len() / 2;
                return real.write_all(&bytes[..half]).await;
            }
            _ => {}
        }
        let answer = self.pass_on(&request).await?;
        let status = String::from_utf8_lossy(&answer[..answer.len().min(12)]);
        let status = status.rsplit(' ').next().and_then(|it| it.parse().ok());
        self.inserts().attempts[index].answer = status;
        match fate {
            Some(Fate::CutAfter) => return Ok(()),
            Some(Fate::Late(time)) => tokio::time::sleep(time).await,
            Some(Fate::Hang) => {
                // Until the client is gone.
                let _ = client.read_u8().await;
            }
            _ => {}
        }
        client.write_all(&answer).await
    }

    /// Notes an attempt, and tells what becomes of it: `None` passes it on.
    fn arrived(&self, attempt: Attempt) -> (usize, Option<Fate>) {
        let mut inserts = self.inserts();
        let inserts = &mut *inserts;
        let key = (attempt.statement.clone(), attempt.token.clone());
        inserts.attempts.push(attempt);
        let planned = match inserts.planned.entry(key) {
            Entry::Occupied(planned) => planned.into_mut(),
            Entry::Vacant(new) => new.insert(inserts.plans.pop_front().unwrap_or_default().into()),
        };
        (inserts.attempts.len() - 1, planned.pop_front())
    }

    /// The real one's answer.
    async fn pass_on(&self, request: &Request) -> io::Result<Vec<u8>> {
        let mut real = TcpStream::connect(&self.address).await?;
        real.write_all(&request.bytes()).await?;
        let mut answer = Vec::new();
        real.read_to_end(&mut answer).await?;
        Ok(answer)
    }
}

/// An insert that is under way.
struct Open<'a>(&'a State);

impl<'a> Open<'a> {
    fn new(state: &'a State) -> Self {
        let mut inserts = state.inserts();
        inserts.open += 1;
        inserts.most_open = inserts.most_open.max(inserts.open);
        Self(state)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.inserts().open -= 1;
    }
}

/// One request, its body whole.
struct Request {
    /// Request line and headers, without those that say how the body is sent.
    head: String,
    body: Vec<u8>,
}

impl Request {
    async fn read(client: &mut BufReader<TcpStream>) -> io::Result<Self> {
        let mut head = line(client).await?;
        let mut length = Some(0);
        loop {
            let header = line(client).await?;
            let (name, value) = header.split_once(':').unwrap_or((&header, ""));
            match name.to_ascii_lowercase().as_str() {
                "\r\n" => break,
                "content-length" => length = value.trim().parse().ok(),
                "transfer-encoding" => length = None,
                "connection" => {}
                _ => head.push_str(&header),
            }
        }
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                client.read_exact(&mut body).await?;
            }
            None => while chunk(client, &mut body).await? {},
        }
        Ok(Self { head, body })
    }

    /// As it is passed on, so that the answer ends with the connection.
    fn bytes(&self) -> Vec<u8> {
        let (head, length) = (&self.head, self.body.len());
        let head = format!("{head}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// The insert that this is, if its sender made it one that can be repeated.
    fn insert(&self) -> Option<Attempt> {
        let (_, target) = self.head.split_once('?')?;
        let (query, _) = target.split_once(' ')?;
        let parameters: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
        let parameter = |name| Some(parameters.get(name)?.to_string());
        let mut hasher = DefaultHasher::new();
        self.body.hash(&mut hasher);
        Some(Attempt {
            statement: parameter("query")?,
            token: parameter("insert_deduplication_token")?,
            query_id: parameter("query_id").unwrap_or_default(),
            compressed: parameter("decompress").is_some(),
            body: hasher.finish(),
            answer: None,
        })
    }
}

async fn line(client: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match client.read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

/// Reads one chunk of a body; false after the last one.
async fn chunk(client: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> io::Result<bool> {
    let size = line(client).await?;
    let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
    let start = body.len();
    body.resize(start + size, 0);
    client.read_exact(&mut body[start..]).await?;
    line(client).await?;
    Ok(size > 0)
}
