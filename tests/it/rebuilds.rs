//! A day of a view that lost rows is built again, and the daemon ends or freezes in the
//! middle of that.

use std::path::PathBuf;
use std::time::Instant;

use crate::support::daemon::Daemon;
use crate::support::events::publish_samples;
use crate::support::nats::Nats;
use crate::support::restricted::{EVERYTHING, RestrictedClickHouse};
use crate::support::{LIMIT, World, eventually, guide};

/// Where a daemon can strike itself on the way (src/lane/fault.rs).
const STEPS: [&str; 5] = [
    "after-compare",
    "after-create",
    "after-fill",
    "during-swap",
    "after-swap",
];

const EVENTS: u64 = 200;

/// The next daemon finds that a view has lost a day.
struct Loss {
    world: World,
    config: PathBuf,
    log: PathBuf,
    stored: u64,
}

impl Loss {
    fn start(&self, fault: &str) -> Daemon {
        let variables = [("ANALYTICS_FAULT", fault)];
        Daemon::start_logging_to(&self.log, &self.config, &variables)
    }

    async fn publish(&mut self) {
        publish_samples(&self.world, EVENTS as usize).await;
        self.stored += EVENTS;
    }

    /// Leaves a batch that was inserted and not committed, restarts ClickHouse, and takes
    /// away what a view has of that batch and of all earlier ones.
    async fn of_a_view(&mut self, clickhouse: &mut RestrictedClickHouse) {
        self.publish().await;
        let mut daemon = self.start("kill@after-insert:1");
        daemon.ended().await;
        clickhouse.start(&[EVERYTHING.to_owned()]).await;
        let lose = "ALTER TABLE daily_active_users DELETE WHERE 1";
        let lose = self.world.clickhouse().query(lose);
        let lose = lose.with_setting("mutations_sync", "1").execute();
        lose.await.unwrap();
        clickhouse.start(&guide::grants(&self.world.database)).await;
    }

    /// Waits until the daemon has struck itself; a swap may be too short for that.
    async fn reaches(&self, step: &str, mut has_struck: impl FnMut() -> bool) {
        let struck = eventually(&format!("{step} is reached"), async || {
            if has_struck() {
                return Some(true);
            }
            let jetstream = self.world.nats.jetstream().await;
            let stream = jetstream.get_stream("ANALYTICS").await.ok()?;
            let consumer = stream.consumer_info("analytics-processor").await.ok()?;
            let waiting = consumer.num_pending + consumer.num_ack_pending as u64;
            (waiting == 0).then_some(false)
        })
        .await;
        assert!(struck || step == "during-swap", "{step} is passed by");
    }

    /// Every event is there and counted, and nothing is left of what was begun.
    async fn is_mended(&self) {
        self.world.settled(self.stored, 0).await;
        self.world.views_equal_a_recount().await;
        let left = "SELECT count() AS n FROM system.tables WHERE startsWith(name, 'rebuilt_')";
        assert_eq!(self.world.number(left).await, 0);
    }
}

/// With tables, and one batch stored.
async fn world() -> (Loss, RestrictedClickHouse) {
    let (world, mut clickhouse) = RestrictedClickHouse::with_world(Nats::start().await);
    clickhouse.start(&guide::grants(&world.database)).await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let mut loss = Loss {
        log: world.dir.path().join("daemon.log"),
        world,
        config,
        stored: 0,
    };
    let daemon = loss.start("");
    daemon.logs("checkpoint taken over").await;
    loss.publish().await;
    loss.world.settled(loss.stored, 0).await;
    daemon.stop().await;
    (loss, clickhouse)
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_it_builds_a_day_again_leaves_that_to_the_next() {
    let (mut loss, mut clickhouse) = world().await;
    for step in STEPS {
        loss.of_a_view(&mut clickhouse).await;
        let mut armed = loss.start(&format!("kill@{step}:1"));
        loss.reaches(step, || armed.status().is_some()).await;
        armed.kill9();
        let next = loss.start("");
        loss.is_mended().await;
        let (status, log) = next.stop().await;
        assert!(status.success(), "{log}");
    }
}

#[tokio::test]
async fn a_daemon_that_goes_on_after_its_lease_swaps_no_old_day_in() {
    let (mut loss, mut clickhouse) = world().await;
    for step in STEPS {
        loss.of_a_view(&mut clickhouse).await;
        let frozen = loss.start(&format!("freeze@{step}:1"));
        loss.reaches(step, || frozen.is_stopped()).await;
        if !frozen.is_stopped() {
            continue;
        }
        let next = loss.start("");
        loss.is_mended().await;
        // What is missing from a day that the frozen one builds, or has built, and swaps
        // in.
        let notices = || frozen.log().matches("has taken over").count();
        let before = notices();
        frozen.signal("CONT");
        let started = Instant::now();
        while notices() == before {
            assert!(started.elapsed() < LIMIT, "it does not notice");
            loss.publish().await;
        }
        loss.is_mended().await;
        frozen.stop().await;
        let (status, log) = next.stop().await;
        assert!(status.success(), "{log}");
    }
}
