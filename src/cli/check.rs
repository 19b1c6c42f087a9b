mod clickhouse;
mod nats;

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::config::Config;
use crate::lane::Lane;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server check\n  \
    analytics-server check --offline --config /etc/fechatter/analytics.yml\n  \
    analytics-server check --repair")]
pub struct Args {
    /// One JSON object instead of one line for each finding
    #[arg(long)]
    json: bool,

    /// Create what is missing: the stream, the consumer, the database, its tables and views
    #[arg(long)]
    repair: bool,

    /// Check only the configuration file, without asking any server
    #[arg(long, conflicts_with = "repair")]
    offline: bool,
}

/// What was found out about one thing.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    /// Which lane it is about, unless it is about all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<&'static str>,
    detail: String,
    /// What to do about it; empty if that is nothing, or not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Works, but should be different.
    Warning,
    Failed,
    Unreachable,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Unreachable => "UNREACHABLE",
        })
    }
}

pub async fn run(args: Args, path: Option<&Path>) -> Result<ExitCode> {
    let (config, path) = Config::load(path, super::environment)?;
    let mut findings = Findings::default();
    let file = path.map_or("no file found, defaults".to_owned(), |path| {
        path.display().to_string()
    });
    findings.ok("configuration", file);

    if !args.offline {
        let lanes = Lane::all(&config);
        nats::check(&config, &lanes, args.repair, &mut findings).await;
        clickhouse::check(&config, &lanes, args.repair, &mut findings).await;
    }

    findings.print(args.json)?;
    Ok(findings.exit_code())
}

#[derive(Default)]
struct Findings {
    /// Which lane findings are about from now on.
    lane: Option<&'static str>,
    all: Vec<Finding>,
}

impl Findings {
    fn ok(&mut self, name: &'static str, detail: impl Into<String>) {
        self.add(name, Status::Ok, detail, "");
    }

    fn add(
        &mut self,
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.all.push(Finding {
            name,
            status,
            lane: self.lane,
            detail: detail.into(),
            remedy: remedy.into(),
        });
    }

    fn has(&self, status: Status) -> bool {
        self.all.iter().any(|finding| finding.status == status)
    }

    fn is_fine(&self) -> bool {
        !self.has(Status::Failed) && !self.has(Status::Unreachable)
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        if json {
            let report = serde_json::json!({ "ok": self.is_fine(), "checks": self.all });
            writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
            return Ok(());
        }
        for Finding {
            name,
            status,
            detail,
            remedy,
            ..
        } in &self.all
        {
            writeln!(stdout, "{status:<12} {name:<14} {detail}")?;
            if !remedy.is_empty() {
                writeln!(stdout, "{:<12} {:<14} → {remedy}", "", "")?;
            }
        }
        Ok(())
    }

    fn exit_code(&self) -> ExitCode {
        if self.has(Status::Unreachable) {
            ExitCode::from(super::UNREACHABLE)
        } else if self.has(Status::Failed) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}
