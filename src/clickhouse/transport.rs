//! The connections to ClickHouse.

use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};

use crate::config::Authority;

const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Shorter than ClickHouse's own 3 s, after which it closes a connection.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client that trusts the system's certificate authorities and these.
pub fn trusting(authority: &Authority) -> clickhouse::Client {
    let mut roots = RootCertStore::empty();
    // Those that cannot be read are missing, and connections that need them say so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(authority.certificates().iter().cloned());
    let tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();

    let mut connector = HttpConnector::new();
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    clickhouse::Client::with_http_client(
        HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build(connector),
    )
}
