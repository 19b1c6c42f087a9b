//! NATS: the connection and the stream.

mod stream;
mod subjects;

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use secrecy::ExposeSecret;
use tracing::{debug, warn};

use crate::config::Messaging;

pub use stream::{
    Difference, StreamError, StreamId, differences, find_stream, open_stream, storage_type,
};
pub use subjects::covering_set;

/// How long a request to JetStream may take before it is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Says what happens to a connection after it was made.
async fn log(event: Event) {
    match event {
        Event::Connected => debug!("connection to NATS made"),
        Event::Disconnected => warn!("connection to NATS lost, reconnecting"),
        Event::SlowConsumer(_) | Event::ServerError(_) => warn!(%event, "NATS"),
        // Client errors are tries to reconnect, which go on until one works.
        event => debug!(%event, "NATS"),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read `{path}`: {source}")]
    Credentials {
        path: String,
        source: std::io::Error,
    },
    #[error("cannot connect to NATS at {address}: {reason}")]
    Unreachable { address: String, reason: String },
}

/// Connects, with the credentials and the trust that the configuration names.
///
/// A connection once made comes back by itself after NATS was away; this is logged.
pub async fn connect(messaging: &Messaging) -> Result<Client, ConnectError> {
    let mut options = ConnectOptions::new()
        .name("analytics-server")
        .request_timeout(Some(REQUEST_TIMEOUT))
        .event_callback(log);
    if let (Some(user), password) = (&messaging.username, &messaging.password) {
        let password = password
            .as_ref()
            .map_or("", |password| password.expose_secret());
        options = options.user_and_password(user.clone(), password.to_owned());
    }
    if let Some(token) = &messaging.token {
        options = options.token(token.expose_secret().to_owned());
    }
    if let Some(path) = &messaging.credentials_file {
        options =
            options
                .credentials_file(path)
                .await
                .map_err(|source| ConnectError::Credentials {
                    path: path.display().to_string(),
                    source,
                })?;
    }
    if let Some(path) = &messaging.tls_ca_file {
        options = options
            .add_root_certificates(path.clone())
            .require_tls(true);
    }
    let addresses: Vec<&str> = messaging
        .nats_url
        .expose()
        .split(',')
        .map(str::trim)
        .collect();
    options
        .connect(addresses)
        .await
        .map_err(|error| ConnectError::Unreachable {
            address: messaging.nats_url.to_string(),
            reason: error.to_string(),
        })
}
