use std::collections::HashSet;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Error, Result, bail};
use async_nats::jetstream;
use clap::builder::PossibleValuesParser;
use clickhouse::Row;
use serde::Deserialize;
use uuid::Uuid;

use super::publish::{self, Outgoing, progress_bar};
use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::kind::Samples;
use crate::kind::analytics::types::Type;
use crate::lane::Lane;
use crate::nats;
use crate::retry::Retry;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server send --count 1000 --wait 10\n  \
    analytics-server send --count 600 --rate 10 --type message_sent")]
pub struct Args {
    /// How many events
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,

    /// Events a second [default: as fast as JetStream takes them]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,

    /// Events of one type only
    #[arg(long, value_parser = PossibleValuesParser::new(Type::NAMES))]
    r#type: Option<String>,

    /// Wait until all of them are in ClickHouse, at most this many seconds
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// How many ids are printed: enough to look at, not a screenful.
const SHOWN: usize = 10;

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let lane = Lane::first(&config);
    // Another population at each call would not be a steady one.
    let mut samples = lane.kind.samples(1).map_err(Error::msg)?;
    let client = nats::connect(&config.integrations.messaging).await?;
    let jetstream = jetstream::new(client);
    nats::open_stream(&jetstream, &lane.stream).await?;

    let mut stdout = std::io::stdout().lock();
    let started = Instant::now();
    let sent = publish(&args, &jetstream, &mut *samples).await?;
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
            lane.stream.name
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
            let wait = wait_until_stored(&config, &lane, &sent);
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
            "not all events were in ClickHouse after {seconds} s: is `analytics-server serve` running? `analytics-server check` says more"
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

async fn publish(
    args: &Args,
    jetstream: &jetstream::Context,
    samples: &mut dyn Samples,
) -> Result<Sent> {
    let progress = progress_bar(args.count);
    let started = Instant::now();
    let mut sent = Sent {
        ids: HashSet::new(),
        first: u64::MAX,
        last: 0,
    };
    let mut numbers = 0..args.count;
    let next = async || {
        let number = numbers.next()?;
        if let Some(rate) = args.rate {
            let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
        let sample = samples.next(SystemTime::now(), args.r#type.as_deref());
        Some(Outgoing::new(sample))
    };
    publish::publish(jetstream, next, |published| {
        sent.ids.insert(published.id);
        sent.first = sent.first.min(published.sequence);
        sent.last = sent.last.max(published.sequence);
        progress.inc(1);
    })
    .await?;
    progress.finish_and_clear();
    Ok(sent)
}

/// Returns once each of the events is in ClickHouse.
///
/// # Errors
/// If an event is there more than once.
async fn wait_until_stored(config: &Config, lane: &Lane, sent: &Sent) -> Result<()> {
    #[derive(Row, Deserialize)]
    struct Found {
        id: String,
    }
    let clickhouse = ClickHouse::new(config);
    // Whatever its creation time: the ids are new.
    let stream = format!("{}@", lane.stream.name);
    let (first, last) = (sent.first.to_string(), sent.last.to_string());
    let parameters = [
        ("stream", stream.as_str()),
        ("first", first.as_str()),
        ("last", last.as_str()),
    ];
    let query = format!(
        "SELECT toString(event_id) AS id FROM {}
         WHERE startsWith(stream, {{stream:String}}) AND stream_seq BETWEEN {{first:UInt64}} AND {{last:UInt64}}",
        lane.kind.tables().events
    );
    let mut retry = Retry::new();
    loop {
        match clickhouse.rows::<Found>(&query, &parameters).await {
            Ok(rows) => {
                let ids = rows.iter().filter_map(|row| Uuid::try_parse(&row.id).ok());
                let found: Vec<Uuid> = ids.filter(|id| sent.ids.contains(id)).collect();
                if found.len() > sent.ids.len() {
                    bail!(
                        "{} rows are in ClickHouse for {} events",
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
