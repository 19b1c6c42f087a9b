//! TLS to both servers, with a certificate authority that the system does not know.

use std::path::{Path, PathBuf};

use crate::login::events_flow;
use crate::support::daemon::{self, Daemon};
use crate::support::nats::Nats;
use crate::support::tls::{Authority, Identity, TlsEnd};
use crate::support::{World, clickhouse};

async fn nats_as(identity: &Identity) -> World {
    let [certificate, key] =
        [&identity.certificate, &identity.key].map(|path| path.to_str().unwrap());
    World::with_nats(Nats::start_with(&["--tls", "--tlscert", certificate, "--tlskey", key]).await)
}

/// A configuration with ClickHouse at `https://127.0.0.1:PORT`, and the authority to trust.
fn config(world: &World, port: u16, trusted: Option<&Path>) -> PathBuf {
    let url = format!("https://127.0.0.1:{port}");
    let config = world.config_at("analytics.yml", &url, "flush_interval_seconds: 0.1", "");
    if let Some(file) = trusted {
        let text = std::fs::read_to_string(&config).unwrap();
        let key = format!("server: {{db_tls_ca_file: '{}', ", file.display());
        std::fs::write(&config, text.replace("server: {", &key)).unwrap();
    }
    config
}

/// What `check` says of a server that it fails at.
async fn fault(config: &Path, name: &str) -> String {
    let output = daemon::run(config, &["check"]).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    let start = format!("FAILED       {name:<15}");
    let faults: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.strip_prefix(&start))
        .collect();
    assert_eq!(faults.len(), 1, "{stdout}");
    faults[0].to_owned()
}

#[tokio::test]
async fn events_flow_from_a_nats_with_tls() {
    let authority = Authority::new();
    let world = nats_as(&authority.identity("127.0.0.1")).await;
    let trusted = format!("tls_ca_file: '{}'", authority.certificate().display());
    let config = world.config("flush_interval_seconds: 0.1", &trusted);
    events_flow(&config, "PRIVATE KEY").await;
}

#[tokio::test]
async fn events_flow_to_a_clickhouse_with_tls() {
    let authority = Authority::new();
    let identity = authority.identity("127.0.0.1");
    let end = TlsEnd::before(clickhouse::port(), &identity).await;
    let world = World::new().await;
    let config = config(&world, end.port, Some(&authority.certificate()));
    events_flow(&config, "PRIVATE KEY").await;
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_one_clear_line() {
    let authority = Authority::new();
    let [here, elsewhere] = ["127.0.0.1", "elsewhere.example"].map(|name| authority.identity(name));
    let trusted = format!("tls_ca_file: '{}'", authority.certificate().display());
    let why = [
        "no authority that is trusted here has signed it",
        "certificate not valid for name \"127.0.0.1\"; certificate is only valid for DnsName(\"elsewhere.example\")",
    ];

    for ((identity, messaging), why) in [(&here, ""), (&elsewhere, &trusted)].into_iter().zip(why) {
        let world = nats_as(identity).await;
        let config = world.config("", messaging);
        let address = world.nats.url();
        let line = format!("NATS at {address} has a certificate that does not hold: {why}");
        assert_eq!(fault(&config, "nats").await, line);
        let daemon = Daemon::start(&config);
        daemon.logs(&line).await;
    }

    let trusted = authority.certificate();
    let identities = [(&here, None), (&elsewhere, Some(trusted.as_path()))];
    for ((identity, trusted), why) in identities.into_iter().zip(why) {
        let end = TlsEnd::before(clickhouse::port(), identity).await;
        let world = World::new().await;
        let config = config(&world, end.port, trusted);
        let line = format!("its certificate does not hold: {why}");
        let address = format!("https://127.0.0.1:{}: ", end.port);
        assert_eq!(fault(&config, "clickhouse").await, address + &line);
        let daemon = Daemon::start(&config);
        daemon.logs(&line).await;
    }
}
