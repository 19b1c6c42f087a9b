//! The stream that events stand in: made when missing, left alone when it exists.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, ErrorCode};
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;
use tracing::{info, warn};

use super::subjects::{covering_set, covers};
use crate::config::{Messaging, Storage};

/// A stream's name and creation time: a stream that was deleted and made again
/// is another one, though its sequences are the same numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamId {
    pub name: String,
    /// RFC 3339, in UTC, to the nanosecond.
    pub created: String,
}

impl StreamId {
    pub fn of(stream: &Stream) -> Self {
        let info = stream.cached_info();
        Self {
            name: info.config.name.clone(),
            // A time that JetStream sent in this format can be written in it.
            created: info
                .created
                .to_offset(UtcOffset::UTC)
                .format(&Rfc3339)
                .unwrap_or_default(),
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.created)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("JetStream does not answer: {0}")]
    Unavailable(String),
    #[error("JetStream refuses to create stream `{name}`: {error}")]
    Refused { name: String, error: String },
    /// The stream exists and does not hold the events, or would lose some.
    #[error("stream `{name}` does not fit: {}", list(.differences))]
    Unfit {
        name: String,
        differences: Vec<Difference>,
    },
}

/// A setting of an existing stream that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub setting: &'static str,
    pub is: String,
    pub should_be: String,
    /// The command that mends it.
    pub remedy: String,
    /// Whether events would be lost or never seen.
    pub fatal: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            is,
            should_be,
            remedy,
            ..
        } = self;
        write!(
            f,
            "{setting} is {is}, should be {should_be} (run: {remedy})"
        )
    }
}

fn list(differences: &[Difference]) -> String {
    let differences: Vec<String> = differences.iter().map(Difference::to_string).collect();
    differences.join("; ")
}

/// The stream, made when it is missing. Differences that lose nothing are
/// logged as warnings, others are [`StreamError::Unfit`].
pub async fn open_stream(
    jetstream: &jetstream::Context,
    messaging: &Messaging,
) -> Result<Stream, StreamError> {
    let name = &messaging.jetstream.stream_name;
    let Some(stream) = find_stream(jetstream, name).await? else {
        let stream =
            jetstream
                .create_stream(wanted(messaging))
                .await
                .map_err(|error| match error.kind() {
                    CreateStreamErrorKind::TimedOut => StreamError::Unavailable(error.to_string()),
                    _ => StreamError::Refused {
                        name: name.clone(),
                        error: error.to_string(),
                    },
                })?;
        info!(stream = name, "stream created");
        return Ok(stream);
    };
    let (fatal, harmless): (Vec<_>, Vec<_>) = differences(&stream.cached_info().config, messaging)
        .into_iter()
        .partition(|difference| difference.fatal);
    if !fatal.is_empty() {
        return Err(StreamError::Unfit {
            name: name.clone(),
            differences: fatal,
        });
    }
    for difference in harmless {
        warn!(stream = name, "{difference}");
    }
    Ok(stream)
}

/// The stream as it is, `None` when there is none of this name.
pub async fn find_stream(
    jetstream: &jetstream::Context,
    name: &str,
) -> Result<Option<Stream>, StreamError> {
    match jetstream.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            _ => Err(StreamError::Unavailable(error.to_string())),
        },
    }
}

/// The stream as it is made when it is missing.
fn wanted(messaging: &Messaging) -> Config {
    Config {
        name: messaging.jetstream.stream_name.clone(),
        subjects: covering_set(messaging.subjects.all()),
        retention: RetentionPolicy::Limits,
        storage: storage_type(messaging.jetstream.storage_type),
        max_age: messaging.jetstream.max_age,
        num_replicas: messaging.jetstream.num_replicas.get(),
        allow_direct: true,
        description: Some("Analytics events of fechatter".to_owned()),
        ..Default::default()
    }
}

fn storage_type(storage: Storage) -> StorageType {
    match storage {
        Storage::File => StorageType::File,
        Storage::Memory => StorageType::Memory,
    }
}

/// How an existing stream differs from what the configuration asks for, the
/// fatal differences first.
pub fn differences(is: &Config, messaging: &Messaging) -> Vec<Difference> {
    let wanted = wanted(messaging);
    let name = &wanted.name;
    let mut differences = Vec::new();
    let mut differ = |fatal, setting, is: String, should_be: String, remedy: String| {
        differences.push(Difference {
            setting,
            is,
            should_be,
            remedy,
            fatal,
        });
    };

    // A mirror or an aggregate gets its messages from other streams, not by subject.
    let by_subject = is.mirror.is_none() && is.sources.as_ref().is_none_or(Vec::is_empty);
    let uncovered = |subject: &&String| !is.subjects.iter().any(|pattern| covers(pattern, subject));
    if by_subject && wanted.subjects.iter().any(|subject| uncovered(&subject)) {
        let all = covering_set(
            is.subjects
                .iter()
                .chain(&wanted.subjects)
                .map(String::as_str),
        );
        let edit = format!("nats stream edit {name} --subjects='{}'", all.join(","));
        differ(true, "subjects", is.subjects.join(","), all.join(","), edit);
    }
    if is.retention != RetentionPolicy::Limits {
        // The other policies delete a message once it is acknowledged or nobody listens.
        let recreate = format!(
            "back up and restore: nats stream backup {name} DIR, then nats stream restore DIR with \"retention\":\"limits\""
        );
        differ(
            true,
            "retention",
            format!("{:?}", is.retention).to_lowercase(),
            "limits".to_owned(),
            recreate,
        );
    }
    if is.max_messages_per_subject > 0 {
        let edit = format!("nats stream edit {name} --max-msgs-per-subject=-1");
        differ(
            true,
            "max_msgs_per_subject",
            is.max_messages_per_subject.to_string(),
            "-1".to_owned(),
            edit,
        );
    }
    if is.storage != wanted.storage {
        let recreate = format!(
            "nats stream backup {name} DIR, then nats stream restore DIR with another \"storage\""
        );
        differ(
            false,
            "storage",
            name_of(is.storage),
            name_of(wanted.storage),
            recreate,
        );
    }
    if !is.max_age.is_zero() && is.max_age < wanted.max_age {
        let edit = format!(
            "nats stream edit {name} --max-age={}h",
            wanted.max_age.as_secs() / 3600
        );
        differ(
            false,
            "max_age",
            in_hours(is.max_age),
            in_hours(wanted.max_age),
            edit,
        );
    }
    // A full stream that refuses new messages loses none: producers are told.
    let forgets = is.discard == DiscardPolicy::Old;
    for (setting, limit) in [("max_msgs", is.max_messages), ("max_bytes", is.max_bytes)] {
        if forgets && limit > 0 {
            let edit = format!("nats stream edit {name} --{}=-1", setting.replace('_', "-"));
            differ(false, setting, limit.to_string(), "-1".to_owned(), edit);
        }
    }
    if is.num_replicas < wanted.num_replicas {
        let edit = format!("nats stream edit {name} --replicas={}", wanted.num_replicas);
        differ(
            false,
            "replicas",
            is.num_replicas.to_string(),
            wanted.num_replicas.to_string(),
            edit,
        );
    }
    if !is.allow_direct {
        let edit = format!("nats stream edit {name} --allow-direct");
        differ(
            false,
            "allow_direct",
            "false".to_owned(),
            "true".to_owned(),
            edit,
        );
    }
    differences
}

fn name_of(storage: StorageType) -> String {
    format!("{storage:?}").to_lowercase()
}

fn in_hours(age: Duration) -> String {
    match age.as_secs() {
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_made_by_the_daemon_has_no_differences() {
        let messaging = Messaging::default();
        assert_eq!(differences(&wanted(&messaging), &messaging), []);
    }

    #[test]
    fn each_difference_says_what_to_run() {
        let messaging = Messaging::default();
        let stream = Config {
            subjects: vec!["fechatter.analytics.user.>".to_owned(), "other".to_owned()],
            retention: RetentionPolicy::WorkQueue,
            max_messages_per_subject: 1,
            storage: StorageType::Memory,
            max_age: Duration::from_secs(3600),
            max_messages: 1000,
            max_bytes: 1_000_000,
            allow_direct: false,
            num_replicas: 0,
            ..wanted(&messaging)
        };
        let found: Vec<String> = differences(&stream, &messaging)
            .iter()
            .map(Difference::to_string)
            .collect();
        insta::assert_snapshot!(found.join("\n"));
    }
}
