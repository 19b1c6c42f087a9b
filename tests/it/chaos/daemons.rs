//! The daemons: started, killed, frozen, started again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;

use super::daemon_faults::Fault;
use super::lane;
use super::plan::{Plan, Tally};
use super::publishers::connect;
use super::record;
use super::step::Step;
use crate::support::World;
use crate::support::daemon::Daemon;
use crate::support::proxy::Proxy;

/// One is active, the other stands by.
pub const COUNT: usize = 2;

/// Small batches, so that one is always on its way; a lease that a fault can outlast, and
/// an insert timeout that a stalled connection can.
const ANALYTICS: &str = "batch_size: 300, flush_interval_seconds: 0.2, max_in_flight: 2, \
     lease_timeout_seconds: 2, insert_timeout_seconds: 5";

/// How long to wait for what follows from a fault when nothing else is broken. The run
/// continues without it: what is broken meanwhile may last longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What is between a daemon and its servers.
pub struct Links {
    pub nats: Proxy,
    pub clickhouse: Proxy,
}

impl Links {
    pub async fn to(nats: u16, clickhouse: u16) -> Self {
        Self {
            nats: Proxy::to(nats).await,
            clickhouse: Proxy::to(clickhouse).await,
        }
    }
}

pub struct Instance {
    pub daemon: Daemon,
    pub config: PathBuf,
    log: PathBuf,
    /// The configuration of its second lane.
    second_lane: String,
}

impl Instance {
    fn start(config: PathBuf, log: PathBuf, second_lane: PathBuf) -> Self {
        let second_lane = second_lane.to_str().unwrap().to_owned();
        let variables = [(lane::VARIABLE, second_lane.as_str())];
        Self {
            daemon: Daemon::start_logging_to(&log, &config, &variables),
            config,
            log,
            second_lane,
        }
    }

    /// Once the previous one has ended.
    fn start_again(&mut self, variables: &[(&str, &str)]) {
        let second_lane = (lane::VARIABLE, self.second_lane.as_str());
        let variables = [variables, &[second_lane]].concat();
        self.daemon = Daemon::start_logging_to(&self.log, &self.config, &variables);
    }
}

pub struct Daemons {
    pub instances: Vec<Instance>,
    /// What `verify --repair` says.
    pub repair_log: PathBuf,
    /// For looking into the checkpoint.
    nats: jetstream::Context,
    pub tally: Arc<Tally>,
}

impl Daemons {
    /// One behind each of the links.
    pub async fn start(world: &World, links: &[Links], tally: Arc<Tally>) -> Self {
        let instances = links.iter().enumerate().map(|(number, links)| {
            let config = world.config_at(
                &format!("analytics-{number}.yml"),
                &format!("http://127.0.0.1:{}", links.clickhouse.port()),
                ANALYTICS,
                &format!("nats_url: 'nats://127.0.0.1:{}'", links.nats.port()),
            );
            let log = world.dir.path().join(format!("daemon-{number}.log"));
            Instance::start(config, log, world.dir.path().join("second.yml"))
        });
        Self {
            instances: instances.collect(),
            repair_log: world.dir.path().join("daemon-repair.log"),
            nats: jetstream::new(connect(&world.nats.url()).await),
            tally,
        }
    }

    pub async fn kill(&mut self, victim: usize, kind: &str, plan: &mut Plan<Fault>) {
        self.instances[victim].daemon.kill9();
        self.tally.count(kind);
        plan.pause(0, 300).await;
    }

    /// Starts the standby anew, as one that strikes at a step, and ends the active one.
    pub async fn hand_over_to_armed(
        &mut self,
        strike: &str,
        step: Step,
        active: usize,
        plan: &mut Plan<Fault>,
    ) -> usize {
        let standby = self.other_than(active);
        // A recount happens seldom enough.
        let passes = if Step::OF_A_BATCH.contains(&step) {
            3
        } else {
            1
        };
        let pass = 1 + plan.any_of(passes);
        let fault = format!("{strike}@{}:{pass}", step.name());
        self.instances[standby].daemon.kill9();
        self.tally.count("daemon killed, the standby");
        self.instances[standby].start_again(&[("ANALYTICS_FAULT", &fault)]);
        if plan.any_of(2) == 0 {
            self.instances[active].daemon.kill9();
            self.tally.count("daemon killed, the active one");
        } else {
            self.stop(active).await;
        }
        standby
    }

    pub fn other_than(&self, number: usize) -> usize {
        (number + 1) % self.instances.len()
    }

    pub async fn stop(&mut self, number: usize) {
        self.instances[number].daemon.signal("TERM");
        self.end_of(number).await;
        self.tally.count("daemon stopped in order");
    }

    pub fn kill_all(&mut self) {
        for instance in &mut self.instances {
            instance.daemon.kill9();
            self.tally.count("daemon killed, both at once");
        }
    }

    /// Lets a frozen one continue once it has been replaced.
    pub async fn thaw_after_takeover(&mut self, frozen: usize, plan: &mut Plan<Fault>, at: &str) {
        let replaced = self.someone_active(Some(frozen)).await.is_some();
        plan.pause(0, 1000).await;
        self.instances[frozen].daemon.signal("CONT");
        let at = if at.is_empty() { "anywhere" } else { at };
        self.tally.count(match replaced {
            true => format!("daemon frozen past the lease, {at}"),
            false => format!("daemon frozen, nobody took over, {at}"),
        });
    }

    /// Waits for it to end; ends it if it does not end by itself.
    pub async fn end_of(&mut self, number: usize) -> bool {
        let daemon = &mut self.instances[number].daemon;
        let ended = within(PATIENCE, async || daemon.status()).await.is_some();
        daemon.kill9();
        ended
    }

    /// Starts whichever has ended.
    pub fn revive(&mut self) {
        for instance in &mut self.instances {
            if instance.daemon.status().is_some() {
                instance.start_again(&[]);
            }
        }
    }

    /// Waits until the checkpoint belongs to a running daemon, other than this one.
    pub async fn someone_active(&self, but: Option<usize>) -> Option<usize> {
        within(PATIENCE, async || {
            let owner = record::owner(&self.nats).await?;
            let mut candidates = (0..self.instances.len()).filter(|number| Some(*number) != but);
            candidates.find(|number| self.instances[*number].daemon.pid() == owner)
        })
        .await
    }
}

/// Waits until `condition` gives something, but not longer than `limit`.
pub async fn within<T>(
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(value) = condition().await {
            return Some(value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}
