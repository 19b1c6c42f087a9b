//! `dead-letters`: looking at what could not be stored, publishing it again, deleting it.

mod already;
mod letter;
mod purge;
mod replay;
mod select;
mod show;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::clickhouse::ClickHouse;
use crate::clickhouse::migrations::{self, State};
use crate::config::Config;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server dead-letters list --since 2h\n  \
    analytics-server dead-letters show 1042/3\n  \
    analytics-server dead-letters replay --reason undecodable --dry-run")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One line per letter, newest first, without payloads
    List(show::ListArgs),
    /// Everything about one letter, its payload included
    Show(show::ShowArgs),
    /// Publish letters again, oldest first, and mark them; each is stored once
    Replay(replay::Args),
    /// Delete letters
    Purge(purge::Args),
}

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let clickhouse = ClickHouse::new(&config);
    let pending = migrations::status(&clickhouse).await?;
    if pending.iter().any(|(_, state)| *state == State::Pending) {
        bail!(
            "the schema of database `{}` is not up to date: run `analytics-server migrate`",
            clickhouse.database()
        );
    }
    match args.command {
        Command::List(args) => show::list(args, &config, &clickhouse).await,
        Command::Show(args) => show::show(args, &config, &clickhouse).await,
        Command::Replay(args) => replay::run(args, &config, &clickhouse).await,
        Command::Purge(args) => purge::run(args, &config, &clickhouse).await,
    }
}

/// `1 dead letter`, `2 dead letters`.
fn dead_letters(count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} dead letter{plural}")
}
