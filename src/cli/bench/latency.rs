//! How long an event takes from being published until a query finds it, at a steady rate
//! and with the pipeline as it is configured.

use std::cell::Cell;
use std::collections::HashMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clickhouse::Row;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::load::Publisher;
use super::scratch::Scratch;
use super::whole;
use crate::clickhouse::ClickHouse;
use crate::nats::StreamId;

/// How often ClickHouse is asked for rows that have not been seen yet.
const LOOK: Duration = Duration::from_millis(10);

/// Without a new row for this long, beyond what the configuration lets an insert take,
/// something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is published.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    /// Events a second.
    pub rate: u64,
    pub events: u64,
}

/// What was measured.
pub struct Found {
    pub published_for: Duration,
    /// One for each event.
    pub latencies: Vec<Duration>,
}

/// Publishes steadily to the stream, which is empty, while the pipeline runs.
pub async fn measure(
    scratch: &Scratch,
    publisher: &mut Publisher,
    steady: Steady,
    bar: &ProgressBar,
) -> Result<Found> {
    let stop = CancellationToken::new();
    let mut pipeline = whole::pipeline(scratch, scratch.progress()?);
    let mut carrying = pin!(pipeline.run(&stop));
    let mut watch = Watch {
        clickhouse: scratch.clickhouse.clone(),
        table: scratch.lane.kind.tables().events,
        stream: StreamId::of(&scratch.stream().await?).to_string(),
        up_to: 0,
        seen: HashMap::new(),
    };
    let patience = scratch.config.features.analytics.flush_interval
        + scratch.config.features.analytics.insert_timeout
        + PATIENCE;
    let measuring = async {
        // The first event waits for the pipeline's start.
        let (first, _) = publisher.steadily(1, 1).await?;
        let first = first.last().map(|first| first.sequence);
        let none = ProgressBar::hidden();
        watch.until(|| first, patience, &none).await?;

        let last = Cell::new(None);
        let publishing = async {
            let (published, took) = publisher.steadily(steady.rate, steady.events).await?;
            last.set(published.last().map(|last| last.sequence));
            anyhow::Ok((published, took))
        };
        let ((published, published_for), ()) =
            tokio::try_join!(publishing, watch.until(|| last.get(), patience, bar))?;
        let latencies = published.iter().filter_map(|event| {
            let seen = watch.seen.get(&event.sequence)?;
            Some(seen.saturating_duration_since(event.sent))
        });
        anyhow::Ok(Found {
            published_for,
            latencies: latencies.collect(),
        })
    };
    let found = tokio::select! {
        found = measuring => found?,
        ended = &mut carrying => {
            ended?;
            bail!("the pipeline ended by itself, which is a bug in this program");
        }
    };
    stop.cancel();
    carrying.await?;
    Ok(found)
}

/// Looks for rows of a stream.
struct Watch {
    clickhouse: ClickHouse,
    table: &'static str,
    stream: String,
    /// All up to this sequence have been seen.
    up_to: u64,
    /// When each row was first seen.
    seen: HashMap<u64, Instant>,
}

impl Watch {
    /// Looks until all up to the sequence that `last` gives were seen.
    async fn until(
        &mut self,
        last: impl Fn() -> Option<u64>,
        patience: Duration,
        bar: &ProgressBar,
    ) -> Result<()> {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_news = Instant::now();
        while last().is_none_or(|last| self.up_to < last) {
            looks.tick().await;
            let new = self.look().await?;
            if new > 0 {
                last_news = Instant::now();
                bar.inc(new);
            }
            if last_news.elapsed() > patience {
                bail!(
                    "events after sequence {} of the scratch stream do not arrive in ClickHouse",
                    self.up_to
                );
            }
        }
        Ok(())
    }

    /// Takes note of what is there now; returns how many rows are new.
    async fn look(&mut self) -> Result<u64> {
        #[derive(Row, Deserialize)]
        struct Stored {
            stream_seq: u64,
        }
        let sql = format!(
            "SELECT stream_seq FROM {}
             WHERE stream = {{stream:String}} AND stream_seq > {{up_to:UInt64}}",
            self.table
        );
        let up_to = self.up_to.to_string();
        let parameters = [("stream", self.stream.as_str()), ("up_to", up_to.as_str())];
        let rows: Vec<Stored> = self.clickhouse.rows(&sql, &parameters).await?;
        let (now, before) = (Instant::now(), self.seen.len());
        for Stored { stream_seq } in rows {
            self.seen.entry(stream_seq).or_insert(now);
        }
        // Inserts under way at the same time may finish in any order.
        while self.seen.contains_key(&(self.up_to + 1)) {
            self.up_to += 1;
        }
        Ok((self.seen.len() - before) as u64)
    }
}
