//! Finding the file, reading it, and saying precisely what is wrong with it.

use std::path::{Path, PathBuf};

use super::Config;

/// Where the file is looked for if no path is given; the first hit wins.
const PLACES: [&str; 2] = ["analytics.yml", "/etc/fechatter/analytics.yml"];

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read `{path}`: {error}", path = path.display())]
    Unreadable {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path}:{line}:{column}: {message}", path = path.display())]
    Invalid {
        path: PathBuf,
        line: usize,
        column: usize,
        message: String,
    },
    #[error("integrations.messaging.password also needs `username`")]
    PasswordWithoutUser,
    #[error("server.db_tls_ca_file needs an `https://` address in `db_url`")]
    AuthorityWithoutTls,
    #[error("environment variable {name}: {message}")]
    Environment { name: &'static str, message: String },
}

impl Config {
    /// Reads `path`, or the first file that is found in `PLACES`, or uses the defaults if there is
    /// none; then applies the overrides of [`ENVIRONMENT`](super::ENVIRONMENT), looked up through
    /// `env`. Also returns the path that was read.
    pub fn load(
        path: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, Option<PathBuf>), ConfigError> {
        let path = Self::find(path);
        let mut config = match &path {
            None => Self::default(),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                        path: path.clone(),
                        error,
                    })?;
                Self::parse(&text, path)?
            }
        };
        config.override_from(env)?;
        let messaging = &config.integrations.messaging;
        if messaging.password.is_some() && messaging.username.is_none() {
            return Err(ConfigError::PasswordWithoutUser);
        }
        if let Some(path) = &messaging.credentials_file {
            std::fs::File::open(path).map_err(|error| ConfigError::Unreadable {
                path: path.clone(),
                error,
            })?;
        }
        let server = &config.server;
        if server.db_tls_ca_file.is_some() && !server.db_url.address().is_https() {
            return Err(ConfigError::AuthorityWithoutTls);
        }
        Ok((config, path))
    }

    /// The file that [`load`](Self::load) reads.
    pub fn find(path: Option<&Path>) -> Option<PathBuf> {
        path.map(Path::to_owned).or_else(|| {
            PLACES
                .iter()
                .map(PathBuf::from)
                .find(|place| place.exists())
        })
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        serde_yaml::from_str(text).map_err(|error| {
            let (line, column) = error
                .location()
                .map_or((1, 1), |place| (place.line(), place.column()));
            let message = error.to_string();
            let message = message
                .strip_suffix(&format!(" at line {line} column {column}"))
                .unwrap_or(&message);
            ConfigError::Invalid {
                path: path.to_owned(),
                line,
                column,
                message: in_plain_words(&with_nearest_key(message)),
            }
        })
    }
}

/// Puts what serde calls by its Rust name as a file's author would.
fn in_plain_words(message: &str) -> String {
    if let Some((rest, _)) = message.split_once("expected struct ") {
        return format!("{rest}expected keys and values");
    }
    message
        .replace("a nonzero usize", "a whole number above 0")
        .replace("a nonzero u16", "a whole number above 0")
}

/// Ends a message about an unknown key with the key that was most likely meant.
///
/// serde names the known keys only in its text: ``unknown field `a`, expected one of `b`, `c` ``.
fn with_nearest_key(message: &str) -> String {
    let Some((_, rest)) = message.split_once("unknown field `") else {
        return message.to_owned();
    };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    let known = quoted.skip(1).step_by(2);
    let nearest = known.max_by(|a, b| {
        let likeness = |key: &str| strsim::jaro_winkler(unknown, key);
        likeness(a).total_cmp(&likeness(b))
    });
    let place = message
        .split_once(": unknown field")
        .map_or(String::new(), |(place, _)| format!("{place}."));
    match nearest {
        Some(nearest) => format!("unknown key `{place}{unknown}`, did you mean `{nearest}`?"),
        None => format!("unknown key `{place}{unknown}`"),
    }
}
