//! What `verify` found, and how it says so.

use std::collections::BTreeSet;
use std::io::{StdoutLock, Write};

use anyhow::Result;
use serde::Serialize;

use super::days::Day;
use super::stream::Comparison;
use crate::clickhouse::views::Uncompared;

#[derive(Debug, Serialize)]
pub struct Report {
    pub exact: bool,
    lanes: Vec<OfLane>,
    /// Tables and views of the schema that are missing.
    missing: Vec<String>,
}

/// What was found about one lane.
#[derive(Debug, Serialize)]
pub struct OfLane {
    pub lane: &'static str,
    pub days: Vec<Day>,
    pub stream: Comparison,
    /// Views for which nobody can tell whether they are exact, and why.
    pub views_not_compared: Vec<Uncompared>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Repaired {
    pub events: u64,
    pub days_of_views: usize,
    /// Days that hold rows which no event explains.
    pub days_left: usize,
}

impl OfLane {
    fn is_exact(&self) -> bool {
        self.stream.missing_events == 0 && self.days.iter().all(Day::is_exact)
    }

    fn print(&self, out: &mut StdoutLock<'_>) -> Result<()> {
        writeln!(
            out,
            "{:<12} {:>12} {:>10}  views",
            "day", "events", "duplicates"
        )?;
        for day in &self.days {
            let views = match day.views_that_differ.as_slice() {
                [] => "exact".to_owned(),
                names => format!("WRONG: {}", names.join(", ")),
            };
            let Day {
                day,
                events,
                duplicate_events,
                ..
            } = day;
            writeln!(
                out,
                "{day:<12} {events:>12} {duplicate_events:>10}  {views}"
            )?;
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
                "repaired: {events} events inserted, {days_of_views} days of views rebuilt"
            )?;
            if days_left > 0 {
                writeln!(
                    out,
                    "left: {days_left} days of views, with rows that no event explains. To rebuild \
                     one from the events alone, ALTER TABLE … DROP PARTITION first"
                )?;
            }
        }
        Ok(())
    }
}

impl Report {
    pub fn new(lanes: Vec<OfLane>, missing: Vec<String>) -> Self {
        Self {
            exact: missing.is_empty() && lanes.iter().all(OfLane::is_exact),
            lanes,
            missing,
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        for lane in &self.lanes {
            if self.lanes.len() > 1 {
                writeln!(out, "lane {}", lane.lane)?;
            }
            lane.print(&mut out)?;
        }
        writeln!(out, "{}", self.verdict())?;
        Ok(())
    }

    fn verdict(&self) -> String {
        if self.exact {
            let exact = "exact: every event once, in the rows and in every view";
            let not_compared = self.lanes.iter().map(|lane| lane.views_not_compared.len());
            return match not_compared.sum() {
                0usize => exact.to_owned(),
                1 => format!("{exact} but one, which was not compared"),
                others => format!("{exact} but {others}, which were not compared"),
            };
        }
        let mut wrong = BTreeSet::new();
        if self.lanes.iter().any(|it| it.stream.missing_events > 0) {
            wrong.insert("events are missing (--repair inserts them)");
        }
        let days = || self.lanes.iter().flat_map(|lane| &lane.days);
        if days().any(|day| day.duplicate_events > 0) {
            wrong.insert("events are stored twice (by a writer other than analytics-server, or from a copy of their rows)");
        }
        if days().any(|day| !day.views_that_differ.is_empty()) {
            wrong.insert("views differ (--repair rebuilds their days)");
        }
        let missing = format!(
            "`check` says how to create what is missing: {}",
            self.missing.join(", ")
        );
        if !self.missing.is_empty() {
            wrong.insert(&missing);
        }
        let wrong: Vec<_> = wrong.into_iter().collect();
        format!("NOT EXACT: {}", wrong.join("; "))
    }
}
