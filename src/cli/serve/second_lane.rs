//! A second lane for tests, until there is a second kind: the same kind of events, from another
//! stream and with tables in another database.

use std::path::Path;

use anyhow::Result;

use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::lane::Lane;

/// A configuration file with the stream, the consumer, the subjects and `db_name` of the
/// second lane. Only debug builds look at it.
const VARIABLE: &str = "ANALYTICS_SECOND_LANE";

/// The second lane, if a test wants one, and the ClickHouse of `config` with its database.
pub fn of_test(config: &Config) -> Result<Option<(Lane, ClickHouse)>> {
    let path = std::env::var_os(VARIABLE).filter(|_| cfg!(debug_assertions));
    let Some(path) = path else {
        return Ok(None);
    };
    let (second, _) = Config::load(Some(Path::new(&path)), |_| None)?;
    let mut config = config.clone();
    config.server.db_name.clone_from(&second.server.db_name);
    let lane = Lane {
        name: "second",
        ..Lane::first(&second)
    };
    Ok(Some((lane, ClickHouse::new(&config))))
}
