//! `analytics-server clickhouse`: the ClickHouse engine as a server of its own.

use std::env;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clickhouse::embedded::{Credentials, Engine, serve};
use crate::config;

/// Serve ClickHouse's HTTP interface without a ClickHouse server
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the data, created if it is missing
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Port of the HTTP interface; 0 picks a free one
    #[arg(long, default_value_t = 8123)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// ClickHouse's library, which scripts/deps.sh fetches [default: searched in
    /// $FECHATTER_DEPS_DIR/lib, ./.dev/lib, next to this program, /usr/local/lib, /usr/lib]
    #[arg(long, value_name = "FILE", env = "LIBCHDB_PATH")]
    libchdb: Option<PathBuf>,
    /// User that clients must name
    #[arg(long, env = "ANALYTICS_DB_USER", default_value = "default")]
    user: String,
    /// The user's password; anyone who can list processes sees it, so prefer the variable
    #[arg(long, env = "ANALYTICS_DB_PASSWORD", hide_env_values = true)]
    password: Option<SecretString>,
    /// A file that holds the password
    #[arg(long, value_name = "FILE", env = "ANALYTICS_DB_PASSWORD_FILE")]
    password_file: Option<String>,
    /// Stop at the end of standard input, so that a parent that dies leaves nothing behind
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;
    if args.exit_with_parent {
        stop_with_parent(shutdown.clone());
    }
    let password = password(args.password, args.password_file)?;
    let library = match args.libchdb {
        Some(path) if path.is_file() => path,
        Some(path) => bail!("`{}` is missing: run scripts/deps.sh", path.display()),
        None => find_library()?,
    };
    let address = format!("{}:{}", args.host, args.port);
    // Before the engine starts, which takes seconds and a lock.
    let listener = match TcpListener::bind(&address).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("{address} is in use by another process; choose another --port")
        }
        Err(error) => return Err(error).context(format!("cannot listen on {address}")),
    };
    let (library, path) = (absolute(library)?, absolute(args.path)?);
    enter_user_files(&path)?;
    let engine = Engine::open(library, path).await?;
    info!(
        address = %listener.local_addr()?,
        version = engine.about().version,
        "embedded ClickHouse listens"
    );
    let credentials = Credentials {
        user: args.user,
        password,
    };
    serve(listener, engine, credentials, shutdown).await?;
    info!("embedded ClickHouse stopped");
    Ok(())
}

/// As in the configuration, what is empty counts as not given.
fn password(given: Option<SecretString>, file: Option<String>) -> anyhow::Result<SecretString> {
    let given = given.filter(|password| !password.expose_secret().is_empty());
    match (given, file.filter(|file| !file.is_empty())) {
        (Some(password), _) => Ok(password),
        (None, Some(file)) => config::secret_in(&file).map_err(anyhow::Error::msg),
        (None, None) => Ok(SecretString::default()),
    }
}

fn stop_on_signals(shutdown: &CancellationToken) -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(())
}

/// On a thread of its own: tokio's runtime would wait for a read of standard input.
fn stop_with_parent(shutdown: CancellationToken) {
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut ignored = [0; 64];
        while matches!(input.read(&mut ignored), Ok(length) if length > 0) {}
        shutdown.cancel();
    });
}

/// Relative names in `file()` are relative to the working directory in libchdb; ClickHouse puts
/// them into the data directory, and so does this. To be called before the engine is opened, which
/// would also read a `config.xml` that it finds in the working directory.
fn enter_user_files(path: &Path) -> anyhow::Result<()> {
    let directory = path.join("user_files");
    std::fs::create_dir_all(&directory)
        .and_then(|()| env::set_current_dir(&directory))
        .with_context(|| format!("cannot use directory `{}`", path.display()))
}

fn find_library() -> anyhow::Result<PathBuf> {
    let name = format!("libchdb{}", env::consts::DLL_SUFFIX);
    let mut directories = Vec::new();
    if let Some(deps) = env::var_os("FECHATTER_DEPS_DIR") {
        directories.push(PathBuf::from(deps).join("lib"));
    }
    directories.push(PathBuf::from(".dev/lib"));
    if let Ok(program) = env::current_exe() {
        for above in program.ancestors().skip(1).take(3) {
            directories.extend([above.to_owned(), above.join("lib"), above.join(".dev/lib")]);
        }
    }
    directories.extend(["/usr/local/lib".into(), "/usr/lib".into()]);
    let mut candidates = directories.iter().map(|directory| directory.join(&name));
    candidates
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("{name} is missing: run scripts/deps.sh, or name it with --libchdb")
        })
}
