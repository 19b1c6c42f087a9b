//! The connections to ClickHouse.

use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::config::Authority;
use crate::tls;

const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Shorter than ClickHouse's own 3 s, after which it closes a connection.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client for `https://` addresses that trusts these authorities, too.
pub fn trusting(authority: &Authority) -> clickhouse::Client {
    let mut connector = HttpConnector::new();
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls::trusting(authority))
        .https_only()
        .enable_http1()
        .wrap_connector(connector);
    clickhouse::Client::with_http_client(
        HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build(connector),
    )
}
