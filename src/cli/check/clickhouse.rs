//! ClickHouse, its settings, the schema and its tables.

use super::{Findings, Status};
use crate::cli::migrate;
use crate::clickhouse::client::{ClickHouse, describe, is_unreachable};
use crate::clickhouse::guarantees::{self, Shortcoming, Topic};
use crate::clickhouse::migrations::{self, State};
use crate::clickhouse::schema;
use crate::clickhouse::writers::{self, Registered};
use crate::config::{Config, Database};
use crate::lane::{Lane, writer_lease};
use crate::tls::{self, Fault};

pub async fn check(config: &Config, lanes: &[Lane], repair: bool, findings: &mut Findings) {
    let clickhouse = ClickHouse::new(config);
    match clickhouse.version().await {
        Ok(version) => findings.ok(
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
            findings.add("clickhouse", status, detail, remedy);
            return;
        }
    }
    check_guarantees(
        Topic::Settings,
        "inserts run under the settings that they ask for",
        guarantees::of_server(&clickhouse).await,
        findings,
    );
    if repair && let Err(error) = migrate::apply(&clickhouse, config, lanes).await {
        findings.add("schema", Status::Failed, error.to_string(), "");
        return;
    }
    check_schema(&clickhouse, config, lanes, findings).await;
}

async fn check_schema(
    clickhouse: &ClickHouse,
    config: &Config,
    lanes: &[Lane],
    findings: &mut Findings,
) {
    let database = clickhouse.database();
    let pending = match migrations::status(clickhouse).await {
        Ok(all) => all
            .iter()
            .filter(|(_, state)| *state == State::Pending)
            .count(),
        Err(error) => {
            findings.add("schema", Status::Failed, error.to_string(), "");
            return;
        }
    };
    if pending > 0 {
        let remedy =
            "`analytics-server migrate` applies them, and so does `analytics-server serve`";
        let detail = format!("database `{database}`: {pending} migrations are not applied");
        findings.add("schema", Status::Failed, detail, remedy);
        return;
    }
    findings.ok("schema", format!("database `{database}` is up to date"));
    let days = config.features.analytics.retention_days.get();
    match schema::kept_otherwise(clickhouse, &migrate::tables_of(lanes), days).await {
        Ok(tables) if tables.is_empty() => {}
        Ok(tables) => {
            let names: Vec<_> = tables.into_iter().map(|(name, _)| name).collect();
            let detail = format!("not kept for {days} days: {}", names.join(", "));
            let remedy = "`analytics-server migrate` changes that, and so does `analytics-server serve`; it requires the right ALTER TTL";
            findings.add("schema", Status::Warning, detail, remedy);
        }
        Err(error) => findings.add("schema", Status::Failed, describe(&error), ""),
    }

    check_guarantees(
        Topic::Deduplication,
        "every table recognises a repeated insert",
        guarantees::of_tables(clickhouse, &Lane::inserted_into(lanes)).await,
        findings,
    );
    for lane in lanes {
        findings.lane = Some(lane.name);
        check_writers(clickhouse, config, lane, findings).await;
    }
    findings.lane = None;
}

/// Whether a lane other than the configured one fills a table.
async fn check_writers(
    clickhouse: &ClickHouse,
    config: &Config,
    lane: &Lane,
    findings: &mut Findings,
) {
    let (table, stream) = (lane.kind.tables().events, &lane.stream);
    let lease = writer_lease(config.features.analytics.lease_timeout);
    let registered = match writers::active(clickhouse, table, lease).await {
        Ok(registered) => registered,
        Err(error) => return findings.add("writer", Status::Failed, describe(&error), ""),
    };
    let is_own = |other: &Registered| {
        let name = other.stream.split('@').next();
        name == Some(&stream.name) && other.consumer == stream.consumer
    };
    match registered.iter().find(|other| !is_own(other)) {
        None => findings.ok("writer", format!("no other stream fills `{table}`")),
        Some(other) => findings.add(
            "writer",
            Status::Failed,
            format!(
                "`{table}` is filled from stream {} by consumer `{}` (instance {})",
                other.stream, other.consumer, other.owner
            ),
            "give this stream a db_name of its own: views of two streams in one table cannot be kept exact",
        ),
    }
}

/// What exactly once rests on: a line for each thing that is wrong, otherwise one that says
/// that all is well.
fn check_guarantees(
    topic: Topic,
    fine: &str,
    outcome: Result<Vec<Shortcoming>, ::clickhouse::error::Error>,
    findings: &mut Findings,
) {
    let name = |topic| match topic {
        Topic::Version => "clickhouse",
        Topic::Settings => "settings",
        Topic::Rights => "rights",
        Topic::Schema => "schema",
        Topic::Deduplication => "deduplication",
    };
    let found = match outcome {
        Ok(found) => found,
        Err(error) => return findings.add(name(topic), Status::Failed, describe(&error), ""),
    };
    if found.iter().all(|shortcoming| shortcoming.topic != topic) {
        findings.ok(name(topic), fine);
    }
    for shortcoming in found {
        let status = match shortcoming.fatal {
            true => Status::Failed,
            false => Status::Warning,
        };
        findings.add(
            name(shortcoming.topic),
            status,
            shortcoming.detail,
            shortcoming.remedy,
        );
    }
}
