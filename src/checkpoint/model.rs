//! The delivery protocol as a model: the real record, a bucket that compares and sets, a
//! ClickHouse that drops known tokens and loses rows when it is killed, a view of its
//! table, and any order of events.

mod clickhouse;
mod delivery;
mod ownership;
mod recount;

use proptest::prelude::*;

use self::clickhouse::{ClickHouse, Counts, Insert, Swap};
use self::delivery::{End, OnItsWay};
use super::*;

/// Messages of the stream, each one row.
const MESSAGES: u64 = 20;

fn stream() -> StreamId {
    StreamId {
        name: "S".to_owned(),
        created: "monday".to_owned(),
    }
}

/// An instance that believes to own the record.
#[derive(Debug, Clone)]
struct Instance {
    written: Written,
    /// It has cleared what others left, and knows which ClickHouse answers.
    ready: bool,
    on_its_way: Vec<OnItsWay>,
    /// It builds views again, and begins with nothing else until that is done.
    recounts: bool,
    /// A rebuild that is to be swapped in.
    rebuild: Option<Swap>,
}

#[derive(Default)]
struct World {
    bucket: Option<Written>,
    clickhouse: ClickHouse,
    instances: Vec<Instance>,
    /// What the dead and the frozen have sent, until the next writer has waited for it.
    late: Vec<Insert>,
    /// Swaps that come late, at any time.
    late_swaps: Vec<Swap>,
    rebuilds: u32,
}

impl World {
    fn step(&mut self, step: u8, choice: u8) {
        if self.instances.is_empty() || step == 0 {
            return self.take_over(usize::from(choice));
        }
        // The one that took over last; the others are frozen, and go on with an insert.
        let (thaws, choice) = (choice.is_multiple_of(4), choice / 4);
        let instance = self.instances.len() - 1;
        if thaws && instance > 0 {
            return self.send(usize::from(choice) % instance, End::Done);
        }
        if !self.instances[instance].ready {
            return self.reconcile(instance);
        }
        match step {
            1 => self.crash(instance),
            2 if !self.late.is_empty() => {
                let late = usize::from(choice) % self.late.len();
                let insert = self.late[late].clone();
                self.clickhouse.take(&insert);
            }
            3 | 4 => self.send(instance, End::Killed(choice)),
            // Of an instance that was replaced, nobody hears the answer: that is not promised.
            19 if self.owns_the_record(instance) => self.send(instance, End::HalfDone(choice)),
            5..8 => self.begin(instance, u64::from(choice % 3)),
            8..13 => self.send(instance, End::Done),
            13 if !self.late_swaps.is_empty() => {
                let late = usize::from(choice) % self.late_swaps.len();
                let swap = self.late_swaps.remove(late);
                self.clickhouse.swap(&swap);
            }
            _ => self.commit(
                instance,
                [None, Some(true), Some(false)][usize::from(choice % 3)],
            ),
        }
    }

    /// A last instance does what is left, alone.
    fn finish(&mut self) {
        self.take_over(0);
        let last = self.instances.len() - 1;
        self.reconcile(last);
        for _ in 0..MESSAGES * 8 {
            self.send(last, End::Done);
            self.commit(last, None);
            self.begin(last, 1);
        }
        for late in std::mem::take(&mut self.late) {
            self.clickhouse.take(&late);
        }
        for late in std::mem::take(&mut self.late_swaps) {
            self.clickhouse.swap(&late);
        }
    }
}

proptest! {
    // More where PROPTEST_CASES asks for them.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(2000)))]

    #[test]
    fn whatever_happens_in_whatever_order_each_message_counts_once(
        steps in proptest::collection::vec((0u8..20, any::<u8>()), 0..200),
    ) {
        let mut world = World::default();
        for (step, choice) in steps {
            world.step(step, choice);
        }
        world.finish();
        let once: Counts = (1..=MESSAGES).map(|sequence| (sequence, 1)).collect();
        prop_assert_eq!(&world.clickhouse.events.rows, &once);
        prop_assert_eq!(&world.clickhouse.view.rows, &once);
    }
}
