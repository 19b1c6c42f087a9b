//! Every way of logging in to NATS that the configuration offers.

use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::http::get;
use crate::support::World;
use crate::support::clickhouse::{self, Server, free_port};
use crate::support::daemon::{self, Daemon};
use crate::support::nats::Nats;

/// Events go through, and nothing shows `secret`.
pub async fn events_flow(config: &Path, secret: &str) {
    let daemon = Daemon::start_with(config, &[], "trace");
    daemon.logs("checkpoint taken over").await;
    let checked = daemon::run(config, &["check"]).await;
    let sent = daemon::run(config, &["send", "--count", "5", "--wait", "120"]).await;
    assert!(sent.status.success(), "{}", text(&sent.stderr));
    assert!(checked.status.success(), "{}", text(&checked.stdout));
    let address = daemon.address().await;
    // Only the user's own processes may be looked into beyond their arguments.
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.pid()));
    for shown in [
        text(&checked.stdout),
        text(&checked.stderr),
        text(&sent.stdout),
        text(&sent.stderr),
        daemon.log(),
        get(&address, "/health").await.unwrap(),
        get(&address, "/metrics").await.unwrap(),
        // Not there on macOS.
        arguments.unwrap_or_default(),
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

fn login(world: &World, messaging: &str) -> PathBuf {
    world.config("flush_interval_seconds: 0.1", messaging)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(dir: &Path, name: &str, text: String) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn user_and_password() {
    let nats = Nats::start_with(&["--user", "ann", "--pass", "s3cret"]).await;
    let world = World::with_nats(nats);
    events_flow(&login(&world, "username: ann, password: s3cret"), "s3cret").await;
}

#[tokio::test]
async fn user_and_password_in_the_address() {
    let nats = Nats::start_with(&["--user", "ann", "--pass", "s3cret"]).await;
    let world = World::with_nats(nats);
    let address = world.nats.url().replace("nats://", "nats://ann:s3cret@");
    events_flow(&login(&world, &format!("nats_url: '{address}'")), "s3cret").await;
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    let nats = Nats::start_with(&["--user", "ann", "--pass", "s3cret"]).await;
    let world = World::with_nats(nats);
    let config = world.config("", "username: ann, password: wr0ng");
    let daemon = Daemon::start_with(&config, &[], "trace");
    daemon.logs("authorization violation").await;
    let checked = daemon::run(&config, &["check"]).await;
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stdout).contains("authorization violation"));
    assert!(!daemon.log().contains("wr0ng"));
}

#[tokio::test]
async fn a_password_of_nats_from_a_file() {
    let nats = Nats::start_with(&["--user", "ann", "--pass", "s3cret"]).await;
    let world = World::with_nats(nats);
    let file = write(world.dir.path(), "password", "s3cret\n".to_owned());
    let mut command = daemon::command(&login(&world, "username: ann"));
    command.args(["send", "--count", "1"]);
    let sent = command.env("ANALYTICS_NATS_PASSWORD_FILE", file).output();
    let sent = sent.unwrap();
    assert!(sent.status.success(), "{}", text(&sent.stderr));
}

#[tokio::test]
async fn clickhouse_with_a_password_and_without_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = clickhouse::command(dir.path(), port);
    let file = write(dir.path(), "password", "s3cret\n".to_owned());
    command
        .env("ANALYTICS_DB_USER", "ann")
        .env("ANALYTICS_DB_PASSWORD_FILE", file);
    let _server = Server::spawn(&mut command);
    let url = format!("http://127.0.0.1:{port}");
    let world = World::with_servers(Nats::start().await, &url);
    let with_password = |password: &str| {
        let config = world.config("flush_interval_seconds: 0.1", "");
        let text = std::fs::read_to_string(&config).unwrap();
        let login = format!("server: {{db_user: ann, db_password: {password}, ");
        std::fs::write(&config, text.replace("server: {", &login)).unwrap();
        config
    };
    events_flow(&with_password("s3cret"), "s3cret").await;

    let config = with_password("wr0ng");
    let checked = daemon::run(&config, &["check"]).await;
    assert_eq!(checked.status.code(), Some(1));
    let report = text(&checked.stdout);
    let line = report
        .lines()
        .find(|line| line.contains("AUTHENTICATION_FAILED"))
        .unwrap();
    assert!(line.starts_with("FAILED       clickhouse "), "{line}");
    assert!(!report.contains("wr0ng"), "{report}");
}

#[tokio::test]
async fn help_does_not_show_what_the_environment_holds() {
    let world = World::new().await;
    let config = world.config("", "");
    for name in ["", "serve", "send", "clickhouse"] {
        let mut command = daemon::command(&config);
        command.args(name.split_whitespace()).arg("--help");
        for variable in analytics_server::internal::ENVIRONMENT {
            command.env(variable.name, "s3cret");
        }
        let help = text(&command.output().unwrap().stdout);
        assert!(help.contains("Usage:"), "{help}");
        let mut secrets = help.lines().filter(|line| line.contains("s3cret"));
        // The user and the names of files are not secrets.
        let is_none = |line: &str| line.contains("ANALYTICS_DB_USER=") || line.contains("_FILE=");
        assert!(secrets.all(is_none), "{help}");
    }
}

#[tokio::test]
async fn token() {
    let nats = Nats::start_with(&["--auth", "t0ken"]).await;
    let world = World::with_nats(nats);
    events_flow(&login(&world, "token: t0ken"), "t0ken").await;
}

/// A token as NATS takes it: JSON claims signed with the issuer's key.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = encode(json!({
        "jti": subject.public_key(),
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "name": "test",
        "sub": subject.public_key(),
        "nats": nats,
    }));
    let signature = issuer
        .sign(format!("{header}.{claims}").as_bytes())
        .unwrap();
    format!(
        "{header}.{claims}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(signature)
    )
}

#[tokio::test]
async fn credentials_file() {
    let dir = tempfile::tempdir().unwrap();
    let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
    // JetStream wants a system account, which has no storage, in addition to the one
    // that events are in.
    let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
    let operator_jwt = jwt(
        &operator,
        &operator,
        json!({"type": "operator", "version": 2}),
    );
    let account_jwt = |account, storage: i64| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": -1,
            "consumer": -1,
        });
        jwt(
            &operator,
            account,
            json!({"type": "account", "version": 2, "limits": limits}),
        )
    };
    let user_jwt = jwt(
        &account,
        &user,
        json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}),
    );
    let server = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {system}\n\
         resolver_preload: {{ {account}: {account_jwt}, {system}: {system_jwt} }}\n",
        account = account.public_key(),
        account_jwt = account_jwt(&account, -1),
        system = system.public_key(),
        system_jwt = account_jwt(&system, 0),
    );
    let seed = user.seed().unwrap();
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let credentials = write(dir.path(), "user.creds", credentials);
    let server = write(dir.path(), "nats.conf", server);
    let nats = Nats::start_with(&["--config", &server]).await;
    let world = World::with_nats(nats);
    events_flow(
        &login(&world, &format!("credentials_file: '{credentials}'")),
        &seed,
    )
    .await;

    let config = world.config("", "credentials_file: /missing/user.creds");
    let sent = daemon::run(&config, &["send"]).await;
    assert_eq!(sent.status.code(), Some(78));
    assert!(
        text(&sent.stderr).contains("cannot read `/missing/user.creds`"),
        "{}",
        text(&sent.stderr)
    );
}
