//! What was stored, compared with what was confirmed.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use clickhouse::Row;
use serde::Deserialize;

use super::lane::Lane;
use super::operator;
use super::publishers::{Ledger, Place};
use crate::support::{LIMIT, World};

/// Places named in a report: enough to look for in the logs.
const NAMED: usize = 20;

#[derive(Row, Deserialize)]
struct StoredEvent {
    stream_seq: u64,
    batch_index: u32,
    id: String,
}

#[derive(Row, Deserialize)]
struct StoredLetter {
    stream_seq: u64,
    batch_index: u32,
    reason: String,
}

/// Each list has to be empty.
pub struct Verdict {
    messages: u64,
    events: usize,
    dead_letters: usize,
    lost: Vec<Place>,
    duplicated: Vec<Place>,
    /// Rows that nothing confirmed explains, or with an id other than the producer's.
    unexplained: Vec<Place>,
    views_wrong: Vec<String>,
    dead_letters_wrong: Vec<String>,
    unsettled: Vec<String>,
}

impl Verdict {
    /// Waits until nothing moves any more, then compares.
    pub async fn on(world: &World, lane: Lane, ledger: &Ledger) -> Self {
        let mut unsettled = settle(world, lane).await;
        // A message that nobody confirmed, or a confirmed one that is gone, is not the
        // daemon's doing; the comparison would say nothing.
        let held = stream_messages(world, lane).await;
        if held != ledger.messages {
            unsettled.push(format!(
                "the stream holds {held} messages, confirmed were {}",
                ledger.messages
            ));
        }
        let mut views_wrong = world.wrong_views().await;
        if lane.has_operators_views {
            views_wrong.extend(world.wrong_among(&operator::VIEWS).await);
        }
        let mut verdict = Self {
            messages: ledger.messages,
            events: ledger.events.len(),
            dead_letters: ledger.dead_letters.len(),
            lost: Vec::new(),
            duplicated: Vec::new(),
            unexplained: Vec::new(),
            views_wrong,
            dead_letters_wrong: Vec::new(),
            unsettled,
        };
        verdict.compare_events(world, ledger).await;
        verdict.compare_dead_letters(world, ledger).await;
        verdict
    }

    async fn compare_events(&mut self, world: &World, ledger: &Ledger) {
        let mut stored: HashMap<Place, u32> = HashMap::with_capacity(ledger.events.len());
        let sql = "SELECT stream_seq, batch_index, toString(event_id) AS id FROM analytics_events";
        let mut rows = world
            .clickhouse()
            .query(sql)
            .fetch::<StoredEvent>()
            .unwrap();
        while let Some(row) = rows.next().await.unwrap() {
            let place = (row.stream_seq, row.batch_index);
            let explained = match ledger.events.get(&place) {
                Some(Some(id)) => id.to_string() == row.id,
                Some(None) => true,
                None => false,
            };
            if !explained {
                self.unexplained.push(place);
            }
            *stored.entry(place).or_default() += 1;
        }
        for place in ledger.events.keys() {
            match stored.get(place) {
                None => self.lost.push(*place),
                Some(1) => {}
                Some(_) => self.duplicated.push(*place),
            }
        }
        for places in [&mut self.lost, &mut self.duplicated, &mut self.unexplained] {
            places.sort_unstable();
        }
    }

    async fn compare_dead_letters(&mut self, world: &World, ledger: &Ledger) {
        let sql = "SELECT stream_seq, batch_index, toString(reason) AS reason FROM dead_letters";
        let rows = world.clickhouse().query(sql).fetch_all::<StoredLetter>();
        let mut missing = ledger.dead_letters.clone();
        for row in rows.await.unwrap() {
            let place = (row.stream_seq, row.batch_index);
            match missing.remove(&place) {
                Some(reason) if reason == row.reason => {}
                _ => self
                    .dead_letters_wrong
                    .push(format!("{place:?} stored again or wrongly, {}", row.reason)),
            }
        }
        let missing = missing.iter();
        self.dead_letters_wrong
            .extend(missing.map(|(place, reason)| format!("{place:?} missing, {reason}")));
    }

    pub fn is_good(&self) -> bool {
        self.counts()[3..].iter().all(|(_, count)| *count == 0)
    }

    /// What there was, then what may not be.
    pub fn counts(&self) -> [(&'static str, u64); 9] {
        [
            ("messages", self.messages),
            ("events", self.events as u64),
            ("dead letters", self.dead_letters as u64),
            ("events lost", self.lost.len() as u64),
            ("events duplicated", self.duplicated.len() as u64),
            ("rows unexplained", self.unexplained.len() as u64),
            ("views wrong", self.views_wrong.len() as u64),
            ("dead letters wrong", self.dead_letters_wrong.len() as u64),
            ("left over", self.unsettled.len() as u64),
        ]
    }
}

/// What is wrong, some of each kind.
impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("unexplained", &self.unexplained),
        ];
        for (what, places) in places {
            if !places.is_empty() {
                let some = &places[..places.len().min(NAMED)];
                writeln!(f, "{what} (stream_seq, batch_index): {some:?}")?;
            }
        }
        let texts = [&self.views_wrong, &self.dead_letters_wrong, &self.unsettled];
        for text in texts.iter().flat_map(|texts| texts.iter().take(NAMED)) {
            writeln!(f, "{text}")?;
        }
        Ok(())
    }
}

/// Waits until everything is acknowledged and nothing moves; says what is left when
/// nothing has moved for a long time.
async fn settle(world: &World, lane: Lane) -> Vec<String> {
    /// Longer than the daemon is ever quiet with work to do and both servers up.
    const QUIET: Duration = Duration::from_secs(1);

    let jetstream = world.nats.jetstream().await;
    let mut last = None;
    let mut moved = Instant::now();
    loop {
        let stored = world.stored().await;
        let waiting = match jetstream.get_stream(lane.stream).await {
            Ok(stream) => stream.consumer_info("analytics-processor").await.ok(),
            Err(_) => None,
        }
        .map(|consumer| (consumer.num_pending, consumer.num_ack_pending));
        if last != Some((stored, waiting)) {
            last = Some((stored, waiting));
            moved = Instant::now();
        }
        if waiting == Some((0, 0)) && moved.elapsed() > QUIET {
            return Vec::new();
        }
        if moved.elapsed() > LIMIT {
            return vec![format!(
                "nothing moves with {stored} events stored; messages to come and not acknowledged: {waiting:?}"
            )];
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn stream_messages(world: &World, lane: Lane) -> u64 {
    let jetstream = world.nats.jetstream().await;
    let stream = jetstream.get_stream(lane.stream).await.unwrap();
    stream.cached_info().state.messages
}
