//! The schema's history: numbered SQL files, embedded in the binary, applied in
//! order and recorded in `schema_migrations`.
//!
//! A file that was applied must never change: its checksum is recorded, too.

use clickhouse::Row;
use clickhouse::error::Error;
use include_dir::{Dir, include_dir};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::client::{ClickHouse, describe, is_unreachable};
use super::quote::quote_identifier;

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/migrations");

/// One SQL file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    pub version: u32,
    /// The file's name.
    pub name: &'static str,
    sql: &'static str,
    /// SHA-256 of the file, in hexadecimal.
    checksum: String,
}

/// Where a migration stands in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Applied,
    Pending,
}

#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error(
        "migration `{name}` was changed after it was applied: restore the file as it was, and put the change into a new one"
    )]
    Changed { name: String },
    #[error("ClickHouse: {}", describe(.0))]
    ClickHouse(Error),
    #[error("migration `{name}` failed: {}", describe(.error))]
    Failed { name: String, error: Error },
}

// Not a source: the message says it all, and would say it twice.
impl From<Error> for MigrationError {
    fn from(error: Error) -> Self {
        Self::ClickHouse(error)
    }
}

impl MigrationError {
    /// Whether ClickHouse did not answer at all.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Changed { .. } => false,
            Self::ClickHouse(error) | Self::Failed { error, .. } => is_unreachable(error),
        }
    }
}

/// All migrations of this build, in order.
pub fn all() -> Vec<Migration> {
    let mut migrations: Vec<Migration> = FILES
        .files()
        .filter_map(|file| {
            let name = file.path().file_name()?.to_str()?;
            let (version, _) = name.split_once('_')?;
            let sql = file.contents_utf8()?;
            Some(Migration {
                version: version.parse().ok()?,
                name,
                sql,
                checksum: checksum(sql),
            })
        })
        .collect();
    migrations.sort_by_key(|migration| migration.version);
    migrations
}

/// The tables and views that the migrations make, each with the file that does.
pub fn objects() -> impl Iterator<Item = (&'static str, &'static str)> {
    all().into_iter().flat_map(|migration| {
        let made = migration.sql.lines().filter_map(|line| {
            let (_, name) = line
                .strip_prefix("CREATE ")?
                .split_once(" IF NOT EXISTS ")?;
            name.split_whitespace().next()
        });
        made.map(move |name| (name, migration.name))
    })
}

/// Every migration and where it stands.
///
/// # Errors
/// [`MigrationError::Changed`] when an applied file is not what it was.
pub async fn status(clickhouse: &ClickHouse) -> Result<Vec<(Migration, State)>, MigrationError> {
    let applied = applied(clickhouse).await?;
    all()
        .into_iter()
        .map(
            |migration| match applied.iter().find(|row| row.version == migration.version) {
                Some(row) if row.checksum != migration.checksum => Err(MigrationError::Changed {
                    name: migration.name.to_owned(),
                }),
                Some(_) => Ok((migration, State::Applied)),
                None => Ok((migration, State::Pending)),
            },
        )
        .collect()
}

/// Creates the database and applies what is pending; returns the names of the
/// files that were applied. Two daemons may do it at once: every statement does
/// nothing where its object exists.
pub async fn apply(clickhouse: &ClickHouse) -> Result<Vec<&'static str>, MigrationError> {
    // Asked first: with nothing to do, the user needs no right to create.
    let all = status(clickhouse).await?;
    if all.iter().all(|(_, state)| *state == State::Applied) {
        return Ok(Vec::new());
    }
    let database = clickhouse.database();
    clickhouse
        .without_database()
        .execute(&format!(
            "CREATE DATABASE IF NOT EXISTS {}",
            quote_identifier(database)
        ))
        .await?;
    clickhouse
        .execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations
             (
                 version UInt32 COMMENT 'Number of the file',
                 name String COMMENT 'Name of the file',
                 checksum String COMMENT 'SHA-256 of the file',
                 applied_at DateTime64(3, 'UTC') COMMENT 'When it was applied'
             )
             ENGINE = ReplacingMergeTree ORDER BY version
             COMMENT 'Schema migrations that analytics-server has applied'",
        )
        .await?;

    let mut names = Vec::new();
    for (migration, state) in all {
        if state == State::Applied {
            continue;
        }
        let failed = |error| MigrationError::Failed {
            name: migration.name.to_owned(),
            error,
        };
        for statement in statements(migration.sql) {
            clickhouse.execute(statement).await.map_err(failed)?;
        }
        clickhouse
            .execute(&format!(
                "INSERT INTO schema_migrations SELECT {}, '{}', '{}', now64(3)",
                migration.version, migration.name, migration.checksum
            ))
            .await
            .map_err(failed)?;
        names.push(migration.name);
    }
    Ok(names)
}

#[derive(Row, Deserialize)]
struct Applied {
    version: u32,
    checksum: String,
}

async fn applied(clickhouse: &ClickHouse) -> Result<Vec<Applied>, Error> {
    #[derive(Row, Deserialize)]
    struct Count {
        count: u64,
    }
    // Asked of `system.tables`, so that a database that does not exist yet is
    // simply one without migrations.
    let tables: Vec<Count> = clickhouse
        .without_database()
        .rows(
            "SELECT count() AS count FROM system.tables
             WHERE database = {database:String} AND name = 'schema_migrations'",
            &[("database", clickhouse.database())],
        )
        .await?;
    if tables.iter().all(|row| row.count == 0) {
        return Ok(Vec::new());
    }
    clickhouse
        .rows(
            "SELECT version, checksum FROM schema_migrations FINAL ORDER BY version",
            &[],
        )
        .await
}

/// The statements of a file: each ends with a semicolon at the end of a line.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    sql.split(";\n")
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
}

fn checksum(sql: &str) -> String {
    Sha256::digest(sql.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_numbered_from_one_without_a_gap() {
        let versions: Vec<u32> = all().iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=versions.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn every_file_was_embedded() {
        let on_disk =
            std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
        assert_eq!(all().len(), on_disk.count());
    }

    #[test]
    fn statements_end_with_a_semicolon_at_the_end_of_a_line() {
        let sql = "-- a; comment\nCREATE a AS ';';\n\nCREATE b;\n";
        assert_eq!(
            statements(sql).collect::<Vec<_>>(),
            ["-- a; comment\nCREATE a AS ';'", "CREATE b"]
        );
    }
}
