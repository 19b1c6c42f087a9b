//! Ranges on their way: begun, sent until ClickHouse has them, committed.

use super::*;
use crate::clickhouse::stored::Place;

/// A range of an instance's, on its way.
#[derive(Debug, Clone)]
pub struct OnItsWay {
    pub in_flight: InFlight,
    part: Part,
    history: History,
    /// This instance has begun with it.
    pub begun: bool,
    /// It was sent under this token, perhaps by another instance.
    sent: bool,
    /// ClickHouse has it, for all that is known.
    pub stored: bool,
}

impl OnItsWay {
    pub fn new(in_flight: InFlight, recovered: bool) -> Self {
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

fn whole(range: &Range) -> Part {
    Part {
        rows: Rows::Events,
        first: Place(range.first, 0),
        last: Place(range.last, 0),
        attempt: 0,
    }
}

/// What ClickHouse makes of an insert; the numbers say how far it comes.
#[derive(Debug, Clone, Copy)]
pub enum End {
    Done,
    Killed(u8),
    /// It answers with an error, when it had begun.
    HalfDone(u8),
}

impl World {
    pub fn begin(&mut self, instance: usize, length: u64) {
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

    pub fn insert(&self, on_its_way: &OnItsWay) -> Insert {
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
    pub fn send(&mut self, instance: usize, end: End) {
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
    pub fn commit(&mut self, instance: usize, late: Option<bool>) {
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
}
