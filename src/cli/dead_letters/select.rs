//! Which letters: named ones, or all that filters let through.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::letter::{self, Letter, Order};
use crate::checkpoint;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::clickhouse::quote::quote_string;
use crate::config::Config;
use crate::lane::Lane;
use crate::nats::{self, StreamSpec, covers};

#[derive(clap::Args)]
pub struct Filters {
    /// Letters with this reason; may be given several times
    #[arg(long)]
    reason: Vec<String>,

    /// Letters received within this time (`90m`, `2h`, `7d`) or since this UTC time (`2026-11-20`,
    /// `2026-11-20T10:00`)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Millis>,

    /// Letters that were replayed
    #[arg(long)]
    replayed: bool,
}

/// What chooses letters without naming them.
const OTHERWISE: [&str; 5] = ["reason", "since", "replayed", "limit", "all"];

/// A choice that has to be made before letters are published or deleted.
#[derive(clap::Args)]
pub struct Selection {
    /// SEQUENCE, SEQUENCE/INDEX or STREAM/SEQUENCE/INDEX; for a stream that was deleted
    /// STREAM@CREATED/SEQUENCE/INDEX, as `list --json` writes it
    #[arg(
        value_name = "LETTER",
        conflicts_with_all = OTHERWISE,
        required_unless_present_any = OTHERWISE
    )]
    letters: Vec<LetterId>,

    #[command(flatten)]
    filters: Filters,

    /// At most this many of them, oldest first
    #[arg(long)]
    limit: Option<u64>,

    /// All letters
    #[arg(long)]
    all: bool,
}

/// A letter's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterId {
    /// A stream's identity, or the name of a configured one as it is now; `None` if only one is
    /// configured.
    stream: Option<String>,
    sequence: u64,
    index: u32,
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stream, rest) = match text.split_once('/') {
            Some((stream, rest)) if stream.parse::<u64>().is_err() => {
                (Some(stream.to_owned()), rest)
            }
            _ => (None, text),
        };
        let (sequence, index) = rest.split_once('/').unwrap_or((rest, "0"));
        match (sequence.parse(), index.parse()) {
            (Ok(sequence), Ok(index)) => Ok(Self {
                stream,
                sequence,
                index,
            }),
            _ => Err("expected SEQUENCE, SEQUENCE/INDEX, STREAM/SEQUENCE/INDEX or STREAM@CREATED/SEQUENCE/INDEX".into()),
        }
    }
}

impl Filters {
    /// The SQL condition. Letters of streams with the configured names, whenever those were
    /// created: another daemon may keep letters of its stream in the same table.
    pub fn condition(&self, lanes: &[Lane]) -> String {
        let streams: Vec<String> = lanes
            .iter()
            .map(|lane| {
                let name = format!("{}@", lane.stream.name);
                format!("startsWith(stream, {})", quote_string(&name))
            })
            .collect();
        let mut all = vec![format!("({})", streams.join(" OR "))];
        if !self.reason.is_empty() {
            let reasons: Vec<String> = self.reason.iter().map(|it| quote_string(it)).collect();
            all.push(format!("reason IN ({})", reasons.join(", ")));
        }
        if let Some(since) = self.since {
            all.push(format!("received_at >= {}", letter::time(since)));
        }
        if self.replayed {
            all.push("replayed_at > 0".to_owned());
        }
        all.join(" AND ")
    }
}

impl Selection {
    /// The letters that are meant, the oldest first, without their payloads.
    ///
    /// # Errors
    /// If one that is named does not exist.
    pub async fn letters(&self, config: &Config, clickhouse: &ClickHouse) -> Result<Vec<Letter>> {
        if !self.letters.is_empty() {
            return named(&self.letters, config, clickhouse).await;
        }
        let condition = self.condition(config);
        Ok(letter::find(clickhouse, &condition, Order::OldestFirst, self.limit).await?)
    }

    /// The condition, if the letters can be selected without looking at them.
    pub fn as_condition(&self, config: &Config) -> Option<String> {
        (self.letters.is_empty() && self.limit.is_none()).then(|| self.condition(config))
    }

    fn condition(&self, config: &Config) -> String {
        self.filters.condition(&Lane::all(config))
    }
}

/// The letters with these names, the oldest first.
pub async fn named(
    ids: &[LetterId],
    config: &Config,
    clickhouse: &ClickHouse,
) -> Result<Vec<Letter>> {
    let streams = Streams::of(ids, config).await?;
    let stream_of = |id: &LetterId| streams.identity(id);
    let wanted: Vec<String> = ids
        .iter()
        .map(|id| {
            let stream = quote_string(&stream_of(id));
            format!("({stream}, {}, {})", id.sequence, id.index)
        })
        .collect();
    let condition = format!(
        "(stream, stream_seq, batch_index) IN ({})",
        wanted.join(", ")
    );
    let found = letter::find(clickhouse, &condition, Order::OldestFirst, None).await?;
    for id in ids {
        let is_it = |letter: &Letter| {
            letter.stream_seq == id.sequence
                && letter.batch_index == id.index
                && letter.stream == stream_of(id)
        };
        if !found.iter().any(is_it) {
            let (stream, sequence, index) = (stream_of(id), id.sequence, id.index);
            bail!("there is no dead letter {sequence}/{index} of stream {stream}");
        }
    }
    Ok(found)
}

/// The identities of configured streams as they are now, by their names.
struct Streams(BTreeMap<String, String>);

impl Streams {
    /// Those that the names leave out.
    async fn of(ids: &[LetterId], config: &Config) -> Result<Self> {
        let mut streams = BTreeMap::new();
        let lanes = Lane::all(config);
        for id in ids {
            let lane = match (id.stream.as_deref(), lanes.as_slice()) {
                (Some(stream), _) if stream.contains('@') => continue,
                (Some(stream), lanes) => lanes
                    .iter()
                    .find(|lane| lane.stream.name == stream)
                    .with_context(|| format!("no stream `{stream}` is configured"))?,
                (None, [lane]) => lane,
                (None, _) => bail!(
                    "several streams are configured: name the letter as STREAM/SEQUENCE/INDEX"
                ),
            };
            let name = id.stream.clone().unwrap_or_default();
            if let Entry::Vacant(entry) = streams.entry(name) {
                entry.insert(current(config, lane).await?);
            }
        }
        Ok(Self(streams))
    }

    fn identity(&self, id: &LetterId) -> String {
        let name = id.stream.clone().unwrap_or_default();
        self.0.get(&name).cloned().unwrap_or(name)
    }
}

/// The identity of a lane's stream as it is now.
async fn current(config: &Config, lane: &Lane) -> Result<String> {
    let StreamSpec { name, consumer, .. } = &lane.stream;
    let jetstream = jetstream::new(nats::connect(&config.integrations.messaging).await?);
    let stream = nats::find_stream(&jetstream, name)
        .await?
        .with_context(|| {
            format!(
                "stream `{name}` does not exist: name the letter in full, as `list --json` does"
            )
        })?;
    let identity = checkpoint::identity(&jetstream, &stream, consumer).await?;
    Ok(identity.to_string())
}

/// The lane that a letter belongs to: the one with its stream's name. For a stream that is no
/// longer configured, the one that takes its subject.
pub fn lane_of<'a>(letter: &Letter, lanes: &'a [Lane]) -> Result<&'a Lane> {
    let name = letter.stream.split('@').next().unwrap_or_default();
    let mut by_name = lanes.iter().filter(|lane| lane.stream.name == name);
    let takes = |lane: &&Lane| {
        let mut subjects = lane.stream.subjects.iter();
        subjects.any(|pattern| covers(pattern, &letter.subject))
    };
    by_name
        .next()
        .or_else(|| lanes.iter().find(takes))
        .with_context(|| format!("no configured stream takes `{}`", letter.subject))
}

fn since(text: &str) -> Result<Millis, String> {
    since_of(text, OffsetDateTime::now_utc())
        .map(|time| Millis((time.unix_timestamp_nanos() / 1_000_000) as i64))
        .ok_or_else(|| "expected a duration such as `2h` or `7d`, or a UTC time such as `2026-11-20` or `2026-11-20T10:00`".to_owned())
}

/// `now` minus a duration, or a UTC time.
fn since_of(text: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let seconds = |unit| match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        "w" => Some(7 * 86_400),
        _ => None,
    };
    if let Some((at, _)) = text.char_indices().last()
        && let Ok(count) = text[..at].parse::<u32>()
        && let Some(seconds) = seconds(&text[at..])
    {
        return now.checked_sub(Duration::seconds(i64::from(count) * seconds));
    }
    let (date, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let clock = clock.strip_suffix('Z').unwrap_or(clock);
    let clock = match clock.matches(':').count() {
        1 => format!("{clock}:00"),
        _ => clock.to_owned(),
    };
    OffsetDateTime::parse(&format!("{date}T{clock}Z"), &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_named_by_sequence_and_index_and_perhaps_its_stream() {
        let id = |stream: Option<&str>, sequence, index| LetterId {
            stream: stream.map(str::to_owned),
            sequence,
            index,
        };
        assert_eq!("17".parse(), Ok(id(None, 17, 0)));
        assert_eq!("17/3".parse(), Ok(id(None, 17, 3)));
        let stream = "A@2026-11-20T10:00:00.123Z";
        assert_eq!(
            format!("{stream}/17/3").parse(),
            Ok(id(Some(stream), 17, 3))
        );
        assert_eq!(format!("{stream}/17").parse(), Ok(id(Some(stream), 17, 0)));
        for wrong in ["", "x", "1/2/3", "1/", "-1", stream] {
            assert!(wrong.parse::<LetterId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn since_is_a_duration_or_a_time_in_utc() {
        let at = |text| OffsetDateTime::parse(text, &Rfc3339).unwrap();
        let now = at("2026-11-20T10:00:00Z");
        for (text, time) in [
            ("90s", "2026-11-20T09:58:30Z"),
            ("2h", "2026-11-20T08:00:00Z"),
            ("7d", "2026-11-13T10:00:00Z"),
            ("2026-11-19", "2026-11-19T00:00:00Z"),
            ("2026-11-19T08:30", "2026-11-19T08:30:00Z"),
            ("2026-11-19 08:30:15", "2026-11-19T08:30:15Z"),
            ("2026-11-19T08:30:15.5Z", "2026-11-19T08:30:15.5Z"),
        ] {
            assert_eq!(since_of(text, now), Some(at(time)), "{text}");
        }
        for wrong in ["", "2", "h", "2y", "2ä", "2026-13-01", "yesterday", "-2h"] {
            assert_eq!(since_of(wrong, now), None, "{wrong}");
        }
    }
}
