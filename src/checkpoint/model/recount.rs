//! A view that may have lost rows is built again beside the old one, and swapped in.

use super::*;

impl World {
    /// Begins to build the view again where it differs, once nothing is in flight.
    pub fn recount(&mut self, instance: usize) {
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

    pub fn rebuild(&mut self, instance: usize) {
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
    pub fn swap(&mut self, instance: usize, late: Option<bool>) {
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
}
