//! The command line: one file per command.
//!
//! Data goes to stdout and everything else to stderr. Exit codes: 0 done, 1
//! failed, 2 usage, 69 a server is unreachable, 78 configuration.

mod ask;
mod bench;
mod check;
mod clickhouse;
mod dead_letters;
mod documents;
mod engine;
mod health;
mod migrate;
mod publish;
mod query;
mod reload;
mod send;
mod serve;
mod status;
mod stop;
mod telemetry;
mod verify;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use ask::NoAnswer;
use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::clickhouse::client;
use crate::clickhouse::migrations::MigrationError;
use crate::config::{Config, ConfigError, ENVIRONMENT, Variable};
use crate::nats::{ConnectError, StreamError};

/// Carries fechatter's analytics events from NATS JetStream into ClickHouse, every event exactly once
#[derive(Parser)]
#[command(name = "analytics-server", version, after_help = environment_help())]
struct Cli {
    /// Configuration file [default: ./analytics.yml, then /etc/fechatter/analytics.yml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ANALYTICS_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,

    /// How log lines are written to stderr; RUST_LOG says which
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Carry events until SIGTERM or SIGINT (also what happens without a command)
    Serve,
    /// Bring the ClickHouse schema up to date
    Migrate(migrate::Args),
    /// Check configuration, NATS, stream, consumer, ClickHouse and schema, and say what to do
    Check(check::Args),
    /// Compare what is stored with the stream, and the views with what is stored, and repair it
    Verify(verify::Args),
    /// Publish sample events
    Send(send::Args),
    /// Measure NATS, ClickHouse and the whole pipeline, in a scratch stream and database
    Bench(bench::Args),
    /// Look at what could not be stored, publish it again, delete it
    DeadLetters(dead_letters::Args),
    /// Run a query and print its result, on machines without clickhouse-client
    Query(query::Args),
    /// Serve ClickHouse's HTTP interface over the embedded engine
    Clickhouse(clickhouse::Args),
    /// Ask a daemon on this machine how it is; 0 unless it is unhealthy
    Health,
    /// Show a daemon on this machine at work: state, rates, lag, batches, inserts
    Status(status::Args),
    /// Print the completions of commands and options for a shell
    Completions(documents::CompletionsArgs),
    /// Print the man page, or write one for each command
    Man(documents::ManArgs),
}

/// The program. Not async, so that all of it is compiled with the library and
/// not once more with the binary.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Runtime::new()
        .context("cannot start the runtime")
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(cli));
            // Does not wait for a host name lookup that may be under way.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => code,
        // Whoever read the output has seen enough: `analytics-server check | head -1`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Without words of our own before it that say what was asked of whom.
            match error.chain().next().and_then(|error| error.downcast_ref()) {
                Some(error) => tell(format_args!(
                    "analytics-server: ClickHouse: {}",
                    client::describe(error)
                )),
                None => tell(format_args!("analytics-server: {error:#}")),
            }
            exit_code(&error)
        }
    }
}

/// Says something on standard error. `eprintln!` would panic if nobody is left to read it.
fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let command = cli.command.unwrap_or(Command::Serve);
    // A line per batch would be part of what is measured.
    let quiet = matches!(command, Command::Bench(_));
    let filter = telemetry::init(cli.log_format, quiet);
    let path = cli.config.as_deref();
    match command {
        Command::Serve => serve::run(load(path)?, cli.config, filter).await,
        Command::Migrate(args) => migrate::run(args, load(path)?).await,
        Command::Check(args) => check::run(args, path).await,
        Command::Verify(args) => verify::run(args, load(path)?).await,
        Command::Send(args) => send::run(args, load(path)?).await,
        Command::Bench(args) => bench::run(args, load(path)?).await,
        Command::DeadLetters(args) => dead_letters::run(args, load(path)?).await,
        Command::Query(args) => query::run(args, load(path)?).await,
        Command::Health => health::run(load(path)?).await,
        Command::Status(args) => status::run(args, load(path)?).await,
        Command::Completions(args) => documents::completions(args, Cli::command()),
        Command::Man(args) => documents::man(args, Cli::command()),
        Command::Clickhouse(args) => clickhouse::run(args).await.map(|()| ExitCode::SUCCESS),
    }
}

fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let (config, path) = Config::load(path, environment)?;
    match path {
        Some(path) => tracing::debug!(path = %path.display(), "configuration read"),
        None => tracing::info!("no configuration file found, using the defaults"),
    }
    Ok(config)
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn environment_help() -> String {
    let lines: Vec<String> = ENVIRONMENT
        .iter()
        .map(|Variable { name, sets, .. }| format!("  {name:<32} {sets}"))
        .collect();
    format!(
        "Environment variables that override the configuration file:\n{}\n\n\
         Exit codes: 0 done, 1 failed, 2 usage, 69 a server is unreachable, 78 configuration",
        lines.join("\n")
    )
}

/// From `sysexits.h`.
const UNREACHABLE: u8 = 69;
const CONFIGURATION: u8 = 78;

/// The exit code for a command that ended with `error`.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let unreachable = error.chain().any(|cause| {
        cause.is::<NoAnswer>()
            || matches!(cause.downcast_ref(), Some(ConnectError::Unreachable { .. }))
            || matches!(cause.downcast_ref(), Some(StreamError::Unavailable(_)))
            || cause
                .downcast_ref::<::clickhouse::error::Error>()
                .is_some_and(client::is_unreachable)
            || cause
                .downcast_ref::<MigrationError>()
                .is_some_and(MigrationError::is_unreachable)
    });
    let configuration = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(cause.downcast_ref(), Some(ConnectError::Credentials { .. }))
    });
    if configuration {
        ExitCode::from(CONFIGURATION)
    } else if unreachable {
        ExitCode::from(UNREACHABLE)
    } else {
        ExitCode::FAILURE
    }
}
