//! The materialized views: what each adds, and forms of them that answer the same.
//!
//! Over a table that keeps nothing, so that its cost does not drown theirs: the first
//! form, without a view, is what reading a block costs.

use analytics_server::internal::native::Block;

use super::Args;
use super::engine::Engine;
use super::measure::{Change, Form, Schema, against_the_first};
use super::report;

pub const NAMES: [&str; 5] = [
    "daily_active_users",
    "event_counts_by_type",
    "message_statistics",
    "error_tracking",
    "session_totals",
];

pub async fn run(args: &Args, engine: &Engine, blocks: &[Block]) -> anyhow::Result<()> {
    let forms = args.chosen(forms());
    let costs = against_the_first(args, engine, &forms, blocks).await?;
    report::differences("views, nothing else stored", &forms, &costs);
    report::answers(&forms, &costs);
    Ok(())
}

/// What leaves the views' targets empty.
pub fn detached(names: &[&str]) -> Vec<Change> {
    let drop = |name: &&str| Change::Statement(format!("DROP VIEW {name}_mv SYNC"));
    names.iter().map(drop).collect()
}

fn forms() -> Vec<Form> {
    let mut forms = vec![form("none", detached(&NAMES))];
    forms.extend(NAMES.iter().map(|name| only(name, name, &[])));
    let sessions = |name: &str, statements: &[&str]| only("session_totals", name, statements);
    forms.extend([
        form("all", Vec::new()),
        Form {
            insert_settings: "optimize_on_insert = 0",
            ..form("all, optimize_on_insert = 0", Vec::new())
        },
        Form {
            insert_settings: "parallel_view_processing = 1",
            ..form("all, parallel_view_processing = 1", Vec::new())
        },
        form("all, no statistics", without_statistics()),
        sessions("session_totals, without users", &[
            "DROP VIEW session_totals_mv SYNC",
            "CREATE MATERIALIZED VIEW session_totals_mv TO session_totals AS
             SELECT toDate(server_ts) AS date, client_id, session_id,
                 min(server_ts) AS session_start, max(server_ts) AS session_end, count() AS total_events
             FROM analytics_events WHERE session_id != '' GROUP BY date, client_id, session_id",
        ]),
        sessions("session_totals, groupArray", &[
            "ALTER TABLE session_totals_mv MODIFY QUERY
             SELECT toDate(server_ts) AS date, client_id, session_id,
                 arrayDistinct(groupArrayIf(user_id, user_id != '')) AS users,
                 min(server_ts) AS session_start, max(server_ts) AS session_end, count() AS total_events
             FROM analytics_events WHERE session_id != '' GROUP BY date, client_id, session_id",
        ]),
        sessions("session_totals, a row a user", &A_ROW_A_USER),
        sessions("session_totals, LZ4", &[
            "ALTER TABLE session_totals
                 MODIFY COLUMN client_id CODEC(LZ4), MODIFY COLUMN session_id CODEC(LZ4), MODIFY COLUMN users CODEC(LZ4),
                 MODIFY COLUMN session_start CODEC(LZ4), MODIFY COLUMN session_end CODEC(LZ4), MODIFY COLUMN total_events CODEC(LZ4)",
        ]),
        only("daily_active_users", "daily_active_users, ZSTD(1)", &[
            "ALTER TABLE daily_active_users MODIFY COLUMN user_id CODEC(ZSTD(1)), MODIFY COLUMN events_count CODEC(ZSTD(1))",
        ]),
    ]);
    forms
}

/// Instead of an array of users in each session.
const A_ROW_A_USER: [&str; 7] = [
    "DROP VIEW session_totals_mv SYNC",
    "DROP TABLE session_totals SYNC",
    "CREATE TABLE session_totals
     (
         date Date, client_id String, session_id String, user_id String,
         session_start SimpleAggregateFunction(min, DateTime64(3, 'UTC')),
         session_end SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
         total_events SimpleAggregateFunction(sum, UInt64)
     )
     ENGINE = AggregatingMergeTree PARTITION BY date ORDER BY (date, client_id, session_id, user_id)
     TTL date + toIntervalDay(90) SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW session_totals_mv TO session_totals AS
     SELECT toDate(server_ts) AS date, client_id, session_id, user_id,
         min(server_ts) AS session_start, max(server_ts) AS session_end, count() AS total_events
     FROM analytics_events WHERE session_id != '' GROUP BY date, client_id, session_id, user_id",
    "DROP VIEW sessions SYNC",
    "CREATE VIEW sessions AS
     SELECT date, client_id, session_id, max(user_id) AS user_id,
         min(totals.session_start) AS session_start, max(totals.session_end) AS session_end,
         intDiv(toUnixTimestamp64Milli(max(totals.session_end)) - toUnixTimestamp64Milli(min(totals.session_start)), 1000) AS session_length,
         sum(totals.total_events) AS total_events
     FROM session_totals AS totals GROUP BY date, client_id, session_id",
    "CREATE OR REPLACE VIEW daily_sessions AS
     SELECT date, client_id, sum(length_of_session) AS total_session_length,
         sum(events_of_session) AS total_session_events, uniqExactArray(users_of_session) AS unique_users
     FROM
     (
         SELECT date, client_id, session_id, groupUniqArrayIf(user_id, user_id != '') AS users_of_session,
             intDiv(toUnixTimestamp64Milli(max(session_end)) - toUnixTimestamp64Milli(min(session_start)), 1000) AS length_of_session,
             sum(total_events) AS events_of_session
         FROM session_totals GROUP BY date, client_id, session_id
     )
     GROUP BY date, client_id",
];

fn without_statistics() -> Vec<Change> {
    NAMES
        .iter()
        .map(|name| {
            let alter = format!("ALTER TABLE {name} MODIFY SETTING auto_statistics_types = ''");
            Change::Statement(alter)
        })
        .collect()
}

fn keeping_nothing(create: &str) -> String {
    let (columns, _) = create.split_once(", INDEX ").unwrap_or_default();
    format!("{columns}) ENGINE = Null")
}

/// One view, after some statements.
fn only(view: &str, name: &str, statements: &[&str]) -> Form {
    let others: Vec<&str> = NAMES.into_iter().filter(|other| *other != view).collect();
    let mut changes = detached(&others);
    let statements = statements.iter().map(|it| (*it).to_owned());
    changes.extend(statements.map(Change::Statement));
    form(name, changes)
}

fn form(name: &str, changes: Vec<Change>) -> Form {
    let mut all = vec![Change::Create("analytics_events", keeping_nothing)];
    all.extend(changes);
    Form::new(format!("views/{name}"), Schema::Project(all))
}
