use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{UNREACHABLE, tell};
use crate::config::Config;

/// The daemon waits for ClickHouse's answer, for 2 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints what `/health` says. The address is the one that the daemon of this
/// configuration listens on.
pub async fn run(config: Config) -> Result<ExitCode> {
    let host = match config.server.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    let address = SocketAddr::new(host, config.server.port);
    let answer = match tokio::time::timeout(PATIENCE, ask(address)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tell(format_args!(
                "analytics-server: no answer from {address}: {error}"
            ));
            return Ok(ExitCode::from(UNREACHABLE));
        }
        Err(_) => {
            tell(format_args!("analytics-server: no answer from {address}"));
            return Ok(ExitCode::from(UNREACHABLE));
        }
    };
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("what answers at {address} is not analytics-server"))?;
    writeln!(std::io::stdout(), "{}", body.trim_end())?;
    let is_ok = head.split(' ').nth(1) == Some("200");
    Ok(if is_ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// HTTP/1.0: the answer ends with its connection.
async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    connection
        .write_all(b"GET /health HTTP/1.0\r\n\r\n")
        .await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}
