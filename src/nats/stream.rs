//! The stream that events are in: created if it is missing, left alone if it exists.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, ErrorCode};
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;
use tracing::{info, warn};

use super::subjects::{covering_set, covers};
use crate::config::{JetStream, Storage};

/// A stream's name and creation time: a stream that was deleted and created again is a
/// different one, though its sequences are the same numbers.
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

/// A stream and its durable consumer, as they are configured.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    pub name: String,
    /// The durable consumer's name, which also names the checkpoint.
    pub consumer: String,
    /// None of them covers another.
    pub subjects: Vec<String>,
    pub max_age: Duration,
    pub storage: Storage,
    pub num_replicas: usize,
    /// For people who look at the stream.
    pub description: &'static str,
}

impl StreamSpec {
    /// The subjects may overlap.
    pub fn new<'a>(
        jetstream: &JetStream,
        subjects: impl IntoIterator<Item = &'a str>,
        description: &'static str,
    ) -> Self {
        Self {
            name: jetstream.stream_name.clone(),
            consumer: jetstream.consumer_name.clone(),
            subjects: covering_set(subjects),
            max_age: jetstream.max_age,
            storage: jetstream.storage_type,
            num_replicas: jetstream.num_replicas.get(),
            description,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("JetStream does not answer: {0}")]
    Unavailable(String),
    #[error("JetStream refuses to create stream `{name}`: {error}")]
    Refused { name: String, error: String },
    /// The stream exists but does not hold the events, or would lose some.
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
    /// The command that fixes it.
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

/// The stream, created if it is missing. Differences that lose nothing are logged as
/// warnings; others are [`StreamError::Unfit`].
pub async fn open_stream(
    jetstream: &jetstream::Context,
    spec: &StreamSpec,
) -> Result<Stream, StreamError> {
    let name = &spec.name;
    let Some(stream) = find_stream(jetstream, name).await? else {
        let created = jetstream.create_stream(wanted(spec)).await;
        let stream = created.map_err(|error| match error.kind() {
            CreateStreamErrorKind::TimedOut => StreamError::Unavailable(error.to_string()),
            _ => StreamError::Refused {
                name: name.clone(),
                error: error.to_string(),
            },
        })?;
        info!(stream = name, "stream created");
        return Ok(stream);
    };
    let differences = differences(&stream.cached_info().config, spec);
    let (fatal, harmless): (Vec<_>, Vec<_>) = differences.into_iter().partition(|it| it.fatal);
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

/// The stream as it is, `None` if there is none of this name.
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

/// The stream as it is created if it is missing.
fn wanted(spec: &StreamSpec) -> Config {
    Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        retention: RetentionPolicy::Limits,
        storage: match spec.storage {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        max_age: spec.max_age,
        num_replicas: spec.num_replicas,
        allow_direct: true,
        description: Some(spec.description.to_owned()),
        ..Default::default()
    }
}

/// How an existing stream differs from what the configuration asks for, the
/// fatal differences first.
pub fn differences(is: &Config, spec: &StreamSpec) -> Vec<Difference> {
    let wanted = wanted(spec);
    let looks = [
        subjects,
        retention,
        messages_per_subject,
        storage,
        max_age,
        max_messages,
        max_bytes,
        replicas,
        direct_access,
    ];
    let found = looks.iter().filter_map(|look| look(is, &wanted));
    found.collect()
}

/// A difference that `nats stream edit` fixes.
fn edit(
    wanted: &Config,
    setting: &'static str,
    (is, should_be): (impl ToString, impl ToString),
    option: &str,
) -> Difference {
    Difference {
        setting,
        is: is.to_string(),
        should_be: should_be.to_string(),
        remedy: format!("nats stream edit {} {option}", wanted.name),
        fatal: false,
    }
}

fn subjects(is: &Config, wanted: &Config) -> Option<Difference> {
    // A mirror or an aggregate gets its messages from other streams, not by subject.
    let by_subject = is.mirror.is_none() && is.sources.as_ref().is_none_or(Vec::is_empty);
    let uncovered = |subject: &String| !is.subjects.iter().any(|pattern| covers(pattern, subject));
    if !by_subject || !wanted.subjects.iter().any(uncovered) {
        return None;
    }
    let all = is.subjects.iter().chain(&wanted.subjects);
    let all = covering_set(all.map(String::as_str)).join(",");
    let values = (is.subjects.join(","), &all);
    Some(Difference {
        fatal: true,
        ..edit(wanted, "subjects", values, &format!("--subjects='{all}'"))
    })
}

/// The other policies delete a message once it is acknowledged or nobody listens.
fn retention(is: &Config, wanted: &Config) -> Option<Difference> {
    (is.retention != RetentionPolicy::Limits).then(|| Difference {
        setting: "retention",
        is: format!("{:?}", is.retention).to_lowercase(),
        should_be: "limits".to_owned(),
        remedy: format!(
            "back up and restore: nats stream backup {} DIR, then nats stream restore DIR with \"retention\":\"limits\"",
            wanted.name
        ),
        fatal: true,
    })
}

fn messages_per_subject(is: &Config, wanted: &Config) -> Option<Difference> {
    (is.max_messages_per_subject > 0).then(|| Difference {
        fatal: true,
        ..edit(
            wanted,
            "max_msgs_per_subject",
            (is.max_messages_per_subject, -1),
            "--max-msgs-per-subject=-1",
        )
    })
}

fn storage(is: &Config, wanted: &Config) -> Option<Difference> {
    (is.storage != wanted.storage).then(|| Difference {
        setting: "storage",
        is: name_of(is.storage),
        should_be: name_of(wanted.storage),
        remedy: format!(
            "nats stream backup {} DIR, then nats stream restore DIR with another \"storage\"",
            wanted.name
        ),
        fatal: false,
    })
}

fn max_age(is: &Config, wanted: &Config) -> Option<Difference> {
    let is_less = !is.max_age.is_zero() && is.max_age < wanted.max_age;
    let option = format!("--max-age={}h", wanted.max_age.as_secs() / 3600);
    let values = (in_hours(is.max_age), in_hours(wanted.max_age));
    is_less.then(|| edit(wanted, "max_age", values, &option))
}

fn max_messages(is: &Config, wanted: &Config) -> Option<Difference> {
    let values = (is.max_messages, -1);
    forgets(is, is.max_messages).then(|| edit(wanted, "max_msgs", values, "--max-msgs=-1"))
}

fn max_bytes(is: &Config, wanted: &Config) -> Option<Difference> {
    let values = (is.max_bytes, -1);
    forgets(is, is.max_bytes).then(|| edit(wanted, "max_bytes", values, "--max-bytes=-1"))
}

/// A full stream that refuses new messages loses none, since producers learn of it.
fn forgets(is: &Config, limit: i64) -> bool {
    is.discard == DiscardPolicy::Old && limit > 0
}

fn replicas(is: &Config, wanted: &Config) -> Option<Difference> {
    let values = (is.num_replicas, wanted.num_replicas);
    let option = format!("--replicas={}", wanted.num_replicas);
    (is.num_replicas < wanted.num_replicas).then(|| edit(wanted, "replicas", values, &option))
}

fn direct_access(is: &Config, wanted: &Config) -> Option<Difference> {
    (!is.allow_direct).then(|| edit(wanted, "allow_direct", (false, true), "--allow-direct"))
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

    fn spec() -> StreamSpec {
        StreamSpec::new(&JetStream::default(), ["fechatter.analytics.>"], "")
    }

    #[test]
    fn a_stream_made_by_the_daemon_has_no_differences() {
        assert_eq!(differences(&wanted(&spec()), &spec()), []);
    }

    #[test]
    fn each_difference_says_what_to_run() {
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
            ..wanted(&spec())
        };
        let found: Vec<String> = differences(&stream, &spec())
            .iter()
            .map(Difference::to_string)
            .collect();
        insta::assert_snapshot!(found.join("\n"));
    }
}
