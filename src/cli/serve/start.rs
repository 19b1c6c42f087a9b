//! What has to be there before a lane can run: both servers, and the schema.

use anyhow::{Result, anyhow, bail};
use async_nats::Client;
use tracing::{info, warn};

use crate::cli::migrate;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::guarantees::{self, Shortcoming};
use crate::clickhouse::migrations::MigrationError;
use crate::config::{Config, Messaging};
use crate::lane::Lane;
use crate::nats::{self, ConnectError};
use crate::retry;
use crate::versions::{self, Verdict};

/// Connects to NATS, however long that takes.
///
/// # Errors
/// If waiting does not help.
pub async fn connect(messaging: &Messaging) -> Result<Client> {
    let connecting = retry::until_ok("connecting to NATS", || async {
        match nats::connect(messaging).await {
            // Waiting does not make a file appear.
            Err(missing @ ConnectError::Credentials { .. }) => Ok(Err(missing)),
            Err(other) => Err(other),
            Ok(client) => Ok(Ok(client)),
        }
    });
    let nats = connecting.await?;
    info!(address = %messaging.nats_url, version = nats.server_info().version, "connected to NATS");
    match versions::NATS.judge(&nats.server_info().version) {
        Verdict::Fine => {}
        Verdict::Untried(detail) => warn!("{detail}"),
        Verdict::TooOld { detail, remedy } => bail!("{detail}: {remedy}"),
    }
    Ok(nats)
}

/// Brings the schema up to date and checks whether exactly once can rest on it; returns
/// what was done. The outer error is temporary, the inner one is not.
pub async fn prepare(
    clickhouse: &ClickHouse,
    config: &Config,
    lanes: &[Lane],
) -> Result<Result<Vec<String>>, MigrationError> {
    let mut found = guarantees::of_server(clickhouse).await?;
    if let Some(refusal) = refusal(&found) {
        return Ok(Err(refusal));
    }
    let done = match migrate::apply(clickhouse, config, lanes).await {
        Err(changed @ MigrationError::Changed { .. }) => return Ok(Err(changed.into())),
        outcome => outcome?,
    };
    let inserted_into = Lane::inserted_into(lanes);
    found.extend(guarantees::of_tables(clickhouse, &inserted_into).await?);
    if let Some(refusal) = refusal(&found) {
        return Ok(Err(refusal));
    }
    for shortcoming in found {
        warn!("{shortcoming}");
    }
    Ok(Ok(done))
}

/// Everything that is wrong and that exactly once cannot do without, and what fixes it.
fn refusal(found: &[Shortcoming]) -> Option<anyhow::Error> {
    let fatal: Vec<String> = found
        .iter()
        .filter(|shortcoming| shortcoming.fatal)
        .map(|it| format!("\n  {}\n    → {}", it.detail, it.remedy))
        .collect();
    (!fatal.is_empty()).then(|| {
        anyhow!(
            "events would not be stored exactly once on this ClickHouse:{}",
            fatal.concat()
        )
    })
}
