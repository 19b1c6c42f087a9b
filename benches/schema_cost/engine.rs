//! The embedded engine as a process, whose CPU time can be told from everybody else's.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use analytics_server::internal::ClickHouse;
use analytics_server::internal::native::Block;
use analytics_server::internal::{Address, Config, Database};
use analytics_server::internal::{PIECE, insert_settings};
use anyhow::{Context, bail, ensure};
use clickhouse::{Client, Compression};
use tempfile::TempDir;

/// It takes seconds when the library is not in the page cache.
const START: Duration = Duration::from_secs(60);

/// The unit in which /proc counts CPU time: 100 ticks per second on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

pub struct Engine {
    child: Child,
    url: String,
    databases: AtomicU32,
    /// Removed when the engine has ended.
    _directory: TempDir,
}

impl Engine {
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(env!("CARGO_BIN_EXE_analytics-server"))
            .args(["clickhouse", "--exit-with-parent", "--port"])
            .arg(port.to_string())
            .arg("--path")
            .arg(directory.path())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the engine")?;
        let mut engine = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            databases: AtomicU32::new(0),
            _directory: directory,
        };
        let started = Instant::now();
        while engine.clickhouse("default").version().await.is_err() {
            if let Some(status) = engine.child.try_wait()? {
                bail!("the engine ended with {status}");
            }
            ensure!(started.elapsed() < START, "the engine does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(engine)
    }

    /// A database that nobody has used and that is not created yet.
    pub fn fresh_database(&self) -> ClickHouse {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        self.clickhouse(&format!("cost_{number}"))
    }

    fn clickhouse(&self, database: &str) -> ClickHouse {
        let mut config = Config::default();
        config.server.db_url = Database::Server(Address::new(&self.url));
        config.server.db_name = database.to_owned();
        ClickHouse::new(&config).patient()
    }

    /// Inserts rows in any format, with the settings and in the pieces of the daemon's
    /// own inserts.
    pub async fn insert(
        &self,
        database: &ClickHouse,
        target: &str,
        format: &str,
        rows: &Block,
        token: &str,
    ) -> anyhow::Result<()> {
        let mut insert = Client::default()
            .with_url(&self.url)
            .with_database(database.database())
            .with_compression(Compression::None)
            .insert_formatted_with(format!("INSERT INTO {target} FORMAT {format}"))
            .with_setting("insert_deduplication_token", token);
        for (name, value) in insert_settings() {
            insert = insert.with_setting(name, value);
        }
        for piece in rows.bytes.chunks(PIECE) {
            insert.send(rows.bytes.slice_ref(piece)).await?;
        }
        Ok(insert.end().await?)
    }

    /// CPU-seconds that the process has used, including threads that have ended.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // After the name in brackets, which may hold spaces: user time is the twelfth.
        let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
        let mut ticks = fields.split(' ').skip(11).map(str::parse::<f64>);
        let (user, system) = (ticks.next(), ticks.next());
        let ticks = user.context("no user time")?? + system.context("no system time")??;
        Ok(ticks / TICKS_PER_SECOND)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // None of it is needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
