//! What the tests stand on: a nats-server each, one ClickHouse for all with a
//! database each, and the binary itself. A server that is missing is a failure.

pub mod backup;
pub mod checkpoint;
pub mod clickhouse;
pub mod daemon;
pub mod events;
pub mod fake_clickhouse;
pub mod guide;
pub mod nats;
pub mod proxy;
pub mod restricted;
pub mod rewriting;
pub mod tls;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ::clickhouse::Client;
use ::clickhouse::error::Error;
use analytics_server::internal::StreamId;
use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use daemon::Daemon;
use nats::Nats;

/// Longer than anything takes that works, on a machine that is busy with other
/// things; no statement about speed.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Waits until `condition` gives something.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            started.elapsed() < Duration::from_secs(180),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file that `scripts/deps.sh --tests` brings.
pub fn dependency(path: &str) -> PathBuf {
    let deps = std::env::var_os("FECHATTER_DEPS_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".dev"));
    let file = deps.join(path);
    assert!(
        file.exists(),
        "{} is missing: run scripts/deps.sh --tests",
        file.display()
    );
    file
}

/// Sends a signal, by its name, to a child that has not been waited for: until then
/// its number is nobody else's.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// A nats-server, a database and a folder of the test's own.
pub struct World {
    pub nats: Nats,
    clickhouse_url: String,
    pub database: String,
    pub dir: TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with_nats(Nats::start().await)
    }

    pub fn with_nats(nats: Nats) -> Self {
        Self::with_servers(nats, clickhouse::url())
    }

    pub fn with_servers(nats: Nats, clickhouse_url: &str) -> Self {
        Self {
            nats,
            clickhouse_url: clickhouse_url.to_owned(),
            database: format!("test_{}", uuid::Uuid::new_v4().simple()),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A configuration file for this world; `analytics` and `messaging` are keys
    /// of the sections of these names, in YAML's short form.
    pub fn config(&self, analytics: &str, messaging: &str) -> PathBuf {
        self.config_at("analytics.yml", &self.clickhouse_url, analytics, messaging)
    }

    /// A configuration file with a ClickHouse that `serve` runs itself.
    pub fn embedded_config(&self, port: u16) -> PathBuf {
        let embedded = format!("embedded:{port}");
        self.config_at(
            "analytics.yml",
            &embedded,
            "flush_interval_seconds: 0.1",
            "",
        )
    }

    /// A configuration file of this name, with this `server.db_url`.
    pub fn config_at(&self, name: &str, db_url: &str, analytics: &str, messaging: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        // A daemon that was killed is waited for, which should not take long here.
        let lease = match analytics {
            "" => "lease_timeout_seconds: 1",
            set if set.contains("lease_timeout_seconds") => "",
            _ => ", lease_timeout_seconds: 1",
        };
        let nats_url = match messaging.contains("nats_url") {
            true => String::new(),
            false => format!("nats_url: '{}', ", self.nats.url()),
        };
        let text = format!(
            "server: {{port: 0, db_url: '{db_url}', db_name: {}, base_dir: '{}'}}\n\
             integrations: {{messaging: {{{nats_url}{messaging}}}}}\n\
             features: {{analytics: {{{analytics}{lease}}}}}\n",
            self.database,
            self.dir.path().join("data").display(),
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn daemon(&self, analytics: &str) -> Daemon {
        Daemon::start(&self.config(analytics, ""))
    }

    pub fn clickhouse(&self) -> Client {
        Client::default()
            .with_url(&self.clickhouse_url)
            .with_database(&self.database)
    }

    /// Runs a statement to its end, which a mutation's is when the rows have changed.
    pub async fn run(&self, sql: &str) {
        let statement = self.clickhouse().query_raw(sql);
        let statement = statement.with_setting("mutations_sync", "1").execute();
        statement
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The rows of a query, each a JSON object; none while the table is not there.
    pub async fn rows(&self, sql: &str) -> Vec<Value> {
        self.ask(sql).await.unwrap_or_default()
    }

    /// The rows of a query, each a JSON object.
    pub async fn ask(&self, sql: &str) -> Result<Vec<Value>, Error> {
        let answer = self
            .clickhouse()
            .query_raw(sql)
            .with_setting("output_format_json_quote_64bit_integers", "0")
            .fetch_bytes("JSONEachRow")?
            .collect()
            .await?;
        let lines = answer.split(|byte| *byte == b'\n');
        Ok(lines
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect())
    }

    /// The one number that a query gives; 0 while the table is not there.
    pub async fn number(&self, sql: &str) -> u64 {
        let rows = self
            .rows(&format!("SELECT toUInt64(n) AS n FROM ({sql})"))
            .await;
        rows.first().map_or(0, |row| row["n"].as_u64().unwrap())
    }

    pub async fn stored(&self) -> u64 {
        self.number("SELECT count() AS n FROM analytics_events")
            .await
    }

    /// Waits until exactly this many events and dead letters are stored, and
    /// nothing is left to acknowledge.
    pub async fn settled(&self, events: u64, dead_letters: u64) {
        eventually(
            &format!("{events} events and {dead_letters} dead letters are stored"),
            async || {
                let letters = self.number("SELECT count() AS n FROM dead_letters").await;
                (self.stored().await >= events && letters >= dead_letters).then_some(())
            },
        )
        .await;
        eventually("everything is acknowledged", async || {
            let stream = self
                .nats
                .jetstream()
                .await
                .get_stream("ANALYTICS")
                .await
                .ok()?;
            let consumer = stream.consumer_info("analytics-processor").await.ok()?;
            (consumer.num_pending == 0 && consumer.num_ack_pending == 0).then_some(())
        })
        .await;
        assert_eq!(self.stored().await, events);
        assert_eq!(
            self.number("SELECT count() AS n FROM dead_letters").await,
            dead_letters
        );
    }

    /// Waits as [`settled`](Self::settled) does: every event is another one, and counts
    /// once in every view.
    pub async fn stored_once(&self, events: u64, dead_letters: u64) {
        self.settled(events, dead_letters).await;
        let different =
            "SELECT uniqExact(stream_seq, batch_index, received_at) AS n FROM analytics_events";
        assert_eq!(self.number(different).await, events);
        self.views_equal_a_recount().await;
    }

    /// The stream's identity, the value of the column `stream`.
    pub async fn stream(&self) -> String {
        StreamId::of(&self.nats.stream().await).to_string()
    }

    /// Publishes to `fechatter.analytics.` and the rest of a subject; returns the
    /// stream sequence.
    pub async fn publish(&self, subject: &str, payload: impl Into<Bytes>) -> u64 {
        let jetstream = self.nats.jetstream().await;
        let ack = jetstream
            .publish(format!("fechatter.analytics.{subject}"), payload.into())
            .await
            .unwrap();
        ack.await.unwrap().sequence
    }

    /// Every view says what a recount of `analytics_events` says.
    pub async fn views_equal_a_recount(&self) {
        assert_eq!(self.wrong_views().await, Vec::<String>::new());
    }

    /// The views that do not say what a recount of `analytics_events` says, each with
    /// some of the rows that differ.
    pub async fn wrong_views(&self) -> Vec<String> {
        self.wrong_among(&VIEWS).await
    }

    /// The same for views of a test's own: what each says, and what it should say.
    pub async fn wrong_among(&self, views: &[(&str, &str)]) -> Vec<String> {
        let ask = async |sql: String| self.ask(&sql).await.unwrap();
        let digest = |sql| {
            format!(
                "SELECT count() AS rows, sum(cityHash64(toString(tuple(*)))) AS hash FROM ({sql})"
            )
        };
        let beyond = |one, other| format!("SELECT * FROM (({one}) EXCEPT ({other})) LIMIT 2");
        let mut wrong = Vec::new();
        for (view, recount) in views {
            let (says, should_say) = (ask(digest(view)).await, ask(digest(recount)).await);
            if says != should_say {
                let wrongly = ask(beyond(view, recount)).await;
                let missing = ask(beyond(recount, view)).await;
                wrong.push(format!(
                    "{view}: {says:?} instead of {should_say:?}; wrongly {wrongly:?}, missing {missing:?}"
                ));
            }
        }
        wrong
    }
}

impl Drop for World {
    /// A server that outlives the tests is left as it was.
    fn drop(&mut self) {
        if std::env::var("TEST_CLICKHOUSE_URL").is_ok_and(|url| url == self.clickhouse_url) {
            let drop = format!("DROP DATABASE IF EXISTS {}", self.database);
            let config = self.config("", "");
            let _ = daemon::command(&config).args(["query", &drop]).output();
        }
    }
}

/// What a view says, and the same counted from the events.
const VIEWS: [(&str, &str); 6] = [
    (
        "SELECT date, user_id, sum(events_count) FROM daily_active_users GROUP BY ALL",
        "SELECT date, user_id, count() FROM analytics_events WHERE user_id != '' GROUP BY ALL",
    ),
    (
        "SELECT date, event_type, sum(count) FROM event_counts_by_type GROUP BY ALL",
        "SELECT date, event_type, count() FROM analytics_events GROUP BY ALL",
    ),
    (
        "SELECT date, message_type, sum(message_count), sum(total_size), sum(total_files) FROM message_statistics GROUP BY ALL",
        "SELECT date, message_type, count(), sum(message_size), sum(message_total_files) FROM analytics_events
         WHERE event_type = 'message_sent' GROUP BY ALL",
    ),
    (
        "SELECT timestamp, error_type, error_code, error_message, error_context, user_id, client_id FROM error_tracking",
        "SELECT server_ts, error_type, error_code, error_message, error_context, user_id, client_id FROM analytics_events
         WHERE event_type = 'error_occurred'",
    ),
    (
        "SELECT date, client_id, session_id, user_id, session_start, session_end, session_length, total_events FROM sessions",
        "SELECT date, client_id, session_id, max(user_id), min(server_ts), max(server_ts),
             toInt64(floor(max(toDecimal64(server_ts, 3)) - min(toDecimal64(server_ts, 3)))), count()
         FROM analytics_events WHERE session_id != '' GROUP BY date, client_id, session_id",
    ),
    (
        "SELECT date, client_id, total_session_events, unique_users FROM daily_sessions",
        "SELECT date, client_id, count(), uniqExactIf(user_id, user_id != '') FROM analytics_events
         WHERE session_id != '' GROUP BY date, client_id",
    ),
];
