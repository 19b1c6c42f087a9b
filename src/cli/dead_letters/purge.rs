//! Deleting letters.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clickhouse::Row;
use serde::Deserialize;
use serde_json::json;

use super::letter;
use super::select::Selection;
use crate::clickhouse::ClickHouse;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,

    /// Only say how many would be deleted
    #[arg(long)]
    dry_run: bool,

    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// How many letters one statement names: it must fit into `max_query_size`, 256 KiB.
const NAMED_AT_A_TIME: usize = 1000;

pub async fn run(args: Args, config: &Config, clickhouse: &ClickHouse) -> Result<ExitCode> {
    let conditions = match args.selection.as_condition(config) {
        Some(condition) => vec![condition],
        None => {
            let letters = args.selection.letters(config, clickhouse).await?;
            letters.chunks(NAMED_AT_A_TIME).map(letter::these).collect()
        }
    };
    let mut purged = 0;
    for condition in conditions {
        purged += count(clickhouse, &condition).await?;
        if !args.dry_run {
            delete(clickhouse, &condition).await?;
        }
    }
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let report = json!({ "purged": purged, "dry_run": args.dry_run });
        writeln!(stdout, "{report}")?;
    } else {
        let purged = super::dead_letters(purged);
        let would = if args.dry_run {
            "would purge"
        } else {
            "purged"
        };
        writeln!(stdout, "{would} {purged}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn count(clickhouse: &ClickHouse, condition: &str) -> Result<usize> {
    #[derive(Row, Deserialize)]
    struct Count {
        count: u64,
    }
    let sql = format!("SELECT count() AS count FROM dead_letters WHERE {condition}");
    let rows: Vec<Count> = clickhouse.rows(&sql, &[]).await?;
    Ok(rows.iter().map(|row| row.count as usize).sum())
}

/// By a mutation rather than `DELETE FROM`, which only hides rows until a merge: what is
/// purged may be what a user wrote, and has to be off the disk. After either, a repeated
/// insert of the same letters is still dropped (measured on 26.7).
async fn delete(clickhouse: &ClickHouse, condition: &str) -> Result<()> {
    let sql =
        format!("ALTER TABLE dead_letters DELETE WHERE {condition} SETTINGS mutations_sync = 1");
    clickhouse
        .execute(&sql)
        .await
        .context("cannot delete from dead_letters")
}
