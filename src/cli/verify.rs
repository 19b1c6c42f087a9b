//! `verify`: the stored events against the stream and the views against the stored
//! events.

mod chunk;
mod days;
mod report;
mod stream;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use async_nats::Client;
use time::macros::format_description;
use time::{Date, OffsetDateTime};
use tracing::Instrument;

use crate::checkpoint;
use crate::clickhouse::views::{self, Views};
use crate::clickhouse::{ClickHouse, schema};
use crate::config::Config;
use crate::lane::recount::{DaysOfViews, Recount};
use crate::lane::{Lane, Lead, Pipeline, Progress, Store};
use crate::nats::{self, StreamId};
use report::{OfLane, Repaired, Report};
use stream::{Comparison, Witness};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server verify --since 2026-11-01\n  \
    analytics-server verify --day 2026-11-20 --repair")]
pub struct Args {
    /// Only this UTC day, such as 2026-11-20: events of that day, messages received on it
    #[arg(long, value_parser = day)]
    day: Option<Date>,

    /// From this UTC day on
    #[arg(long, value_parser = day, conflicts_with = "day")]
    since: Option<Date>,

    /// Insert from the stream what is missing, and rebuild the days of views that differ;
    /// an active instance stands by meanwhile
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
    /// All that ClickHouse keeps: earlier days are never exact.
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

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let clickhouse = ClickHouse::new(&config).patient();
    let nats = nats::connect(&config.integrations.messaging).await?;
    let mut lanes = Vec::new();
    for lane in Lane::all(&config) {
        let verify = Verify {
            span: args.span(&config),
            config: &config,
            store: Store {
                clickhouse: clickhouse.clone(),
                tables: lane.kind.tables(),
                progress: Arc::new(Progress::unobserved(&lane)?),
            },
            nats: nats.clone(),
            lane,
        };
        lanes.push(match args.repair {
            true => verify.repair().instrument(verify.lane.span()).await?,
            false => verify.report(false).await?,
        });
    }
    let missing = schema::missing(&clickhouse).await?;
    let missing = missing.into_iter().map(|(name, _)| name.to_owned());
    let report = Report::new(lanes, missing.collect());
    report.print(args.json)?;
    Ok(if report.exact {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The verification of one lane.
struct Verify<'a> {
    config: &'a Config,
    lane: Lane,
    nats: Client,
    store: Store,
    span: Span,
}

impl Verify<'_> {
    /// `at_rest` says that nobody is inserting.
    async fn report(&self, at_rest: bool) -> Result<OfLane> {
        let Store {
            clickhouse, tables, ..
        } = &self.store;
        let Views { compared, others } = views::reached(clickhouse, tables).await?;
        Ok(OfLane {
            lane: self.lane.name,
            stream: self.compare_stream().await?,
            days: days::compare(clickhouse, tables, &compared, self.span, at_rest).await?,
            views_not_compared: others,
            repaired: None,
        })
    }

    async fn compare_stream(&self) -> Result<Comparison> {
        let jetstream = async_nats::jetstream::new(self.nats.clone());
        let name = &self.lane.stream.name;
        let Some(stream) = nats::find_stream(&jetstream, name).await? else {
            bail!("stream `{name}` does not exist");
        };
        let consumer = &self.lane.stream.consumer;
        let Some(record) = checkpoint::peek(&jetstream, name, consumer).await? else {
            bail!(
                "there is no checkpoint, so nothing says what should be stored: run `serve`, or `verify --repair`"
            );
        };
        let current = StreamId::of(&stream);
        let witness = Witness {
            jetstream,
            identity: record.identity_of(&current).unwrap_or(current),
            stream,
            committed: record.committed,
        };
        let clickhouse = &self.store.clickhouse;
        stream::compare(self.config, clickhouse, &self.lane, witness, self.span).await
    }

    /// Like [`Verify::report`], with what is wrong put right; no instance inserts
    /// meanwhile.
    async fn repair(&self) -> Result<OfLane> {
        let Store {
            clickhouse,
            tables,
            progress,
        } = &self.store;
        let mut pipeline = Pipeline::new(
            self.lane.clone(),
            &self.config.features.analytics,
            self.nats.clone(),
            clickhouse.clone(),
            Arc::clone(progress),
        );
        // First of all: the pipeline would wait for a database that is missing.
        let views = views::reached(clickhouse, tables).await?;
        let lead = pipeline.settle().await?;
        let repairing = self.repair_alone(&mut pipeline, &lead, views);
        let report = lead.checkpoint.keep_during(repairing).await?;
        lead.checkpoint.hand_over().await?;
        report
    }

    async fn repair_alone(
        &self,
        pipeline: &mut Pipeline,
        lead: &Lead,
        views: Views,
    ) -> Result<OfLane> {
        let Store {
            clickhouse, tables, ..
        } = &self.store;
        let before = self.compare_stream().await?;
        let mut span = self.span;
        if let Some(first) = before.first_missing {
            pipeline.store_again(lead, first).await?;
            // The views may have counted what was inserted, on any day.
            span = Span::all(self.config);
        }
        let days = days::compare(clickhouse, tables, &views.compared, span, true).await?;
        let something_differs = days.iter().any(|day| !day.views_that_differ.is_empty());
        let days_of_views: DaysOfViews = views
            .compared
            .into_iter()
            .map(|view| {
                // One that another view fills may be right until that one is rebuilt.
                let may_differ = something_differs && view.reads_a_view();
                let differs = |day: &&days::Day| day.views_that_differ.contains(&view.name);
                let days = days.iter().filter(|day| may_differ || differs(day));
                let days: BTreeSet<Date> = days.map(|day| day.day).collect();
                (view, days)
            })
            .collect();
        let recounted = Recount::new(&self.store, &lead.checkpoint, &lead.sole_writer)
            .put_right(&days_of_views)
            .await?;
        let mut report = self.report(true).await?;
        report.repaired = Some(Repaired {
            events: before
                .missing_events
                .saturating_sub(report.stream.missing_events),
            days_of_views: recounted.rebuilt,
            days_left: recounted.left,
        });
        Ok(report)
    }
}
