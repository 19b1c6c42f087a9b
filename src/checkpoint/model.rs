//! The delivery protocol as a model: the real record, a bucket that compares and sets, a
//! ClickHouse that drops known tokens and loses rows when it is killed, a view of its
//! table, and any order of events.

mod clickhouse;

use proptest::prelude::*;

use self::clickhouse::{ClickHouse, Counts, Insert, Swap};
use super::*;
use crate::clickhouse::stored::Place;

/// Messages of the stream, each one row.
const MESSAGES: u64 = 20;

fn stream() -> StreamId {
    StreamId {
        name: "S".to_owned(),
        created: "monday".to_owned(),
    }
}

/// A range of an instance's, on its way.
#[derive(Debug, Clone)]
struct OnItsWay {
    in_flight: InFlight,
    part: Part,
    history: History,
    /// This instance has begun with it.
    begun: bool,
    /// It was sent under this token, perhaps by another instance.
    sent: bool,
    /// ClickHouse has it, for all that is known.
    stored: bool,
}

impl OnItsWay {
    fn new(in_flight: InFlight, recovered: bool) -> Self {
        Self {
            part: in_flight
                .parts
                .first()
                .copied()
                .unwrap_or(whole(&in_flight.range)),
            history: History::of(&in_flight, recovered),
            in_flight,
            begun: !recovered,
            sent: recovered,
            stored: false,
        }
    }
}

/// What ClickHouse makes of an insert; the numbers say how far it comes.
#[derive(Debug, Clone, Copy)]
enum End {
    Done,
    Killed(u8),
    /// It answers with an error, when it had begun.
    HalfDone(u8),
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
        self.instances.push(Instance {
            on_its_way: Vec::new(),
            written,
            ready: false,
            recounts: false,
            rebuild: None,
        });
    }

    /// Clears what rebuilds have left, waits for inserts that run, and begins with what was
    /// recorded.
    fn reconcile(&mut self, instance: usize) {
        // Before a table is dropped, the record is confirmed by a write.
        if !self.write(instance) {
            return;
        }
        self.clickhouse.beside.clear();
        for late in std::mem::take(&mut self.late) {
            self.clickhouse.take(&late);
        }
        let process = self.clickhouse.process();
        self.instances[instance].written.record.incarnation.process = process;
        if self.write(instance) {
            let instance = &mut self.instances[instance];
            let in_flight = instance.written.record.in_flight.iter().cloned();
            instance.on_its_way = in_flight.map(|it| OnItsWay::new(it, true)).collect();
            instance.ready = true;
        }
    }

    fn owns_the_record(&self, instance: usize) -> bool {
        let found = self.bucket.as_ref().map(|found| found.revision);
        found == Some(self.instances[instance].written.revision)
    }

    /// Compare-and-set; an instance that fails it is done, but for its inserts.
    fn write(&mut self, instance: usize) -> bool {
        if !self.owns_the_record(instance) {
            self.crash(instance);
            return false;
        }
        let written = &mut self.instances[instance].written;
        written.revision += 1;
        self.bucket = Some(written.clone());
        true
    }

    /// Its inserts may still come. A frozen instance that has looked at the record just
    /// before it froze is the same as one that is dead.
    fn crash(&mut self, instance: usize) {
        let instance = self.instances.remove(instance);
        for on_its_way in instance.on_its_way.iter().filter(|it| it.begun) {
            let insert = self.insert(on_its_way);
            self.late.push(insert);
        }
        self.late_swaps.extend(instance.rebuild);
    }

    fn begin(&mut self, instance: usize, length: u64) {
        let Instance {
            written,
            on_its_way,
            recounts: false,
            ready: true,
            ..
        } = &self.instances[instance]
        else {
            return;
        };
        let first = written.record.end().0 + 1;
        // The stream has what was recorded before what is new.
        let is_due = on_its_way.len() < 3 && on_its_way.iter().all(|it| it.begun);
        if first > MESSAGES || !is_due || self.has_suspects(instance) {
            return;
        }
        let last = (first + length).min(MESSAGES);
        let range = Range {
            first,
            last,
            first_stored_at: first as i64,
            last_stored_at: last as i64,
        };
        let record = &mut self.instances[instance].written.record;
        let (in_flight, recovered) = record.begin(&range, Vec::new());
        assert!(!recovered);
        if self.write(instance) {
            let begun = OnItsWay::new(in_flight, false);
            self.instances[instance].on_its_way.push(begun);
        }
    }

    /// Whether something is stored that has to be recounted: nothing new is begun then.
    fn has_suspects(&self, instance: usize) -> bool {
        let process = self.clickhouse.process();
        self.instances[instance]
            .on_its_way
            .iter()
            .any(|it| it.stored && it.in_flight.may_be_miscounted(it.history, &process))
    }

    fn insert(&self, on_its_way: &OnItsWay) -> Insert {
        let OnItsWay {
            in_flight, part, ..
        } = on_its_way;
        let held = &self.clickhouse.events.rows;
        let sequences = (part.first.0..=part.last.0)
            .filter(|sequence| part.attempt == 0 || !held.contains_key(sequence));
        Insert {
            token: in_flight.token(&stream(), part),
            sequences: sequences.collect(),
        }
    }

    /// Sends the first range that is not stored yet, until ClickHouse says that it
    /// has it; counts what was sent before.
    fn send(&mut self, instance: usize, end: End) {
        let Instance {
            on_its_way,
            recounts: false,
            ready: true,
            ..
        } = &self.instances[instance]
        else {
            return;
        };
        let Some(next) = on_its_way.iter().position(|range| !range.stored) else {
            return;
        };
        if !on_its_way[next].begun && self.has_suspects(instance) {
            return;
        }
        // Before every repeat the record is confirmed by a write.
        if on_its_way[next].sent && !self.write(instance) {
            return;
        }
        self.instances[instance].on_its_way[next].begun = true;
        let range = self.instances[instance].on_its_way[next].clone();
        let insert = self.insert(&range);
        let held = |clickhouse: &ClickHouse| {
            let rows = &clickhouse.events.rows;
            (range.part.first.0..=range.part.last.0).all(|it| rows.contains_key(&it))
        };
        let Instance {
            written,
            on_its_way,
            ..
        } = &mut self.instances[instance];
        let sent = &mut on_its_way[next];
        sent.history.repeated |= sent.sent;
        match end {
            End::Done => {}
            End::Killed(how_far) => {
                self.clickhouse.take_and_die(&insert, how_far);
                sent.sent = true;
                return;
            }
            End::HalfDone(how_far) => {
                self.clickhouse.take_and_fail(&insert, how_far);
                sent.sent = true;
                sent.in_flight.incarnation.process.clear();
                written.record.change(&sent.in_flight);
                self.write(instance);
                return;
            }
        }
        // What is there already is not sent.
        if range.part.attempt > 0 && insert.sequences.is_empty() {
            sent.history.looked_for = true;
            sent.stored = true;
            return;
        }
        self.clickhouse.take(&insert);
        if !range.sent || held(&self.clickhouse) {
            sent.stored = true;
            return;
        }
        // Not before the record says so.
        let mut again = sent.clone();
        again.part.attempt += 1;
        again.in_flight.parts = vec![again.part];
        again.sent = false;
        let record = &mut self.instances[instance].written.record;
        record.change(&again.in_flight);
        if self.write(instance) {
            self.instances[instance].on_its_way[next] = again;
        }
    }

    /// Commits what is stored and first in order; a suspect after a recount alone.
    fn commit(&mut self, instance: usize, late: Option<bool>) {
        if self.instances[instance].rebuild.is_some() {
            return self.swap(instance, late);
        }
        if self.instances[instance].recounts {
            return self.recount(instance);
        }
        let on_its_way = &self.instances[instance].on_its_way;
        let process = self.clickhouse.process();
        if on_its_way.is_empty() && late.is_some() && self.instances[instance].ready {
            // As `verify --repair` does.
            return self.rebuild(instance);
        }
        match on_its_way.first() {
            Some(first) if first.stored => {
                if first.in_flight.may_be_miscounted(first.history, &process) {
                    return self.recount(instance);
                }
            }
            _ => return,
        }
        let range = on_its_way[0].in_flight.range.clone();
        self.instances[instance].written.record.retire(&range);
        if self.write(instance) {
            self.instances[instance].on_its_way.remove(0);
        }
    }

    /// Begins to build the view again where it differs, once nothing is in flight.
    fn recount(&mut self, instance: usize) {
        let mut begun = self.instances[instance].on_its_way.iter();
        if begun.any(|it| it.begun && !it.stored) {
            return;
        }
        let process = self.clickhouse.process();
        if self.clickhouse.view.rows == self.clickhouse.events.rows {
            return self.counted(instance, process);
        }
        self.rebuild(instance);
    }

    fn rebuild(&mut self, instance: usize) {
        if !self.write(instance) {
            return;
        }
        self.instances[instance].recounts = true;
        self.rebuilds += 1;
        self.clickhouse.beside.insert(self.rebuilds);
        self.instances[instance].rebuild = Some(Swap {
            beside: self.rebuilds,
            rows: self.clickhouse.events.rows.clone(),
            process: self.clickhouse.process(),
        });
    }

    /// Swaps the view in, and takes what is stored for counted. `late` is a swap that comes
    /// later: of an instance that froze just before it sent it, or of one that has waited for
    /// the answer in vain, and begins again.
    fn swap(&mut self, instance: usize, late: Option<bool>) {
        let Instance {
            written,
            on_its_way,
            ..
        } = &mut self.instances[instance];
        written.record.recount_in_flight();
        for (on_its_way, recorded) in on_its_way.iter_mut().zip(&written.record.in_flight) {
            on_its_way.in_flight.clone_from(recorded);
        }
        if !self.write(instance) {
            return;
        }
        if late == Some(true) {
            return self.crash(instance);
        }
        let Some(swap) = self.instances[instance].rebuild.take() else {
            return;
        };
        if late == Some(false) {
            self.late_swaps.push(swap);
            return;
        }
        if self.clickhouse.swap(&swap) {
            self.counted(instance, swap.process);
        }
    }

    /// Takes what is stored for counted, if ClickHouse is the process that it was when the
    /// recount began, and no swap can come any more.
    fn counted(&mut self, instance: usize, process: String) {
        if process != self.clickhouse.process() || !self.write(instance) {
            return;
        }
        self.clickhouse.beside.clear();
        let Instance {
            written,
            on_its_way,
            recounts,
            ..
        } = &mut self.instances[instance];
        written.record.incarnation.process = process;
        *recounts = false;
        while on_its_way.first().is_some_and(|first| first.stored) {
            let counted = on_its_way.remove(0);
            written.record.retire(&counted.in_flight.range);
        }
        self.write(instance);
    }

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
