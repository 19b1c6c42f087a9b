//! Publishing letters again.
//!
//! A letter whose replay was published is marked. A letter that is not marked may have
//! been published all the same, and is looked for first: in the stream, then in
//! ClickHouse, in that order, since messages go from the one into the other.

use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::{Context, Result};
use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::jetstream;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::already::{self, Found};
use super::letter::{self, Content, Letter, rfc3339};
use super::select::{Selection, lane_of};
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::config::Config;
use crate::event::PayloadIs;
use crate::lane::Lane;
use crate::nats;
use crate::retry::Retry;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,

    /// Also letters that are marked as replayed; one whose replay is found is still not
    /// published
    #[arg(long)]
    again: bool,

    /// Only say what would be published
    #[arg(long)]
    dry_run: bool,

    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Letters that are published and then marked together: few enough that little is left
/// unmarked if the command is ended in between.
const LETTERS_AT_A_TIME: usize = 100;
const BYTES_AT_A_TIME: u64 = 16 * 1024 * 1024;

/// Publishes under way at a time.
const WINDOW: usize = 32;

/// What became of the letters.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    selected: usize,
    published: usize,
    /// Not published: they are marked as replayed.
    replayed_before: usize,
    /// Not published: their replay is in the stream or in ClickHouse.
    found: usize,
    failed: usize,
    dry_run: bool,
}

pub async fn run(args: Args, config: &Config, clickhouse: &ClickHouse) -> Result<ExitCode> {
    let selected = args.selection.letters(config, clickhouse).await?;
    let mut outcome = Outcome {
        selected: selected.len(),
        dry_run: args.dry_run,
        ..Default::default()
    };
    let (marked, letters): (Vec<_>, Vec<_>) = selected
        .into_iter()
        .partition(|letter| letter.replayed_at().is_some() && !args.again);
    outcome.replayed_before = marked.len();
    for letter in marked {
        let when = letter.replayed_at().map_or_else(String::new, rfc3339);
        eprintln!("{}: was replayed at {when}, see --again", letter.name());
    }
    for (lane, letters) in by_lane(letters, config)? {
        let replay = Replay::open(config, clickhouse, lane, &letters).await?;
        for letters in pieces(&letters) {
            replay.piece(letters, &mut outcome).await?;
        }
    }
    print(&outcome, args.json)?;
    Ok(if outcome.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Each lane with its letters, in their order.
fn by_lane(letters: Vec<Letter>, config: &Config) -> Result<Vec<(Lane, Vec<Letter>)>> {
    let lanes = Lane::all(config);
    let mut of_lanes: Vec<_> = lanes.iter().map(|lane| (lane, Vec::new())).collect();
    for letter in letters {
        let lane = lane_of(&letter, &lanes)?;
        let mut of_lanes = of_lanes.iter_mut();
        if let Some((_, letters)) = of_lanes.find(|(other, _)| other.name == lane.name) {
            letters.push(letter);
        }
    }
    let of_lanes = of_lanes
        .into_iter()
        .filter(|(_, letters)| !letters.is_empty());
    Ok(of_lanes
        .map(|(lane, letters)| (lane.clone(), letters))
        .collect())
}

fn print(outcome: &Outcome, json: bool) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(outcome)?)?;
        return Ok(());
    }
    let would = if outcome.dry_run {
        "would replay"
    } else {
        "replayed"
    };
    let selected = super::dead_letters(outcome.selected);
    write!(stdout, "{would} {} of {selected}", outcome.published)?;
    for (count, what) in [
        (outcome.replayed_before, "marked as replayed before"),
        (outcome.found, "found where a replay puts them"),
        (outcome.failed, "failed"),
    ] {
        if count > 0 {
            write!(stdout, "; {count} {what}")?;
        }
    }
    writeln!(stdout)?;
    Ok(())
}

/// Letters that are handled together.
fn pieces(mut letters: &[Letter]) -> impl Iterator<Item = &[Letter]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = letters.iter().take(LETTERS_AT_A_TIME).take_while(|letter| {
            bytes += letter.payload_bytes;
            bytes <= BYTES_AT_A_TIME
        });
        // One that is larger goes alone.
        let count = fit.count().max(1).min(letters.len());
        let (piece, rest) = letters.split_at(count);
        letters = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

struct Replay<'a> {
    clickhouse: &'a ClickHouse,
    jetstream: jetstream::Context,
    lane: Lane,
    in_stream: Found,
}

impl<'a> Replay<'a> {
    async fn open(
        config: &Config,
        clickhouse: &'a ClickHouse,
        lane: Lane,
        letters: &[Letter],
    ) -> Result<Self> {
        let name = &lane.stream.name;
        let jetstream = jetstream::new(nats::connect(&config.integrations.messaging).await?);
        let stream = nats::find_stream(&jetstream, name)
            .await?
            .with_context(|| format!("stream `{name}` does not exist: nothing can be published"))?;
        let in_stream = already::in_stream(&jetstream, &stream, &lane, letters).await?;
        Ok(Self {
            clickhouse,
            jetstream,
            lane,
            in_stream,
        })
    }

    /// Publishes and marks letters.
    async fn piece(&self, letters: &[Letter], outcome: &mut Outcome) -> Result<()> {
        let mut found = self.in_stream.clone();
        found.extend(
            already::in_clickhouse(self.clickhouse, self.lane.kind.tables(), letters).await?,
        );
        let (there, missing): (Vec<Letter>, Vec<Letter>) = letters
            .iter()
            .cloned()
            .partition(|letter| found.contains_key(&letter.replay_id()));
        outcome.found += there.len();
        for letter in &there {
            let place = found.get(&letter.replay_id()).map_or("", String::as_str);
            eprintln!("{}: not published, its replay {place}", letter.name());
        }
        if outcome.dry_run {
            outcome.published += missing.len();
            return Ok(());
        }

        let mut done = there;
        let mut lost_nats = None;
        let contents = letter::contents(self.clickhouse, &missing).await?;
        let pairs = contents.iter().filter_map(|content| {
            let letter = missing.iter().find(|letter| content.is_of(letter))?;
            Some((letter, content))
        });
        // `buffered` starts them in order and keeps the answers in order.
        let mut answers = stream::iter(pairs)
            .map(async |(letter, content)| (letter, self.publish(letter, content).await))
            .buffered(WINDOW);
        while let Some((letter, answer)) = answers.next().await {
            match answer {
                Ok(ack) => {
                    if ack.duplicate {
                        outcome.found += 1;
                        eprintln!(
                            "{}: JetStream had it already, as sequence {}",
                            letter.name(),
                            ack.sequence
                        );
                    } else {
                        outcome.published += 1;
                    }
                    done.push(letter.clone());
                }
                Err(error) => {
                    outcome.failed += 1;
                    eprintln!("{}: cannot be published: {error}", letter.name());
                    if is_temporary(&error) {
                        lost_nats = Some(error);
                        break;
                    }
                }
            }
        }
        self.mark(&done).await?;
        match lost_nats {
            Some(error) => Err(error).context("stopped; the letters so far are marked"),
            None => Ok(()),
        }
    }

    /// Publishes one letter, again if NATS does not answer: JetStream drops what it already
    /// has under this id.
    async fn publish(
        &self,
        letter: &Letter,
        content: &Content,
    ) -> Result<PublishAck, PublishError> {
        const TRIES: usize = 4;
        let mut retry = Retry::new();
        for _ in 1..TRIES {
            match self.publish_once(letter, content).await {
                Err(error) if is_temporary(&error) => retry.pause().await,
                answer => return answer,
            }
        }
        self.publish_once(letter, content).await
    }

    async fn publish_once(
        &self,
        letter: &Letter,
        content: &Content,
    ) -> Result<PublishAck, PublishError> {
        let message = PublishMessage::build()
            .headers(headers(content))
            .message_id(letter.replay_id().to_string())
            // The subject may belong to another stream by now.
            .expected_stream(&self.lane.stream.name)
            .payload(self.payload(letter, content));
        let subject = letter.subject.clone();
        self.jetstream.send_publish(subject, message).await?.await
    }

    fn payload(&self, letter: &Letter, content: &Content) -> Bytes {
        let payload = content.payload();
        let kind = &*self.lane.kind;
        match letter.payload_is(&payload, kind) {
            PayloadIs::Message => payload,
            PayloadIs::Event => kind.batch_of(payload),
        }
    }

    async fn mark(&self, letters: &[Letter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let now = letter::time(Millis(now.as_millis() as i64));
        let condition = letter::these(letters);
        let sql = format!(
            "ALTER TABLE dead_letters UPDATE replayed_at = {now} WHERE {condition} SETTINGS mutations_sync = 1"
        );
        let Err(error) = self.clickhouse.execute(&sql).await else {
            return Ok(());
        };
        let letters: Vec<String> = letters.iter().map(Letter::name).collect();
        Err(error).with_context(|| {
            format!(
                "published and NOT MARKED as replayed: {}; replay them again to mark them, they are not stored twice",
                letters.join(", ")
            )
        })
    }
}

/// The message's headers without those that tell JetStream what to do with it (`Nats-…`):
/// they were about another publish. One that NATS would not accept is left out.
fn headers(content: &Content) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in content.headers() {
        let is_instruction = name
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
        if is_instruction {
            continue;
        }
        match (HeaderName::from_str(&name), HeaderValue::from_str(&value)) {
            (Ok(name), Ok(value)) => headers.append(name, value),
            _ => tracing::warn!("a header that NATS does not accept is left out"),
        }
    }
    headers
}

/// Whether NATS did not answer, as opposed to an answer that was an error.
fn is_temporary(error: &PublishError) -> bool {
    matches!(
        error.kind(),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe
    )
}
