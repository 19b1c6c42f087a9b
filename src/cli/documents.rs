//! What is generated from the command line itself: shell completions and man pages.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    analytics-server completions bash > /etc/bash_completion.d/analytics-server")]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server man | man -l -\n  \
    analytics-server man --out-dir /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write a page for the program and one for each command to this folder
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
}

pub fn completions(args: CompletionsArgs, mut command: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "analytics-server", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: ManArgs, command: Command) -> Result<ExitCode> {
    match args.out_dir {
        Some(dir) => clap_mangen::generate_to(command, &dir)
            .with_context(|| format!("cannot write to `{}`", dir.display()))?,
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            io::stdout().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
