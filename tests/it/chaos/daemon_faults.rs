//! What happens to the daemons, and to the servers while the daemons are away.

use super::daemons::{Daemons, PATIENCE, within};
use super::maintenance::Maintenance;
use super::plan::Plan;
use super::step::Step;
use crate::support::daemon::Daemon;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillActive,
    KillAt(Step),
    KillStandby,
    KillAll,
    Stop,
    FreezeShortly,
    /// Another one takes over meanwhile, and the frozen one continues unaware of it.
    FreezePastLease,
    /// The same, but it stops itself, at any of the steps.
    FreezeAtStep,
    /// While ClickHouse is killed again and again, which is what makes it recount.
    KillInRecount(Step),
    FreezeInRecount,
    MoveTable,
    SetClockBack,
    RestoreStream,
    /// `verify --repair` while the daemons are running.
    Repair,
}

pub const FAULTS: &[(Fault, u32)] = &[
    (Fault::KillActive, 30),
    (Fault::MoveTable, 8),
    (Fault::FreezePastLease, 10),
    (Fault::SetClockBack, 6),
    (Fault::KillAt(Step::AfterCommit), 8),
    (Fault::Repair, 5),
    (Fault::KillAt(Step::BeforeAck), 8),
    (Fault::KillInRecount(Step::AfterCompare), 4),
    (Fault::RestoreStream, 1),
    (Fault::FreezeAtStep, 6),
    (Fault::KillStandby, 4),
    (Fault::KillAll, 4),
    (Fault::Stop, 3),
    (Fault::FreezeShortly, 3),
];

/// The first three are how daemons end before a table is moved and the like; what the
/// others wait for needs a day that has lost rows.
pub const LATER: &[(Fault, u32)] = &[
    (Fault::KillAt(Step::AfterRecord), 8),
    (Fault::KillAt(Step::DuringInsert), 8),
    (Fault::KillAt(Step::AfterInsert), 8),
    (Fault::KillInRecount(Step::AfterCreate), 1),
    (Fault::KillInRecount(Step::AfterFill), 1),
    (Fault::KillInRecount(Step::DuringSwap), 1),
    (Fault::KillInRecount(Step::AfterSwap), 1),
    (Fault::FreezeInRecount, 3),
];

/// Restores of the stream in a run: each takes seconds, and the more there is, the longer
/// it takes.
const RESTORES: u64 = 2;

const STREAM_RESTORED: &str = "stream restored";

impl Daemons {
    /// Breaks one after another until the plan ends; then all of them are running.
    pub async fn break_by(&mut self, mut plan: Plan<Fault>, maintenance: Maintenance<'_, '_>) {
        while let Some(fault) = plan.next() {
            self.revive();
            let active = self.someone_active(None).await;
            plan.pause(0, 800).await;
            let active = active.unwrap_or_else(|| plan.any_of(self.instances.len()));
            self.inject(fault, active, &mut plan, &maintenance).await;
            self.revive();
        }
    }

    async fn inject(
        &mut self,
        fault: Fault,
        active: usize,
        plan: &mut Plan<Fault>,
        maintenance: &Maintenance<'_, '_>,
    ) {
        match fault {
            Fault::KillActive => {
                self.kill(active, "daemon killed, the active one", plan)
                    .await;
            }
            Fault::KillStandby => {
                let standby = self.other_than(active);
                self.kill(standby, "daemon killed, the standby", plan).await;
            }
            Fault::KillAll => {
                self.kill_all();
                plan.pause(0, 500).await;
            }
            Fault::Stop => self.stop(active).await,
            Fault::KillAt(step) => self.kill_at(step, active, plan).await,
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
                let step = Step::OF_A_BATCH[plan.any_of(Step::OF_A_BATCH.len())];
                let armed = self.hand_over_to_armed("freeze", step, active, plan).await;
                let daemon = &self.instances[armed].daemon;
                within(PATIENCE, async || daemon.is_stopped().then_some(())).await;
                self.revive();
                self.thaw_after_takeover(armed, plan, step.name()).await;
            }
            Fault::KillInRecount(step) => {
                self.kill_in_recount(step, active, plan, maintenance).await;
            }
            Fault::FreezeInRecount => self.freeze_in_recount(active, plan, maintenance).await,
            Fault::MoveTable => {
                self.end_all(active, plan).await;
                let table = maintenance.move_a_table(plan).await;
                self.tally.count(format!("table moved: {table}"));
            }
            Fault::SetClockBack => {
                self.end_all(active, plan).await;
                let kind = match maintenance.set_clock_back(plan).await {
                    None => "clock not set back, there is no checkpoint",
                    Some(0) => "clock set back, nothing in flight",
                    Some(_) => "clock set back, something in flight",
                };
                self.tally.count(kind);
            }
            Fault::RestoreStream => {
                if self.tally.count_of(STREAM_RESTORED) == RESTORES {
                    return;
                }
                self.end_all(active, plan).await;
                maintenance.restore_stream().await;
                self.tally.count(STREAM_RESTORED);
            }
            Fault::Repair => self.repair(plan).await,
        }
    }

    /// Ends both, mostly so that what is in flight is left to the next one.
    async fn end_all(&mut self, active: usize, plan: &mut Plan<Fault>) {
        match plan.any_of(4) {
            0 => self.stop(active).await,
            1 => {}
            _ => {
                let step = Step::IN_FLIGHT[plan.any_of(Step::IN_FLIGHT.len())];
                self.kill_at(step, active, plan).await;
            }
        }
        self.kill_all();
    }

    async fn kill_at(&mut self, step: Step, active: usize, plan: &mut Plan<Fault>) {
        let armed = self.hand_over_to_armed("kill", step, active, plan).await;
        let ended = self.end_of(armed).await;
        self.count_strike("killed", ended, step);
    }

    fn count_strike(&self, what: &str, came: bool, step: Step) {
        self.tally.count(match came {
            true => format!("daemon {what}, {}", step.name()),
            false => format!("daemon not {what}, {} not reached", step.name()),
        });
    }

    async fn kill_in_recount(
        &mut self,
        step: Step,
        active: usize,
        plan: &mut Plan<Fault>,
        maintenance: &Maintenance<'_, '_>,
    ) {
        let armed = self.hand_over_to_armed("kill", step, active, plan).await;
        let ended = self
            .provoke(armed, plan, maintenance, |daemon| daemon.status().is_some())
            .await;
        self.instances[armed].daemon.kill9();
        self.count_strike("killed", ended, step);
    }

    async fn freeze_in_recount(
        &mut self,
        active: usize,
        plan: &mut Plan<Fault>,
        maintenance: &Maintenance<'_, '_>,
    ) {
        let steps = Step::OF_A_RECOUNT;
        // Only a day that has lost rows gets further than the first.
        let step = steps[plan.any_of(2) * plan.any_of(steps.len())];
        let armed = self.hand_over_to_armed("freeze", step, active, plan).await;
        let stopped = self
            .provoke(armed, plan, maintenance, |daemon| daemon.is_stopped())
            .await;
        self.revive();
        match stopped {
            true => self.thaw_after_takeover(armed, plan, step.name()).await,
            false => self.count_strike("frozen", false, step),
        }
    }

    /// Kills ClickHouse, to which the daemon reacts with a recount if that hit an insert,
    /// until the daemon has struck itself.
    async fn provoke(
        &mut self,
        armed: usize,
        plan: &mut Plan<Fault>,
        maintenance: &Maintenance<'_, '_>,
        mut has_struck: impl FnMut(&mut Daemon) -> bool,
    ) -> bool {
        within(PATIENCE, async || {
            self.tally.count("ClickHouse killed");
            maintenance.kill_clickhouse().await;
            let time = plan.between(1000, 4000);
            let daemon = &mut self.instances[armed].daemon;
            within(time, async || has_struck(daemon).then_some(())).await
        })
        .await
        .is_some()
    }

    async fn repair(&mut self, plan: &mut Plan<Fault>) {
        let config = &self.instances[0].config;
        let mut repair = Daemon::repair_logging_to(&self.repair_log, config);
        if plan.any_of(2) == 0 {
            plan.pause(100, 3000).await;
            if repair.status().is_none() {
                repair.signal("STOP");
                self.someone_active(None).await;
                plan.pause(0, 1000).await;
                repair.signal("CONT");
                self.tally.count("verify --repair frozen past the lease");
            }
        }
        let ended = within(PATIENCE, async || repair.status()).await;
        self.tally
            .count(match ended.and_then(|status| status.code()) {
                Some(code) => format!("verify --repair run, exit code {code}"),
                None => "verify --repair killed".to_owned(),
            });
    }
}
