//! `bench`: how fast the user's own servers are, each alone and with the pipeline
//! between them, on the same data.

mod blocks;
mod clickhouse_alone;
mod latency;
mod load;
mod nats_alone;
mod report;
mod scratch;
mod usage;
mod whole;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use indicatif::{HumanCount, ProgressBar};
use tokio_util::sync::CancellationToken;

use super::publish::progress_bar;
use super::{stop, tell};
use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::nats::{self, StreamId};
use blocks::Blocks;
use latency::Steady;
use load::Publisher;
use report::{Latency, Load, Report, Settings, Speed, Speeds};
use scratch::Scratch;
use usage::{Each, Meter, Pids};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server bench --nats-pid \"$(pgrep -o nats-server)\"\n  \
    analytics-server bench --events 100000 --rate 0 --json")]
pub struct Args {
    /// How many events
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,

    /// Events a second while the latency is measured; 0 skips it
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    rate: u64,

    /// How long the latency is measured
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// nats-server's process, if it runs on this machine: its CPU time and memory are
    /// measured, too
    #[arg(long, value_name = "PID")]
    nats_pid: Option<u32>,

    /// ClickHouse's process, if it runs on this machine; found automatically with `db_url:
    /// embedded`
    #[arg(long, value_name = "PID")]
    clickhouse_pid: Option<u32>,

    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let this = std::process::id();
    let pids = [("nats", args.nats_pid), ("clickhouse", args.clickhouse_pid)];
    for (name, pid) in pids {
        if let Some(pid) = pid {
            // If this process's own use cannot be read, nothing can.
            let known = usage::is_readable(pid) || !usage::is_readable(this);
            ensure!(known, "there is no process {pid} (--{name}-pid)");
        }
    }
    let shutdown = CancellationToken::new();
    stop::on_signals(&stop::all(), shutdown.clone(), "removing what was made")?;

    let nats = nats::connect(&config.integrations.messaging).await?;
    let config = scratch::config(&config, &scratch::run_name());
    let mut scratch = Scratch::new(config, nats).await?;
    tell(format_args!(
        "made now and removed at the end: {}",
        scratch.names()
    ));
    let bench = Bench {
        args: &args,
        shutdown,
    };
    let outcome = bench.measure(&mut scratch).await;
    if bench.shutdown.is_cancelled() {
        tell("interrupted: removing what was made, which takes a few seconds");
    }
    let removed = scratch.remove().await;
    if let (Err(_), Err(error)) = (&outcome, &removed) {
        tell(format_args!("analytics-server: {error:#}"));
    }
    let report = outcome?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    removed?;
    Ok(ExitCode::SUCCESS)
}

struct Bench<'a> {
    args: &'a Args,
    shutdown: CancellationToken,
}

impl Bench<'_> {
    async fn measure(&self, scratch: &mut Scratch) -> Result<Report> {
        let versions = Each {
            analytics_server: env!("CARGO_PKG_VERSION").to_owned(),
            nats_server: scratch.nats.server_info().version,
            clickhouse: scratch.make().await?,
        };
        let pids = Each {
            analytics_server: Some(std::process::id()),
            nats_server: self.args.nats_pid,
            clickhouse: self.args.clickhouse_pid.or(scratch.clickhouse_pid()),
        };
        let scratch = &*scratch;
        let mut publisher = Publisher::connect(&scratch.config).await?;
        // First, while this process holds no memory left over from a larger load.
        let latency = self.latency(scratch, &mut publisher, pids).await?;

        scratch.empty_stream().await?;
        scratch.empty_database().await?;
        let publishing = async |bar: &_| publisher.at_once(self.args.events, bar).await;
        let mut load = self
            .step("publishing", self.args.events, publishing)
            .await?;
        let stream = scratch.stream().await?;
        // Including those of a repeat whose first answer was lost.
        load.events = stream.cached_info().state.messages;
        let last = stream.cached_info().state.last_sequence;
        let stream = StreamId::of(&stream);

        let work = async |bar: &_| nats_alone::run(scratch, last, bar).await;
        let nats_alone = self.timed("NATS alone", pids, load, work).await?;

        let encoding = async |bar: &_| Blocks::encode(scratch, last, bar).await;
        let blocks = self
            .step("encoding blocks (not measured)", load.events, encoding)
            .await?;
        // The first insert into newly created tables is slow.
        let clickhouse = ClickHouse::new(&scratch.config);
        let first = clickhouse_alone::insert(scratch, &clickhouse, &blocks, 0);
        self.go(first).await?;
        scratch.empty_database().await?;

        let work = async |bar: &_| clickhouse_alone::run(scratch, &blocks, bar).await;
        let clickhouse_alone = self.timed("ClickHouse alone", pids, load, work).await?;
        scratch.holds_each_once(&stream, load.events).await?;
        drop(blocks);
        // The pipeline's tokens are the same: these tables would drop its blocks.
        scratch.empty_database().await?;

        let work = async |bar: &_| whole::run(scratch, last, bar).await;
        let pipeline = self.timed("the whole pipeline", pids, load, work).await?;
        scratch.holds_each_once(&stream, load.events).await?;

        let speeds = Speeds {
            nats_alone,
            clickhouse_alone,
            pipeline,
        };
        let analytics = &scratch.config.features.analytics;
        let settings = Settings {
            batch_size: analytics.batch_size.get(),
            max_in_flight: analytics.max_in_flight.get(),
            flush_interval_seconds: analytics.flush_interval.as_secs_f64(),
        };
        Ok(Report::new(versions, settings, load, speeds, latency))
    }

    async fn latency(
        &self,
        scratch: &Scratch,
        publisher: &mut Publisher,
        pids: Pids,
    ) -> Result<Option<Latency>> {
        let Args { rate, seconds, .. } = *self.args;
        if rate == 0 {
            return Ok(None);
        }
        scratch.empty_stream().await?;
        scratch.empty_database().await?;
        let steady = Steady {
            rate,
            events: rate * seconds,
        };
        let work = async |bar: &_| {
            let meter = Meter::start(pids);
            let found = latency::measure(scratch, publisher, steady, bar).await?;
            Ok((found, meter.stop()))
        };
        let (found, used) = self.step("latency", steady.events, work).await?;
        let stream = scratch.stream().await?;
        let events = stream.cached_info().state.messages;
        scratch
            .holds_each_once(&StreamId::of(&stream), events)
            .await?;
        let latency = Latency::new(rate, found.published_for, found.latencies, &used);
        Ok(Some(latency))
    }

    /// Does a step of the run, which a signal may interrupt.
    async fn step<T>(
        &self,
        name: &str,
        events: u64,
        work: impl AsyncFnOnce(&ProgressBar) -> Result<T>,
    ) -> Result<T> {
        tell(format_args!("{name}: {} events", HumanCount(events)));
        let bar = progress_bar(events);
        let done = self.go(work(&bar)).await;
        bar.finish_and_clear();
        done
    }

    /// Does a step of the run that goes through the whole load, and measures it.
    async fn timed(
        &self,
        name: &str,
        pids: Pids,
        load: Load,
        work: impl AsyncFnOnce(&ProgressBar) -> Result<()>,
    ) -> Result<Speed> {
        let work = async |bar: &_| {
            let meter = Meter::start(pids);
            work(bar).await?;
            Ok(meter.stop())
        };
        let used = self.step(name, load.events, work).await?;
        Ok(Speed::new(load, &used))
    }

    /// Does what a signal may interrupt. What creates and removes things runs to its end: otherwise
    /// a server might do it after everything was removed.
    async fn go<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.shutdown.run_until_cancelled(work).await {
            Some(done) => done,
            None => bail!("interrupted"),
        }
    }
}
