//! A nats-server of the test's own, with JetStream.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use tempfile::TempDir;

use super::clickhouse::free_port;
use super::{dependency, eventually, signal};

pub struct Nats {
    child: Child,
    dir: TempDir,
    port: u16,
    options: Vec<String>,
}

impl Nats {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments for nats-server.
    pub async fn start_with(options: &[&str]) -> Self {
        // -1: any free port, which the server then writes into a file.
        Self::start_at("-1", options).await
    }

    /// On a port of the caller's choice.
    pub async fn start_on(port: u16) -> Self {
        Self::start_at(&port.to_string(), &[]).await
    }

    async fn start_at(port: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let mut child = spawn(&dir, port, &options);
        let ports = dir.path().join(format!("nats-server_{}.ports", child.id()));
        let log = dir.path().join("nats.log");
        let port = eventually("nats-server listens", async || {
            let ended = child.try_wait().unwrap();
            assert_eq!(ended, None, "{}", std::fs::read_to_string(&log).unwrap());
            port_of(&ports)
        })
        .await;
        Self {
            child,
            dir,
            port,
            options,
        }
    }

    /// Three servers that are one, with JetStream on each.
    pub async fn cluster() -> Vec<Self> {
        let routes = [free_port(), free_port(), free_port()];
        let all = routes.map(|port| format!("nats://127.0.0.1:{port}"));
        let mut nodes = Vec::new();
        for (index, own) in all.iter().enumerate() {
            // Its name is its place, so that a leader's name finds the server.
            let name = index.to_string();
            let options = ["--server_name", &name, "--cluster_name", "test"];
            let cluster = ["--cluster", own, "--routes", &all.join(",")];
            nodes.push(Self::start_with(&[options, cluster].concat()).await);
        }
        for node in &nodes {
            eventually("the cluster has a leader", async || {
                node.jetstream().await.query_account().await.ok()
            })
            .await;
        }
        nodes
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// The daemon's stream.
    pub async fn stream(&self) -> Stream {
        let stream = self.jetstream().await.get_stream("ANALYTICS").await;
        stream.unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("nats.log")).unwrap()
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Ends the server as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills the server and starts it again: what it had on its disk in between.
    pub async fn restart_and_copy(&mut self) -> TempDir {
        self.kill();
        let copy = tempfile::tempdir().unwrap();
        copy_files(
            &self.dir.path().join("jetstream"),
            &copy.path().join("jetstream"),
        );
        self.start_again();
        self.is_back().await;
        copy
    }

    /// Kills the server and starts it again with what it had on its disk before.
    pub async fn restart_from(&mut self, copy: &TempDir) {
        self.kill();
        let data = self.dir.path().join("jetstream");
        std::fs::remove_dir_all(&data).unwrap();
        copy_files(&copy.path().join("jetstream"), &data);
        self.start_again();
        self.is_back().await;
    }

    /// Starts it again on the same port and data.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.dir, &self.port.to_string(), &self.options);
    }

    /// Waits until it answers.
    pub async fn is_back(&self) {
        eventually("NATS is back", async || {
            async_nats::connect(self.url()).await.ok()
        })
        .await;
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy_files(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

fn spawn(dir: &TempDir, port: &str, options: &[String]) -> Child {
    let log = std::fs::File::create(dir.path().join("nats.log")).unwrap();
    Command::new(dependency("bin/nats-server"))
        .args(["--addr", "127.0.0.1", "--port", port, "--jetstream"])
        .arg("--store_dir")
        .arg(dir.path())
        .arg("--ports_file_dir")
        .arg(dir.path())
        .args(options)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The port in a file such as `{"nats":["nats://127.0.0.1:4222"]}`.
fn port_of(file: &PathBuf) -> Option<u16> {
    let text = std::fs::read(file).ok()?;
    let ports: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let url = ports["nats"][0].as_str()?;
    url.rsplit_once(':')?.1.parse().ok()
}
