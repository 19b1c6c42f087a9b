//! Which letters: named ones, or all that filters let through.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::letter::{self, Letter, Order};
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::clickhouse::quote::quote_string;
use crate::config::{Config, Messaging};
use crate::nats;
use crate::pipeline::checkpoint;

#[derive(clap::Args)]
pub struct Filters {
    /// Letters with this reason; may be given several times
    #[arg(long)]
    reason: Vec<String>,

    /// Letters received in this time (`90m`, `2h`, `7d`) or since this UTC time
    /// (`2026-11-20`, `2026-11-20T10:00`)
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
    /// SEQUENCE or SEQUENCE/INDEX of the configured stream; for a stream that was
    /// deleted STREAM/SEQUENCE/INDEX, as `list --json` writes it
    #[arg(
        value_name = "LETTER",
        conflicts_with_all = OTHERWISE,
        required_unless_present_any = OTHERWISE
    )]
    letters: Vec<LetterId>,

    #[command(flatten)]
    filters: Filters,

    /// The oldest so many of them
    #[arg(long)]
    limit: Option<u64>,

    /// All letters
    #[arg(long)]
    all: bool,
}

/// A letter's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterId {
    /// The stream's identity; `None` for the configured stream as it is now.
    stream: Option<String>,
    sequence: u64,
    index: u32,
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stream, rest) = match text.split_once('/') {
            Some((stream, rest)) if stream.contains('@') => (Some(stream.to_owned()), rest),
            _ => (None, text),
        };
        let (sequence, index) = rest.split_once('/').unwrap_or((rest, "0"));
        match (sequence.parse(), index.parse()) {
            (Ok(sequence), Ok(index)) => Ok(Self {
                stream,
                sequence,
                index,
            }),
            _ => Err("expected SEQUENCE, SEQUENCE/INDEX or STREAM@CREATED/SEQUENCE/INDEX".into()),
        }
    }
}

impl Filters {
    /// The SQL condition. Letters of the configured stream's name, whenever it was
    /// made: another daemon may keep letters of its stream in the same table.
    pub fn condition(&self, messaging: &Messaging) -> String {
        let name = format!("{}@", messaging.jetstream.stream_name);
        let mut all = vec![format!("startsWith(stream, {})", quote_string(&name))];
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
    /// When one that is named does not exist.
    pub async fn letters(&self, config: &Config, clickhouse: &ClickHouse) -> Result<Vec<Letter>> {
        if !self.letters.is_empty() {
            return named(&self.letters, config, clickhouse).await;
        }
        let condition = self.condition(config);
        Ok(letter::find(clickhouse, &condition, Order::OldestFirst, self.limit).await?)
    }

    /// Where the letters can be told without looking at them: the condition.
    pub fn as_condition(&self, config: &Config) -> Option<String> {
        (self.letters.is_empty() && self.limit.is_none()).then(|| self.condition(config))
    }

    fn condition(&self, config: &Config) -> String {
        self.filters.condition(&config.integrations.messaging)
    }
}

/// The letters with these names, the oldest first.
pub async fn named(
    ids: &[LetterId],
    config: &Config,
    clickhouse: &ClickHouse,
) -> Result<Vec<Letter>> {
    let current = if ids.iter().any(|id| id.stream.is_none()) {
        current_stream(&config.integrations.messaging).await?
    } else {
        String::new()
    };
    let stream_of = |id: &LetterId| id.stream.clone().unwrap_or_else(|| current.clone());
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

/// The identity of the configured stream as it is now.
async fn current_stream(messaging: &Messaging) -> Result<String> {
    let name = &messaging.jetstream.stream_name;
    let jetstream = jetstream::new(nats::connect(messaging).await?);
    let stream = nats::find_stream(&jetstream, name)
        .await?
        .with_context(|| {
            format!(
                "stream `{name}` does not exist: name the letter in full, as `list --json` does"
            )
        })?;
    let consumer = &messaging.jetstream.consumer_name;
    let identity = checkpoint::identity(&jetstream, &stream, consumer).await?;
    Ok(identity.to_string())
}

fn since(text: &str) -> Result<Millis, String> {
    since_of(text, OffsetDateTime::now_utc())
        .map(|time| Millis((time.unix_timestamp_nanos() / 1_000_000) as i64))
        .ok_or_else(|| "expected a duration such as `2h` or `7d`, or a UTC time such as `2026-11-20` or `2026-11-20T10:00`".to_owned())
}

/// `now` less a duration, or a UTC time.
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
