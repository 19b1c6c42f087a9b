//! The embedded engine, whose one user may do what is granted and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::World;
use super::clickhouse::{Server, command, lasting_port};
use super::nats::Nats;

/// What an administrator may do. The engine knows only one user, so a test becomes the
/// administrator by a start with this grant, and the daemon's user by another start.
pub const EVERYTHING: &str = "GRANT ALL ON *.* TO administrator";

/// Comes back on the same data and port, however it ended.
pub struct RestrictedClickHouse {
    /// None while it is away.
    server: Option<Server>,
    data: PathBuf,
    users: PathBuf,
    log: PathBuf,
    port: u16,
}

impl RestrictedClickHouse {
    /// One that is not started yet, and a world whose ClickHouse it is; its data and its
    /// log go into the world's folder, so that it has to end first.
    pub fn with_world(nats: Nats) -> (World, Self) {
        let port = lasting_port();
        let world = World::with_servers(nats, &format!("http://127.0.0.1:{port}"));
        let clickhouse = Self::new(world.dir.path(), port);
        (world, clickhouse)
    }

    fn new(dir: &Path, port: u16) -> Self {
        let data = dir.join("clickhouse");
        let users = dir.join("users.xml");
        let files = data.join("user_files");
        std::fs::create_dir_all(&files).unwrap();
        let config = format!(
            "<clickhouse><users_config>{}</users_config></clickhouse>",
            users.display()
        );
        // The engine looks for it in the folder that it works in.
        std::fs::write(files.join("config.xml"), config).unwrap();
        Self {
            server: None,
            data,
            users,
            log: dir.join("clickhouse.log"),
            port,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stops it in an orderly way if it is running, and starts it with these grants and
    /// no others.
    pub async fn start(&mut self, grants: &[String]) {
        if let Some(server) = self.server.take() {
            let ended = tokio::task::spawn_blocking(|| server.terminate());
            ended.await.unwrap();
        }
        self.grant(grants);
        self.come_back().await;
    }

    pub async fn start_as_administrator(&mut self) {
        self.start(&[EVERYTHING.to_owned()]).await;
    }

    /// Ends it as a power failure would.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            let ended = tokio::task::spawn_blocking(|| server.kill9());
            ended.await.unwrap();
        }
    }

    /// Ends it as a power failure would, and starts it again after `pause`.
    pub async fn kill_and_start_again(&mut self, pause: Duration) {
        if let Some(server) = self.server.take() {
            server.kill9();
        }
        tokio::time::sleep(pause).await;
        self.come_back().await;
    }

    pub fn signal(&self, name: &str) {
        if let Some(server) = &self.server {
            server.signal(name);
        }
    }

    /// Applies from the next start on.
    pub fn grant(&self, statements: &[String]) {
        self.write_users(statements, "", "");
    }

    /// As [`grant`](Self::grant), but rows of a table that do not fulfil the condition
    /// are hidden.
    pub fn grant_some_rows(&self, statements: &[String], database: &str, table: &str, rows: &str) {
        let policy = format!(
            "<databases><{database}><{table}><filter>{rows}</filter></{table}></{database}></databases>"
        );
        self.write_users(statements, "", &policy);
    }

    /// As [`grant`](Self::grant), under a profile's settings.
    pub fn grant_within(&self, statements: &[String], profile: &[(&str, &str)]) {
        let settings = profile
            .iter()
            .map(|(name, value)| format!("<{name}>{value}</{name}>"));
        self.write_users(statements, &settings.collect::<String>(), "");
    }

    fn write_users(&self, statements: &[String], profile: &str, policy: &str) {
        let grants = statements.iter().map(|statement| {
            let (statement, _user) = statement.rsplit_once(" TO ").unwrap();
            format!("<query>{statement}</query>")
        });
        let users = format!(
            "<clickhouse>
               <profiles><default>{profile}</default></profiles>
               <quotas><default></default></quotas>
               <users><default>
                 <password></password><networks><ip>::/0</ip></networks>
                 <profile>default</profile><quota>default</quota>
                 {policy}
                 <grants>{}</grants>
               </default></users>
             </clickhouse>",
            grants.collect::<String>()
        );
        std::fs::write(&self.users, users).unwrap();
    }

    /// Returns once it answers.
    async fn come_back(&mut self) {
        let mut command = command(&self.data, self.port);
        let file = File::options().create(true).append(true).open(&self.log);
        command.stderr(file.unwrap());
        let started = tokio::task::spawn_blocking(move || Server::spawn(&mut command));
        self.server = Some(started.await.unwrap());
    }
}
