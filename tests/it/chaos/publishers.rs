//! Several publishers that send until JetStream confirms, and the record of what it
//! confirmed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use async_nats::{ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{RwLock, RwLockWriteGuard};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::draft::{Author, Draft};
use super::lane::Lane;

/// A message's sequence in the stream, and a place in the message.
pub type Place = (u64, u32);

/// Everything that JetStream confirmed, and what has to come of it.
#[derive(Default)]
pub struct Ledger {
    pub messages: u64,
    /// With the row's id where the producer decided it.
    pub events: HashMap<Place, Option<Uuid>>,
    /// With the reason.
    pub dead_letters: BTreeMap<Place, &'static str>,
}

impl Ledger {
    fn confirm(&mut self, sequence: u64, draft: Draft) {
        self.messages += 1;
        let events = draft.events.into_iter();
        self.events
            .extend(events.map(|(index, id)| ((sequence, index), id)));
        let letters = draft.dead_letters.into_iter();
        self.dead_letters
            .extend(letters.map(|(index, reason)| ((sequence, index), reason)));
    }
}

/// What is published.
#[derive(Clone, Copy)]
pub struct Traffic {
    pub seed: u64,
    /// Messages per second, of all publishers together.
    pub rate: u32,
    /// Number of days on which the events happened.
    pub days: u64,
    pub lane: Lane,
}

const PUBLISHERS: u32 = 3;

/// Messages of one publisher that wait for their confirmation at a time.
const WINDOW: usize = 200;

/// Far longer than any outage, so that a message that is sent again is recognised.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(2 * 3600);

pub struct Publishers {
    ledger: Arc<Mutex<Ledger>>,
    /// Held for reading by each message until it is confirmed.
    gate: Arc<RwLock<()>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Publishers {
    /// Creates the stream, as the daemon would except for the duplicate window, and
    /// starts.
    pub async fn start(nats_url: &str, traffic: Traffic) -> Self {
        let stream = stream::Config {
            name: traffic.lane.stream.to_owned(),
            subjects: vec![format!("{}>", traffic.lane.prefix)],
            max_age: Duration::from_secs(720 * 3600),
            allow_direct: true,
            duplicate_window: DUPLICATE_WINDOW,
            ..Default::default()
        };
        let mut publishers = Self {
            ledger: Arc::default(),
            gate: Arc::default(),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        for number in 0..PUBLISHERS {
            let mut jetstream = jetstream::new(connect(nats_url).await);
            // An answer that has not come by then went down with a server.
            jetstream.set_timeout(Duration::from_secs(2));
            if number == 0 {
                jetstream.create_stream(&stream).await.unwrap();
            }
            let author = Author::new(
                traffic.seed.wrapping_add(u64::from(number) << 32),
                traffic.days,
                traffic.lane.prefix,
            );
            let publisher = Publisher {
                jetstream,
                interval: Duration::from_secs(1) * PUBLISHERS / traffic.rate,
                ledger: Arc::clone(&publishers.ledger),
                gate: Arc::clone(&publishers.gate),
                stop: publishers.stop.clone(),
            };
            publishers.tasks.spawn(publisher.publish(author));
        }
        publishers
    }

    /// Waits until nothing that was sent is unconfirmed; nothing is sent until what this
    /// returns is dropped.
    pub async fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// Ends with nothing that was sent left unconfirmed.
    pub async fn finish(mut self) -> Ledger {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.ledger.lock().unwrap())
    }
}

/// A connection that comes back as soon as the server does.
pub async fn connect(nats_url: &str) -> async_nats::Client {
    ConnectOptions::new()
        .request_timeout(Some(Duration::from_secs(2)))
        .reconnect_delay_callback(|_| Duration::from_millis(100))
        .connect(nats_url)
        .await
        .unwrap()
}

struct Publisher {
    jetstream: jetstream::Context,
    interval: Duration,
    ledger: Arc<Mutex<Ledger>>,
    gate: Arc<RwLock<()>>,
    stop: CancellationToken,
}

impl Publisher {
    async fn publish(self, mut author: Author) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unconfirmed = FuturesUnordered::new();
        while !(self.stop.is_cancelled() && unconfirmed.is_empty()) {
            tokio::select! {
                _ = ticks.tick(), if !self.stop.is_cancelled() && unconfirmed.len() < WINDOW => {
                    unconfirmed.push(self.until_confirmed(author.write()));
                }
                Some((sequence, draft)) = unconfirmed.next() => {
                    self.ledger.lock().unwrap().confirm(sequence, draft);
                }
                () = self.stop.cancelled(), if unconfirmed.is_empty() => {}
            }
        }
    }

    /// Sends a message, again and again under the same id, until JetStream has confirmed
    /// it.
    async fn until_confirmed(&self, draft: Draft) -> (u64, Draft) {
        let _open = self.gate.read().await;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(async_nats::header::NATS_MESSAGE_ID, draft.id.as_str());
            let payload = draft.payload.clone().into();
            let published = self
                .jetstream
                .publish_with_headers(draft.subject.clone(), headers, payload)
                .await;
            if let Ok(confirmation) = published
                && let Ok(confirmed) = confirmation.await
            {
                return (confirmed.sequence, draft);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
