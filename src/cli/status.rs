//! `analytics-server status`: `/health` and `/metrics` for a person.

mod figures;
mod overview;

use std::convert::Infallible;
use std::io::{IsTerminal, Write, stdout};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ask;
use crate::config::Config;
use crate::http::{HealthReport, Status};
use figures::Figures;
use overview::Overview;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server status\n  \
    analytics-server status --watch\n  \
    ANALYTICS_PORT=6691 analytics-server status --json")]
pub struct Args {
    /// Keep looking, until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// Seconds over which rates are measured, and between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    interval: f64,

    /// One JSON object per look
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0.1 to 3600".to_owned()),
    }
}

/// What the daemon said at one moment.
struct Look {
    at: Instant,
    health: HealthReport,
    figures: Figures,
}

impl Look {
    async fn at(address: SocketAddr) -> Result<Self> {
        // Both may have to wait for a ClickHouse that does not answer.
        let (health, metrics) =
            tokio::try_join!(ask::get(address, "/health"), ask::get(address, "/metrics"))?;
        Ok(Self {
            at: Instant::now(),
            health: serde_json::from_str(&health.body)
                .with_context(|| format!("what answers at {address} is not analytics-server"))?,
            figures: Figures::parse(&metrics.body),
        })
    }
}

/// A single look exits as `health` does.
pub async fn run(args: Args, config: Config) -> Result<ExitCode> {
    let address = ask::address(&config);
    let interval = Duration::from_secs_f64(args.interval);
    if args.watch {
        match watch(address, interval, args.json).await? {}
    }
    let before = Look::at(address).await?;
    tokio::time::sleep(interval).await;
    let now = Look::at(address).await?;
    Overview::between(address, &before, &now).print(args.json)?;
    Ok(match now.health.status {
        Status::Healthy | Status::Degraded => ExitCode::SUCCESS,
        Status::Unhealthy => ExitCode::FAILURE,
    })
}

/// Continues even while nobody answers: that is what an operator is waiting to see the end
/// of.
async fn watch(address: SocketAddr, interval: Duration, as_json: bool) -> Result<Infallible> {
    let mut before = None;
    loop {
        let now = Look::at(address).await;
        if stdout().is_terminal() && !as_json {
            // From the upper left corner, on an empty screen.
            write!(stdout(), "\x1b[H\x1b[2J")?;
        }
        match &now {
            Ok(now) => {
                let before = before.as_ref().unwrap_or(now);
                Overview::between(address, before, now).print(as_json)?;
            }
            Err(error) => overview::print_error(error, as_json)?,
        }
        before = now.ok();
        tokio::time::sleep(interval).await;
    }
}
