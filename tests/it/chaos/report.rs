//! The table of a run: what was broken and how often, what the daemons said about it,
//! and what came of the events.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use super::plan::Tally;
use super::verdict::Verdict;

/// Kinds of fault of which there are several, summed up.
const TOTALS: [&str; 7] = [
    "daemon killed",
    "daemon frozen past the lease",
    "ClickHouse killed",
    "NATS killed",
    "table moved",
    "clock set back",
    "verify --repair run",
];

/// What the daemons may say about a fault, and the part of the line that shows it.
const SAID: [(&str, &str); 6] = [
    ("checkpoint taken over", "checkpoint taken over"),
    ("has been replaced", "has taken over"),
    ("lost rows inserted again", "inserting them again"),
    ("views recounted", "views recounted"),
    ("a day of a view built again", "building the day again"),
    ("panicked", PANIC),
];
const PANIC: &str = "panicked at";

pub struct Report {
    text: String,
    pub is_good: bool,
}

impl Report {
    /// The daemons' logs are the files in `dir` that are named after them.
    pub fn new(title: &str, tally: &Tally, verdict: &Verdict, dir: &Path) -> Self {
        let log = daemon_logs(dir);
        let mut text = format!("{title}\n");
        let mut row = |what: &str, count: u64| writeln!(text, "  {what:48} {count:>9}").unwrap();
        let faults = tally.counts();
        for (kind, count) in &faults {
            row(kind, *count);
        }
        for kind in TOTALS {
            let parts = faults.iter().filter(|(name, _)| name.starts_with(kind));
            row(
                &format!("in all: {kind}"),
                parts.map(|(_, count)| count).sum(),
            );
        }
        for (what, line) in SAID {
            row(
                &format!("daemons say: {what}"),
                log.matches(line).count() as u64,
            );
        }
        for (what, count) in verdict.counts() {
            row(what, count);
        }
        let is_good = verdict.is_good() && !log.contains(PANIC);
        if !is_good {
            write!(text, "{verdict}").unwrap();
        }
        Self { text, is_good }
    }

    /// On stderr, and in the file that CHAOS_REPORT names.
    pub fn publish(&self) {
        eprint!("{}", self.text);
        let Some(path) = std::env::var_os("CHAOS_REPORT") else {
            return;
        };
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        file.unwrap().write_all(self.text.as_bytes()).unwrap();
    }
}

fn daemon_logs(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    files
        .filter(|file| {
            let name = file.file_name();
            let name = name.to_string_lossy();
            name.starts_with("daemon") && name.ends_with(".log")
        })
        .map(|file| std::fs::read_to_string(file.path()).unwrap())
        .collect()
}
