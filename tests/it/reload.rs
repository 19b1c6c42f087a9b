//! Reading the configuration again, by SIGHUP.

use std::path::Path;

use crate::support::daemon::Daemon;
use crate::support::events::publish_samples;
use crate::support::{World, eventually};

fn change(config: &Path, changes: &[(&str, &str)]) {
    let mut text = std::fs::read_to_string(config).unwrap();
    for (before, after) in changes {
        assert!(text.contains(before), "{text}");
        text = text.replace(before, after);
    }
    std::fs::write(config, text).unwrap();
}

#[tokio::test]
async fn a_reload_changes_what_can_change_and_names_what_needs_a_restart() {
    let world = World::new().await;
    let config = world.config("batch_size: 50, flush_interval_seconds: 600", "");
    let log = world.dir.path().join("log");
    let daemon = Daemon::start_logging_to(&log, &config, &[("RUST_LOG", "")]);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 10).await;

    let log_filter = "observability: {log_filter: 'warn,analytics_server=debug'}\nfeatures:";
    change(
        &config,
        &[
            ("batch_size: 50", "batch_size: 5"),
            ("port: 0", "port: 1"),
            ("features:", log_filter),
        ],
    );
    daemon.signal("HUP");
    daemon
        .logs(r#"changed keys that need a restart keys="server.port""#)
        .await;
    assert!(daemon.log().contains("configuration reloaded"));
    // The open batch ends before the next message, which would be too much for it.
    publish_samples(&world, 1).await;
    eventually("what was open is stored", async || {
        (world.stored().await == 10).then_some(())
    })
    .await;
    daemon
        .logs(r#"DEBUG pipeline{lane="analytics"}: received"#)
        .await;
}

#[tokio::test]
async fn a_reload_of_a_wrong_file_changes_nothing() {
    let world = World::new().await;
    let config = world.config("batch_size: 5, flush_interval_seconds: 600", "");
    let mut daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    change(&config, &[("batch_size: 5", "batch_size: none")]);
    daemon.signal("HUP");
    daemon.logs("configuration not reloaded").await;
    assert!(daemon.log().contains("batch_size"), "{}", daemon.log());
    publish_samples(&world, 5).await;
    world.settled(5, 0).await;
    assert!(daemon.status().is_none(), "it goes on");
}
