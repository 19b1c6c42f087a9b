//! The lanes of the daemons: two streams, each with tables in a database of its own.

use std::path::PathBuf;

use crate::support::World;

#[derive(Clone, Copy)]
pub struct Lane {
    pub stream: &'static str,
    /// What its subjects begin with.
    pub prefix: &'static str,
    /// Whether an operator has views of its events.
    pub has_operators_views: bool,
}

/// The configured one.
pub const FIRST: Lane = Lane {
    stream: "ANALYTICS",
    prefix: "fechatter.analytics.",
    has_operators_views: true,
};

/// The one that daemons have only for tests.
pub const SECOND: Lane = Lane {
    stream: "SECOND",
    prefix: "second.",
    has_operators_views: false,
};

/// What tells a daemon about the second lane.
pub const VARIABLE: &str = "ANALYTICS_SECOND_LANE";

/// The name of the second lane's database.
pub fn second_database(world: &World) -> String {
    format!("{}_second", world.database)
}

/// The configuration of the second lane.
pub fn second_config(world: &World) -> PathBuf {
    let Lane { stream, prefix, .. } = SECOND;
    let messaging = format!(
        "subjects: {{analytics_events: '{prefix}>', analytics_batch: {prefix}batch}}, \
         jetstream: {{stream_name: {stream}}}"
    );
    let config = world.config("", &messaging);
    let second = world.dir.path().join("second.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&world.database, &second_database(world));
    std::fs::write(&second, text).unwrap();
    second
}
