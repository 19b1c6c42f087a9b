//! Each day's events, and the views of that day.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use clickhouse::Row;
use serde::{Deserialize, Serialize, Serializer};
use time::Date;

use super::Span;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::tables::Tables;
use crate::clickhouse::views::View;

/// An active instance inserts while this one reads: a view that differs is looked at again
/// up to this often, a second apart.
const LOOKS: u32 = 10;

#[derive(Debug, Serialize)]
pub struct Day {
    #[serde(serialize_with = "as_text")]
    pub day: Date,
    pub events: u64,
    /// Rows of an event beyond its first.
    pub duplicate_events: u64,
    pub views_that_differ: Vec<String>,
}

impl Day {
    pub fn is_exact(&self) -> bool {
        self.duplicate_events == 0 && self.views_that_differ.is_empty()
    }
}

fn as_text<S: Serializer>(day: &Date, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(day)
}

/// The days that have events or rows in a view. `at_rest` says that nobody is inserting.
pub async fn compare(
    clickhouse: &ClickHouse,
    tables: &Tables,
    views: &[View],
    span: Span,
    at_rest: bool,
) -> Result<Vec<Day>> {
    let mut days = Vec::new();
    for day in days_with_rows(clickhouse, tables, views, span).await? {
        let (events, duplicate_events) = count(clickhouse, tables, day).await?;
        days.push(Day {
            day,
            events,
            duplicate_events,
            views_that_differ: views
                .iter()
                .filter(|view| view.keeps(day))
                .map(|view| view.name.clone())
                .collect(),
        });
    }
    for look in 1.. {
        for day in &mut days {
            for view in views {
                if day.views_that_differ.contains(&view.name)
                    && view.is_exact(clickhouse, day.day).await?
                {
                    day.views_that_differ.retain(|name| *name != view.name);
                }
            }
        }
        let differ = days.iter().any(|day| !day.views_that_differ.is_empty());
        if !differ || at_rest || look == LOOKS {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(days)
}

async fn days_with_rows(
    clickhouse: &ClickHouse,
    tables: &Tables,
    views: &[View],
    span: Span,
) -> Result<BTreeSet<Date>> {
    #[derive(Row, Deserialize)]
    struct Found {
        day: String,
    }
    let Tables { events, time, .. } = tables;
    let sql = format!("SELECT DISTINCT toString(toDate({time})) AS day FROM {events}");
    let found: Vec<Found> = clickhouse.rows(&sql, &[]).await?;
    let of_events = found
        .iter()
        .map(|found| super::day(&found.day).map_err(anyhow::Error::msg));
    let mut days: BTreeSet<Date> = of_events.collect::<Result<_>>()?;
    for view in views {
        days.extend(view.all_days(clickhouse).await?);
    }
    days.retain(|day| (span.first..=span.last).contains(day));
    Ok(days)
}

async fn count(clickhouse: &ClickHouse, tables: &Tables, day: Date) -> Result<(u64, u64)> {
    #[derive(Row, Deserialize)]
    struct Count {
        events: u64,
        distinct: u64,
    }
    let Tables { events, time, .. } = tables;
    let rows: Vec<Count> = clickhouse
        .rows(
            &format!(
                "SELECT count() AS events, uniqExact(stream, stream_seq, batch_index, received_at) AS distinct
                 FROM {events}
                 WHERE {time} >= toDateTime({{day:Date}}, 'UTC')
                     AND {time} < toDateTime({{day:Date}} + 1, 'UTC')"
            ),
            &[("day", &day.to_string())],
        )
        .await?;
    let (events, distinct) = rows
        .first()
        .map_or((0, 0), |row| (row.events, row.distinct));
    Ok((events, events - distinct))
}
