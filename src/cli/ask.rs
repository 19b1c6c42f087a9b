//! Querying the daemon of a configuration over HTTP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// The daemon itself waits for ClickHouse's answer, for 2 s.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
#[error("no answer from {address}: {reason}")]
pub struct NoAnswer {
    address: SocketAddr,
    reason: String,
}

pub struct Answer {
    pub is_ok: bool,
    pub body: String,
}

/// Where the daemon of this configuration listens, as seen from its own machine.
pub fn address(config: &Config) -> SocketAddr {
    let host = match config.server.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, config.server.port)
}

/// What the daemon serves at `path`.
///
/// # Errors
/// [`NoAnswer`]; a different one if something other than the daemon answers.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let answer = match tokio::time::timeout(PATIENCE, exchange(address, path)).await {
        Ok(Ok(answer)) => answer,
        failure => {
            let reason = match failure {
                Ok(Err(error)) => error.to_string(),
                _ => format!("nothing within {} s", PATIENCE.as_secs()),
            };
            return Err(NoAnswer { address, reason }.into());
        }
    };
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("what answers at {address} is not analytics-server"))?;
    Ok(Answer {
        is_ok: head.split(' ').nth(1) == Some("200"),
        body: body.to_owned(),
    })
}

/// HTTP/1.0: the answer ends when its connection does.
async fn exchange(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    Ok(answer)
}
