use std::collections::HashSet;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::{self, context::PublishAckFuture};
use clickhouse::Row;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use serde::Deserialize;
use uuid::Uuid;

use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::nats::{self, StreamId};
use crate::retry::Retry;
use crate::sample::{Kind, Population};

#[derive(clap::Args)]
pub struct Args {
    /// How many events
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,

    /// Events a second [default: as fast as JetStream takes them]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,

    /// Events of one kind only
    #[arg(long, value_enum)]
    r#type: Option<Kind>,

    /// Wait until all of them stand in ClickHouse, this many seconds at the most
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Publishes under way at a time; JetStream answers each.
const WINDOW: usize = 1024;

/// Ids that are printed: enough to look at, not a screen full.
const SHOWN: usize = 10;

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let messaging = &config.integrations.messaging;
    let client = nats::connect(messaging).await?;
    let jetstream = jetstream::new(client);
    let stream = nats::open_stream(&jetstream, messaging).await?;
    let Some(prefix) = messaging.subjects.analytics_events.strip_suffix('>') else {
        bail!("subjects.analytics_events must end with `>` to send every kind of event");
    };

    let mut stdout = std::io::stdout().lock();
    let started = Instant::now();
    let sent = publish(&args, &jetstream, prefix).await?;
    let took = started.elapsed();
    if !args.json {
        writeln!(
            stdout,
            "published {} {} in {:.3} s, sequences {} to {} of stream {}",
            sent.ids.len(),
            if sent.ids.len() == 1 {
                "event"
            } else {
                "events"
            },
            took.as_secs_f64(),
            sent.first,
            sent.last,
            messaging.jetstream.stream_name
        )?;
        for id in sent
            .ids
            .iter()
            .take(if sent.ids.len() > SHOWN { 0 } else { SHOWN })
        {
            writeln!(stdout, "event_id {id}")?;
        }
    }

    let found = match args.wait {
        Some(seconds) => {
            let stream = StreamId::of(&stream).to_string();
            let wait = wait_until_stored(&config, &stream, &sent);
            tokio::time::timeout(Duration::from_secs(seconds), wait)
                .await
                .map_or(Ok(false), |stored| stored.map(|()| true))?
        }
        None => false,
    };
    let stored_after = started.elapsed();
    if args.json {
        let report = serde_json::json!({
            "published": sent.ids.len(),
            "first_sequence": sent.first,
            "last_sequence": sent.last,
            "seconds": took.as_secs_f64(),
            "event_ids": sent.ids.iter().take(SHOWN).collect::<Vec<_>>(),
            "stored_after_seconds": found.then_some(stored_after.as_secs_f64()),
        });
        writeln!(stdout, "{report}")?;
    } else if found {
        writeln!(
            stdout,
            "all found in ClickHouse by their ids, {:.3} s after the start",
            stored_after.as_secs_f64()
        )?;
    }
    if let Some(seconds) = args.wait
        && !found
    {
        bail!(
            "not all events were in ClickHouse after {seconds} s: does `analytics-server serve` run? `analytics-server check` says more"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What was published.
struct Sent {
    ids: HashSet<Uuid>,
    first: u64,
    last: u64,
}

async fn publish(args: &Args, jetstream: &jetstream::Context, prefix: &str) -> Result<Sent> {
    // Another population at each call would not be a steady one.
    let mut population = Population::new(1);
    let progress = progress_bar(args.count);
    let started = Instant::now();
    let mut sent = Sent {
        ids: HashSet::new(),
        first: u64::MAX,
        last: 0,
    };
    let mut window = FuturesOrdered::new();
    for number in 0..args.count {
        if let Some(rate) = args.rate {
            let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
        let sample = population.event(SystemTime::now(), args.r#type);
        let message = Outgoing {
            id: Uuid::new_v4(),
            subject: format!("{prefix}{}", sample.subject),
            payload: sample.event.encode_to_vec(),
        };
        sent.ids.insert(message.id);
        let ack = message.publish(jetstream).await;
        window.push_back(confirm(jetstream, message, ack));
        if window.len() >= WINDOW
            && let Some(sequence) = window.next().await
        {
            sent.confirmed(sequence?);
            progress.inc(1);
        }
    }
    while let Some(sequence) = window.next().await {
        sent.confirmed(sequence?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(sent)
}

impl Sent {
    fn confirmed(&mut self, sequence: u64) {
        self.first = self.first.min(sequence);
        self.last = self.last.max(sequence);
    }
}

struct Outgoing {
    id: Uuid,
    subject: String,
    payload: Vec<u8>,
}

impl Outgoing {
    async fn publish(
        &self,
        jetstream: &jetstream::Context,
    ) -> Result<PublishAckFuture, jetstream::context::PublishError> {
        let mut headers = HeaderMap::new();
        // Also lets JetStream drop the repeat of a publish whose answer was lost.
        headers.insert(NATS_MESSAGE_ID, self.id.to_string());
        jetstream
            .publish_with_headers(self.subject.clone(), headers, self.payload.clone().into())
            .await
    }
}

/// Waits for JetStream's answer, publishing again where there is none; returns
/// the event's stream sequence.
async fn confirm(
    jetstream: &jetstream::Context,
    message: Outgoing,
    mut ack: Result<PublishAckFuture, jetstream::context::PublishError>,
) -> Result<u64> {
    const TRIES: usize = 5;
    let mut retry = Retry::new();
    for _ in 1..TRIES {
        let answer = match ack {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(ack) => return Ok(ack.sequence),
            Err(error) if retry.is_news(&error) => {
                tracing::warn!(%error, "publishing failed, retrying")
            }
            Err(_) => {}
        }
        retry.pause().await;
        ack = message.publish(jetstream).await;
    }
    let answer = ack?
        .await
        .with_context(|| format!("cannot publish to `{}`", message.subject))?;
    Ok(answer.sequence)
}

fn progress_bar(count: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} events, {per_sec}, {eta} left",
    );
    // Draws on stderr, and only where that is a terminal.
    ProgressBar::new(count).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Returns once each of the events stands in ClickHouse.
///
/// # Errors
/// When an event is there more than once.
async fn wait_until_stored(config: &Config, stream: &str, sent: &Sent) -> Result<()> {
    #[derive(Row, Deserialize)]
    struct Found {
        id: String,
    }
    let clickhouse = ClickHouse::new(config);
    let (first, last) = (sent.first.to_string(), sent.last.to_string());
    let parameters = [
        ("stream", stream),
        ("first", first.as_str()),
        ("last", last.as_str()),
    ];
    let query = "SELECT toString(event_id) AS id FROM analytics_events
                 WHERE stream = {stream:String} AND stream_seq BETWEEN {first:UInt64} AND {last:UInt64}";
    let mut retry = Retry::new();
    loop {
        match clickhouse.rows::<Found>(query, &parameters).await {
            Ok(rows) => {
                let ids = rows.iter().filter_map(|row| Uuid::try_parse(&row.id).ok());
                let found: Vec<Uuid> = ids.filter(|id| sent.ids.contains(id)).collect();
                if found.len() > sent.ids.len() {
                    bail!(
                        "{} rows stand in ClickHouse for {} events",
                        found.len(),
                        sent.ids.len()
                    );
                }
                if found.len() == sent.ids.len() {
                    return Ok(());
                }
            }
            Err(error) if retry.is_news(&error) => {
                tracing::warn!(%error, "cannot look for the events yet")
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
