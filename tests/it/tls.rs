//! TLS to both servers, with a certificate authority that the system does not know.

use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::login::events_flow;
use crate::support::clickhouse::{self, Server, lasting_port};
use crate::support::daemon::{self, Daemon};
use crate::support::nats::Nats;
use crate::support::tls::{Authority, Identity, TlsEnd};
use crate::support::{World, eventually};

async fn nats_as(identity: &Identity, more: &[&str]) -> Nats {
    let [certificate, key] =
        [&identity.certificate, &identity.key].map(|path| path.to_str().unwrap());
    let tls = ["--tls", "--tlscert", certificate, "--tlskey", key];
    Nats::start_with(&[&tls, more].concat()).await
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

/// What `check` says about a server at which it fails.
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
    let login = ["--user", "ann", "--pass", "s3cret"];
    let nats = nats_as(&authority.identity("127.0.0.1"), &login).await;
    let world = World::with_nats(nats);
    let trusted = format!(
        "username: ann, password: s3cret, tls_ca_file: '{}'",
        authority.certificate().display()
    );
    let config = world.config("flush_interval_seconds: 0.1", &trusted);
    events_flow(&config, "s3cret").await;
}

#[tokio::test]
async fn events_flow_to_a_clickhouse_with_tls() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let port = lasting_port();
    let mut server = clickhouse::command(dir.path(), port);
    let _server = Server::spawn(server.env("ANALYTICS_DB_PASSWORD", "s3cret"));
    let end = TlsEnd::before(port, &authority.identity("127.0.0.1")).await;
    let world = World::new().await;
    let config = config(&world, end.port, Some(&authority.certificate()));
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("server: {", "server: {db_password: s3cret, ");
    std::fs::write(&config, text).unwrap();
    events_flow(&config, "s3cret").await;
}

/// Servers tell clients about the others of their cluster, even about one without TLS.
#[tokio::test]
async fn a_login_that_wants_tls_is_never_sent_without() {
    let authority = Authority::new();
    let routes = [lasting_port(), lasting_port()].map(|port| format!("nats://127.0.0.1:{port}"));
    let all = routes.join(",");
    let cluster = |own| {
        let cluster = ["--cluster_name", "test", "--routes", &all, "--cluster", own];
        [&["-DV", "--server_name", own][..], &cluster].concat()
    };
    let plain = Nats::start_with(&cluster(&routes[0])).await;
    let identity = authority.identity("127.0.0.1");
    let mut secure = nats_as(&identity, &cluster(&routes[1])).await;
    let told = format!("127.0.0.1:{}", plain.url().rsplit_once(':').unwrap().1);
    let address = secure.url().replace("nats://", "tls://");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("analytics.yml");
    let messaging = format!("nats_url: '{address}', username: ann, password: s3cret");
    let text = format!("server: {{port: 0}}\nintegrations: {{messaging: {{{messaging}}}}}\n");
    std::fs::write(&config, text).unwrap();

    eventually("the servers know each other", async || {
        let address = secure.url();
        let mut connection = TcpStream::connect(address.strip_prefix("nats://")?)
            .await
            .ok()?;
        let mut info = [0; 4096];
        let count = connection.read(&mut info).await.ok()?;
        String::from_utf8_lossy(&info[..count])
            .contains(&told)
            .then_some(())
    })
    .await;
    let log = dir.path().join("log");
    // As if the authority were one of the system's.
    let authority = authority.certificate().display().to_string();
    let daemon = Daemon::start_logging_to(&log, &config, &[("SSL_CERT_FILE", &authority)]);
    daemon.logs("connected to NATS").await;
    secure.kill();
    eventually("the other server is tried", async || {
        plain
            .log()
            .contains("Client connection created")
            .then_some(())
    })
    .await;
    daemon.logs("NATS error=").await;
    let log = plain.log();
    // The servers' own connections are not clients'.
    let sent = log
        .lines()
        .find(|line| line.contains(" cid:") && line.contains("[CONNECT"));
    assert_eq!(sent, None);
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_one_clear_line() {
    let authority = Authority::new();
    let [here, elsewhere] = ["127.0.0.1", "elsewhere.example"].map(|name| authority.identity(name));
    let trusted = format!("tls_ca_file: '{}'", authority.certificate().display());
    let why = [
        "no trusted authority has signed it",
        "certificate not valid for name \"127.0.0.1\"; certificate is only valid for DnsName(\"elsewhere.example\")",
    ];

    for ((identity, messaging), why) in [(&here, ""), (&elsewhere, &trusted)].into_iter().zip(why) {
        let world = World::with_nats(nats_as(identity, &[]).await);
        let config = world.config("", messaging);
        let address = world.nats.url();
        let line = format!("NATS at {address}: its certificate is not valid: {why}");
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
        let line = format!("its certificate is not valid: {why}");
        let address = format!("https://127.0.0.1:{}: ", end.port);
        assert_eq!(fault(&config, "clickhouse").await, address + &line);
        let daemon = Daemon::start(&config);
        daemon.logs(&line).await;
    }
}

#[tokio::test]
async fn a_port_without_tls_is_not_taken_for_a_server_that_is_away() {
    let world = World::new().await;
    let address = world.nats.url().replace("nats://", "tls://");
    let nats = world.config("", &format!("nats_url: '{address}'"));
    let line = format!("NATS at {address}: it does not speak TLS on this port");
    assert_eq!(fault(&nats, "nats").await, line);

    let port = clickhouse::port();
    let clickhouse = config(&world, port, None);
    let line = format!("https://127.0.0.1:{port}: it does not speak TLS on this port");
    assert_eq!(fault(&clickhouse, "clickhouse").await, line);
}
