use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use super::ask;
use crate::config::Config;

/// Prints what `/health` says.
pub async fn run(config: Config) -> Result<ExitCode> {
    let answer = ask::get(ask::address(&config), "/health").await?;
    writeln!(std::io::stdout(), "{}", answer.body.trim_end())?;
    Ok(match answer.is_ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
