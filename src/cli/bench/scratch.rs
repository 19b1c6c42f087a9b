//! What a run creates on the user's servers and on disk, under names of its own, and
//! removes again.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config as StreamConfig, Stream};
use clickhouse::Row;
use serde::Deserialize;
use uuid::Uuid;

use crate::checkpoint;
use crate::cli::engine::EngineProcess;
use crate::cli::migrate;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::quote::quote_identifier;
use crate::config::{Config, Database, Subjects};
use crate::lane::consume::{Consumer, Durable};
use crate::lane::{Lane, Progress};
use crate::nats::{self, StreamId};

/// For messages that nobody removed: those of a run that was killed.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// How long JetStream remembers the ids of messages. Millions of them would be a large part
/// of the memory that is measured, and a repeat here is a message of its own.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);

/// The user's configuration with the run's own names in place of the user's.
pub fn config(user: &Config, run: &str) -> Config {
    let mut config = user.clone();
    let messaging = &mut config.integrations.messaging;
    messaging.jetstream.stream_name = format!("ANALYTICS_BENCH_{run}");
    messaging.jetstream.max_age = MAX_AGE;
    // A token of its own: rights on subjects can only end at a dot.
    messaging.subjects = Subjects {
        analytics_events: format!("analytics_bench.{run}.>"),
        analytics_batch: format!("analytics_bench.{run}.batch"),
        user_events: None,
        chat_events: None,
        message_events: None,
        bot_events: None,
        error_events: None,
    };
    config.server.db_name = format!("{}_bench_{run}", user.server.db_name);
    config.server.base_dir = user.server.base_dir.join(format!("bench_{run}"));
    config
}

/// Different from any other run's.
pub fn run_name() -> String {
    let id = Uuid::new_v4().simple().to_string();
    id[..8].to_owned()
}

/// What the run has created so far, and where.
pub struct Scratch {
    pub config: Config,
    pub lane: Lane,
    pub nats: Client,
    pub jetstream: jetstream::Context,
    pub clickhouse: ClickHouse,
    engine: Option<EngineProcess>,
    /// What was there before stays.
    bucket_was_there: bool,
    base_dir_was_there: bool,
}

impl Scratch {
    /// `config` is what [`config`] gives. Nothing is created yet; both servers answer.
    pub async fn new(config: Config, nats: Client) -> Result<Self> {
        let jetstream = jetstream::new(nats.clone());
        let clickhouse = ClickHouse::new(&config).patient();
        if let Database::Server(address) = &config.server.db_url {
            let answer = clickhouse.version().await;
            answer.with_context(|| format!("cannot use ClickHouse at {address}"))?;
        }
        let base_dir = config.server.base_dir.parent();
        Ok(Self {
            clickhouse,
            nats,
            engine: None,
            bucket_was_there: checkpoint::bucket_exists(&jetstream).await?,
            base_dir_was_there: base_dir.is_some_and(|dir| dir.exists()),
            jetstream,
            lane: Lane::first(&config),
            config,
        })
    }

    /// The names of everything, for someone who has to remove it.
    pub fn names(&self) -> String {
        let Config { server, .. } = &self.config;
        let database = match server.db_url {
            Database::Embedded { .. } => String::new(),
            Database::Server(_) => format!("database `{}`, ", server.db_name),
        };
        let bucket = match self.bucket_was_there {
            true => "",
            false => "bucket ",
        };
        format!(
            "stream `{}` and its record in {bucket}`{}`, {database}folder `{}`",
            self.stream_name(),
            checkpoint::BUCKET,
            server.base_dir.display()
        )
    }

    fn stream_name(&self) -> &str {
        &self.lane.stream.name
    }

    /// A folder that is removed with everything else.
    pub fn folder(&self) -> &PathBuf {
        &self.config.server.base_dir
    }

    /// The embedded ClickHouse's process.
    pub fn clickhouse_pid(&self) -> Option<u32> {
        self.engine.as_ref().and_then(EngineProcess::pid)
    }

    /// Creates what stays for the whole run: folder, bucket, and the engine if it is embedded.
    /// Returns ClickHouse's version.
    pub async fn make(&mut self) -> Result<String> {
        let Config { server, .. } = &self.config;
        std::fs::create_dir_all(self.folder()).with_context(|| {
            format!(
                "cannot create folder `{}` (server.base_dir)",
                self.folder().display()
            )
        })?;
        if let Database::Embedded { port } = server.db_url {
            let engine = EngineProcess::start(&self.config, port, &self.clickhouse).await;
            self.engine = Some(engine.map_err(|error| beside_daemon(error, port))?);
        }
        // Here, so that creating it is not measured.
        checkpoint::open_bucket(&self.jetstream, self.lane.stream.num_replicas).await?;
        Ok(self.clickhouse.version().await?)
    }

    /// Creates the stream anew, as the daemon would create it except for the duplicate window.
    pub async fn empty_stream(&self) -> Result<()> {
        self.remove_stream().await?;
        self.forget().await?;
        let stream = nats::open_stream(&self.jetstream, &self.lane.stream).await?;
        let config = StreamConfig {
            duplicate_window: DUPLICATE_WINDOW,
            description: Some("Scratch of analytics-server bench, to be deleted".to_owned()),
            ..stream.cached_info().config.clone()
        };
        self.jetstream.update_stream(config).await?;
        Ok(())
    }

    async fn remove_stream(&self) -> Result<()> {
        let name = self.stream_name();
        if nats::find_stream(&self.jetstream, name).await?.is_some() {
            self.jetstream.delete_stream(name).await?;
        }
        Ok(())
    }

    /// Removes the stream's checkpoint.
    async fn forget(&self) -> Result<()> {
        let consumer = &self.lane.stream.consumer;
        checkpoint::forget(&self.jetstream, self.stream_name(), consumer).await?;
        Ok(())
    }

    /// For a pipeline that is measured.
    pub fn progress(&self) -> Result<Arc<Progress>> {
        Ok(Arc::new(Progress::unobserved(&self.lane)?))
    }

    /// The stream as it is now.
    pub async fn stream(&self) -> Result<Stream> {
        let stream = nats::find_stream(&self.jetstream, self.stream_name()).await?;
        stream.with_context(|| format!("stream `{}` is gone", self.stream_name()))
    }

    /// Reads the stream from its beginning, as the pipeline does.
    pub async fn consumer(&self) -> Result<Consumer> {
        let max_payload = self.nats.server_info().max_payload;
        let durable = Durable::new(&self.lane.stream, max_payload);
        let stream = self.stream().await?;
        Ok(Consumer::new(self.jetstream.clone(), stream, durable, 0, 0))
    }

    /// Creates the database anew, with all its tables.
    pub async fn empty_database(&self) -> Result<()> {
        self.drop_database().await?;
        let lanes = std::slice::from_ref(&self.lane);
        migrate::apply(&self.clickhouse, &self.config, lanes).await?;
        Ok(())
    }

    async fn drop_database(&self) -> Result<()> {
        // SYNC: otherwise ClickHouse would remove the files minutes later.
        let drop = format!(
            "DROP DATABASE IF EXISTS {} SYNC",
            quote_identifier(self.clickhouse.database())
        );
        self.clickhouse.without_database().execute(&drop).await?;
        Ok(())
    }

    /// Makes sure that each event of the stream was stored once, and counted once.
    pub async fn holds_each_once(&self, stream: &StreamId, events: u64) -> Result<()> {
        #[derive(Row, Deserialize)]
        struct Stored {
            rows: u64,
            sequences: u64,
            counted: u64,
        }
        let sql = "SELECT count() AS rows, uniqExact(stream_seq) AS sequences,
                       ifNull((SELECT sum(count) FROM event_counts_by_type), 0) AS counted
                   FROM analytics_events WHERE stream = {stream:String}";
        let stream = stream.to_string();
        let answer: Vec<Stored> = self.clickhouse.rows(sql, &[("stream", &stream)]).await?;
        for Stored {
            rows,
            sequences,
            counted,
        } in answer
        {
            ensure!(
                [rows, sequences, counted] == [events; 3],
                "not exactly once: {events} events were published; {rows} rows are stored, of {sequences} events, and {counted} are counted by a view"
            );
        }
        Ok(())
    }

    /// Removes everything that was created; continues with the next if one cannot be removed.
    pub async fn remove(mut self) -> Result<()> {
        let names = self.names();
        let stream = self.remove_from_nats().await;
        let database = match self.engine.take() {
            Some(engine) => {
                engine.stop().await;
                Ok(())
            }
            // Its process was never started.
            None if matches!(self.config.server.db_url, Database::Embedded { .. }) => Ok(()),
            None => self.drop_database().await,
        };
        let folder = remove_folder(self.folder(), self.base_dir_was_there);
        stream
            .and(database)
            .and(folder.map_err(Into::into))
            .with_context(|| format!("not everything could be removed: {names}"))
    }

    async fn remove_from_nats(&self) -> Result<()> {
        let stream = self.remove_stream().await;
        let record = self.forget().await;
        let bucket = match self.bucket_was_there {
            true => Ok(()),
            false => checkpoint::delete_empty_bucket(&self.jetstream).await,
        };
        stream.and(record).and(bucket.map_err(Into::into))
    }
}

/// Adds what to do if the port is that of a running daemon's embedded ClickHouse.
fn beside_daemon(error: anyhow::Error, port: u16) -> anyhow::Error {
    let is_taken = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    if error.chain().any(is_taken) {
        error.context(format!(
            "to measure alongside a running daemon, set db_url to its ClickHouse, http://127.0.0.1:{port}"
        ))
    } else {
        error
    }
}

fn remove_folder(folder: &PathBuf, parent_was_there: bool) -> std::io::Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    if !parent_was_there && let Some(parent) = folder.parent() {
        // Stays if somebody else has put something into it in the meantime.
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::covering_set;

    #[test]
    fn a_run_shares_no_name_with_the_user_and_all_settings() {
        let mut user = Config::default();
        user.features.analytics.batch_size = 7.try_into().unwrap();
        user.integrations.messaging.subjects.user_events = Some("fechatter.user.>".to_owned());
        let scratch = config(&user, "0a1b2c3d");
        assert_eq!(scratch.features.analytics.batch_size.get(), 7);
        let (own, users) = (
            &scratch.integrations.messaging,
            &user.integrations.messaging,
        );
        assert_ne!(own.jetstream.stream_name, users.jetstream.stream_name);
        assert_ne!(scratch.server.db_name, user.server.db_name);
        assert_ne!(scratch.server.base_dir, user.server.base_dir);
        let subjects = covering_set(own.subjects.all());
        assert_eq!(subjects, ["analytics_bench.0a1b2c3d.>"]);
        let all = users
            .subjects
            .all()
            .chain(subjects.iter().map(String::as_str));
        assert!(
            covering_set(all).contains(&subjects[0]),
            "nothing of the user's covers it"
        );
    }

    #[test]
    fn a_folder_that_was_there_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        for (base, was_there) in [("new", false), ("old", true)] {
            let folder = dir.path().join(base).join("bench");
            std::fs::create_dir_all(folder.join("deep")).unwrap();
            remove_folder(&folder, was_there).unwrap();
            assert!(!folder.exists());
            assert_eq!(dir.path().join(base).exists(), was_there);
            remove_folder(&folder, was_there).unwrap();
        }
    }
}
