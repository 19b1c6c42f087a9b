use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use crate::clickhouse::migrations::{self, State};
use crate::clickhouse::tables::Tables;
use crate::clickhouse::{ClickHouse, schema};
use crate::config::Config;
use crate::lane::Lane;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server migrate\n  \
    analytics-server migrate --status")]
pub struct Args {
    /// Only show what is applied; exit with 1 if something is not
    #[arg(long)]
    status: bool,
}

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let clickhouse = ClickHouse::new(&config);
    if args.status {
        return status(&clickhouse, &config).await;
    }
    let mut stdout = std::io::stdout().lock();
    for name in apply(&clickhouse, &config, &Lane::all(&config)).await? {
        writeln!(stdout, "applied {name}")?;
    }
    writeln!(
        stdout,
        "schema of database `{}` is up to date",
        clickhouse.database()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Applies what is pending and the retention that is configured; returns what
/// was done.
pub async fn apply(
    clickhouse: &ClickHouse,
    config: &Config,
    lanes: &[Lane],
) -> Result<Vec<String>, migrations::MigrationError> {
    let days = config.features.analytics.retention_days.get();
    let migrations = migrations::apply(clickhouse).await?;
    let retained = schema::retain(clickhouse, &tables_of(lanes), days).await?;
    let migrations = migrations.into_iter().map(str::to_owned);
    let retained = retained
        .into_iter()
        .map(|table| format!("retention of {days} days to {table}"));
    Ok(migrations.chain(retained).collect())
}

pub fn tables_of(lanes: &[Lane]) -> Vec<&'static Tables> {
    lanes.iter().map(|lane| lane.kind.tables()).collect()
}

async fn status(clickhouse: &ClickHouse, config: &Config) -> Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    let mut pending = false;
    for (migration, state) in migrations::status(clickhouse).await? {
        let state = match state {
            State::Applied => "applied",
            State::Pending => {
                pending = true;
                "pending"
            }
        };
        writeln!(stdout, "{state} {}", migration.name)?;
    }
    let days = config.features.analytics.retention_days.get();
    let lanes = Lane::all(config);
    for (table, _) in schema::kept_otherwise(clickhouse, &tables_of(&lanes), days).await? {
        pending = true;
        writeln!(stdout, "pending retention of {days} days to {table}")?;
    }
    Ok(if pending {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
