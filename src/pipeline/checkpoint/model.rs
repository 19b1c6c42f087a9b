//! The delivery protocol as a model: the real record, a bucket that compares and
//! sets, a ClickHouse that drops known tokens, and any order of events.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::event::Place;

/// Messages of the stream, each one row.
const MESSAGES: u64 = 12;

fn stream() -> StreamId {
    StreamId {
        name: "S".to_owned(),
        created: "monday".to_owned(),
    }
}

/// An insert as it goes over the network: it may arrive late, and more than once.
#[derive(Debug, Clone, PartialEq)]
struct Insert {
    token: String,
    sequences: Vec<u64>,
}

#[derive(Default)]
struct ClickHouse {
    tokens: HashSet<String>,
    /// How often each sequence is stored.
    rows: BTreeMap<u64, u32>,
}

impl ClickHouse {
    fn take(&mut self, insert: &Insert) {
        if self.tokens.insert(insert.token.clone()) {
            for sequence in &insert.sequences {
                *self.rows.entry(*sequence).or_default() += 1;
            }
        }
    }

    /// Killed between the token and the rows: nobody is told that it worked.
    fn take_and_die(&mut self, insert: &Insert) {
        self.tokens.insert(insert.token.clone());
    }
}

/// A range of an instance's, on its way.
#[derive(Debug, Clone)]
struct OnItsWay {
    in_flight: InFlight,
    part: Part,
    /// It was sent, perhaps by another instance.
    sent: bool,
    /// ClickHouse has it, for all that is known.
    stored: bool,
}

/// An instance that believes to own the record.
#[derive(Debug, Clone)]
struct Instance {
    written: Written,
    on_its_way: Vec<OnItsWay>,
}

#[derive(Default)]
struct World {
    bucket: Option<Written>,
    clickhouse: ClickHouse,
    instances: Vec<Instance>,
    /// Inserts of the dead and the frozen.
    late: Vec<Insert>,
}

fn whole(range: &Range) -> Part {
    Part {
        rows: Rows::Events,
        first: Place(range.first, 0),
        last: Place(range.last, 0),
        attempt: 0,
    }
}

impl World {
    fn take_over(&mut self, name: usize) {
        let revision = self.bucket.as_ref().map_or(0, |written| written.revision);
        let found = self.bucket.take();
        let mut record = found.map_or(Record::new("", &stream()), |written| written.record);
        record.owner = format!("instance {name}");
        let written = Written {
            record,
            revision: revision + 1,
        };
        self.bucket = Some(written.clone());
        let recovered = |in_flight: &InFlight| OnItsWay {
            part: in_flight
                .parts
                .first()
                .copied()
                .unwrap_or(whole(&in_flight.range)),
            in_flight: in_flight.clone(),
            sent: true,
            stored: false,
        };
        self.instances.push(Instance {
            on_its_way: written.record.in_flight.iter().map(recovered).collect(),
            written,
        });
    }

    /// Compare-and-set; an instance that fails it is done, but for its inserts.
    fn write(&mut self, instance: usize) -> bool {
        let written = &mut self.instances[instance].written;
        let expected = self.bucket.as_ref().map(|found| found.revision);
        if expected != Some(written.revision) {
            self.crash(instance);
            return false;
        }
        written.revision += 1;
        self.bucket = Some(written.clone());
        true
    }

    fn crash(&mut self, instance: usize) {
        let instance = self.instances.remove(instance);
        for on_its_way in &instance.on_its_way {
            let insert = self.insert(on_its_way);
            self.late.push(insert);
        }
    }

    fn begin(&mut self, instance: usize, length: u64) {
        let record = &mut self.instances[instance].written.record;
        let first = record.end().0 + 1;
        if first > MESSAGES || record.in_flight.len() > 2 {
            return;
        }
        let last = (first + length).min(MESSAGES);
        let range = Range {
            first,
            last,
            first_stored_at: first as i64,
            last_stored_at: last as i64,
        };
        let (in_flight, recovered) = record.begin(&range, Vec::new());
        assert!(!recovered);
        if self.write(instance) {
            self.instances[instance].on_its_way.push(OnItsWay {
                part: whole(&range),
                in_flight,
                sent: false,
                stored: false,
            });
        }
    }

    fn insert(&self, on_its_way: &OnItsWay) -> Insert {
        let OnItsWay {
            in_flight, part, ..
        } = on_its_way;
        let sequences = (part.first.0..=part.last.0)
            .filter(|sequence| part.attempt == 0 || !self.clickhouse.rows.contains_key(sequence));
        Insert {
            token: in_flight.token(&stream(), part),
            sequences: sequences.collect(),
        }
    }

    /// Sends the first range that is not stored yet, until ClickHouse says that it
    /// has it; counts what was sent before.
    fn send(&mut self, instance: usize, dies: bool) {
        let on_its_way = &self.instances[instance].on_its_way;
        let Some(next) = on_its_way.iter().position(|range| !range.stored) else {
            return;
        };
        let range = on_its_way[next].clone();
        let insert = self.insert(&range);
        if dies {
            self.clickhouse.take_and_die(&insert);
            self.instances[instance].on_its_way[next].sent = true;
            return;
        }
        self.clickhouse.take(&insert);
        let OnItsWay {
            mut in_flight,
            part,
            sent,
            ..
        } = range;
        let held = |sequence| self.clickhouse.rows.contains_key(&sequence);
        if !sent || (part.first.0..=part.last.0).all(held) {
            self.instances[instance].on_its_way[next].stored = true;
            return;
        }
        let part = Part {
            attempt: part.attempt + 1,
            ..part
        };
        in_flight.parts = vec![part];
        self.instances[instance].written.record.change(&in_flight);
        if self.write(instance) {
            self.instances[instance].on_its_way[next] = OnItsWay {
                in_flight,
                part,
                sent: false,
                stored: false,
            };
        }
    }

    fn commit(&mut self, instance: usize) {
        let Instance {
            written,
            on_its_way,
        } = &mut self.instances[instance];
        if !on_its_way.first().is_some_and(|range| range.stored) {
            return;
        }
        let range = on_its_way.remove(0).in_flight.range;
        written.record.retire(&range);
        self.write(instance);
    }

    fn step(&mut self, step: u8, choice: u8) {
        if self.instances.is_empty() || step == 0 {
            return self.take_over(usize::from(choice));
        }
        let instance = usize::from(choice) % self.instances.len();
        match step {
            1 => self.crash(instance),
            2 if !self.late.is_empty() => {
                let late = usize::from(choice) % self.late.len();
                let insert = self.late[late].clone();
                self.clickhouse.take(&insert);
            }
            3 => self.send(instance, true),
            4 | 5 => self.begin(instance, u64::from(choice % 4)),
            6 | 7 => self.send(instance, false),
            _ => self.commit(instance),
        }
    }

    /// A last instance does what is left, alone.
    fn finish(&mut self) {
        self.take_over(0);
        let last = self.instances.len() - 1;
        for _ in 0..MESSAGES * 4 {
            self.send(last, false);
            self.commit(last);
            self.begin(last, 1);
        }
        for late in std::mem::take(&mut self.late) {
            self.clickhouse.take(&late);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_in_whatever_order_each_message_is_stored_once(
        steps in proptest::collection::vec((0u8..10, any::<u8>()), 0..120),
    ) {
        let mut world = World::default();
        for (step, choice) in steps {
            world.step(step, choice);
        }
        world.finish();
        let once: BTreeMap<u64, u32> = (1..=MESSAGES).map(|sequence| (sequence, 1)).collect();
        prop_assert_eq!(world.clickhouse.rows, once);
    }
}
