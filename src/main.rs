use std::process::ExitCode;

use clap::Parser;

use analytics_server::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("analytics-server: {error:#}");
            cli::exit_code(&error)
        }
    }
}
