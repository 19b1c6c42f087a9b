//! The engine in this process: opened once, a connection for every request, closed
//! in the order that libchdb demands.
//!
//! Nothing can leak from one request into the next, since no two share a connection;
//! opening one takes 0.3 ms.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::exception::Exception;
use super::libchdb::{Connection, Library, OpenError, Statement};

/// Each holds a thread of tokio's blocking pool (512 by default), so this leaves room
/// for whatever else blocks.
const MAX_CONCURRENT_QUERIES: u32 = 256;

/// How long queries have to notice that they were killed; they look about once a
/// second.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Carries a request's tag into `system.processes`, where [`Engine::kill`] finds it:
/// libchdb takes no query id. The setting chooses server logs for clients of the
/// native protocol, of which there are none here.
pub const TAG_SETTING: &str = "send_logs_source_regexp";

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Library(#[from] OpenError),
    #[error("cannot use directory `{path}`")]
    Directory { path: PathBuf, source: io::Error },
    #[error("directory `{path}` is in use by another ClickHouse process")]
    Locked { path: PathBuf },
    #[error("the ClickHouse engine cannot open directory `{path}`")]
    Refused { path: PathBuf },
    #[error("the ClickHouse engine does not answer: {0}")]
    Unusable(Exception),
}

/// What the engine says about itself in every response.
#[derive(Debug)]
pub struct About {
    pub version: String,
    pub timezone: String,
    pub display_name: String,
}

/// A handle to the one engine that a process can have.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    library: Arc<Library>,
    arguments: Vec<CString>,
    /// Keeps the engine running between requests, and kills queries.
    anchor: Mutex<Option<Connection>>,
    permits: Arc<Semaphore>,
    about: About,
}

/// A connection and its place among the concurrent queries.
pub struct Lease {
    // Dropped first: whoever gets the place must find the connection closed.
    pub connection: Connection,
    _permit: OwnedSemaphorePermit,
}

impl Engine {
    /// Starts the engine of the library at `library` on the data directory `path`,
    /// which is created if it is missing.
    pub async fn open(library: PathBuf, path: PathBuf) -> Result<Self, EngineError> {
        spawn_blocking(move || Self::open_blocking(&library, &path))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn open_blocking(library: &Path, path: &Path) -> Result<Self, EngineError> {
        let directory_error = |source| EngineError::Directory {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(directory_error)?;
        let path = fs::canonicalize(path).map_err(directory_error)?;
        if is_locked(&path) {
            return Err(EngineError::Locked { path });
        }
        let arguments = [
            "clickhouse".to_owned(),
            format!("--path={}", path.display()),
            // What `clickhouse local` changes and a server does not.
            "--implicit_select=0".to_owned(),
            "--allow_introspection_functions=0".to_owned(),
        ];
        let arguments = arguments
            .into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| directory_error(error.into()))?;
        let library = Library::open(library)?;
        let Some(mut anchor) = library.connect(&arguments) else {
            return Err(EngineError::Refused { path });
        };
        let about = match about(&mut anchor) {
            Ok(about) => about,
            Err(exception) => {
                drop(anchor);
                library.shutdown();
                return Err(EngineError::Unusable(exception));
            }
        };
        debug!(version = about.version, "engine started");
        Ok(Self {
            inner: Arc::new(Inner {
                library,
                arguments,
                anchor: Mutex::new(Some(anchor)),
                permits: Arc::new(Semaphore::new(MAX_CONCURRENT_QUERIES as usize)),
                about,
            }),
        })
    }

    pub fn about(&self) -> &About {
        &self.inner.about
    }

    /// A fresh connection. Blocks for less than a millisecond.
    pub fn connect(&self) -> Result<Lease, Exception> {
        let Ok(permit) = Arc::clone(&self.inner.permits).try_acquire_owned() else {
            return Err(Exception::new(
                202,
                "TOO_MANY_SIMULTANEOUS_QUERIES",
                format_args!("Too many simultaneous queries. Maximum: {MAX_CONCURRENT_QUERIES}"),
            ));
        };
        let connection = self.inner.library.connect(&self.inner.arguments);
        let connection = connection.ok_or_else(|| {
            Exception::new(1001, "STD_EXCEPTION", "the engine refuses a connection")
        })?;
        Ok(Lease {
            connection,
            _permit: permit,
        })
    }

    /// Kills the SELECT of a request whose client is gone. A stream cannot be
    /// cancelled from another thread while it computes. What writes continues, as in
    /// ClickHouse. Blocks.
    pub fn kill(&self, tag: &str) {
        self.kill_where(&format!(
            "Settings['{TAG_SETTING}'] = '{tag}' AND query_kind = 'Select'"
        ));
    }

    fn kill_where(&self, condition: &str) {
        let anchor = &self.inner.anchor;
        let mut anchor = anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = anchor.as_mut() else {
            return;
        };
        let sql = format!("KILL QUERY WHERE {condition} ASYNC");
        if let Err(error) = query(connection, &sql) {
            warn!(%error, "cannot kill query");
        }
    }

    /// Ends what is still running, closes every connection and stops the engine; the
    /// process aborts at its exit if a connection is open then.
    pub async fn close(self) {
        let all = MAX_CONCURRENT_QUERIES;
        if self.inner.permits.available_permits() < all as usize {
            let engine = self.clone();
            if spawn_blocking(move || engine.kill_where("1"))
                .await
                .is_err()
            {
                warn!("cannot kill the queries that are still running");
            }
        }
        let idle = timeout(
            KILL_GRACE,
            Arc::clone(&self.inner.permits).acquire_many_owned(all),
        )
        .await;
        if !matches!(idle, Ok(Ok(_))) {
            warn!("queries are still running, the engine is not stopped cleanly");
            return;
        }
        self.inner.permits.close();
        let stopped = spawn_blocking(move || {
            let anchor = &self.inner.anchor;
            drop(anchor.lock().unwrap_or_else(PoisonError::into_inner).take());
            self.inner.library.shutdown()
        });
        match stopped.await {
            // Closing the last connection has closed the tables and released the
            // directory; 26.7 then refuses to join its threads whenever a MergeTree
            // table was open, and exits well all the same.
            Ok(joined) => debug!(joined, "engine stopped"),
            Err(_) => warn!("the engine did not stop cleanly"),
        }
    }
}

/// Whether another engine holds the directory. The engine takes this very lock too;
/// asking first gives a clear error instead of a null connection.
fn is_locked(path: &Path) -> bool {
    File::open(path.join("status"))
        .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn about(connection: &mut Connection) -> Result<About, Exception> {
    let row = query(connection, "SELECT version(), timezone(), displayName()")?;
    let mut fields = row.trim_end().split('\t').map(str::to_owned);
    let mut next = || fields.next().unwrap_or_default();
    Ok(About {
        version: next(),
        timezone: next(),
        display_name: next(),
    })
}

fn query(connection: &mut Connection, sql: &str) -> Result<String, Exception> {
    let statement = Statement {
        sql: sql.as_bytes(),
        format: "TabSeparated",
        parameters: &[],
    };
    let result = connection.query(statement);
    let result = result.map_err(Exception::from_engine)?;
    Ok(String::from_utf8_lossy(result.bytes()).into_owned())
}
