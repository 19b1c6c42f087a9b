//! ClickHouse as a lane sees it: asked until there is an answer, since without one nothing
//! may be inserted. `/health` says why there is none.

use std::ops::RangeInclusive;
use std::sync::Arc;

use clickhouse::error::Error;
use futures_util::TryFutureExt;

use super::progress::Progress;
use crate::clickhouse::client::describe;
use crate::clickhouse::stored::{self, Origin, Place, Witness};
use crate::clickhouse::tables::Tables;
use crate::clickhouse::{ClickHouse, reach};
use crate::retry;

/// The tables that a lane writes to, and how it is getting on.
#[derive(Clone)]
pub struct Store {
    pub clickhouse: ClickHouse,
    pub tables: &'static Tables,
    pub progress: Arc<Progress>,
}

impl Store {
    /// The same, for statements that read or write a whole day.
    pub fn patient(&self) -> Self {
        Self {
            clickhouse: self.clickhouse.patient(),
            ..self.clone()
        }
    }

    /// Asks until there is an answer.
    pub async fn ask<T, Answer: Future<Output = Result<T, Error>>>(
        &self,
        what: &'static str,
        mut question: impl FnMut() -> Answer,
    ) -> T {
        let blocker = self.progress.blocker();
        let say = |error| {
            let error = describe(&error);
            blocker.say(format!("{what} fails: {error}"));
            error
        };
        retry::until_ok(what, || question().map_err(say)).await
    }

    /// Which ClickHouse process answers.
    pub async fn process(&self) -> String {
        let what = "asking ClickHouse which process it is";
        self.ask(what, || self.clickhouse.process()).await
    }

    /// Which tables an insert reaches.
    pub async fn reached(&self) -> String {
        let what = "asking ClickHouse which tables it has";
        self.ask(what, || reach::identity(&self.clickhouse, self.tables))
            .await
    }

    /// Whether it holds anything of this stream.
    pub async fn holds_any(&self, stream: &str) -> bool {
        let what = "asking ClickHouse for rows of the stream";
        self.ask(what, || {
            stored::holds_any(&self.clickhouse, self.tables, stream)
        })
        .await
    }

    /// The last sequence after `sequence` that it holds of the stream.
    pub async fn last_after(&self, stream: &str, sequence: u64) -> Option<u64> {
        self.ask(HOLDS, || {
            stored::last_after(&self.clickhouse, self.tables, stream, sequence)
        })
        .await
    }

    /// How many sequences of these gaps it holds.
    pub async fn sequences(&self, stream: &str, gaps: &[RangeInclusive<u64>]) -> u64 {
        self.ask(HOLDS, || {
            stored::sequences(&self.clickhouse, self.tables, stream, gaps)
        })
        .await
    }

    /// The rows of one of the tables with places from `first` to `last`.
    pub async fn origins_between(
        &self,
        table: &str,
        stream: &str,
        first: Place,
        last: Place,
    ) -> Vec<Origin> {
        self.ask(HOLDS, || {
            stored::origins_between(&self.clickhouse, table, stream, first, last)
        })
        .await
    }

    /// Rows of each stream of this name among these sequences.
    pub async fn witnesses(&self, name: &str, sequences: RangeInclusive<u64>) -> Vec<Witness> {
        let what = "asking ClickHouse for rows of earlier streams";
        let (first, last) = sequences.into_inner();
        self.ask(what, || {
            stored::witnesses(&self.clickhouse, self.tables, name, first, last)
        })
        .await
    }

    /// Whether an insert of the stream runs.
    pub async fn inserts_run(&self, stream: &str) -> bool {
        let what = "asking ClickHouse for running inserts";
        self.ask(what, || {
            stored::inserts_run(&self.clickhouse, self.tables, stream)
        })
        .await
    }
}

const HOLDS: &str = "asking ClickHouse what it holds";
