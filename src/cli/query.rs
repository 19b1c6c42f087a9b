use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::clickhouse::ClickHouse;
use crate::config::Config;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server query 'SELECT event_type, count() FROM analytics_events GROUP BY ALL'\n  \
    analytics-server query --format JSONEachRow 'SELECT * FROM dead_letters LIMIT 10'")]
pub struct Args {
    /// The query
    sql: String,

    /// Any ClickHouse output format [default: PrettyCompact on a terminal, TabSeparated otherwise]
    #[arg(long)]
    format: Option<String>,
}

pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let clickhouse = ClickHouse::new(&config);
    let format = args.format.unwrap_or_else(|| {
        let format = if std::io::stdout().is_terminal() {
            "PrettyCompact"
        } else {
            "TabSeparated"
        };
        format.to_owned()
    });
    let mut answer = clickhouse.stream(&args.sql, &format)?;
    let mut stdout = std::io::stdout().lock();
    while let Some(bytes) = answer
        .next()
        .await
        .with_context(|| format!("query on ClickHouse at {} failed", clickhouse.address()))?
    {
        stdout.write_all(&bytes)?;
    }
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}
