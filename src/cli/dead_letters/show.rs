//! Looking at letters.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Map, Value};

use super::letter::{self, Letter, Order, rfc3339};
use super::select::{self, Filters, LetterId};
use crate::clickhouse::ClickHouse;
use crate::config::Config;
use crate::lane::Lane;

#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    filters: Filters,

    /// At most this many, newest first
    #[arg(long, default_value_t = 100)]
    limit: u64,

    /// One JSON object per letter, each on its own line
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// SEQUENCE, SEQUENCE/INDEX or STREAM/SEQUENCE/INDEX; for a stream that was deleted
    /// STREAM@CREATED/SEQUENCE/INDEX, as `list --json` writes it
    letter: LetterId,

    /// One JSON object, with the payload in base64
    #[arg(long)]
    json: bool,
}

pub async fn list(args: ListArgs, config: &Config, clickhouse: &ClickHouse) -> Result<ExitCode> {
    let condition = args.filters.condition(&Lane::all(config));
    let letters =
        letter::find(clickhouse, &condition, Order::NewestFirst, Some(args.limit)).await?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        for letter in &letters {
            writeln!(stdout, "{}", letter.to_json())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if letters.is_empty() {
        eprintln!("no dead letters");
        return Ok(ExitCode::SUCCESS);
    }
    let header = [
        "LETTER", "RECEIVED", "REASON", "BYTES", "REPLAYED", "STREAM", "SUBJECT", "ERROR",
    ];
    let header = header.map(str::to_owned);
    let rows = letters.iter().map(row);
    write!(
        stdout,
        "{}",
        table(std::iter::once(header).chain(rows).collect())
    )?;
    Ok(ExitCode::SUCCESS)
}

fn row(letter: &Letter) -> [String; 8] {
    [
        letter.name(),
        rfc3339(letter.received_at()),
        letter.reason.clone(),
        letter.payload_bytes.to_string(),
        letter.replayed_at().map_or("-".to_owned(), rfc3339),
        letter.stream.clone(),
        one_line(&letter.subject),
        one_line(&letter.error),
    ]
}

/// Columns as wide as their widest value; the last one is not padded.
fn table(rows: Vec<[String; 8]>) -> String {
    let mut widths = [0; 8];
    for row in &rows {
        for (width, value) in widths.iter_mut().zip(row) {
            *width = (*width).max(value.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (value, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{value:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What a producer chose must not move the cursor of whoever looks at it.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

pub async fn show(args: ShowArgs, config: &Config, clickhouse: &ClickHouse) -> Result<ExitCode> {
    let letters = select::named(&[args.letter], config, clickhouse).await?;
    let contents = letter::contents(clickhouse, &letters).await?;
    let lanes = Lane::all(config);
    let mut stdout = std::io::stdout().lock();
    // More than one if a stream has lost its tail and used a sequence twice.
    for letter in &letters {
        let Some(content) = contents.iter().find(|content| content.is_of(letter)) else {
            continue;
        };
        let payload = content.payload();
        let kind = &*select::lane_of(letter, &lanes)?.kind;
        let payload_is = letter.payload_is(&payload, kind).as_str();
        if args.json {
            let mut object = letter.to_json();
            object["payload_is"] = payload_is.into();
            object["headers"] = headers_json(content.headers());
            object["payload_base64"] = content.payload_base64().into();
            writeln!(stdout, "{object}")?;
            continue;
        }
        let lines = [
            ("letter", letter.name()),
            ("stream", letter.stream.clone()),
            ("subject", one_line(&letter.subject)),
            ("received_at", rfc3339(letter.received_at())),
            ("reason", letter.reason.clone()),
            ("error", one_line(&letter.error)),
            (
                "replayed_at",
                letter.replayed_at().map_or("never".to_owned(), rfc3339),
            ),
            ("replay_id", letter.replay_id().to_string()),
        ];
        for (name, value) in lines {
            writeln!(stdout, "{name:<12} {value}")?;
        }
        for (name, value) in content.headers() {
            writeln!(
                stdout,
                "{:<12} {}: {}",
                "header",
                one_line(&name),
                one_line(&value)
            )?;
        }
        let what = match payload_is {
            "event" => "one event of a batch message",
            _ => "the message's",
        };
        writeln!(
            stdout,
            "{:<12} {} bytes, {what}\n{}",
            "payload",
            payload.len(),
            hex_dump(&payload)
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An object of arrays, as in the table.
fn headers_json(headers: Vec<(String, String)>) -> Value {
    let mut object = Map::new();
    for (name, value) in headers {
        let values = object
            .entry(name)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(values) = values {
            values.push(value.into());
        }
    }
    object.into()
}

/// Sixteen bytes per line: their offset, then the bytes in hexadecimal and as text.
fn hex_dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in (0..).step_by(16).zip(bytes.chunks(16)) {
        let mut hex = String::new();
        for (index, byte) in bytes.iter().enumerate() {
            let gap = if index == 8 { " " } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(hex, "{gap}{byte:02x} ");
        }
        let printable = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        };
        let ascii: String = bytes.iter().map(printable).collect();
        let _ = writeln!(text, "{line:08x}  {hex:<49} {ascii}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_shown_in_hexadecimal_and_as_text() {
        assert_eq!(
            hex_dump(b"\x0a\x03ann@example.org\x1b["),
            "00000000  0a 03 61 6e 6e 40 65 78  61 6d 70 6c 65 2e 6f 72  ..ann@example.or\n\
             00000010  67 1b 5b                                          g.[\n"
        );
        assert_eq!(hex_dump(b""), "");
    }

    #[test]
    fn a_subject_cannot_write_to_the_terminal() {
        assert_eq!(one_line("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
