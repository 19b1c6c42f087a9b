//! Whose the record is: taking it over, writing it, losing it.

use super::*;

impl World {
    pub fn take_over(&mut self, name: usize) {
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
    pub fn reconcile(&mut self, instance: usize) {
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

    pub fn owns_the_record(&self, instance: usize) -> bool {
        let found = self.bucket.as_ref().map(|found| found.revision);
        found == Some(self.instances[instance].written.revision)
    }

    /// Compare-and-set; an instance that fails it is done, but for its inserts.
    pub fn write(&mut self, instance: usize) -> bool {
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
    pub fn crash(&mut self, instance: usize) {
        let instance = self.instances.remove(instance);
        for on_its_way in instance.on_its_way.iter().filter(|it| it.begun) {
            let insert = self.insert(on_its_way);
            self.late.push(insert);
        }
        self.late_swaps.extend(instance.rebuild);
    }
}
