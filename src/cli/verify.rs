//! `verify`: the stored events against the stream and the views against the stored
//! events.

mod chunk;
mod days;
mod stream;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use async_nats::Client;
use serde::Serialize;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use crate::clickhouse::views::{self, Uncompared, Views};
use crate::clickhouse::{ClickHouse, schema};
use crate::config::Config;
use crate::nats::{self, StreamId};
use crate::pipeline::checkpoint::{self, Checkpoint};
use crate::pipeline::recount::{Fate, Recount};
use crate::pipeline::{Pipeline, Progress};
use days::Day;
use stream::Comparison;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server verify --since 2026-11-01\n  \
    analytics-server verify --day 2026-11-20 --repair")]
pub struct Args {
    /// This UTC day alone, as 2026-11-20: events of that day, messages received on it
    #[arg(long, value_parser = day)]
    day: Option<Date>,

    /// From this UTC day on
    #[arg(long, value_parser = day, conflicts_with = "day")]
    since: Option<Date>,

    /// Insert what is missing from the stream, and build again the days of views that
    /// differ; an instance that works stands by meanwhile
    #[arg(long)]
    repair: bool,

    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn day(text: &str) -> Result<Date, String> {
    Date::parse(text, format_description!("[year]-[month]-[day]"))
        .map_err(|_| "not a day such as 2026-11-20".to_owned())
}

/// The days to look at.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: Date,
    last: Date,
}

impl Span {
    /// All that ClickHouse keeps: days before are never exact.
    fn all(config: &Config) -> Self {
        let today = OffsetDateTime::now_utc().date();
        let kept = i64::from(config.features.analytics.retention_days.get());
        Self {
            first: today - time::Duration::days(kept - 1),
            // Wherever the clocks of producers may be.
            last: Date::MAX,
        }
    }
}

impl Args {
    fn span(&self, config: &Config) -> Span {
        let all = Span::all(config);
        let first = self.day.or(self.since).unwrap_or(all.first);
        Span {
            first: first.max(all.first),
            last: self.day.unwrap_or(all.last),
        }
    }
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    exact: bool,
    days: Vec<Day>,
    stream: Comparison,
    /// Views of which nobody can tell whether they are exact, and why.
    views_not_compared: Vec<Uncompared>,
    /// Tables and views of the schema that are not there.
    missing: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Repaired>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Repaired {
    events: u64,
    days_of_views: usize,
    /// Days that hold rows which no event explains.
    days_left: usize,
}

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let config = Arc::new(config);
    let clickhouse = ClickHouse::new(&config).patient();
    let nats = nats::connect(&config.integrations.messaging).await?;
    let verify = Verify {
        span: args.span(&config),
        config,
        nats,
        clickhouse,
    };
    let report = if args.repair {
        verify.repair().await?
    } else {
        verify.report(false).await?
    };
    report.print(args.json)?;
    Ok(if report.exact {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Verify {
    config: Arc<Config>,
    nats: Client,
    clickhouse: ClickHouse,
    span: Span,
}

impl Verify {
    /// `at_rest` says that nobody inserts.
    async fn report(&self, at_rest: bool) -> Result<Report> {
        let views = views::reached(&self.clickhouse).await?;
        let stream = self.compare_stream().await?;
        let days = days::compare(&self.clickhouse, &views.compared, self.span, at_rest).await?;
        let missing = schema::missing(&self.clickhouse).await?;
        let missing = missing.into_iter().map(|(name, _)| name.to_owned());
        Ok(Report::new(days, stream, views, missing.collect()))
    }

    async fn compare_stream(&self) -> Result<Comparison> {
        let messaging = &self.config.integrations.messaging;
        let jetstream = async_nats::jetstream::new(self.nats.clone());
        let name = &messaging.jetstream.stream_name;
        let Some(stream) = nats::find_stream(&jetstream, name).await? else {
            bail!("stream `{name}` does not exist");
        };
        let consumer = &messaging.jetstream.consumer_name;
        let Some(record) = checkpoint::peek(&jetstream, name, consumer).await? else {
            bail!(
                "there is no checkpoint, so nothing says what should be stored: run `serve`, or `verify --repair`"
            );
        };
        let current = StreamId::of(&stream);
        let origin = stream::Origin {
            jetstream,
            identity: record.identity_of(&current).unwrap_or(current),
            stream,
            committed: record.committed,
        };
        stream::compare(&self.config, &self.clickhouse, origin, self.span).await
    }

    /// As [`Verify::report`], with what is wrong put right; no instance inserts
    /// meanwhile.
    async fn repair(&self) -> Result<Report> {
        let mut pipeline = Pipeline::new(
            Arc::clone(&self.config),
            self.nats.clone(),
            self.clickhouse.clone(),
            super::serve::owner(),
            Arc::new(Progress::default()),
        );
        // First of all: the pipeline would wait for a database that is missing.
        let views = views::reached(&self.clickhouse).await?;
        let checkpoint = pipeline.settle().await?;
        let repairing = self.repair_alone(&mut pipeline, &checkpoint, &views);
        let report = checkpoint.keep_during(repairing).await?;
        checkpoint.hand_over().await?;
        report
    }

    async fn repair_alone(
        &self,
        pipeline: &mut Pipeline,
        checkpoint: &Arc<Checkpoint>,
        views: &Views,
    ) -> Result<Report> {
        let before = self.compare_stream().await?;
        let mut span = self.span;
        if let Some(first) = before.first_missing {
            pipeline.store_again(checkpoint, first).await?;
            // The views may have counted what was inserted, on whatever day.
            span = Span::all(&self.config);
        }
        let progress = Progress::default();
        let recount = Recount::new(&self.clickhouse, checkpoint, &progress);
        let (mut days_of_views, mut days_left) = (0, 0);
        let days = days::compare(&self.clickhouse, &views.compared, span, true).await?;
        for view in &views.compared {
            for day in &days {
                // One that a view fills may have been right until that was built again.
                let may_differ = days_of_views > 0 && view.reads_a_view();
                if !may_differ && !day.views_that_differ.contains(&view.name) {
                    continue;
                }
                match recount.put_right(view, day.day).await? {
                    Fate::Exact => {}
                    Fate::Rebuilt => days_of_views += 1,
                    Fate::Left => days_left += 1,
                }
            }
        }
        recount.clear().await?;
        let mut report = self.report(true).await?;
        report.repaired = Some(Repaired {
            events: before
                .missing_events
                .saturating_sub(report.stream.missing_events),
            days_of_views,
            days_left,
        });
        Ok(report)
    }
}

impl Report {
    fn new(days: Vec<Day>, stream: Comparison, views: Views, missing: Vec<String>) -> Self {
        let is_whole = stream.missing_events == 0 && missing.is_empty();
        Self {
            exact: is_whole && days.iter().all(Day::is_exact),
            missing,
            days,
            stream,
            views_not_compared: views.others,
            repaired: None,
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        writeln!(out, "{:<12} {:>12} {:>8}  views", "day", "events", "double")?;
        for day in &self.days {
            let views = match day.views_that_differ.as_slice() {
                [] => "exact".to_owned(),
                names => format!("WRONG: {}", names.join(", ")),
            };
            let Day {
                day,
                events,
                double_events,
                ..
            } = day;
            writeln!(out, "{day:<12} {events:>12} {double_events:>8}  {views}")?;
        }
        let Comparison {
            stream,
            messages,
            last,
            missing_events,
            missing_dead_letters,
            ..
        } = &self.stream;
        writeln!(
            out,
            "stream {stream}: {messages} messages up to sequence {last} compared, \
             {missing_events} events and {missing_dead_letters} dead letters are not stored"
        )?;
        for Uncompared { name, reason } in &self.views_not_compared {
            writeln!(out, "not compared: {name}, since {reason}")?;
        }
        if let Some(Repaired {
            events,
            days_of_views,
            days_left,
        }) = self.repaired
        {
            writeln!(
                out,
                "repaired: {events} events inserted, {days_of_views} days of views built again"
            )?;
            if days_left > 0 {
                writeln!(
                    out,
                    "left: {days_left} days of views, with rows that no event explains. To build \
                     one from the events alone, ALTER TABLE … DROP PARTITION first"
                )?;
            }
        }
        writeln!(out, "{}", self.verdict())?;
        Ok(())
    }

    fn verdict(&self) -> String {
        if self.exact {
            let exact = "exact: every event once, in the rows and in every view";
            return match self.views_not_compared.len() {
                0 => exact.to_owned(),
                1 => format!("{exact} but one, which was not compared"),
                others => format!("{exact} but {others}, which were not compared"),
            };
        }
        let mut wrong = BTreeSet::new();
        if self.stream.missing_events > 0 {
            wrong.insert("events are missing (--repair inserts them)");
        }
        if self.days.iter().any(|day| day.double_events > 0) {
            wrong.insert("events are stored twice (by another writer than analytics-server, or from a copy of their rows)");
        }
        if self
            .days
            .iter()
            .any(|day| !day.views_that_differ.is_empty())
        {
            wrong.insert("views differ (--repair builds their days again)");
        }
        let missing = format!(
            "`check` says how to make what is missing: {}",
            self.missing.join(", ")
        );
        if !self.missing.is_empty() {
            wrong.insert(&missing);
        }
        let wrong: Vec<_> = wrong.into_iter().collect();
        format!("NOT EXACT: {}", wrong.join("; "))
    }
}
