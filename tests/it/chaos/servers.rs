//! The servers and the way to them: killed, frozen, cut off, and back again.

use std::time::Duration;

use super::daemons::Links;
use super::maintenance::Shared;
use super::plan::{Plan, Tally};
use crate::support::proxy::{Link, Proxy};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Nats,
    ClickHouse,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Nats => "NATS",
            Self::ClickHouse => "ClickHouse",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillClickHouse,
    KillClickHouseFrozen,
    KillNats,
    Freeze(Which),
    Cut(Which),
    Delay(Which),
    Stall(Which),
    Refuse(Which),
}

pub const FAULTS: &[(Fault, u32)] = &[
    (Fault::KillClickHouse, 30),
    (Fault::KillNats, 10),
    (Fault::Freeze(Which::ClickHouse), 4),
    (Fault::Freeze(Which::Nats), 4),
    (Fault::Cut(Which::ClickHouse), 5),
    (Fault::Cut(Which::Nats), 4),
    (Fault::KillClickHouseFrozen, 4),
    (Fault::Delay(Which::ClickHouse), 3),
    (Fault::Delay(Which::Nats), 3),
    (Fault::Stall(Which::ClickHouse), 3),
    (Fault::Stall(Which::Nats), 3),
    (Fault::Refuse(Which::ClickHouse), 3),
    (Fault::Refuse(Which::Nats), 3),
];

pub struct Servers<'a, 'b> {
    pub shared: &'a Shared<'b>,
    /// Those of each daemon.
    pub links: &'a [Links],
    pub tally: &'a Tally,
}

impl Servers<'_, '_> {
    /// Breaks one after another until the plan ends; then all is well.
    pub async fn break_by(self, mut plan: Plan<Fault>) {
        while let Some(fault) = plan.next() {
            plan.pause(500, 3000).await;
            self.inject(fault, &mut plan).await;
        }
    }

    async fn inject(&self, fault: Fault, plan: &mut Plan<Fault>) {
        match fault {
            Fault::KillClickHouse => {
                let mut clickhouse = self.shared.clickhouse.lock().await;
                let pause = absence(plan);
                self.tally.count("ClickHouse killed");
                clickhouse.kill_and_start_again(pause).await;
            }
            Fault::KillClickHouseFrozen => {
                let mut clickhouse = self.shared.clickhouse.lock().await;
                clickhouse.signal("STOP");
                plan.pause(100, 1000).await;
                let pause = absence(plan);
                self.tally.count("ClickHouse killed, frozen before");
                clickhouse.kill_and_start_again(pause).await;
            }
            Fault::KillNats => {
                let mut nats = self.shared.nats.lock().await;
                self.tally.count("NATS killed");
                nats.kill();
                tokio::time::sleep(absence(plan)).await;
                nats.start_again();
            }
            Fault::Freeze(Which::ClickHouse) => {
                let clickhouse = self.shared.clickhouse.lock().await;
                self.tally.count("ClickHouse frozen");
                clickhouse.signal("STOP");
                plan.pause(200, 3000).await;
                clickhouse.signal("CONT");
            }
            Fault::Freeze(Which::Nats) => {
                let nats = self.shared.nats.lock().await;
                self.tally.count("NATS frozen");
                nats.signal("STOP");
                plan.pause(200, 6000).await;
                nats.signal("CONT");
            }
            Fault::Cut(which) => {
                self.count(which, "connections cut");
                for proxy in affected(self.links, which, plan) {
                    proxy.cut();
                }
            }
            Fault::Delay(which) => {
                self.count(which, "connection delayed");
                let delay = Link::Delays(plan.between(5, 150));
                self.trouble(which, delay, plan.between(500, 3000), plan)
                    .await;
            }
            Fault::Stall(which) => {
                self.count(which, "connection stalled");
                self.trouble(which, Link::Stalls, plan.between(200, 6000), plan)
                    .await;
            }
            Fault::Refuse(which) => {
                self.count(which, "connection refused");
                self.trouble(which, Link::Refuses, plan.between(200, 4000), plan)
                    .await;
            }
        }
    }

    async fn trouble(&self, which: Which, link: Link, time: Duration, plan: &mut Plan<Fault>) {
        let affected = affected(self.links, which, plan);
        for proxy in &affected {
            proxy.set(link);
        }
        tokio::time::sleep(time).await;
        for proxy in &affected {
            proxy.set(Link::Passes);
        }
    }

    fn count(&self, which: Which, what: &str) {
        self.tally.count(format!("{} {what}", which.name()));
    }
}

/// Mostly gone for no longer than a start takes.
fn absence(plan: &mut Plan<Fault>) -> Duration {
    match plan.any_of(4) {
        0 => plan.between(0, 3000),
        _ => Duration::ZERO,
    }
}

/// The way to the server of one daemon, or of all.
fn affected<'a>(links: &'a [Links], which: Which, plan: &mut Plan<Fault>) -> Vec<&'a Proxy> {
    let chosen = plan.any_of(links.len() + 1);
    let numbered = links.iter().enumerate();
    numbered
        .filter(|(number, _)| chosen == *number || chosen == links.len())
        .map(|(_, links)| match which {
            Which::Nats => &links.nats,
            Which::ClickHouse => &links.clickhouse,
        })
        .collect()
}
