use std::time::{Duration, UNIX_EPOCH};

use async_nats::HeaderMap;
use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::*;
use crate::config::Subjects;
use crate::dead_letter::Reason;
use crate::kind::analytics::Analytics;
use crate::kind::analytics::sample::Population;
use crate::lane::batch::{Batcher, Cut, Limits};
use crate::nats::Headers;

const MESSAGES: u64 = 2_000;

/// Nanoseconds since the Unix epoch.
const STORED_AT: i64 = 1_795_000_000_000_000_000;

fn encoder() -> Encoder {
    let kind = Arc::new(Analytics::new(&Subjects::default()));
    Encoder::new(kind, "ANALYTICS@1".to_owned())
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
                reply: Some("ack".into()),
            }
        })
        .collect();
    one_batch(messages, 1)
}

/// A batch of messages that become `rows` rows each, with the messages of its chunks.
fn one_batch(messages: Vec<Message>, rows: usize) -> Batch {
    let mut batcher = Batcher::new(limits(messages.len() * rows), []);
    let push = |message| batcher.push(message, rows, Instant::now());
    let mut chunks = Vec::new();
    for cut in messages.into_iter().flat_map(push) {
        match cut {
            Cut::Chunk(chunk) => chunks.extend(chunk),
            Cut::End(mut batch) => {
                batch.messages.splice(..0, chunks);
                return batch;
            }
        }
    }
    panic!("no batch")
}

fn limits(rows: usize) -> Limits {
    Limits {
        rows,
        bytes: usize::MAX,
        interval: Duration::from_secs(3600),
    }
}

fn rows(encoded: Encoded) -> Piece {
    match encoded.content {
        Content::Rows(piece) => piece,
        Content::Messages(_) => panic!("a batch to be stored in pieces"),
    }
}

fn places(piece: &Piece) -> Vec<Place> {
    let events = piece.events.iter();
    events.map(|event| event.source.place).collect()
}

#[test]
fn a_batch_becomes_the_same_bytes_however_much_of_it_was_decoded_ahead() {
    let encoder = encoder();
    let at_once = rows(encoder.encode(Vec::new(), batch()));
    assert_eq!(at_once.block.rows, at_once.events.len());
    assert_eq!(
        at_once.events.len() + at_once.dead_letters.len(),
        MESSAGES as usize
    );
    for chunk in [1, 7, 1_999, 2_000] {
        let mut batch = batch();
        let mut ahead = Vec::new();
        while batch.messages.len() >= chunk {
            let rest = batch.messages.split_off(chunk);
            ahead.push(encoder.decode(std::mem::replace(&mut batch.messages, rest)));
        }
        let encoded = rows(encoder.encode(ahead, batch));
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
    let encoded = rows(encoder.encode(Vec::new(), batch()));
    let all: Vec<&Event> = encoded.events.iter().collect();
    assert!(encoder.block(&all).bytes == encoded.block.bytes);
    assert_eq!(encoder.block(&all[3..5]).rows, 2);
}

#[test]
fn a_batch_keeps_what_its_end_needs() {
    let Encoded {
        mut summary,
        content,
    } = encoder().encode(Vec::new(), batch());
    let Content::Rows(piece) = content else {
        panic!("a batch to be stored in pieces");
    };
    assert_eq!(piece.dead_letters[0].source.place.0, 100);
    assert_eq!(piece.dead_letters[0].reason, Reason::Undecodable);
    summary.add(&piece);
    assert_eq!(summary.ack.as_ref().unwrap().as_str(), "ack");
    assert_eq!(summary.days.len(), 1);
    assert_eq!(summary.dead_letters[&Reason::Undecodable], 20);
    assert_eq!(summary.rows(), MESSAGES as usize);
    summary.refused(&Tally::of(&piece.events[..2]));
    assert_eq!(summary.dead_letters[&Reason::Refused], 2);
    assert_eq!(summary.rows(), MESSAGES as usize);
}

/// A batch message of `events` events, each a dead letter.
fn letters(sequence: u64, events: usize, header: &str) -> Message {
    let mut headers = HeaderMap::new();
    headers.insert("h", header);
    Message {
        sequence,
        stored_at: STORED_AT,
        subject: "fechatter.analytics.batch".into(),
        headers: Headers::from(&headers),
        payload: b"\x0a\x00".repeat(events).into(),
        reply: None,
    }
}

#[test]
fn a_large_message_is_not_decoded_until_its_pieces_are() {
    let message = letters(1, PIECE.0 + 1, "");
    let rows = encoder().kind().rows(&message);
    let encoded = encoder().encode(Vec::new(), one_batch(vec![message], rows));
    assert!(matches!(encoded.content, Content::Messages(messages) if messages.len() == 1));
}

/// Rows of each piece of messages, and the places at which they start.
fn pieces(messages: &[Message]) -> Vec<(usize, Place)> {
    let encoder = encoder();
    let mut pieces = Vec::new();
    let mut next = Some(Place(0, 0));
    while let Some(from) = next {
        let (piece, after) = encoder.piece(messages, from);
        assert!(piece.events.is_empty());
        let mut places = piece.dead_letters.iter().map(|letter| letter.source.place);
        let rows = places.len();
        let first = places.next().unwrap();
        assert!(places.is_sorted());
        pieces.push((rows, first));
        next = after;
    }
    pieces
}

#[test]
fn pieces_follow_each_other_without_a_gap_and_have_so_many_rows_or_bytes() {
    let most = PIECE.0;
    let whole = letters(4, 0, "");
    let unreadable = Message {
        payload: Bytes::from_static(b"\x0a\x00\xff"),
        ..letters(3, 0, "")
    };
    // A message of its own, one without events and one that cannot be read among them.
    let messages = [
        letters(1, 2 * most, ""),
        letters(2, most + 7, ""),
        unreadable,
        whole,
        letters(5, most, ""),
    ];
    let starts = [(1, 0), (1, most), (2, 0), (2, most), (5, most - 8)];
    let starts = starts.map(|(sequence, index)| Place(sequence, index as u32));
    let rows = [most, most, most, most, 8];
    let expected: Vec<_> = rows.into_iter().zip(starts).collect();
    assert_eq!(pieces(&messages), expected);
    // The same from any piece on, as after a restart.
    for ((rows, start), next) in expected.iter().zip(expected.iter().skip(1)) {
        let (piece, after) = encoder().piece(&messages, *start);
        assert_eq!((piece.dead_letters.len(), after), (*rows, Some(next.1)));
    }

    // Each letter has all headers of its message.
    let header = "x".repeat(60_000);
    let pieces = pieces(&[letters(1, 1_000, &header)]);
    let row = letters(1, 1, &header).size_as_rows(1) - 2;
    assert_eq!(pieces[0].0, PIECE.1 / row);
    assert_eq!(pieces.iter().map(|(rows, _)| rows).sum::<usize>(), 1_000);
}
