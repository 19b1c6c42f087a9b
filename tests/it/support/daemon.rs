//! analytics-server as its users run it: the binary, a configuration file, signals.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::{eventually, signal};

/// A command of the binary, not started yet, with no configuration from the
/// environment of whoever runs the tests.
pub fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_analytics-server"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("ANALYTICS_") || name == "RUST_LOG")
    {
        command.env_remove(name);
    }
    command.arg("--config").arg(config);
    command
}

/// Runs a command of the binary to its end.
pub async fn run(config: &Path, arguments: &[&str]) -> Output {
    let mut command = command(config);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// `analytics-server serve`.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// Whether the log goes when the daemon does.
    log_is_temporary: bool,
}

impl Daemon {
    pub fn start(config: &Path) -> Self {
        Self::start_with(config, &[], "debug")
    }

    /// One that has taken the checkpoint over.
    pub async fn at_work(config: &Path) -> Self {
        let daemon = Self::start(config);
        daemon.takes_over().await;
        daemon
    }

    pub fn start_with(config: &Path, arguments: &[&str], log_filter: &str) -> Self {
        let mut command = command(config);
        command
            .args(arguments)
            .arg("serve")
            .env("RUST_LOG", format!("warn,analytics_server={log_filter}"));
        Self::spawn_logging_for_itself(command)
    }

    /// One that may have so many file descriptors open.
    pub fn start_with_descriptors(descriptors: u32, config: &Path) -> Self {
        let daemon = command(config);
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                &format!(r#"ulimit -n {descriptors} && exec "$0" "$@""#),
            ])
            .arg(daemon.get_program())
            .args(daemon.get_args())
            .arg("serve");
        for (name, _) in daemon.get_envs().filter(|(_, value)| value.is_none()) {
            shell.env_remove(name);
        }
        shell.env("RUST_LOG", "warn,analytics_server=debug");
        Self::spawn_logging_for_itself(shell)
    }

    fn spawn_logging_for_itself(command: Command) -> Self {
        let log = tempfile::NamedTempFile::new()
            .unwrap()
            .into_temp_path()
            .keep()
            .unwrap();
        let mut daemon = Self::spawn(command, &log);
        daemon.log_is_temporary = true;
        daemon
    }

    /// One that adds to a log which outlives it, with more variables in its environment.
    pub fn start_logging_to(log: &Path, config: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = command(config);
        command
            .arg("serve")
            .env("RUST_LOG", "warn,async_nats=off,analytics_server=info")
            .envs(variables.iter().copied());
        Self::spawn(command, log)
    }

    /// As [`start_logging_to`](Self::start_logging_to), one that this happens to, such as
    /// `kill@after-insert:1`; nothing where it is empty.
    pub fn start_with_fault(log: &Path, config: &Path, fault: &str) -> Self {
        Self::start_logging_to(log, config, &[("ANALYTICS_FAULT", fault)])
    }

    /// `analytics-server verify --repair` instead, which works like a daemon, on the same
    /// checkpoint, until it is done.
    pub fn repair_logging_to(log: &Path, config: &Path) -> Self {
        let mut command = command(config);
        command.args(["verify", "--repair"]);
        Self::spawn(command, log)
    }

    fn spawn(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let child = command
            .stdout(Stdio::null())
            .stderr(file.unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            log: log.to_owned(),
            log_is_temporary: false,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it ever had at a time, in bytes; `None` where the system
    /// does not tell.
    pub fn most_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let (_, most) = status.split_once("VmHWM:")?;
        Some(1024 * most.split_whitespace().next()?.parse::<u64>().ok()?)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub async fn logs(&self, text: &str) {
        eventually(&format!("the daemon logs `{text}`"), async || {
            self.log().contains(text).then_some(())
        })
        .await;
    }

    /// Waits until the checkpoint is its own.
    pub async fn takes_over(&self) {
        self.logs("checkpoint taken over").await;
    }

    /// The address that it listens on.
    pub async fn address(&self) -> String {
        eventually("the daemon listens", async || {
            let log = self.log();
            let (_, rest) = log.split_once("address=")?;
            rest.split_whitespace().next().map(str::to_owned)
        })
        .await
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Whether it has stopped itself, or was stopped.
    pub fn is_stopped(&self) -> bool {
        let pid = self.pid().to_string();
        let state = Command::new("ps")
            .args(["-o", "state=", "-p", &pid])
            .output();
        state.unwrap().stdout.starts_with(b"T")
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the daemon ends", async || self.status()).await
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(mut self) -> (ExitStatus, String) {
        self.signal("TERM");
        let status = self.ended().await;
        (status, self.log())
    }

    /// Ends it where it is.
    pub fn kill(mut self) {
        self.kill9();
    }

    /// Ends it where it is; no more than that if it has ended already.
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.log_is_temporary {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", self.log());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
