//! ClickHouse in the model: a table, a view of it, and what a kill leaves of an insert.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How often each sequence is stored.
pub type Counts = BTreeMap<u64, u32>;

/// An insert as it goes over the network: it may arrive late, and more than once.
#[derive(Debug, Clone, PartialEq)]
pub struct Insert {
    pub token: String,
    pub sequences: Vec<u64>,
}

/// A table that rows are inserted into, or that a view fills.
#[derive(Default)]
pub struct Table {
    tokens: HashSet<String>,
    pub rows: Counts,
}

impl Table {
    fn take(&mut self, insert: &Insert) {
        if self.tokens.insert(insert.token.clone()) {
            for sequence in &insert.sequences {
                *self.rows.entry(*sequence).or_default() += 1;
            }
        }
    }

    /// As far as just before the token, between the token and the rows, or after both.
    fn take_in_part(&mut self, insert: &Insert, how_far: u8) {
        match how_far % 3 {
            0 => {}
            1 => drop(self.tokens.insert(insert.token.clone())),
            _ => self.take(insert),
        }
    }
}

#[derive(Default)]
pub struct ClickHouse {
    /// Which process it is, counted.
    process: u32,
    pub events: Table,
    pub view: Table,
    /// The tables built beside the view that still exist.
    pub beside: BTreeSet<u32>,
}

impl ClickHouse {
    pub fn take(&mut self, insert: &Insert) {
        self.events.take(insert);
        self.view.take(insert);
    }

    /// Nobody learns that it worked.
    pub fn take_and_die(&mut self, insert: &Insert, how_far: u8) {
        self.take_and_fail(insert, how_far);
        self.process += 1;
    }

    /// Says that it failed, and continues.
    pub fn take_and_fail(&mut self, insert: &Insert, how_far: u8) {
        self.events.take_in_part(insert, how_far);
        self.view.take_in_part(insert, how_far / 3);
    }

    /// The target keeps its tokens. Fails where the table beside it is gone.
    pub fn swap(&mut self, swap: &Swap) -> bool {
        let is_there = self.beside.remove(&swap.beside);
        if is_there {
            self.view.rows.clone_from(&swap.rows);
        }
        is_there
    }

    pub fn process(&self) -> String {
        format!("process {}", self.process)
    }
}

/// The view built again beside itself, from the events of a moment.
#[derive(Debug, Clone)]
pub struct Swap {
    pub beside: u32,
    pub rows: Counts,
    /// The process at the time when the recount began.
    pub process: String,
}
