//! The views that inserts reach, and which of them can be compared.

use std::borrow::Cow;

use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;

use super::comparable::{self, ColumnType, Computed, Facts};
use super::{Column, Uncompared, View, Views, select};
use crate::clickhouse::ClickHouse;
use crate::clickhouse::client::describe;
use crate::clickhouse::codes;
use crate::clickhouse::reach::{Catalog, Link, Name, Table};
use crate::clickhouse::row_policy;
use crate::clickhouse::tables::{DEAD_LETTERS, Tables};

/// Why a view is not compared.
enum Obstacle {
    /// It cannot be.
    Reason(Cow<'static, str>),
    /// Nobody knows, since ClickHouse did not answer.
    Error(Error),
}

impl From<&'static str> for Obstacle {
    fn from(reason: &'static str) -> Self {
        Self::Reason(reason.into())
    }
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The views that an insert of events or dead letters of a kind reaches, those of operators
/// included, in any database.
pub async fn reached(clickhouse: &ClickHouse, tables: &Tables) -> Result<Views, Error> {
    let catalog = Catalog::read(clickhouse).await?;
    let home = clickhouse.database();
    let search = Search {
        clickhouse,
        tables,
        catalog: &catalog,
    };
    let mut views = Views::default();
    for link in catalog.reach(&[tables.events]).links {
        let name = shown(&link, home);
        match search.comparable(&views, &link).await {
            Ok(view) => views.compared.push(View { name, ..view }),
            Err(Obstacle::Reason(reason)) => views.others.push(Uncompared { name, reason }),
            Err(Obstacle::Error(error)) => return Err(error),
        }
    }
    for link in catalog.reach(&[DEAD_LETTERS]).links {
        let name = shown(&link, home);
        let reason = comparable::OF_LETTERS.into();
        if !views.others.iter().any(|other| other.name == name) {
            views.others.push(Uncompared { name, reason });
        }
    }
    Ok(views)
}

fn shown(link: &Link, home: &str) -> String {
    match link.target.table.starts_with(".inner") {
        true => link.view.name().shown_in(home),
        false => link.target.shown_in(home),
    }
}

/// Where views are looked for.
struct Search<'a> {
    clickhouse: &'a ClickHouse,
    tables: &'a Tables,
    catalog: &'a Catalog,
}

impl Search<'_> {
    /// The view of a link, without its name.
    async fn comparable(&self, views: &Views, link: &Link) -> Result<View, Obstacle> {
        let Self {
            clickhouse,
            tables,
            catalog,
        } = *self;
        let target = catalog.get(&link.target).ok_or(comparable::NOT_SEEN)?;
        let events = Name::new(clickhouse.database(), tables.events);
        let events = catalog.get(&events).ok_or(comparable::SOURCE)?;
        comparable::of_target(target)?;
        if catalog.views_into(&link.target) > 1 {
            return Err(comparable::SHARED.into());
        }
        let mut filled = views.compared.iter();
        let source = filled.find(|view| view.target == link.source);
        if source.is_some_and(|source| source.merges) {
            return Err(comparable::MERGED_SOURCE.into());
        }
        if source.is_none() && link.source != events.name() {
            return Err(comparable::SOURCE.into());
        }
        row_policy::refuse(clickhouse, &link.source).await?;
        match row_policy::refuse(clickhouse, &link.target).await {
            Err(error) if codes::is_of_the_query(&error) => return Err(comparable::NOT_SEEN.into()),
            outcome => outcome?,
        }
        let select = &link.view.as_select;
        let held = columns(clickhouse, &link.target).await?;
        let facts = Facts {
            target,
            source_day: source.map(|source| source.day.as_str()),
            computed: &computed(clickhouse, &link.source).await?,
            given: &given(clickhouse, select).await?,
            declared: &columns(clickhouse, &link.view.name()).await?,
            held: &held,
        };
        comparable::of_select(select, &facts)?;
        let day = select::unquoted(&target.partition_key).to_owned();
        let kept_days = self.kept_days(events, target, &day).await?;
        let kept_by_source = source.and_then(|source| source.kept_days);
        let view = View {
            name: String::new(),
            target: link.target.clone(),
            source: link.source.clone(),
            source_day: facts.source_day.map(str::to_owned),
            select: select.clone(),
            day,
            kept_days: kept_days.into_iter().chain(kept_by_source).min(),
            merges: target.engine != "MergeTree",
            sorting_key: target.sorting_key.clone(),
            columns: held
                .into_iter()
                .map(|column| Column {
                    is_array: column.bare_type().starts_with("Array("),
                    name: column.name,
                })
                .collect(),
        };
        match view.objection(clickhouse).await? {
            None => Ok(view),
            Some(error) => Err(Obstacle::Reason(describe(&error).into())),
        }
    }

    /// For how many days neither the events nor the rows of a target are dropped.
    async fn kept_days(
        &self,
        events: &Table,
        target: &Table,
        day: &str,
    ) -> Result<Option<u16>, Obstacle> {
        let clickhouse = self.clickhouse;
        let events_days = comparable::kept_days(events, &self.tables.age_from());
        let events_days = events_days.map_err(|_| comparable::EVENTS_TTL)?;
        let target_days = comparable::kept_days(target, day)?;
        // A date begins with the day of ClickHouse's time zone, which may end sooner.
        let target_days = match ["UTC", "Etc/UTC"].contains(&zone(clickhouse).await?.as_str()) {
            true => target_days,
            false => target_days.map(|days| days.saturating_sub(1)),
        };
        Ok(events_days.into_iter().chain(target_days).min())
    }
}

async fn zone(clickhouse: &ClickHouse) -> Result<String, Error> {
    #[derive(Row, Deserialize)]
    struct Zone {
        zone: String,
    }
    let zone: Vec<Zone> = clickhouse
        .rows("SELECT serverTimezone() AS zone", &[])
        .await?;
    Ok(zone.into_iter().map(|row| row.zone).collect())
}

/// The columns of a SELECT.
async fn given(clickhouse: &ClickHouse, select: &str) -> Result<Vec<ColumnType>, Obstacle> {
    let describe_them = format!("DESCRIBE TABLE ({select}) SETTINGS describe_compact_output = 1");
    match clickhouse.rows(&describe_them, &[]).await {
        Err(error) if codes::is_of_the_query(&error) => {
            Err(Obstacle::Reason(describe(&error).into()))
        }
        columns => Ok(columns?),
    }
}

/// The columns that a table or view keeps, without those that are computed on each read.
async fn columns(clickhouse: &ClickHouse, table: &Name) -> Result<Vec<ColumnType>, Error> {
    clickhouse
        .rows(
            "SELECT name, type FROM system.columns
             WHERE database = {database:String} AND table = {table:String}
                 AND default_kind NOT IN ('ALIAS', 'EPHEMERAL')
             ORDER BY position",
            &[("database", &table.database), ("table", &table.table)],
        )
        .await
}

async fn computed(clickhouse: &ClickHouse, source: &Name) -> Result<Vec<Computed>, Error> {
    clickhouse
        .rows(
            "SELECT name, default_expression AS expression FROM system.columns
             WHERE database = {database:String} AND table = {table:String}
                 AND default_expression != ''",
            &[("database", &source.database), ("table", &source.table)],
        )
        .await
}
