//! Questions to ClickHouse without whose answer nothing may be inserted: asked until there
//! is one.

use clickhouse::error::Error;
use futures_util::TryFutureExt;

use super::progress::Progress;
use crate::clickhouse::client::describe;
use crate::clickhouse::{ClickHouse, reach};
use crate::retry;

/// Which ClickHouse process answers.
pub async fn process(clickhouse: &ClickHouse, progress: &Progress) -> String {
    ask(progress, "asking ClickHouse which process it is", || {
        clickhouse.process()
    })
    .await
}

/// Which tables an insert reaches.
pub async fn tables(clickhouse: &ClickHouse, progress: &Progress) -> String {
    ask(progress, "asking ClickHouse which tables it has", || {
        reach::identity(clickhouse)
    })
    .await
}

/// Asks until there is an answer: without it, nothing may be inserted. Health says why
/// there is none.
pub async fn ask<T, Answer: Future<Output = Result<T, Error>>>(
    progress: &Progress,
    what: &'static str,
    mut question: impl FnMut() -> Answer,
) -> T {
    let hold_up = progress.hold_up();
    let say = |error| {
        let error = describe(&error);
        hold_up.say(format!("{what} fails: {error}"));
        error
    };
    retry::until_ok(what, || question().map_err(say)).await
}
