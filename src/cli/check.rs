use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use async_nats::jetstream;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Stream;
use serde::Serialize;

use crate::clickhouse::client::{ClickHouse, describe, is_unreachable};
use crate::clickhouse::guarantees::{self, Topic};
use crate::clickhouse::migrations::{self, State};
use crate::clickhouse::schema;
use crate::config::{Config, Database, Messaging};
use crate::nats::{self, ConnectError, StreamError, StreamId};
use crate::pipeline::checkpoint;
use crate::pipeline::consume::{self, Settings};
use crate::tls::{self, Fault};
use crate::versions::{self, Verdict};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    analytics-server check\n  \
    analytics-server check --offline --config /etc/fechatter/analytics.yml\n  \
    analytics-server check --repair")]
pub struct Args {
    /// One JSON object instead of a line each
    #[arg(long)]
    json: bool,

    /// Make what is missing: the stream, the consumer, the database, its tables and views
    #[arg(long)]
    repair: bool,

    /// Judge the configuration file alone, without asking any server
    #[arg(long, conflicts_with = "repair")]
    offline: bool,
}

/// What was found out about one thing.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    detail: String,
    /// What to do about it; empty where that is nothing, or not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Works, and should be otherwise.
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
    let mut report = Report::default();
    let file = path.map_or("no file found, defaults".to_owned(), |path| {
        path.display().to_string()
    });
    report.ok("configuration", file);

    if !args.offline {
        check_nats(&config.integrations.messaging, args.repair, &mut report).await;
        check_clickhouse(&config, args.repair, &mut report).await;
    }

    report.print(args.json)?;
    Ok(report.exit_code())
}

#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
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
        self.findings.push(Finding {
            name,
            status,
            detail: detail.into(),
            remedy: remedy.into(),
        });
    }

    fn has(&self, status: Status) -> bool {
        self.findings.iter().any(|finding| finding.status == status)
    }

    fn is_fine(&self) -> bool {
        !self.has(Status::Failed) && !self.has(Status::Unreachable)
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        if json {
            let report = serde_json::json!({ "ok": self.is_fine(), "checks": self.findings });
            writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
            return Ok(());
        }
        for Finding {
            name,
            status,
            detail,
            remedy,
        } in &self.findings
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

async fn check_nats(messaging: &Messaging, repair: bool, report: &mut Report) {
    let address = &messaging.nats_url;
    let client = match nats::connect(messaging).await {
        Ok(client) => client,
        Err(error @ ConnectError::Unreachable { .. }) => {
            let remedy =
                "start NATS with `nats-server --jetstream`, or set integrations.messaging.nats_url";
            report.add("nats", Status::Unreachable, error.to_string(), remedy);
            return;
        }
        Err(error) => {
            let remedy = match error {
                ConnectError::Untrusted {
                    fault: Fault::Certificate(_),
                    ..
                } => {
                    "set integrations.messaging.tls_ca_file, and the name that the certificate is for in nats_url"
                }
                ConnectError::Untrusted { .. } => {
                    "set integrations.messaging.nats_url to nats://, or to a port with TLS"
                }
                _ => {
                    "set username and password, token or credentials_file in integrations.messaging"
                }
            };
            report.add("nats", Status::Failed, error.to_string(), remedy);
            return;
        }
    };
    let version = client.server_info().version;
    report.ok("nats", format!("{address}, version {version}"));
    match versions::NATS.judge(&version) {
        Verdict::Fine => {}
        Verdict::Untried(detail) => report.add("nats", Status::Warning, detail, ""),
        Verdict::TooOld { detail, remedy } => report.add("nats", Status::Failed, detail, remedy),
    }

    let jetstream = jetstream::new(client);
    if let Err(error) = jetstream.query_account().await {
        let remedy = "enable JetStream: `nats-server --jetstream`, or `jetstream {}` in its configuration and for the account";
        report.add("jetstream", Status::Failed, error.to_string(), remedy);
        return;
    }
    report.ok("jetstream", "enabled");

    if let Some(stream) = check_stream(&jetstream, messaging, repair, report).await {
        if repair {
            let max_payload = jetstream.client().server_info().max_payload;
            let settings = Settings::new(messaging, max_payload);
            repair_consumer(&jetstream, &stream, &settings, report).await;
        }
        check_consumer(&jetstream, &stream, messaging, report).await;
    }
}

async fn check_stream(
    jetstream: &jetstream::Context,
    messaging: &Messaging,
    repair: bool,
    report: &mut Report,
) -> Option<Stream> {
    let name = &messaging.jetstream.stream_name;
    // What is wrong with a stream that exists is told below.
    if repair
        && let Err(error @ StreamError::Refused { .. }) =
            nats::open_stream(jetstream, messaging).await
    {
        report.add("stream", Status::Failed, error.to_string(), "");
        return None;
    }
    let stream = match nats::find_stream(jetstream, name).await {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            let remedy =
                "`analytics-server check --repair` makes it, and so does `analytics-server serve`";
            report.add(
                "stream",
                Status::Failed,
                format!("`{name}` does not exist"),
                remedy,
            );
            return None;
        }
        Err(error) => {
            report.add("stream", Status::Failed, error.to_string(), "");
            return None;
        }
    };
    let info = stream.cached_info();
    let differences = nats::differences(&info.config, messaging);
    if differences.is_empty() {
        let detail = format!(
            "`{name}`, {} messages, sequences {} to {}",
            info.state.messages, info.state.first_sequence, info.state.last_sequence
        );
        report.ok("stream", detail);
    }
    for difference in differences {
        let status = if difference.fatal {
            Status::Failed
        } else {
            Status::Warning
        };
        let detail = format!(
            "`{name}`: {} is {}, should be {}",
            difference.setting, difference.is, difference.should_be
        );
        report.add("stream", status, detail, difference.remedy);
    }
    Some(stream)
}

/// Makes the consumer where it is missing, at the checkpoint: so that lag can be
/// watched before the daemon runs, which puts it in place itself.
async fn repair_consumer(
    jetstream: &jetstream::Context,
    stream: &Stream,
    settings: &Settings,
    report: &mut Report,
) {
    if stream.consumer_info(&settings.name).await.is_ok() {
        return;
    }
    let id = StreamId::of(stream);
    let committed = match checkpoint::peek(jetstream, &id.name, &settings.name).await {
        Ok(Some(record)) if record.identity_of(&id).is_some() => record.committed,
        _ => 0,
    };
    if let Err(error) = consume::create(stream, settings, committed).await {
        report.add("consumer", Status::Failed, error.to_string(), "");
    }
}

/// The consumer and the checkpoint, which together say how far the daemon is.
async fn check_consumer(
    jetstream: &jetstream::Context,
    stream: &Stream,
    messaging: &Messaging,
    report: &mut Report,
) {
    let name = &messaging.jetstream.consumer_name;
    match stream.consumer_info(name).await {
        Ok(info) => {
            let detail = format!(
                "`{name}`, {} messages to come, {} not acknowledged",
                info.num_pending, info.num_ack_pending
            );
            report.ok("consumer", detail);
        }
        Err(error) => {
            let missing = error.kind() == ConsumerInfoErrorKind::NotFound;
            if missing {
                let remedy = "`analytics-server serve` puts it in place, and so does `analytics-server check --repair`";
                let detail = format!("`{name}` does not exist yet");
                report.add("consumer", Status::Warning, detail, remedy);
            } else {
                report.add("consumer", Status::Failed, error.to_string(), "");
            }
        }
    }
    match checkpoint::peek(jetstream, &messaging.jetstream.stream_name, name).await {
        Ok(None) => report.ok(
            "checkpoint",
            "none: the daemon starts at the stream's beginning, and leaves out what ClickHouse holds of it",
        ),
        Ok(Some(record)) if record.identity_of(&StreamId::of(stream)).is_none() => {
            let detail = "it is of a stream with another creation time: the daemon starts at this one's \
                 beginning, or goes on where it holds the messages of that one";
            report.add("checkpoint", Status::Warning, detail, "");
        }
        Ok(Some(record)) => {
            let detail = format!(
                "stored up to sequence {}, {} ranges in flight, {}",
                record.committed,
                record.in_flight.len(),
                match record.owner.as_str() {
                    "" => "handed over: no instance works".to_owned(),
                    owner => format!("owner {owner}"),
                }
            );
            report.ok("checkpoint", detail);
        }
        Err(error) => report.add("checkpoint", Status::Failed, error.to_string(), ""),
    }
}

async fn check_clickhouse(config: &Config, repair: bool, report: &mut Report) {
    let clickhouse = ClickHouse::new(config);
    match clickhouse.version().await {
        Ok(version) => report.ok(
            "clickhouse",
            format!("{}, version {version}", clickhouse.address()),
        ),
        Err(error) => {
            let (status, remedy) = if is_unreachable(&error) {
                (
                    Status::Unreachable,
                    match config.server.db_url {
                        Database::Embedded { .. } => {
                            "start `analytics-server serve`, which runs it"
                        }
                        Database::Server(_) => "start ClickHouse, or set server.db_url",
                    },
                )
            } else if let Some(fault) = tls::fault(&error) {
                let remedy = match fault {
                    Fault::Certificate(_) => {
                        "set server.db_tls_ca_file, and the name that the certificate is for in db_url"
                    }
                    Fault::NoTls => "set server.db_url to http://, or to a port with TLS",
                };
                (Status::Failed, remedy)
            } else {
                (
                    Status::Failed,
                    "set server.db_user and ANALYTICS_DB_PASSWORD",
                )
            };
            let detail = format!("{}: {}", clickhouse.address(), describe(&error));
            report.add("clickhouse", status, detail, remedy);
            return;
        }
    }
    check_guarantees(
        Topic::Settings,
        "inserts run under the settings that they ask for",
        guarantees::of_server(&clickhouse).await,
        report,
    );
    if repair && let Err(error) = super::migrate::apply(&clickhouse, config).await {
        report.add("schema", Status::Failed, error.to_string(), "");
        return;
    }
    check_schema(&clickhouse, config, report).await;
}

async fn check_schema(clickhouse: &ClickHouse, config: &Config, report: &mut Report) {
    let database = clickhouse.database();
    let pending = match migrations::status(clickhouse).await {
        Ok(all) => all
            .iter()
            .filter(|(_, state)| *state == State::Pending)
            .count(),
        Err(error) => {
            report.add("schema", Status::Failed, error.to_string(), "");
            return;
        }
    };
    if pending > 0 {
        let remedy =
            "`analytics-server migrate` applies them, and so does `analytics-server serve`";
        let detail = format!("database `{database}`: {pending} migrations are not applied");
        report.add("schema", Status::Failed, detail, remedy);
        return;
    }
    report.ok("schema", format!("database `{database}` is up to date"));
    let days = config.features.analytics.retention_days.get();
    match schema::kept_otherwise(clickhouse, days).await {
        Ok(tables) if tables.is_empty() => {}
        Ok(tables) => {
            let names: Vec<_> = tables.into_iter().map(|(name, _)| name).collect();
            let detail = format!("not kept for {days} days: {}", names.join(", "));
            let remedy = "`analytics-server migrate` changes that, and so does `analytics-server serve`; it takes the right ALTER TTL";
            report.add("schema", Status::Warning, detail, remedy);
        }
        Err(error) => report.add("schema", Status::Failed, describe(&error), ""),
    }

    check_guarantees(
        Topic::Deduplication,
        "every table recognises a repeated insert",
        guarantees::of_tables(clickhouse).await,
        report,
    );
}

/// What exactly once rests on: a line each thing that is wrong, else that all is well.
fn check_guarantees(
    topic: Topic,
    fine: &str,
    findings: Result<Vec<guarantees::Finding>, clickhouse::error::Error>,
    report: &mut Report,
) {
    let name = |topic| match topic {
        Topic::Version => "clickhouse",
        Topic::Settings => "settings",
        Topic::Rights => "rights",
        Topic::Schema => "schema",
        Topic::Deduplication => "deduplication",
    };
    let findings = match findings {
        Ok(findings) => findings,
        Err(error) => return report.add(name(topic), Status::Failed, describe(&error), ""),
    };
    if findings.iter().all(|finding| finding.topic != topic) {
        report.ok(name(topic), fine);
    }
    for finding in findings {
        let status = match finding.fatal {
            true => Status::Failed,
            false => Status::Warning,
        };
        report.add(name(finding.topic), status, finding.detail, finding.remedy);
    }
}
