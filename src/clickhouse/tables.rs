//! The tables of one kind of events, by their names in the daemon's database.

/// What cannot be stored as an event goes here, whatever its kind.
pub const DEAD_LETTERS: &str = "dead_letters";

/// Where the rows of one kind of events go.
#[derive(Debug, PartialEq, Eq)]
pub struct Tables {
    /// The table of the events. It has the columns `stream`, `stream_seq`, `batch_index` and
    /// `received_at`.
    pub events: &'static str,
    /// Its column that says when an event happened: a `DateTime64` in UTC.
    pub time: &'static str,
    /// The tables that its views fill, each with the expression that a row's age counts from.
    pub targets: &'static [(&'static str, &'static str)],
}

impl Tables {
    /// The tables that are inserted into.
    pub fn inserted_into(&self) -> [&'static str; 2] {
        [self.events, DEAD_LETTERS]
    }

    /// The expression that an event's age counts from.
    pub fn age_from(&self) -> String {
        format!("toDateTime({})", self.time)
    }

    /// Every table that keeps rows, with the expression that a row's age counts from.
    pub fn retained(&self) -> impl Iterator<Item = (&'static str, String)> {
        let targets = self.targets.iter();
        let targets = targets.map(|(table, age_from)| (*table, (*age_from).to_owned()));
        [
            (self.events, self.age_from()),
            (DEAD_LETTERS, "toDateTime(received_at)".to_owned()),
        ]
        .into_iter()
        .chain(targets)
    }
}
