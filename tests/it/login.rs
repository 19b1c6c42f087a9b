//! Every way of logging in to NATS that the configuration offers.

use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::support::World;
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
    let shown = [
        checked.stdout,
        checked.stderr,
        sent.stdout,
        sent.stderr,
        daemon.log().into_bytes(),
    ]
    .concat();
    assert!(!text(&shown).contains(secret));
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
    // JetStream wants a system account, which has no storage, beside the one that
    // events are in.
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
