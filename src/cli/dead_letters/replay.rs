//! Publishing letters again.
//!
//! A letter whose replay was published is marked. A letter that is not marked may have
//! been published all the same, and is looked for first: in the stream, then in
//! ClickHouse, in this order, since messages go from the one into the other.

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
use prost::Message as _;
use serde::Serialize;

use super::already::{self, Found};
use super::letter::{self, Content, Letter, rfc3339};
use super::select::Selection;
use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::config::Config;
use crate::dead_letter::PayloadIs;
use crate::nats;
use crate::pipeline::decode::BatchMessage;
use crate::retry::Retry;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,

    /// Also letters that are marked as replayed; one that stands somewhere is still
    /// not published
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
/// unmarked when the command is ended in between.
const LETTERS_AT_A_TIME: usize = 100;
const BYTES_AT_A_TIME: u64 = 16 * 1024 * 1024;

/// Publishes under way at a time.
const WINDOW: usize = 32;

/// What became of the letters.
#[derive(Debug, Default, Serialize)]
struct Report {
    selected: usize,
    published: usize,
    /// Not published: they are marked as replayed.
    replayed_before: usize,
    /// Not published: their replay stands in the stream or in ClickHouse.
    found: usize,
    failed: usize,
    dry_run: bool,
}

pub async fn run(args: Args, config: &Config, clickhouse: &ClickHouse) -> Result<ExitCode> {
    let selected = args.selection.letters(config, clickhouse).await?;
    let mut report = Report {
        selected: selected.len(),
        dry_run: args.dry_run,
        ..Default::default()
    };
    let (marked, letters): (Vec<_>, Vec<_>) = selected
        .into_iter()
        .partition(|letter| letter.replayed_at().is_some() && !args.again);
    report.replayed_before = marked.len();
    for letter in marked {
        let when = letter.replayed_at().map_or_else(String::new, rfc3339);
        eprintln!("{}: was replayed at {when}, see --again", letter.name());
    }
    if !letters.is_empty() {
        let replay = Replay::open(config, clickhouse, &letters).await?;
        for letters in pieces(&letters) {
            replay.piece(letters, &mut report).await?;
        }
    }
    print(&report, args.json)?;
    Ok(if report.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    let would = if report.dry_run {
        "would replay"
    } else {
        "replayed"
    };
    let selected = super::dead_letters(report.selected);
    write!(stdout, "{would} {} of {selected}", report.published)?;
    for (count, what) in [
        (report.replayed_before, "marked as replayed before"),
        (report.found, "found where a replay puts them"),
        (report.failed, "failed"),
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
    stream: &'a str,
    batch_subject: &'a str,
    in_stream: Found,
}

impl<'a> Replay<'a> {
    async fn open(
        config: &'a Config,
        clickhouse: &'a ClickHouse,
        letters: &[Letter],
    ) -> Result<Self> {
        let messaging = &config.integrations.messaging;
        let name = &messaging.jetstream.stream_name;
        let jetstream = jetstream::new(nats::connect(messaging).await?);
        let stream = nats::find_stream(&jetstream, name)
            .await?
            .with_context(|| format!("stream `{name}` does not exist: nothing can be published"))?;
        let in_stream = already::in_stream(&jetstream, &stream, messaging, letters).await?;
        Ok(Self {
            clickhouse,
            jetstream,
            stream: name,
            batch_subject: &messaging.subjects.analytics_batch,
            in_stream,
        })
    }

    /// Publishes and marks letters.
    async fn piece(&self, letters: &[Letter], report: &mut Report) -> Result<()> {
        let mut found = self.in_stream.clone();
        found.extend(already::in_clickhouse(self.clickhouse, letters).await?);
        let (there, missing): (Vec<Letter>, Vec<Letter>) = letters
            .iter()
            .cloned()
            .partition(|letter| found.contains_key(&letter.replay_id()));
        report.found += there.len();
        for letter in &there {
            let place = found.get(&letter.replay_id()).map_or("", String::as_str);
            eprintln!("{}: not published, its replay {place}", letter.name());
        }
        if report.dry_run {
            report.published += missing.len();
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
                        report.found += 1;
                        eprintln!(
                            "{}: JetStream had it already, as sequence {}",
                            letter.name(),
                            ack.sequence
                        );
                    } else {
                        report.published += 1;
                    }
                    done.push(letter.clone());
                }
                Err(error) => {
                    report.failed += 1;
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
            Some(error) => Err(error).context("stopped, the letters so far are marked"),
            None => Ok(()),
        }
    }

    /// Publishes one letter, again where NATS does not answer: JetStream drops what it
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
            .expected_stream(self.stream)
            .payload(self.payload(letter, content));
        let subject = letter.subject.clone();
        self.jetstream.send_publish(subject, message).await?.await
    }

    fn payload(&self, letter: &Letter, content: &Content) -> Bytes {
        let payload = content.payload();
        match letter.payload_is(&payload, self.batch_subject) {
            PayloadIs::Message => payload,
            PayloadIs::Event => {
                let batch = BatchMessage {
                    events: vec![payload],
                };
                batch.encode_to_vec().into()
            }
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
/// they were about another publish. One that NATS would not take is left out.
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
            _ => tracing::warn!("a header that NATS does not take is left out"),
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
