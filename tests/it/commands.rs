//! The commands and their exit codes.

use std::process::Output;

use crate::support::clickhouse::free_port;
use crate::support::daemon::{self, Daemon};
use crate::support::events::publish_samples;
use crate::support::{World, eventually};

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[tokio::test]
async fn a_wrong_configuration_is_one_line_and_exit_code_78() {
    let world = World::new().await;
    let config = world.config("flush_interval: 1", "");
    for command in ["serve", "check", "migrate", "send", "bench"] {
        let (code, stdout, stderr) = text(&daemon::run(&config, &[command]).await);
        assert_eq!(code, Some(78), "{stderr}");
        assert_eq!(stdout, "");
        assert_eq!(
            stderr,
            format!(
                "analytics-server: {}:3:24: unknown key `features.analytics.flush_interval`, did you mean `flush_interval_seconds`?\n",
                config.display()
            )
        );
    }
}

#[tokio::test]
async fn usage_errors_exit_with_2_and_help_names_every_override() {
    let world = World::new().await;
    let config = world.config("", "");
    assert_eq!(text(&daemon::run(&config, &["serv"]).await).0, Some(2));
    let (code, help, _) = text(&daemon::run(&config, &["--help"]).await);
    assert_eq!(code, Some(0));
    for variable in analytics_server::internal::ENVIRONMENT {
        let variable = variable.name;
        assert!(help.contains(variable), "{variable}");
    }
}

#[tokio::test]
async fn check_says_what_to_do_until_everything_is_in_place() {
    let mut world = World::new().await;
    let config = world.config("", "");

    let (code, stdout, _) = text(&daemon::run(&config, &["check"]).await);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("`ANALYTICS` does not exist"), "{stdout}");
    assert!(stdout.contains("migrations are not applied"), "{stdout}");

    let (code, stdout, _) = text(&daemon::run(&config, &["check", "--repair"]).await);
    assert_eq!(code, Some(0), "{stdout}");
    let (code, stdout, _) = text(&daemon::run(&config, &["check", "--json"]).await);
    assert_eq!(code, Some(0), "{stdout}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["ok"], true);
    let mut checks = report["checks"].as_array().unwrap().iter();
    assert!(checks.all(|check| check["status"] == "ok"), "{stdout}");

    world
        .clickhouse()
        .query("ALTER TABLE session_totals MODIFY SETTING non_replicated_deduplication_window = 0")
        .execute()
        .await
        .unwrap();
    let (code, stdout, _) = text(&daemon::run(&config, &["check"]).await);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(
        stdout.contains("ALTER TABLE `session_totals` MODIFY SETTING"),
        "{stdout}"
    );

    world.nats.kill();
    let (code, stdout, _) = text(&daemon::run(&config, &["check"]).await);
    assert_eq!(code, Some(69), "{stdout}");
    assert!(stdout.contains("UNREACHABLE"), "{stdout}");
}

#[tokio::test]
async fn a_server_that_is_away_is_exit_code_69() {
    let mut world = World::new().await;
    world.nats.kill();
    let config = world.config("", "");
    let (code, _, stderr) = text(&daemon::run(&config, &["send"]).await);
    assert_eq!(code, Some(69), "{stderr}");
    assert!(
        stderr.contains("cannot connect to NATS at nats://127.0.0.1"),
        "{stderr}"
    );

    let nowhere = "server: {db_url: 'http://127.0.0.1:1'}";
    std::fs::write(&config, nowhere).unwrap();
    for command in [
        ["migrate"].as_slice(),
        &["migrate", "--status"],
        &["query", "SELECT 1"],
    ] {
        let (code, _, stderr) = text(&daemon::run(&config, command).await);
        assert_eq!(code, Some(69), "{command:?}: {stderr}");
        assert!(stderr.contains("Connection refused"), "{stderr}");
    }
}

#[tokio::test]
async fn migrations_are_applied_once_and_a_changed_one_is_refused() {
    let world = World::new().await;
    let config = world.config("retention_days: 30", "");
    let (code, stdout, _) = text(&daemon::run(&config, &["migrate", "--status"]).await);
    assert_eq!(code, Some(1));
    assert!(
        stdout.starts_with("pending 0001_analytics_events.sql\n"),
        "{stdout}"
    );

    let (code, stdout, stderr) = text(&daemon::run(&config, &["migrate"]).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("applied 0007_sessions.sql\n"), "{stdout}");
    let retained = "SELECT count() AS n FROM system.tables WHERE database = currentDatabase() AND engine_full LIKE '%toIntervalDay(30)%'";
    assert_eq!(world.number(retained).await, 7);

    let (_, stdout, _) = text(&daemon::run(&config, &["migrate"]).await);
    assert_eq!(
        stdout,
        format!("schema of database `{}` is up to date\n", world.database)
    );
    assert_eq!(
        text(&daemon::run(&config, &["migrate", "--status"]).await).0,
        Some(0)
    );

    let config = world.config("retention_days: 60", "");
    let (code, stdout, _) = text(&daemon::run(&config, &["migrate", "--status"]).await);
    assert_eq!(code, Some(1), "{stdout}");
    let pending = "pending retention of 60 days to analytics_events\n";
    assert!(stdout.contains(pending), "{stdout}");
    let (_, stdout, _) = text(&daemon::run(&config, &["check"]).await);
    let told = "warning      schema         not kept for 60 days: analytics_events, dead_letters,";
    assert!(stdout.contains(told), "{stdout}");
    let (_, stdout, _) = text(&daemon::run(&config, &["migrate"]).await);
    assert!(
        stdout.starts_with("applied retention of 60 days to analytics_events\n"),
        "{stdout}"
    );
    let retained = retained.replace("30", "60");
    assert_eq!(world.number(&retained).await, 7);

    // Nobody waits until what is stored has been rewritten.
    let clickhouse = world.clickhouse();
    let stop = "SYSTEM STOP MERGES analytics_events";
    clickhouse.query(stop).execute().await.unwrap();
    let insert = "INSERT INTO analytics_events (client_id) VALUES ('a')";
    clickhouse.query(insert).execute().await.unwrap();
    let config = world.config("retention_days: 90", "");
    let (code, _, stderr) = text(&daemon::run(&config, &["migrate"]).await);
    assert_eq!(code, Some(0), "{stderr}");

    world
        .clickhouse()
        .query("INSERT INTO schema_migrations SELECT 2, '0002_dead_letters.sql', 'another', now64(3) + 1")
        .execute()
        .await
        .unwrap();
    for command in ["migrate", "serve"] {
        let (code, _, stderr) = text(&daemon::run(&config, &[command]).await);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains("migration `0002_dead_letters.sql` was changed after it was applied"),
            "{stderr}"
        );
    }
}

#[tokio::test]
async fn a_migration_leaves_the_rows_of_before_as_they_are() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start(&config);
    daemon.logs("checkpoint taken over").await;
    publish_samples(&world, 300).await;
    world.settled(300, 0).await;
    daemon.stop().await;
    // As it was before 0009.
    for change in [
        "ALTER TABLE analytics_events MODIFY COLUMN user_agent String, MODIFY COLUMN client_ts CODEC(Delta(8), ZSTD(1)) SETTINGS alter_sync = 2",
        "ALTER TABLE session_totals MODIFY COLUMN users CODEC(LZ4)",
        "ALTER TABLE schema_migrations DELETE WHERE version = 9 SETTINGS mutations_sync = 2",
    ] {
        world.clickhouse().query(change).execute().await.unwrap();
    }
    let all = "SELECT toString(cityHash64(toString(tuple(*)))) AS row FROM analytics_events ORDER BY stream_seq";
    let before = world.rows(all).await;

    let (code, stdout, stderr) = text(&daemon::run(&config, &["migrate"]).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("applied 0009"), "{stdout}");
    assert_eq!(world.rows(all).await, before);
    let pending = "SELECT count() AS n FROM system.mutations WHERE database = currentDatabase() AND NOT is_done";
    eventually("old parts are rewritten", async || {
        (world.number(pending).await == 0).then_some(())
    })
    .await;
    assert_eq!(world.rows(all).await, before);
    let _daemon = Daemon::start(&config);
    publish_samples(&world, 100).await;
    world.settled(400, 0).await;
    world.views_equal_a_recount().await;
}

#[tokio::test]
async fn every_table_and_column_that_an_analyst_meets_has_a_comment() {
    let world = World::new().await;
    let config = world.config("", "");
    assert_eq!(text(&daemon::run(&config, &["migrate"]).await).0, Some(0));
    let tables = world
        .rows("SELECT name FROM system.tables WHERE database = currentDatabase() AND comment = '' AND engine != 'MaterializedView'")
        .await;
    assert_eq!(tables, Vec::<serde_json::Value>::new());
    let columns = world
        .rows("SELECT table, name FROM system.columns WHERE database = currentDatabase() AND comment = '' AND NOT endsWith(table, '_mv')")
        .await;
    assert_eq!(columns, Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn what_send_publishes_is_found_with_query() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with(&config, &[], "info");
    let (code, stdout, stderr) = text(
        &daemon::run(
            &config,
            &[
                "send",
                "--count",
                "3",
                "--type",
                "message_sent",
                "--wait",
                "150",
            ],
        )
        .await,
    );
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.starts_with("published 3 events in "), "{stdout}");
    assert!(
        stdout.contains("all found in ClickHouse by their ids"),
        "{stdout}"
    );

    let sql = "SELECT sum(message_count) FROM message_statistics";
    // Rows are found before the views have them: the insert may still be under way.
    eventually("the view has the events", async || {
        let (code, stdout, _) = text(&daemon::run(&config, &["query", sql]).await);
        assert_eq!(code, Some(0));
        (stdout == "3\n").then_some(())
    })
    .await;
    let (_, stdout, _) = text(
        &daemon::run(
            &config,
            &["query", "SELECT 1 AS one", "--format", "JSONEachRow"],
        )
        .await,
    );
    assert_eq!(stdout, "{\"one\":1}\n");
    let (code, _, stderr) = text(&daemon::run(&config, &["query", "SELECT nothing"]).await);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("Code: 47"), "{stderr}");

    let (status, _) = daemon.stop().await;
    assert!(status.success());
    let (code, _, stderr) =
        text(&daemon::run(&config, &["send", "--count", "1", "--wait", "1"]).await);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("is `analytics-server serve` running?"),
        "{stderr}"
    );
}

#[tokio::test]
async fn logs_can_be_json_and_never_hold_a_payload() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let daemon = Daemon::start_with(&config, &["--log-format", "json"], "debug");
    daemon.logs("checkpoint taken over").await;
    daemon::run(
        &config,
        &[
            "send",
            "--count",
            "20",
            "--type",
            "user_login",
            "--wait",
            "150",
        ],
    )
    .await;
    daemon.logs("batch stored").await;
    let log = daemon.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let batch = lines
        .iter()
        .find(|line| line["message"] == "batch stored")
        .unwrap();
    for field in ["rows", "first", "last", "bytes", "insert_ms"] {
        assert!(batch[field].is_u64(), "{field}: {batch}");
    }
    let event = lines
        .iter()
        .find(|line| line["message"] == "event")
        .unwrap();
    assert_eq!(event["event_type"], "user_login");
    assert_eq!(event["subject"], "fechatter.analytics.user.login");
    assert!(event["size"].is_u64() && event["sequence"].is_u64());
    assert!(!log.contains("example.org"), "an e-mail address was logged");
}

#[tokio::test]
async fn serve_runs_clickhouse_itself_where_it_is_embedded() {
    let world = World::new().await;
    let port = free_port();
    let config = world.embedded_config(port);
    let daemon = Daemon::start_with(&config, &[], "info");
    let (code, _, stderr) =
        text(&daemon::run(&config, &["send", "--count", "50", "--wait", "150"]).await);
    assert_eq!(code, Some(0), "{stderr}");
    let count = ["query", "SELECT count() FROM analytics_events"];
    assert_eq!(text(&daemon::run(&config, &count).await).1, "50\n");

    // A second one on the same port must not write into the first one's ClickHouse.
    let (code, _, stderr) = text(&daemon::run(&config, &["serve"]).await);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("port {port} is taken")),
        "{stderr}"
    );

    // When it is killed, it leaves no ClickHouse behind; when it is started again, it has
    // its data.
    daemon.kill();
    eventually("the port is free", async || {
        tokio::net::TcpListener::bind(("127.0.0.1", port))
            .await
            .ok()
            .map(drop)
    })
    .await;
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.logs("checkpoint taken over").await;
    assert_eq!(text(&daemon::run(&config, &count).await).1, "50\n");
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    assert_eq!(text(&daemon::run(&config, &count).await).0, Some(69));
}

#[tokio::test]
async fn check_offline_judges_the_file_alone() {
    let mut world = World::new().await;
    let config = world.config("batch_size: 10", "");
    world.nats.kill();
    let (code, stdout, stderr) = text(&daemon::run(&config, &["check", "--offline"]).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(stdout.starts_with("ok           configuration"), "{stdout}");
    std::fs::write(&config, "features: {analytics: {batch_size: 0}}").unwrap();
    let (code, _, stderr) = text(&daemon::run(&config, &["check", "--offline"]).await);
    assert_eq!(code, Some(78), "{stderr}");
}

#[tokio::test]
async fn completions_and_man_pages_name_every_command() {
    let world = World::new().await;
    let config = world.config("", "");
    let commands = ["serve", "check", "dead-letters", "status", "health"];
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, stdout, _) = text(&daemon::run(&config, &["completions", shell]).await);
        assert_eq!(code, Some(0), "{shell}");
        assert!(
            commands.iter().all(|command| stdout.contains(command)),
            "{shell}"
        );
    }
    let (code, stdout, _) = text(&daemon::run(&config, &["man"]).await);
    assert_eq!(code, Some(0));
    assert!(stdout.contains(".TH analytics-server 1"), "{stdout}");

    let dir = world.dir.path().join("man");
    std::fs::create_dir(&dir).unwrap();
    let to = dir.to_str().unwrap();
    let (code, _, stderr) = text(&daemon::run(&config, &["man", "--out-dir", to]).await);
    assert_eq!(code, Some(0), "{stderr}");
    for page in [
        "analytics-server.1",
        "analytics-server-dead-letters-replay.1",
    ] {
        assert!(dir.join(page).exists(), "{page}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn systemd_is_told_of_the_start_the_loop_and_the_stop() {
    let world = World::new().await;
    let config = world.config("flush_interval_seconds: 0.1", "");
    let path = world.dir.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let log = world.dir.path().join("log");
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut daemon = Daemon::start_logging_to(&log, &config, &variables);
    let heard = async |expected: &str| {
        eventually(expected, async || {
            let mut bytes = [0; 256];
            let length = socket.recv(&mut bytes).await.unwrap();
            let state = String::from_utf8_lossy(&bytes[..length]);
            state.lines().any(|line| line == expected).then_some(())
        })
        .await;
    };
    heard("READY=1").await;
    heard("WATCHDOG=1").await;
    heard("WATCHDOG=1").await;
    daemon.signal("TERM");
    heard("STOPPING=1").await;
    assert!(daemon.ended().await.success());
}
