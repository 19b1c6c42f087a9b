//! The daemons: started, killed, frozen, started again.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use serde_json::Value;

use super::plan::{Plan, Tally};
use super::publishers::connect;
use crate::support::World;
use crate::support::daemon::Daemon;
use crate::support::proxy::Proxy;

/// One is active, the other stands by.
pub const COUNT: usize = 2;

/// Small batches, so that one is always on its way; a lease that a fault can outlast, and
/// an insert that a stalled connection can.
const ANALYTICS: &str = "batch_size: 300, flush_interval_seconds: 0.2, max_in_flight: 2, \
     lease_timeout_seconds: 2, insert_timeout_seconds: 5";

/// How long to wait for what follows from a fault when nothing else is broken. It goes on
/// without it: what is broken meanwhile may last longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the daemon itself can strike, in a build for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    AfterRecord,
    DuringInsert,
    AfterInsert,
    AfterCommit,
    BeforeAck,
}

impl Step {
    const ALL: [Self; 5] = [
        Self::AfterRecord,
        Self::DuringInsert,
        Self::AfterInsert,
        Self::AfterCommit,
        Self::BeforeAck,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AfterRecord => "after-record",
            Self::DuringInsert => "during-insert",
            Self::AfterInsert => "after-insert",
            Self::AfterCommit => "after-commit",
            Self::BeforeAck => "before-ack",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillActive,
    KillAt(Step),
    KillStandby,
    KillAll,
    Stop,
    FreezeShortly,
    /// Another takes over meanwhile, and the frozen one goes on in ignorance of it.
    FreezePastLease,
    /// The same, stopped by itself at any of the steps.
    FreezeAtStep,
}

pub const FAULTS: &[(Fault, u32)] = &[
    (Fault::KillActive, 30),
    (Fault::KillAt(Step::AfterRecord), 8),
    (Fault::KillAt(Step::DuringInsert), 8),
    (Fault::KillAt(Step::AfterInsert), 8),
    (Fault::KillAt(Step::AfterCommit), 8),
    (Fault::KillAt(Step::BeforeAck), 8),
    (Fault::FreezePastLease, 10),
    (Fault::FreezeAtStep, 6),
    (Fault::KillStandby, 4),
    (Fault::KillAll, 4),
    (Fault::Stop, 3),
    (Fault::FreezeShortly, 3),
];

/// What lies between a daemon and its servers.
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

struct Instance {
    daemon: Daemon,
    config: PathBuf,
    log: PathBuf,
}

impl Instance {
    /// Once the one before has ended.
    fn start_again(&mut self, variables: &[(&str, &str)]) {
        self.daemon = Daemon::start_logging_to(&self.log, &self.config, variables);
    }
}

pub struct Daemons {
    instances: Vec<Instance>,
    /// For looking into the checkpoint.
    nats: jetstream::Context,
    tally: Arc<Tally>,
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
            Instance {
                daemon: Daemon::start_logging_to(&log, &config, &[]),
                config,
                log,
            }
        });
        Self {
            instances: instances.collect(),
            nats: jetstream::new(connect(&world.nats.url()).await),
            tally,
        }
    }

    /// Breaks one after another until the plan ends; all run then.
    pub async fn break_by(&mut self, mut plan: Plan<Fault>) {
        while let Some(fault) = plan.next() {
            self.revive();
            let active = self.someone_active(None).await;
            plan.pause(0, 800).await;
            let active = active.unwrap_or_else(|| plan.any_of(self.instances.len()));
            self.inject(fault, active, &mut plan).await;
        }
        self.revive();
    }

    async fn inject(&mut self, fault: Fault, active: usize, plan: &mut Plan<Fault>) {
        let standby = (active + 1) % self.instances.len();
        match fault {
            Fault::KillActive => {
                self.kill(active, "daemon killed, the active one", plan)
                    .await
            }
            Fault::KillStandby => self.kill(standby, "daemon killed, the standby", plan).await,
            Fault::KillAll => {
                for instance in &mut self.instances {
                    instance.daemon.kill9();
                    self.tally.count("daemon killed, both at once");
                }
                plan.pause(0, 500).await;
            }
            Fault::Stop => {
                self.instances[active].daemon.signal("TERM");
                self.end_of(active).await;
                self.tally.count("daemon stopped in order");
            }
            Fault::KillAt(step) => self.kill_at(step, active, standby, plan).await,
            Fault::FreezeShortly => {
                self.instances[active].daemon.signal("STOP");
                plan.pause(100, 1500).await;
                self.instances[active].daemon.signal("CONT");
                self.tally.count("daemon frozen, shorter than the lease");
            }
            Fault::FreezePastLease => {
                self.instances[active].daemon.signal("STOP");
                self.thaw_after_takeover(active, plan, "").await;
            }
            Fault::FreezeAtStep => {
                let step = Step::ALL[plan.any_of(Step::ALL.len())];
                self.hand_over_to_armed("freeze", step, active, standby, plan)
                    .await;
                let armed = &self.instances[standby].daemon;
                within(PATIENCE, async || is_stopped(armed).then_some(())).await;
                self.revive();
                self.thaw_after_takeover(standby, plan, step.name()).await;
            }
        }
        self.revive();
    }

    async fn kill(&mut self, victim: usize, kind: &str, plan: &mut Plan<Fault>) {
        self.instances[victim].daemon.kill9();
        self.tally.count(kind);
        plan.pause(0, 300).await;
    }

    async fn kill_at(&mut self, step: Step, active: usize, standby: usize, plan: &mut Plan<Fault>) {
        self.hand_over_to_armed("kill", step, active, standby, plan)
            .await;
        let kind = match self.end_of(standby).await {
            true => format!("daemon killed, {}", step.name()),
            false => format!("daemon not killed, {} not reached", step.name()),
        };
        self.tally.count(kind);
    }

    /// Starts the standby anew, as one that strikes at a step, and ends the active one.
    async fn hand_over_to_armed(
        &mut self,
        what: &str,
        step: Step,
        active: usize,
        standby: usize,
        plan: &mut Plan<Fault>,
    ) {
        let pass = 1 + plan.any_of(3);
        let fault = format!("{what}@{}:{pass}", step.name());
        self.instances[standby].daemon.kill9();
        self.tally.count("daemon killed, the standby");
        self.instances[standby].start_again(&[("ANALYTICS_FAULT", &fault)]);
        if active == standby {
            return;
        }
        if plan.any_of(2) == 0 {
            self.instances[active].daemon.kill9();
            self.tally.count("daemon killed, the active one");
        } else {
            self.instances[active].daemon.signal("TERM");
            self.end_of(active).await;
            self.tally.count("daemon stopped in order");
        }
    }

    /// Lets a frozen one go on once it has been replaced.
    async fn thaw_after_takeover(&mut self, frozen: usize, plan: &mut Plan<Fault>, at: &str) {
        let replaced = self.someone_active(Some(frozen)).await.is_some();
        plan.pause(0, 1000).await;
        self.instances[frozen].daemon.signal("CONT");
        let at = if at.is_empty() { "anywhere" } else { at };
        self.tally.count(match replaced {
            true => format!("daemon frozen past the lease, {at}"),
            false => format!("daemon frozen, nobody took over, {at}"),
        });
    }

    /// Waits for its end; ends it where that does not come by itself.
    async fn end_of(&mut self, number: usize) -> bool {
        let daemon = &mut self.instances[number].daemon;
        let ended = within(PATIENCE, async || daemon.status()).await.is_some();
        daemon.kill9();
        ended
    }

    /// Starts whichever has ended.
    fn revive(&mut self) {
        for instance in &mut self.instances {
            if instance.daemon.status().is_some() {
                instance.start_again(&[]);
            }
        }
    }

    /// Waits until the checkpoint belongs to a running daemon, other than this one.
    async fn someone_active(&self, but: Option<usize>) -> Option<usize> {
        within(PATIENCE, async || {
            let owner = owner(&self.nats).await?;
            let mut candidates = (0..self.instances.len()).filter(|number| Some(*number) != but);
            candidates.find(|number| self.instances[*number].daemon.pid() == owner)
        })
        .await
    }
}

/// The process that the checkpoint belongs to; its owner is `HOST-PID-UUID`.
async fn owner(nats: &jetstream::Context) -> Option<u32> {
    let bucket = nats.get_key_value("analytics-checkpoints").await.ok()?;
    let record = bucket.get("ANALYTICS.analytics-processor").await.ok()??;
    let record: Value = serde_json::from_slice(&record).ok()?;
    record["owner"].as_str()?.rsplit('-').nth(1)?.parse().ok()
}

/// Whether it has stopped itself, or was stopped.
fn is_stopped(daemon: &Daemon) -> bool {
    let pid = daemon.pid().to_string();
    let state = Command::new("ps")
        .args(["-o", "state=", "-p", &pid])
        .output();
    state.unwrap().stdout.starts_with(b"T")
}

/// Waits until `condition` gives something, but not longer than `limit`.
async fn within<T>(limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(value) = condition().await {
            return Some(value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}
