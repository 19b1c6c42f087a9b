use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message as _;

use super::*;
use crate::config::Subjects;
use crate::dead_letter::Reason;
use crate::event::Place;
use crate::pipeline::batch::Flush;
use crate::pipeline::message::Headers;
use crate::sample::Population;

const MESSAGES: u64 = 2_000;

/// Nanoseconds since the Unix epoch.
const STORED_AT: i64 = 1_795_000_000_000_000_000;

fn encoder() -> Encoder {
    let stream = "ANALYTICS@1";
    let decoder = Decoder::new(stream, &Subjects::default());
    Encoder::new(stream.to_owned(), decoder)
}

/// Sample events, with one that cannot be read in every hundred.
fn batch() -> Batch {
    let mut population = Population::new(1);
    let now = UNIX_EPOCH + Duration::from_nanos(STORED_AT as u64);
    let messages: Vec<Message> = (1..=MESSAGES)
        .map(|sequence| {
            let sample = population.event(now, None);
            let payload = match sequence % 100 {
                0 => Bytes::from_static(b"\xff"),
                _ => sample.event.encode_to_vec().into(),
            };
            Message {
                sequence,
                stored_at: STORED_AT + sequence as i64,
                subject: format!("fechatter.analytics.{}", sample.subject).into(),
                headers: Headers::default(),
                payload,
                reply: None,
            }
        })
        .collect();
    Batch {
        range: Range {
            first: 1,
            last: MESSAGES,
            first_stored_at: messages[0].stored_at,
            last_stored_at: messages[messages.len() - 1].stored_at,
        },
        rows: messages.len(),
        bytes: messages.iter().map(Message::size).sum(),
        ack: Some("ack".into()),
        messages,
        taken: 0,
        flush: Flush::Rows,
    }
}

fn places(encoded: &Encoded) -> Vec<Place> {
    let sources = encoded.sources.iter();
    sources.map(|source| source.place).collect()
}

#[test]
fn a_batch_becomes_the_same_bytes_however_much_of_it_was_decoded_ahead() {
    let encoder = encoder();
    let at_once = encoder.encode(Vec::new(), batch());
    assert_eq!(at_once.block.rows, at_once.sources.len());
    assert_eq!(
        at_once.sources.len() + at_once.dead_letters.len(),
        MESSAGES as usize
    );
    for chunk in [1, 7, 1_999, 2_000] {
        let mut batch = batch();
        let mut ahead = Vec::new();
        while batch.messages.len() >= chunk {
            let rest = batch.messages.split_off(chunk);
            ahead.push(encoder.decode(std::mem::replace(&mut batch.messages, rest)));
        }
        let encoded = encoder.encode(ahead, batch);
        assert!(
            encoded.block.bytes == at_once.block.bytes,
            "in chunks of {chunk}"
        );
        assert_eq!(places(&encoded), places(&at_once));
        assert_eq!(encoded.dead_letters.len(), at_once.dead_letters.len());
        assert_eq!(encoded.days, at_once.days);
    }
}

#[test]
fn rows_that_are_sent_by_themselves_are_what_they_were_in_their_batch() {
    let encoder = encoder();
    let encoded = encoder.encode(Vec::new(), batch());
    let all: Vec<&Source> = encoded.sources.iter().collect();
    assert!(encoder.block(&all).bytes == encoded.block.bytes);
    assert_eq!(encoder.block(&all[3..5]).rows, 2);
}

#[test]
fn a_batch_keeps_what_its_end_needs() {
    let encoded = encoder().encode(Vec::new(), batch());
    assert_eq!(encoded.ack.unwrap().as_str(), "ack");
    assert_eq!(encoded.days.len(), 1);
    assert_eq!(encoded.dead_letters[0].source.place.0, 100);
    assert_eq!(encoded.dead_letters[0].reason, Reason::Undecodable);
}
