//! Which versions of the servers exactly once was tested with.

use std::fmt;

/// A server's version as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

/// The versions of one server.
#[derive(Debug)]
pub struct Supported {
    pub server: &'static str,
    pub oldest: Version,
    pub newest: Version,
    /// What an older one lacks.
    pub lacks: &'static str,
}

pub const CLICKHOUSE: Supported = Supported {
    server: "ClickHouse",
    // Deduplication in dependent views was reworked in July 2024 (ClickHouse pull request
    // 66144): before, the blocks of a repeated insert could pass for new ones in a view.
    oldest: Version::new(24, 8),
    newest: Version::new(26, 7),
    lacks: "views can count a repeated insert again",
};

pub const NATS: Supported = Supported {
    server: "nats-server",
    // The client library asks for what 2.10 has; 2.10.25 was the oldest one tested with it.
    oldest: Version::new(2, 10),
    newest: Version::new(2, 15),
    lacks: "it lacks what the consumer and the checkpoint ask of JetStream",
};

/// What a version means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// It has not been tested. The text says so.
    Untried(String),
    /// Exactly once would break. The text says so, and what to do.
    TooOld {
        detail: String,
        remedy: String,
    },
}

impl Version {
    const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From `26.7.2.1`, `v2.10.25` or `2.12.0-RC.1`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim_start_matches('v').split(['.', '-', '+', ' ']);
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Supported {
    /// What `version`, as the server reports it, means.
    pub fn judge(&self, version: &str) -> Verdict {
        let Self {
            server,
            oldest,
            newest,
            lacks,
        } = self;
        match Version::parse(version) {
            Some(version) if version < *oldest => Verdict::TooOld {
                detail: format!("{server} {version} is older than {oldest}: {lacks}"),
                remedy: format!("upgrade {server} to {oldest} or newer, ideally {newest}"),
            },
            Some(version) if version <= *newest => Verdict::Fine,
            _ => Verdict::Untried(format!(
                "{server} {version} has not been tested; {newest} is the newest that has"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for fine in ["24.8.1.1", "24.10.1", "26.7.2.1", "25.3.1.altinity"] {
            assert_eq!(CLICKHOUSE.judge(fine), Verdict::Fine, "{fine}");
        }
        for fine in ["2.10.0", "v2.15.1", "2.12.0-RC.1"] {
            assert_eq!(NATS.judge(fine), Verdict::Fine, "{fine}");
        }
        for old in ["24.7.9", "9.1", "23.12.1.1"] {
            let verdict = CLICKHOUSE.judge(old);
            assert!(matches!(verdict, Verdict::TooOld { .. }), "{old}");
        }
        for untried in ["26.8.1.1", "27.1", "nightly", ""] {
            let verdict = CLICKHOUSE.judge(untried);
            assert!(matches!(verdict, Verdict::Untried(_)), "{untried}");
        }
    }

    #[test]
    fn one_that_is_too_old_is_told_from_which_on_it_works() {
        assert_eq!(
            NATS.judge("2.9.25"),
            Verdict::TooOld {
                detail: "nats-server 2.9 is older than 2.10: it lacks what the consumer and the checkpoint ask of JetStream".to_owned(),
                remedy: "upgrade nats-server to 2.10 or newer, ideally 2.15".to_owned(),
            }
        );
    }
}
