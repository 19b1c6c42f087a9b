//! NATS: the connection, the stream and its messages.

mod get;
mod message;
mod stream;
mod subjects;

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use secrecy::ExposeSecret;
use tracing::{debug, info, warn};

use crate::config::Messaging;
use crate::retry::Retry;
use crate::tls::{self, Fault};

pub use get::{StoredMessage, StoredMessageError, stored_message};
pub use message::{Arena, Headers, Message};
pub use stream::{StreamError, StreamId, StreamSpec, differences, find_stream, open_stream};
pub use subjects::{covering_set, covers};

/// How long a request to JetStream may take before it is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Two pings may go unanswered: a server that hangs is considered lost after three of these, and
/// one scrape later, within 15 s, the alerts know.
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// Answers arrive on subjects below this one, so that a user needs no right to read the answers to
/// others in the account.
const INBOX_PREFIX: &str = "_INBOX.analytics-server";

/// Logs what happens to a connection after it was made.
fn log(event: &Event, retry: &mut Retry) {
    match event {
        Event::Connected if retry.had_failed() => {
            info!("reconnected to NATS");
            *retry = Retry::new();
        }
        Event::Disconnected => {
            // Noted, so that the end of it is logged, too.
            retry.is_news(&"lost");
            warn!("connection to NATS lost, reconnecting");
        }
        // A failed attempt to reconnect, or a missing right: logged once per change.
        Event::ClientError(error) if retry.is_news(error) => warn!(%error, "NATS"),
        Event::ServerError(error) if retry.is_news(error) => warn!(%error, "NATS"),
        Event::SlowConsumer(_) => warn!(%event, "NATS"),
        event => debug!(%event, "NATS"),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read `{path}` (credentials_file): {error}")]
    Credentials { path: String, error: io::Error },
    #[error("NATS at {address} does not let this user in: {reason}")]
    Refused { address: String, reason: String },
    #[error("NATS at {address}: {fault}")]
    Untrusted { address: String, fault: Fault },
    #[error("cannot connect to NATS at {address}: {reason}")]
    Unreachable { address: String, reason: String },
}

/// Connects, with the credentials and the trust that the configuration names.
///
/// Once made, a connection comes back by itself after NATS was away; this is logged.
pub async fn connect(messaging: &Messaging) -> Result<Client, ConnectError> {
    let retry = Mutex::new(Retry::new());
    let mut options = ConnectOptions::new()
        .name("analytics-server")
        .custom_inbox_prefix(INBOX_PREFIX)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .event_callback(move |event| {
            log(
                &event,
                &mut retry.lock().unwrap_or_else(PoisonError::into_inner),
            );
            std::future::ready(())
        });
    let addresses = addresses(messaging)?;
    // async-nats ignores the login in an address. The keys below override it.
    if let Some(user) = addresses.iter().find_map(ServerAddr::username) {
        let password = addresses.iter().find_map(ServerAddr::password);
        options = match password {
            Some(password) => options.user_and_password(user.to_owned(), password.to_owned()),
            None => options.token(user.to_owned()),
        };
    }
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
                .map_err(|error| ConnectError::Credentials {
                    path: path.display().to_string(),
                    error,
                })?;
    }
    if let Some(authority) = &messaging.tls_ca_file {
        options = options.tls_client_config(tls::trusting(authority));
    }
    // Also for servers that a server announces: the client would otherwise connect without it.
    let wants_tls = addresses.iter().any(ServerAddr::tls_required);
    options = options.require_tls(wants_tls || messaging.tls_ca_file.is_some());
    options.connect(addresses).await.map_err(|error| {
        let address = messaging.nats_url.to_string();
        if let Some(fault) = tls::fault(&error) {
            return ConnectError::Untrusted { address, fault };
        }
        let reason = error.to_string();
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                ConnectError::Refused { address, reason }
            }
            _ => ConnectError::Unreachable { address, reason },
        }
    })
}

fn addresses(messaging: &Messaging) -> Result<Vec<ServerAddr>, ConnectError> {
    let addresses = messaging.nats_url.expose().split(',');
    addresses
        .map(|address| address.trim().parse())
        .collect::<Result<_, io::Error>>()
        .map_err(|error| ConnectError::Unreachable {
            address: messaging.nats_url.to_string(),
            reason: error.to_string(),
        })
}
