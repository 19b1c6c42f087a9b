//! `analytics.yml`: every key, its default and its unit.
//!
//! [`Config::load`] finds and reads the file; an unknown key is an error, so that a misspelt one
//! does not silently become a default.

mod address;
mod authority;
mod environment;
mod load;
mod values;

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, de};

pub use address::Address;
pub use authority::Authority;
pub use environment::{ENVIRONMENT, Variable, secret_in};
pub use load::ConfigError;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: Server,
    pub integrations: Integrations,
    pub features: Features,
    pub observability: Observability,
}

/// The daemon itself and the ClickHouse that it writes to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address that the daemon's own HTTP interface listens on. Default `127.0.0.1`.
    pub host: IpAddr,
    /// Its port. Default 6690.
    pub port: u16,
    /// Where ClickHouse is. Default `http://localhost:8123`.
    pub db_url: Database,
    /// Default `default`, ClickHouse's own.
    pub db_user: String,
    /// Default none.
    pub db_password: Option<SecretString>,
    /// Certificate authorities (PEM) to trust in addition to the system's. Default none.
    #[serde(deserialize_with = "values::db_tls_ca_file")]
    pub db_tls_ca_file: Option<Authority>,
    /// Database that holds all tables; created if missing. Default `fechatter_analytics`.
    pub db_name: String,
    /// Folder for what the daemon keeps on disk: the embedded ClickHouse's data,
    /// nothing otherwise. Default `/tmp/fechatter_analytics`.
    pub base_dir: PathBuf,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 6690,
            db_url: Database::default(),
            db_user: "default".to_owned(),
            db_password: None,
            db_tls_ca_file: None,
            db_name: "fechatter_analytics".to_owned(),
            base_dir: PathBuf::from("/tmp/fechatter_analytics"),
        }
    }
}

/// What the daemon reports about itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Observability {
    /// Which lines are logged, in the form of RUST_LOG, which takes precedence. Default
    /// `warn,async_nats=off,analytics_server=info`.
    #[serde(deserialize_with = "values::log_filter")]
    pub log_filter: Option<String>,
    pub metrics: MetricsConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// A port for `/metrics` alone, in addition to `server.port`. Default none.
    pub port: Option<u16>,
}

/// `server.db_url`: a ClickHouse server's HTTP address, or `embedded`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// `serve` runs the embedded engine as a child process and serves it on this port.
    Embedded {
        port: u16,
    },
    Server(Address),
}

/// The port of ClickHouse's HTTP interface.
pub const CLICKHOUSE_PORT: u16 = 8123;

impl Database {
    /// The address of ClickHouse's HTTP interface.
    pub fn address(&self) -> Address {
        match self {
            Self::Embedded { port } => Address::new(format!("http://127.0.0.1:{port}")),
            Self::Server(address) => address.clone(),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("embedded") {
            let port = match rest.strip_prefix(':') {
                None if rest.is_empty() => Some(CLICKHOUSE_PORT),
                None => None,
                Some(port) => port.parse::<NonZeroU16>().ok().map(NonZeroU16::get),
            };
            if let Some(port) = port {
                return Ok(Self::Embedded { port });
            }
        }
        if let Some(rest) = text
            .strip_prefix("http://")
            .or(text.strip_prefix("https://"))
        {
            if rest.contains(['@', '?']) {
                return Err("db_url cannot carry a user, a password or settings: use db_user and db_password".to_owned());
            }
            return Ok(Self::Server(Address::new(text)));
        }
        Err(format!(
            "db_url `{}` is not a ClickHouse address: expected `http://host:8123`, `https://host:8443`, `embedded` or `embedded:PORT`",
            Address::new(text)
        ))
    }
}

impl Default for Database {
    fn default() -> Self {
        Self::Server(Address::new(format!("http://localhost:{CLICKHOUSE_PORT}")))
    }
}

impl<'de> Deserialize<'de> for Database {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Integrations {
    pub messaging: Messaging,
}

/// NATS: where it is, how to log in, which stream and subjects.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Messaging {
    /// Must be true: there is nowhere else to read events from. Default true.
    #[serde(deserialize_with = "values::enabled")]
    pub enabled: bool,
    /// One address, or several of one cluster separated by commas. Default `nats://localhost:4222`.
    #[serde(deserialize_with = "values::nats_url")]
    pub nats_url: Address,
    /// Must be true: exactly once depends on JetStream. Default true.
    #[serde(deserialize_with = "values::jetstream_enabled")]
    pub jetstream_enabled: bool,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    pub token: Option<SecretString>,
    /// A `.creds` file, as `nsc` writes them.
    pub credentials_file: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust in addition to the system's; requires TLS.
    #[serde(deserialize_with = "values::tls_ca_file")]
    pub tls_ca_file: Option<Authority>,
    pub subjects: Subjects,
    pub jetstream: JetStream,
}

impl Default for Messaging {
    fn default() -> Self {
        Self {
            enabled: true,
            nats_url: Address::new("nats://localhost:4222"),
            jetstream_enabled: true,
            username: None,
            password: None,
            token: None,
            credentials_file: None,
            tls_ca_file: None,
            subjects: Subjects::default(),
            jetstream: JetStream::default(),
        }
    }
}

/// The subjects that events arrive on. They may overlap: the smallest set that
/// covers them is used.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Subjects {
    /// Default `fechatter.analytics.>`.
    #[serde(deserialize_with = "values::subject")]
    pub analytics_events: String,
    /// The one subject whose messages carry many events. Default `fechatter.analytics.batch`.
    #[serde(deserialize_with = "values::subject")]
    pub analytics_batch: String,
    #[serde(deserialize_with = "values::optional_subject")]
    pub user_events: Option<String>,
    #[serde(deserialize_with = "values::optional_subject")]
    pub chat_events: Option<String>,
    #[serde(deserialize_with = "values::optional_subject")]
    pub message_events: Option<String>,
    #[serde(deserialize_with = "values::optional_subject")]
    pub bot_events: Option<String>,
    #[serde(deserialize_with = "values::optional_subject")]
    pub error_events: Option<String>,
}

impl Subjects {
    /// All subjects, as configured: with overlaps, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.analytics_events, &self.analytics_batch]
            .into_iter()
            .chain(&self.user_events)
            .chain(&self.chat_events)
            .chain(&self.message_events)
            .chain(&self.bot_events)
            .chain(&self.error_events)
            .map(String::as_str)
    }
}

impl Default for Subjects {
    fn default() -> Self {
        Self {
            analytics_events: "fechatter.analytics.>".to_owned(),
            analytics_batch: "fechatter.analytics.batch".to_owned(),
            user_events: None,
            chat_events: None,
            message_events: None,
            bot_events: None,
            error_events: None,
        }
    }
}

/// The stream, which is created with these settings if it is missing, and the durable consumer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JetStream {
    /// Default `ANALYTICS`.
    #[serde(deserialize_with = "values::name")]
    pub stream_name: String,
    /// Also names the checkpoint. Default `analytics-processor`.
    #[serde(deserialize_with = "values::name")]
    pub consumer_name: String,
    /// Hours that the stream keeps a message. Default 720, thirty days.
    #[serde(rename = "max_age_hours", deserialize_with = "values::max_age")]
    pub max_age: Duration,
    /// Default `file`.
    pub storage_type: Storage,
    /// Copies of the stream and of the checkpoint in a NATS cluster. Default 1.
    pub num_replicas: NonZeroUsize,
}

impl Default for JetStream {
    fn default() -> Self {
        Self {
            stream_name: "ANALYTICS".to_owned(),
            consumer_name: "analytics-processor".to_owned(),
            max_age: Duration::from_secs(720 * 3600),
            storage_type: Storage::File,
            num_replicas: NonZeroUsize::MIN,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    File,
    Memory,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Features {
    pub analytics: Analytics,
}

/// How events are batched, inserted and kept, and by which instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Analytics {
    /// Rows that fill a batch. Default 50,000.
    #[serde(deserialize_with = "values::batch_size")]
    pub batch_size: NonZeroUsize,
    /// Bytes of messages that fill a batch. Default 32 MiB.
    #[serde(deserialize_with = "values::batch_max_bytes")]
    pub batch_max_bytes: ByteSize,
    /// Seconds, fractions allowed, after which a batch that is not full is
    /// inserted. Default 1.
    #[serde(
        rename = "flush_interval_seconds",
        deserialize_with = "values::flush_interval"
    )]
    pub flush_interval: Duration,
    /// Inserts under way at a time: ClickHouse works on one while the next arrives.
    /// Default 2.
    #[serde(deserialize_with = "values::max_in_flight")]
    pub max_in_flight: NonZeroUsize,
    /// Tasks that decode at a time while a batch is read. Default: a quarter of the cores, at least
    /// one and at most four.
    #[serde(deserialize_with = "values::decode_workers")]
    pub decode_workers: NonZeroUsize,
    /// Default `auto`.
    pub compression: Compression,
    /// Seconds that an insert may take after its last byte, before it is sent again.
    /// Default 120.
    #[serde(
        rename = "insert_timeout_seconds",
        deserialize_with = "values::insert_timeout"
    )]
    pub insert_timeout: Duration,
    /// Seconds without a sign of life from the active instance, after which another one takes over.
    /// Default 10.
    #[serde(
        rename = "lease_timeout_seconds",
        deserialize_with = "values::lease_timeout"
    )]
    pub lease_timeout: Duration,
    /// Days that ClickHouse keeps rows. Default 90.
    pub retention_days: NonZeroU16,
}

impl Analytics {
    /// How long ClickHouse keeps rows.
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days.get()) * 24 * 3600)
    }
}

impl Default for Analytics {
    fn default() -> Self {
        Self {
            batch_size: const { NonZeroUsize::new(50_000).unwrap() },
            batch_max_bytes: ByteSize::mib(32),
            flush_interval: Duration::from_secs(1),
            max_in_flight: const { NonZeroUsize::new(2).unwrap() },
            decode_workers: decode_workers(),
            compression: Compression::Auto,
            insert_timeout: Duration::from_secs(120),
            lease_timeout: Duration::from_secs(10),
            retention_days: const { NonZeroU16::new(90).unwrap() },
        }
    }
}

/// How blocks are sent to ClickHouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// `none` for a server on this machine, otherwise `lz4`.
    Auto,
    Lz4,
    None,
}

fn decode_workers() -> NonZeroUsize {
    const MOST: NonZeroUsize = const { NonZeroUsize::new(4).unwrap() };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores / 4).map_or(NonZeroUsize::MIN, |workers| workers.min(MOST))
}

#[cfg(test)]
mod tests;
