//! The users of docs/operations.md, with what they may do and nothing else. The statements
//! and the configuration are read from there.

use std::path::{Path, PathBuf};

use async_nats::{ConnectOptions, jetstream};
use futures_util::StreamExt;
use tempfile::TempDir;
use uuid::Uuid;

use crate::http::health_of;
use crate::support::clickhouse::post;
use crate::support::daemon::{self, Daemon};
use crate::support::events::{event, publish_with_an_odd_header};
use crate::support::nats::Nats;
use crate::support::restricted::{EVERYTHING, RestrictedClickHouse};
use crate::support::{World, eventually, guide, rewriting};

/// Exit code, and everything that it says.
async fn run(config: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = daemon::run(config, arguments).await;
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

async fn succeeds(config: &Path, commands: &[&[&str]]) {
    for command in commands {
        let (code, said) = run(config, command).await;
        assert_eq!(code, Some(0), "{command:?}: {said}");
    }
}

/// A nats-server as the guide sets it up, after `change`, and what logs in to it.
async fn nats(dir: &TempDir, change: impl Fn(String) -> String) -> World {
    // The folder is the test's own.
    let text = guide::block("### NATS: an account").replace("jetstream { store_dir", "# {");
    let file = dir.path().join("nats.conf");
    std::fs::write(&file, change(text)).unwrap();
    World::with_nats(Nats::start_with(&["--config", file.to_str().unwrap()]).await)
}

fn config_of(world: &World, user: &str, password: &str) -> PathBuf {
    let login = format!("username: {user}, password: {password}");
    let url = crate::support::clickhouse::url();
    world.config_at(
        &format!("{user}.yml"),
        url,
        "flush_interval_seconds: 0.1",
        &login,
    )
}

const SEND: &[&str] = &["send", "--count", "200", "--wait", "120"];

#[tokio::test]
async fn the_nats_users_of_the_guide_may_do_their_work() {
    let dir = tempfile::tempdir().unwrap();
    let world = nats(&dir, |text| text).await;
    let config = config_of(&world, "analytics", "a-password-for-nats");
    let operator = config_of(&world, "operator", "a-password-for-operators");
    let producer = ConnectOptions::new()
        .user_and_password("producer".to_owned(), "a-password-for-producers".to_owned())
        .connect(world.nats.url());
    let producer = producer.await.unwrap();
    let mut inbox = producer.subscribe("_INBOX.>").await.unwrap();
    producer.flush().await.unwrap();
    let first = Daemon::start(&config);
    first.logs("checkpoint taken over").await;
    let second = Daemon::start(&config);
    second.logs("standing by").await;
    succeeds(&operator, &[SEND]).await;
    // A producer sees its own answers, and no event that is sent to the daemon.
    let jetstream = jetstream::new(producer);
    let payload = event("client").into();
    let sent = jetstream
        .publish("fechatter.analytics.app.start", payload)
        .await;
    sent.unwrap().await.unwrap();
    let seen = inbox.next().await.unwrap();
    assert!(
        !seen.subject.starts_with("_INBOX.analytics-server"),
        "{seen:?}"
    );
    let (status, first) = first.stop().await;
    assert!(status.success(), "{first}");
    second.logs("checkpoint taken over").await;
    succeeds(
        &operator,
        &[
            SEND,
            &["check"],
            &["verify"],
            &["verify", "--repair"],
            &["dead-letters", "replay", "--all"],
        ],
    )
    .await;
    // Fetched in another way.
    let login = r#""user":"producer","pass":"a-password-for-producers","#;
    publish_with_an_odd_header(&world.nats, login, Uuid::new_v4());
    eventually("it is stored", async || {
        (world.stored().await == 402).then_some(())
    })
    .await;
    assert!(second.log().contains("fetching messages one by one"));
    let (status, second) = second.stop().await;
    assert!(status.success(), "{second}");
    for log in [first, second] {
        assert!(!log.contains("ermissions"), "{log}");
    }
    // It may do only what it has to: it does not publish events.
    let (code, said) = run(&config, &["send", "--count", "100"]).await;
    assert_eq!(code, Some(1), "{said}");
    // Not a line per message: the permission, that there was no answer, and what follows
    // from it.
    assert!(said.lines().count() < 5, "{said}");
}

#[tokio::test]
async fn a_right_that_nats_does_not_give_is_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let world = nats(&dir, |text| text.replace("$KV.", "$OTHER.")).await;
    let daemon = Daemon::start(&config_of(&world, "analytics", "a-password-for-nats"));
    let violation = r#"Permissions Violation for Publish to "$KV.analytics-checkpoints.ANALYTICS.analytics-processor""#;
    daemon.logs(violation).await;
    let address = daemon.address().await;
    eventually("health knows it", async || {
        let health = health_of(&address).await?;
        let parts = [r#""status":"degraded""#, r#""pipeline":"interrupted: "#];
        parts.iter().all(|part| health.contains(part)).then_some(())
    })
    .await;
    // It is tried again and again, and reported once.
    eventually("it is tried again", async || {
        let tries = daemon
            .log()
            .matches("interrupted, continuing from the checkpoint")
            .count();
        (tries > 1).then_some(())
    })
    .await;
    let log = daemon.log();
    let line = format!("WARN NATS error=nats: {violation}");
    assert_eq!(log.matches(&line).count(), 1, "{log}");
}

#[tokio::test]
async fn the_grants_of_the_guide_suffice_each_for_what_it_is_there() {
    let (world, mut clickhouse) = RestrictedClickHouse::with_world(Nats::start().await);
    let grants = guide::grants(&world.database);
    let [carry, processes, schema, letters, repairs] = &grants[..] else {
        panic!("{grants:?}");
    };
    let config = world.config("flush_interval_seconds: 0.1", "");

    // Nothing but what an insert needs: the schema cannot be created.
    let daily = [carry.clone(), processes.clone()];
    clickhouse.start(&daily).await;
    let (code, said) = run(&config, &["migrate"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("necessary to have the grant CREATE DATABASE"),
        "{said}"
    );

    let daemon = Daemon::start(&config);
    let address = daemon.address().await;
    eventually("health says what the schema waits for", async || {
        let health = health_of(&address).await?;
        let (_, schema) = health.split_once(r#""schema":""#)?;
        schema.starts_with("ClickHouse: Code: 497.").then_some(())
    })
    .await;
    drop(daemon);

    clickhouse
        .start(&[&daily[..], std::slice::from_ref(schema)].concat())
        .await;
    succeeds(&config, &[&["migrate"]]).await;
    clickhouse.start(&daily).await;
    let daemon = Daemon::start(&config);
    succeeds(&config, &[SEND, &["check"], &["verify"]]).await;
    // Everything is compared with ClickHouse, which is what the permission to look at
    // running inserts is for.
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    let jetstream = world.nats.jetstream().await;
    jetstream
        .delete_key_value("analytics-checkpoints")
        .await
        .unwrap();
    let daemon = Daemon::start(&config);
    daemon
        .logs("there is no checkpoint, though ClickHouse holds rows")
        .await;
    succeeds(&config, &[SEND]).await;

    world.publish("app.start", "not protobuf").await;
    world.settled(400, 1).await;
    let (code, said) = run(&config, &["dead-letters", "purge", "--all"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("necessary to have the grant ALTER DELETE"),
        "{said}"
    );
    clickhouse
        .start(&[&daily[..], std::slice::from_ref(letters)].concat())
        .await;
    succeeds(
        &config,
        &[
            &["dead-letters", "replay", "--all"],
            &["dead-letters", "purge", "--all"],
        ],
    )
    .await;

    clickhouse
        .start(&[&daily[..], std::slice::from_ref(repairs)].concat())
        .await;
    let lose = format!(
        "ALTER TABLE {}.daily_active_users DELETE WHERE 1 SETTINGS mutations_sync = 1",
        world.database
    );
    let (head, body) = post(&clickhouse.url(), "/", "", &lose);
    assert!(head.starts_with("http/1.1 200"), "{body}");
    assert_eq!(run(&config, &["verify"]).await.0, Some(1));
    succeeds(&config, &[&["verify", "--repair"], &["verify"]]).await;
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn a_right_that_is_needed_after_a_loss_only_is_asked_for_at_the_start() {
    let (world, mut clickhouse) = RestrictedClickHouse::with_world(Nats::start().await);
    clickhouse.start(&[EVERYTHING.to_owned()]).await;
    for sql in [
        "CREATE DATABASE forbid",
        "CREATE TABLE forbid.processes ENGINE = Memory AS SELECT * FROM system.processes",
    ] {
        let (head, body) = post(&clickhouse.url(), "/", "", sql);
        assert!(head.starts_with("http/1.1 200"), "{body}");
    }
    clickhouse.start(&guide::grants(&world.database)).await;
    // The engine shows everybody all of `system`; a packaged server does not.
    let changes = [("system.processes", "forbid.processes")];
    let proxy = rewriting::start(&clickhouse.url(), &changes).await;
    let url = format!("http://{proxy}");
    let config = world.config_at("analytics.yml", &url, "", "");
    let (code, said) = run(&config, &["check", "--repair"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("rights         system.processes cannot be read"),
        "{said}"
    );
    let remedy = "→ GRANT SELECT ON system.processes TO `default`";
    assert!(said.contains(remedy), "{said}");
    let (code, said) = run(&config, &["serve"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(remedy), "{said}");
}
