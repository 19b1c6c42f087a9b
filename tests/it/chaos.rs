//! Exactly once, proven by breaking everything: an oracle publishes events of all
//! kinds, records what JetStream confirmed, and in the end looks for each of them.
//!
//! It is short unless these variables say otherwise, which `scripts/chaos.sh` sets:
//! CHAOS_SECONDS and CHAOS_SEED of the random faults, CHAOS_STORM_KILLS of the storm,
//! CHAOS_REPORT a file that gets the reports. For use by hand: CHAOS_ONLY leaves only the
//! random faults whose names contain it, such as `MoveTable`.

mod daemon_faults;
mod daemons;
mod draft;
mod lane;
mod maintenance;
mod operator;
mod plan;
mod publishers;
mod record;
mod report;
mod servers;
mod step;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::sync::Mutex;

use self::daemons::{Daemons, Links};
use self::lane::Lane;
use self::maintenance::{Maintenance, Shared};
use self::plan::{Plan, Tally};
use self::publishers::{Publishers, Traffic};
use self::report::Report;
use self::servers::Servers;
use self::verdict::Verdict;
use crate::support::clickhouse::lasting_port;
use crate::support::daemon::{self, Daemon};
use crate::support::nats::Nats;
use crate::support::restricted::{EVERYTHING, RestrictedClickHouse};
use crate::support::{World, eventually, guide};

/// What a run needs, all its own: the servers are killed.
struct Chaos {
    seed: u64,
    nats_port: u16,
    clickhouse: RestrictedClickHouse,
    /// What its user may do, except during set-up and maintenance.
    grants: Vec<String>,
    world: World,
    tally: Arc<Tally>,
}

impl Chaos {
    /// The tables are there, and ClickHouse's user may do what the guide grants the
    /// daemon's, no more: a permission that is needed only after a crash shows here if
    /// it is missing.
    async fn new() -> Self {
        Self::with_databases(|_| Vec::new()).await
    }

    /// As [`new`](Self::new), with tables for the second lane.
    async fn with_second_lane() -> Self {
        Self::with_databases(|world| vec![lane::second_config(world)]).await
    }

    /// With the tables of additional configurations.
    async fn with_databases(further: impl Fn(&World) -> Vec<PathBuf>) -> Self {
        let seed = setting("CHAOS_SEED", 1);
        let nats_port = lasting_port();
        let nats = Nats::start_on(nats_port).await;
        let (world, mut clickhouse) = RestrictedClickHouse::with_world(nats);
        eprintln!(
            "seed {seed}, logs and data in {}",
            world.dir.path().display()
        );
        clickhouse.start(&[EVERYTHING.to_owned()]).await;
        let mut grants = guide::grants(&world.database);
        grants.push(operator::GRANT.to_owned());
        for config in further(&world) {
            let migrated = daemon::run(&config, &["migrate"]).await;
            assert!(migrated.status.success(), "{migrated:?}");
            grants.extend(guide::grants(&lane::second_database(&world)));
        }
        let migrated = daemon::run(&world.config("", ""), &["migrate"]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        operator::set_up(&world).await;
        forget_merged_parts_soon(&world).await;
        clickhouse.start(&grants).await;
        Self {
            seed,
            nats_port,
            clickhouse,
            grants,
            world,
            tally: Arc::new(Tally::new()),
        }
    }

    async fn publishers(&self, lane: Lane, rate: u32, days: u64) -> Publishers {
        let traffic = Traffic {
            seed: self.seed,
            rate,
            days,
            lane,
        };
        Publishers::start(&self.world.nats.url(), traffic).await
    }

    /// The last of the faults is over: lets everything come to rest, compares, reports.
    async fn conclude(mut self, title: &str, publishers: Vec<(Lane, Publishers)>) {
        // What a fault has left behind, such as a lost acknowledgement, goes away with
        // the next events.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut ledgers = Vec::new();
        for (lane, publishers) in publishers {
            ledgers.push((lane, publishers.finish().await));
        }
        let took = self.tally.elapsed();
        let (seed, seconds) = (self.seed, took.as_secs());
        let second_database = lane::second_database(&self.world);
        let mut is_good = true;
        for (lane, ledger) in ledgers {
            if lane.stream == lane::SECOND.stream {
                self.world.database.clone_from(&second_database);
            }
            let verdict = Verdict::on(&self.world, lane, &ledger).await;
            let title = format!("{title}, {}: seed {seed}, {seconds} s", lane.stream);
            let report = Report::new(&title, &self.tally, &verdict, self.world.dir.path());
            report.publish();
            is_good &= report.is_good;
        }
        assert!(is_good, "seed {seed}: the report says what is wrong");
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.dir.disable_cleanup(true);
            let dir = self.world.dir.path().display();
            eprintln!("seed {}, logs and data are kept in {dir}", self.seed);
        }
    }
}

fn setting<T: FromStr>(variable: &str, default: T) -> T {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: `{text}`")),
        Err(_) => default,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_broken_at_random_and_every_event_counts_once() {
    let mut chaos = Chaos::with_second_lane().await;
    let duration = Duration::from_secs(setting("CHAOS_SECONDS", 30));
    let publishers = chaos.publishers(lane::FIRST, 300, 3).await;
    let of_second = chaos.publishers(lane::SECOND, 100, 3).await;
    let mut links = Vec::new();
    for _ in 0..daemons::COUNT {
        links.push(Links::to(chaos.nats_port, chaos.clickhouse.port()).await);
    }
    let sql = chaos.world.clickhouse();
    let mut daemons = Daemons::start(&chaos.world, &links, Arc::clone(&chaos.tally)).await;
    let shared = Shared {
        clickhouse: Mutex::new(&mut chaos.clickhouse),
        nats: Mutex::new(&mut chaos.world.nats),
    };
    let servers = Servers {
        shared: &shared,
        links: &links,
        tally: &chaos.tally,
    };
    let maintenance = Maintenance {
        servers: &shared,
        publishers: &publishers,
        sql,
        database: chaos.world.database.clone(),
        grants: &chaos.grants,
    };
    let of_daemons =
        Plan::new(daemon_faults::FAULTS, chaos.seed, duration).later(daemon_faults::LATER);
    let of_servers = Plan::new(servers::FAULTS, !chaos.seed, duration);
    let only: String = setting("CHAOS_ONLY", String::new());
    // Two at a time: that things break while something else is broken is part of the test.
    tokio::join!(
        daemons.break_by(of_daemons.only(&only), maintenance),
        servers.break_by(of_servers.only(&only)),
    );
    chaos
        .conclude(
            "everything broken at random",
            vec![(lane::FIRST, publishers), (lane::SECOND, of_second)],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_is_killed_in_the_middle_of_small_inserts() {
    let mut chaos = Chaos::new().await;
    let kills = setting("CHAOS_STORM_KILLS", 30);
    let mut rng = SmallRng::seed_from_u64(chaos.seed);
    let log = chaos.world.dir.path().join("daemon.log");
    let config = chaos
        .world
        .config("batch_size: 50, flush_interval_seconds: 0.01", "");
    // Events of one day: the fewer parts an insert makes, the more inserts there are.
    let publishers = chaos.publishers(lane::FIRST, 150, 1).await;
    let _daemon = Daemon::start_logging_to(&log, &config, &[]);
    for _ in 0..kills {
        let before = chaos.world.stored().await;
        eventually("inserts go on", async || {
            (chaos.world.stored().await > before).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..=60))).await;
        chaos.tally.count("ClickHouse killed");
        chaos.clickhouse.kill_and_start_again(Duration::ZERO).await;
    }
    chaos
        .conclude(
            "ClickHouse killed in the middle of small inserts",
            vec![(lane::FIRST, publishers)],
        )
        .await;
}

/// ClickHouse keeps parts for minutes after it has merged them, and reads them all at each
/// start: after some hundred kills it would do little else.
async fn forget_merged_parts_soon(world: &World) {
    let tables = "SELECT database || '.`' || name || '`' AS name FROM system.tables WHERE engine LIKE '%MergeTree'";
    for table in world.ask(tables).await.unwrap() {
        let alter = format!(
            "ALTER TABLE {} MODIFY SETTING old_parts_lifetime = 1, merge_tree_clear_old_parts_interval_seconds = 0",
            table["name"].as_str().unwrap()
        );
        world.clickhouse().query(&alter).execute().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_notices_whatever_is_wrong() {
    let mut chaos = Chaos::new().await;
    let world = &chaos.world;
    let daemon = world.daemon("flush_interval_seconds: 0.1");
    let publishers = chaos.publishers(lane::FIRST, 1000, 3).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ledger = publishers.finish().await;
    assert!(Verdict::on(world, lane::FIRST, &ledger).await.is_good());
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    chaos.clickhouse.start(&[EVERYTHING.to_owned()]).await;
    let run = async |sql: &str| {
        let statement = world.clickhouse().query(sql);
        let statement = statement.with_setting("mutations_sync", "1");
        statement.execute().await.unwrap();
    };

    // A view of the daemon's, a view of that view, and a row of the operator's own.
    run("TRUNCATE TABLE error_tracking").await;
    run("TRUNCATE TABLE error_users").await;
    run("ALTER TABLE operators.activity DELETE WHERE name = 'import 7'").await;
    let verdict = Verdict::on(world, lane::FIRST, &ledger).await;
    let counts: BTreeMap<_, _> = verdict.counts().into_iter().collect();
    assert_eq!(counts["views wrong"], 3, "{verdict}");
    for view in ["error_tracking", "error_users", "operators.activity"] {
        let named = verdict.to_string().contains(&format!("FROM {view}"));
        assert!(named, "{view} is not named: {verdict}");
    }

    // Each concerns a different event, so that one wrong does not make up for another.
    let mut ids = ledger.events.values().flatten();
    let mut where_it_is = || format!("WHERE event_id = '{}'", ids.next().unwrap());
    let (letter, _) = ledger.dead_letters.first_key_value().unwrap();
    for sql in [
        format!("ALTER TABLE analytics_events DELETE {}", where_it_is()),
        format!(
            "INSERT INTO analytics_events SELECT * FROM analytics_events {}",
            where_it_is()
        ),
        format!(
            "ALTER TABLE analytics_events UPDATE event_id = generateUUIDv4() {}",
            where_it_is()
        ),
        format!(
            "INSERT INTO analytics_events SELECT * REPLACE (1000000 AS stream_seq) FROM analytics_events {}",
            where_it_is()
        ),
        format!(
            "ALTER TABLE dead_letters UPDATE reason = 'another' WHERE stream_seq = {}",
            letter.0
        ),
    ] {
        run(&sql).await;
    }
    let verdict = Verdict::on(world, lane::FIRST, &ledger).await;
    let counts: BTreeMap<_, _> = verdict.counts().into_iter().collect();
    assert_eq!(counts["events lost"], 1, "{verdict}");
    assert_eq!(counts["events duplicated"], 1, "{verdict}");
    assert_eq!(counts["rows unexplained"], 2, "{verdict}");
    assert_eq!(counts["dead letters wrong"], 1, "{verdict}");
    assert!(!verdict.is_good());
}
