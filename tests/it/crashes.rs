//! What a ClickHouse that died in the middle of an insert leaves behind, and what the
//! daemon makes of it: with the rights of the guide and no others.
//!
//! ClickHouse writes a token down before the rows are safe. To be killed just in between
//! takes luck, so these tests take the part away again while the server is down: its
//! token stays.

use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;

use crate::support::daemon::{self, Daemon};
use crate::support::events::{event_of, publish_samples};
use crate::support::nats::Nats;
use crate::support::restricted::RestrictedClickHouse;
use crate::support::{World, eventually, guide};

struct Crash {
    world: World,
    clickhouse: RestrictedClickHouse,
    config: PathBuf,
    log: PathBuf,
}

impl Crash {
    /// Tables, a daemon that was there, and nothing stored.
    async fn new(analytics: &str) -> Self {
        let (world, mut clickhouse) = RestrictedClickHouse::with_world(Nats::start().await);
        clickhouse.start(&guide::grants(&world.database)).await;
        let config = world.config(analytics, "");
        let log = world.dir.path().join("daemon.log");
        let crash = Self {
            world,
            clickhouse,
            config,
            log,
        };
        let daemon = crash.start("");
        daemon.takes_over().await;
        daemon.stop().await;
        crash
    }

    fn start(&self, fault: &str) -> Daemon {
        Daemon::start_with_fault(&self.log, &self.config, fault)
    }

    /// Publishes, lets a daemon insert that ends before it commits, and takes a table's part
    /// of the last insert away.
    async fn lose(&mut self, events: usize, fault: &str, table: &str) {
        publish_samples(&self.world, events).await;
        let mut daemon = self.start(fault);
        daemon.ended().await;
        let part = format!(
            "SELECT argMax(path, modification_time) AS path FROM system.parts
             WHERE active AND database = currentDatabase() AND table = '{table}'"
        );
        let parts = self.world.ask(&part).await.unwrap();
        let path = parts[0]["path"].as_str().unwrap().to_owned();
        self.clickhouse.stop().await;
        std::fs::remove_dir_all(path).unwrap();
        self.clickhouse
            .start(&guide::grants(&self.world.database))
            .await;
    }
}

#[tokio::test]
async fn rows_lost_between_a_token_and_a_part_count_once_in_every_view() {
    let mut crash = Crash::new("flush_interval_seconds: 0.1").await;
    crash
        .lose(200, "kill@after-insert:1", "analytics_events")
        .await;
    let daemon = crash.start("");
    crash.world.stored_once(200, 0).await;
    daemon
        .logs("ClickHouse has lost rows that it said it has")
        .await;
    daemon.logs("views recounted").await;
}

#[tokio::test]
async fn rows_of_a_view_alone_that_were_lost_are_there_again() {
    let mut crash = Crash::new("flush_interval_seconds: 0.1").await;
    crash
        .lose(200, "kill@after-insert:1", "session_totals")
        .await;
    let daemon = crash.start("");
    crash.world.stored_once(200, 0).await;
    daemon.logs("building the day again").await;
}

#[tokio::test]
async fn the_second_of_two_recovered_ranges_is_recounted_like_the_first() {
    // Two ranges in flight, of which the second one loses its rows.
    let mut crash =
        Crash::new("batch_size: 100, max_in_flight: 2, flush_interval_seconds: 60").await;
    publish_samples(&crash.world, 100).await;
    crash
        .lose(100, "kill@after-insert:1", "analytics_events")
        .await;
    eventually("two ranges are in flight", async || {
        (crash.world.record().await["in_flight"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let daemon = crash.start("");
    daemon
        .logs("ClickHouse has lost rows that it said it has")
        .await;
    crash.world.stored_once(200, 0).await;
}

#[tokio::test]
async fn a_user_who_cannot_see_which_process_answers_is_refused() {
    let crash = Crash::new("").await;
    let mut clickhouse = crash.clickhouse;
    let mut grants = guide::grants(&crash.world.database);
    grants.retain(|grant| !grant.contains("system.processes"));
    clickhouse.start(&grants).await;
    // The engine shows `system.processes` to everybody, but not which database it is in.
    let mut daemon = Daemon::start_logging_to(&crash.log, &crash.config, &[]);
    let status = eventually("the daemon ends", async || daemon.status()).await;
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    let remedy = "GRANT SELECT ON system.processes TO `default`";
    assert!(daemon.log().contains(remedy), "{}", daemon.log());
}

#[tokio::test]
async fn tables_that_lost_their_log_of_tokens_get_nothing_twice() {
    for table in ["analytics_events", "daily_active_users"] {
        let mut crash = Crash::new("flush_interval_seconds: 0.1").await;
        publish_samples(&crash.world, 150).await;
        let mut daemon = crash.start("kill@after-insert:1");
        daemon.ended().await;
        crash.clickhouse.start_as_administrator().await;
        let world = &crash.world;
        world.run(&format!("CREATE TABLE moved AS {table}")).await;
        let partitions = format!(
            "SELECT DISTINCT partition_id AS id FROM system.parts
             WHERE active AND database = currentDatabase() AND table = '{table}'"
        );
        for partition in world.ask(&partitions).await.unwrap() {
            let id = partition["id"].as_str().unwrap();
            let attach = format!("ALTER TABLE moved ATTACH PARTITION ID '{id}' FROM {table}");
            world.run(&attach).await;
        }
        let exchange = format!("EXCHANGE TABLES {table} AND moved");
        world.run(&exchange).await;
        world.run("DROP TABLE moved SYNC").await;
        crash
            .clickhouse
            .start(&guide::grants(&crash.world.database))
            .await;
        let daemon = crash.start("");
        daemon
            .logs("the tables are others than those of an earlier attempt")
            .await;
        crash.world.stored_once(150, 0).await;
    }
}

/// `lose` takes the rows of a range away that views have, and `fault` ends the daemon that
/// finds that out.
async fn rows_are_lost_without_a_restart_of_clickhouse(lose: &[&str], fault: &str) {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let log = world.dir.path().join("daemon.log");
    let start = |fault| Daemon::start_with_fault(&log, &config, fault);
    let daemon = start("");
    daemon.takes_over().await;
    daemon.stop().await;
    publish_samples(&world, 100).await;
    start("kill@after-insert:1").ended().await;
    for statement in lose {
        world.run(statement).await;
    }
    if !fault.is_empty() {
        start(fault).ended().await;
    }
    let daemon = start("");
    world.stored_once(100, 0).await;
    daemon.logs("views recounted").await;
}

/// As a rename that fails does: the token is known, the rows are gone.
const LOSE: [&str; 1] = ["ALTER TABLE analytics_events DELETE WHERE 1"];

/// As a backup of before the range does.
const RESTORE: [&str; 2] = [
    "CREATE TABLE restored AS analytics_events",
    "EXCHANGE TABLES analytics_events AND restored",
];

#[tokio::test]
async fn rows_lost_without_a_restart_of_clickhouse_count_once_in_every_view() {
    for lose in [LOSE.as_slice(), &RESTORE] {
        rows_are_lost_without_a_restart_of_clickhouse(lose, "").await;
    }
}

#[tokio::test]
async fn a_successor_of_who_found_rows_missing_recounts_what_it_inserts() {
    for lose in [LOSE.as_slice(), &RESTORE] {
        rows_are_lost_without_a_restart_of_clickhouse(lose, "kill@after-change:1").await;
    }
}

/// A view may keep what events were longer than the events are kept.
#[tokio::test]
async fn a_recount_leaves_history_that_the_events_do_not_have_any_more() {
    let mut crash = Crash::new("flush_interval_seconds: 0.1, retention_days: 2").await;
    crash.clickhouse.start_as_administrator().await;
    for (name, day) in [
        ("monthly", "toStartOfMonth(server_ts)"),
        ("daily", "toDate(server_ts)"),
    ] {
        let table = format!(
            "CREATE TABLE {name} (day Date, event_type String, n UInt64) ENGINE = SummingMergeTree
             PARTITION BY day ORDER BY (day, event_type)
             SETTINGS non_replicated_deduplication_window = 10000"
        );
        crash.world.run(&table).await;
        let view = format!(
            "CREATE MATERIALIZED VIEW {name}_mv TO {name} AS
             SELECT {day} AS day, event_type, count() AS n
             FROM analytics_events GROUP BY day, event_type"
        );
        crash.world.run(&view).await;
    }
    // A day that is kept in part, its last moment, and one that is not.
    let midnight = OffsetDateTime::now_utc().date().midnight().assume_utc();
    let last_moment = Duration::from_millis(24 * 3600 * 1000 + 1);
    let publish = async |before: Duration| {
        let at = (midnight - before).unix_timestamp() * 1000;
        crash.world.publish("app.start", event_of("c", at)).await;
    };
    let counted = async |view: &str| {
        let sql = format!("SELECT sum(n) AS n FROM {view}");
        crash.world.number(&sql).await
    };
    let daemon = crash.start("");
    for days in [2, 2, 2, 7] {
        publish(Duration::from_secs(days * 24 * 3600)).await;
    }
    publish(last_moment).await;
    eventually("all are counted", async || {
        (counted("monthly").await == 5).then_some(())
    })
    .await;
    daemon.stop().await;
    crash
        .world
        .run("OPTIMIZE TABLE analytics_events FINAL")
        .await;
    assert_eq!(crash.world.stored().await, 1);

    publish(last_moment).await;
    crash.start("kill@after-insert:1").ended().await;
    let grants = guide::grants(&crash.world.database);
    crash.clickhouse.start(&grants).await;
    let daemon = crash.start("");
    daemon.logs("views recounted").await;
    crash.clickhouse.start_as_administrator().await;
    for view in ["monthly", "daily"] {
        assert_eq!(counted(view).await, 6, "{view}");
    }
}

#[tokio::test]
async fn what_a_profile_limits_for_analysts_cuts_no_answer_short() {
    let mut crash = Crash::new("flush_interval_seconds: 0.1").await;
    crash
        .lose(200, "kill@after-insert:1", "analytics_events")
        .await;
    let grants = guide::grants(&crash.world.database);
    let one_row = format!(
        "{{'{}.analytics_events':'stream_seq = 1'}}",
        crash.world.database
    );
    let profile = [
        ("limit", "1"),
        ("max_rows_to_read", "1"),
        ("max_rows_to_group_by", "1"),
        ("max_result_rows", "1"),
        ("additional_table_filters", one_row.as_str()),
    ];
    crash.clickhouse.grant_within(&grants, &profile);
    crash.clickhouse.kill_and_start_again(Duration::ZERO).await;
    let daemon = crash.start("");
    daemon.logs("views recounted").await;
    crash.clickhouse.start(&grants).await;
    crash.world.stored_once(200, 0).await;
}

#[tokio::test]
async fn rows_that_a_row_policy_hides_are_not_stored_again() {
    let mut crash = Crash::new("flush_interval_seconds: 0.1").await;
    let grants = guide::grants(&crash.world.database);
    let daemon = crash.start("");
    publish_samples(&crash.world, 100).await;
    crash.world.stored_once(100, 0).await;
    // An insert is repeated, and what is there is looked for.
    crash.clickhouse.stop().await;
    publish_samples(&crash.world, 50).await;
    daemon.logs("insert failed, retrying").await;
    let (database, even) = (&crash.world.database, "stream_seq % 2 = 0");
    (crash.clickhouse).grant_some_rows(&grants, database, "analytics_events", even);
    crash.clickhouse.kill_and_start_again(Duration::ZERO).await;
    let problem =
        "a row policy hides rows of `analytics_events` from this user, which would be stored again";
    daemon.logs(problem).await;
    // Whoever starts now does not begin at all.
    let next = daemon::run(&crash.config, &["serve"]).await;
    let told = String::from_utf8_lossy(&next.stderr).into_owned();
    let remedy = format!(
        "CREATE ROW POLICY analytics_server ON `{database}`.`analytics_events` USING 1 TO `default`"
    );
    assert!(told.contains(problem) && told.contains(&remedy), "{told}");
    crash.clickhouse.start(&grants).await;
    crash.world.stored_once(150, 0).await;
}

/// ClickHouse writes a token down, and then cannot put the part in its place: it goes on, and
/// takes the repeat for one.
async fn a_part_cannot_be_put_in_its_place(fault: &str) {
    let crash = Crash::new("flush_interval_seconds: 0.1").await;
    let paths = "SELECT data_paths[1] AS path FROM system.tables
                 WHERE database = currentDatabase() AND name = 'event_counts_by_type'";
    let paths = crash.world.ask(paths).await.unwrap();
    let path = PathBuf::from(paths[0]["path"].as_str().unwrap());
    let today = "SELECT toString(toYYYYMMDD(now('UTC'))) AS day";
    let day = crash.world.ask(today).await.unwrap();
    let day = day[0]["day"].as_str().unwrap();
    // Where the next parts would go, one of them a mutation's.
    for number in 1..=4 {
        for level in 0..=1 {
            let part = path.join(format!("{day}_{number}_{number}_{level}"));
            std::fs::write(part, "").unwrap();
        }
    }
    publish_samples(&crash.world, 100).await;
    let mut daemon = crash.start(fault);
    if !fault.is_empty() {
        daemon.ended().await;
        daemon = crash.start("");
    }
    crash.world.stored_once(100, 0).await;
    daemon.logs("insert failed, retrying").await;
    daemon.logs("building the day again").await;
}

#[tokio::test]
async fn a_view_whose_part_could_not_be_put_in_its_place_is_recounted() {
    a_part_cannot_be_put_in_its_place("").await;
}

#[tokio::test]
async fn a_successor_recounts_the_view_whose_part_could_not_be_put_in_its_place() {
    a_part_cannot_be_put_in_its_place("kill@after-insert:1").await;
}

#[tokio::test]
async fn a_target_that_the_user_may_not_read_holds_nothing_up() {
    let mut crash = Crash::new("flush_interval_seconds: 0.1").await;
    crash.clickhouse.start_as_administrator().await;
    let database = &crash.world.database;
    for statement in [
        "CREATE DATABASE other".to_owned(),
        "CREATE TABLE other.days (date Date, n UInt64) ENGINE = SummingMergeTree
         PARTITION BY date ORDER BY date SETTINGS non_replicated_deduplication_window = 10000"
            .to_owned(),
        format!(
            "CREATE MATERIALIZED VIEW days_mv TO other.days SQL SECURITY NONE AS
             SELECT toDate(server_ts) AS date, count() AS n FROM {database}.analytics_events GROUP BY date"
        ),
    ] {
        crash.world.run(&statement).await;
    }
    let mut grants = guide::grants(database);
    grants.push("GRANT INSERT ON other.days TO analytics".to_owned());
    publish_samples(&crash.world, 100).await;
    crash.clickhouse.start(&grants).await;
    crash.start("kill@after-insert:1").ended().await;
    crash.clickhouse.kill_and_start_again(Duration::ZERO).await;
    let daemon = crash.start("");
    daemon.logs("views recounted").await;
    crash.world.stored_once(100, 0).await;
    let verified = daemon::run(&crash.config, &["verify"]).await;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    let named = "not compared: other.days, since this user may not read its target";
    assert!(said.contains(named), "{said}");
}
