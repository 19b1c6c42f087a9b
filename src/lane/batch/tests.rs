use proptest::prelude::*;

use super::*;
use crate::nats::Headers;

fn message(sequence: u64) -> Message {
    Message {
        sequence,
        stored_at: sequence as i64 * 10,
        subject: "s".into(),
        headers: Headers::default(),
        payload: vec![0; 9].into(),
        reply: Some(format!("ack.{sequence}").into()),
    }
}

fn limits(rows: usize) -> Limits {
    Limits {
        rows,
        bytes: usize::MAX,
        interval: Duration::from_secs(1),
    }
}

fn range(first: u64, last: u64) -> Range {
    Range {
        first,
        last,
        first_stored_at: first as i64 * 10,
        last_stored_at: last as i64 * 10,
    }
}

/// The batches that have ended.
fn ended(cuts: impl IntoIterator<Item = Cut>) -> Vec<Batch> {
    let ends = cuts.into_iter().filter_map(|cut| match cut {
        Cut::End(batch) => Some(batch),
        Cut::Chunk(_) => None,
    });
    ends.collect()
}

/// Messages in chunks.
fn in_chunks(cuts: &[Cut]) -> Vec<usize> {
    let chunks = cuts.iter().filter_map(|cut| match cut {
        Cut::Chunk(messages) => Some(messages.len()),
        Cut::End(_) => None,
    });
    chunks.collect()
}

fn bounds(batches: &[Batch]) -> Vec<(u64, u64)> {
    batches
        .iter()
        .map(|batch| (batch.range.first, batch.range.last))
        .collect()
}

#[test]
fn a_batch_is_full_by_rows_or_by_bytes() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(2), []);
    assert!(ended(batcher.push(message(1), 1, now)).is_empty());
    assert_eq!(bounds(&ended(batcher.push(message(2), 1, now))), [(1, 2)]);
    // One batch message may bring more rows than fit.
    assert_eq!(bounds(&ended(batcher.push(message(3), 5, now))), [(3, 3)]);

    let size = message(1).size();
    let mut batcher = Batcher::new(
        Limits {
            bytes: 2 * size,
            ..limits(100)
        },
        [],
    );
    assert!(ended(batcher.push(message(1), 1, now)).is_empty());
    assert_eq!(bounds(&ended(batcher.push(message(2), 1, now))), [(1, 2)]);
}

#[test]
fn a_batch_ends_before_a_message_that_would_be_too_much_for_it() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(10), []);
    assert!(ended(batcher.push(message(1), 4, now)).is_empty());
    assert!(ended(batcher.push(message(2), 5, now)).is_empty());
    let complete = ended(batcher.push(message(3), 2, now));
    assert_eq!(bounds(&complete), [(1, 2)]);
    assert_eq!((complete[0].rows, complete[0].flush), (9, Flush::Rows));
    // What fits with nothing else is alone.
    let complete = ended(batcher.push(message(4), 10, now));
    assert_eq!(bounds(&complete), [(3, 3), (4, 4)]);

    let size = message(1).size();
    let bytes = 3 * size - 1;
    let mut batcher = Batcher::new(
        Limits {
            bytes,
            ..limits(usize::MAX)
        },
        [],
    );
    assert!(ended(batcher.push(message(1), 1, now)).is_empty());
    assert!(ended(batcher.push(message(2), 1, now)).is_empty());
    let complete = ended(batcher.push(message(3), 1, now));
    assert_eq!(bounds(&complete), [(1, 2)]);
    assert_eq!(complete[0].flush, Flush::Bytes);
}

/// A message with a header of `bytes` bytes.
fn with_header(sequence: u64, bytes: usize) -> Message {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("h", "x".repeat(bytes));
    Message {
        headers: Headers::from(&headers),
        ..message(sequence)
    }
}

#[test]
fn headers_count_for_each_row_that_has_them() {
    let now = Instant::now();
    let bytes = 1024 * 1024;
    let mut batcher = Batcher::new(
        Limits {
            bytes,
            ..limits(usize::MAX)
        },
        [],
    );
    assert!(ended(batcher.push(with_header(1, 1_000), 500, now)).is_empty());
    assert!(ended(batcher.push(with_header(2, 1_000), 500, now)).is_empty());
    let complete = ended(batcher.push(with_header(3, 1_000), 500, now));
    assert_eq!(bounds(&complete), [(1, 2)]);
    // For the metrics, they count as they came.
    assert_eq!(complete[0].bytes, 2 * with_header(1, 1_000).size());
}

#[test]
fn a_large_message_is_alone_and_stored_in_pieces() {
    let now = Instant::now();
    let push = |message: Message, rows| {
        let mut batcher = Batcher::new(limits(usize::MAX), []);
        assert!(ended(batcher.push(self::message(1), 0, now)).is_empty());
        let complete = ended(batcher.push(message, rows, now));
        assert_eq!(batcher.is_empty(), !complete.is_empty());
        let in_pieces: Vec<_> = complete.iter().map(|batch| batch.in_pieces).collect();
        (bounds(&complete), in_pieces)
    };
    let alone = (vec![(1, 1), (2, 2)], vec![false, true]);
    assert_eq!(push(message(2), PIECE.0), (vec![], vec![]));
    assert_eq!(push(message(2), PIECE.0 + 1), alone);
    let rows = PIECE.1 / with_header(2, 50_000).size_as_rows(1);
    assert_eq!(push(with_header(2, 50_000), rows), (vec![], vec![]));
    assert_eq!(push(with_header(2, 50_000), rows + 1), alone);
    // One row cannot be divided.
    assert_eq!(push(with_header(2, PIECE.1), 1), (vec![], vec![]));
}

#[test]
fn a_recorded_range_with_a_large_message_is_cut_as_it_was_and_stored_in_pieces() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(2_000), [range(1, 3)]);
    for sequence in 1..=2 {
        // No chunk either: it is not known yet what follows.
        assert!(batcher.push(message(sequence), 1_000, now).is_empty());
    }
    let complete = ended(batcher.push(message(3), PIECE.0 + 1, now));
    assert_eq!(complete[0].range, range(1, 3));
    assert_eq!(complete[0].messages.len(), 3);
    assert!(complete[0].in_pieces);
}

#[test]
fn a_batch_is_due_an_interval_after_its_first_message() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(100), []);
    assert_eq!(batcher.deadline(), None);
    let _ = batcher.push(message(1), 1, now);
    let _ = batcher.push(message(2), 1, now + Duration::from_millis(900));
    assert_eq!(batcher.deadline(), Some(now + Duration::from_secs(1)));
    assert_eq!(bounds(&ended(batcher.flush(Flush::Age))), [(1, 2)]);
    assert_eq!(batcher.deadline(), None);
}

#[test]
fn messages_without_events_are_still_committed_and_acknowledged() {
    let mut batcher = Batcher::new(limits(100), []);
    let _ = batcher.push(message(7), 0, Instant::now());
    let [batch] = ended(batcher.flush(Flush::Age)).try_into().unwrap();
    assert_eq!((batch.range.first, batch.range.last, batch.rows), (7, 7, 0));
    assert_eq!(batch.ack.unwrap().as_str(), "ack.7");
}

#[test]
fn recorded_ranges_are_cut_exactly_where_they_were() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(1), [range(1, 3), range(4, 5)]);
    assert!(ended(batcher.push(message(1), 1, now)).is_empty());
    assert_eq!(batcher.deadline(), None);
    assert!(batcher.flush(Flush::Age).is_none());
    assert!(ended(batcher.push(message(2), 1, now)).is_empty());
    let complete = ended(batcher.push(message(3), 1, now));
    assert_eq!(complete[0].range, range(1, 3));
    assert_eq!(complete[0].rows, 3);
    assert!(ended(batcher.push(message(4), 1, now)).is_empty());
    assert_eq!(bounds(&ended(batcher.push(message(5), 1, now))), [(4, 5)]);
    // From here on, the limits apply again.
    assert_eq!(bounds(&ended(batcher.push(message(6), 1, now))), [(6, 6)]);
}

#[test]
fn a_recorded_range_whose_messages_are_gone_ends_with_what_is_left() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(1), [range(1, 3), range(4, 5), range(6, 9)]);
    let _ = batcher.push(message(2), 1, now);
    let complete = ended(batcher.push(message(8), 1, now));
    assert_eq!(bounds(&complete), [(1, 3), (4, 5)]);
    assert_eq!((complete[0].rows, complete[1].rows), (1, 0));
    let complete = ended(batcher.end_of_stream());
    assert_eq!(complete[0].range, range(6, 9));
    assert_eq!(complete[0].rows, 1);
    assert!(batcher.end_of_stream().is_empty());
}

#[test]
fn a_chunk_is_cut_by_rows_by_bytes_or_by_its_part_of_a_batch() {
    let now = Instant::now();
    let size = message(1).size();
    let chunks = |limits, rows, messages: u64| {
        let mut batcher = Batcher::new(limits, []);
        let mut chunks = Vec::new();
        for sequence in 1..=messages {
            let cuts = batcher.push(message(sequence), rows, now);
            chunks.extend(in_chunks(&cuts));
            assert!(ended(cuts).is_empty());
        }
        chunks
    };
    assert_eq!(chunks(limits(100_000), 1, 2_500), [1_000, 1_000]);
    assert_eq!(chunks(limits(100_000), 600, 5), [2, 2]);
    assert_eq!(chunks(limits(40), 1, 39), [10, 10, 10]);
    let messages = (CHUNK.1 / size + 1) as u64;
    assert_eq!(chunks(limits(usize::MAX), 0, messages), [messages as usize]);
}

proptest! {
    /// Whatever comes, and wherever it is cut: nothing twice, nothing left out,
    /// in order, and what was recorded is cut as it was.
    #[test]
    fn every_message_is_in_exactly_one_batch_in_order(
        gaps in proptest::collection::vec(1u64..4, 1..60),
        rows in proptest::collection::vec(0usize..4, 60),
        recorded in proptest::collection::vec(1u64..8, 0..4),
        limit in 1usize..6,
        flush_every in 1usize..9,
    ) {
        let mut first = 1;
        let recorded: Vec<Range> = recorded.into_iter().map(|length| {
            let range = range(first, first + length - 1);
            first += length;
            range
        }).collect();
        let mut batcher = Batcher::new(limits(limit), recorded.clone());

        let mut sequence = 0;
        let mut sent = Vec::new();
        let mut cuts = Vec::new();
        for (i, gap) in gaps.iter().enumerate() {
            sequence += gap;
            sent.push((sequence, rows[i]));
            cuts.extend(batcher.push(message(sequence), rows[i], Instant::now()));
            if i % flush_every == 0 {
                cuts.extend(batcher.flush(Flush::Age));
            }
        }
        cuts.extend(batcher.end_of_stream());
        cuts.extend(batcher.flush(Flush::Age));

        // Each batch is its chunks, and then what its end has.
        let mut messages = Vec::new();
        let mut batches = Vec::new();
        for cut in cuts {
            match cut {
                Cut::Chunk(chunk) => messages.extend(chunk),
                Cut::End(mut batch) => {
                    batch.messages.splice(..0, messages.drain(..));
                    batches.push(batch);
                }
            }
        }
        prop_assert!(messages.is_empty());

        for (a, b) in batches.iter().zip(batches.iter().skip(1)) {
            prop_assert!(a.range.last < b.range.first);
        }
        for batch in &batches {
            let expected: Vec<_> = sent.iter()
                .filter(|(sequence, _)| (batch.range.first..=batch.range.last).contains(sequence))
                .collect();
            let in_batch: Vec<_> = batch.messages.iter().map(|message| message.sequence).collect();
            let sequences: Vec<_> = expected.iter().map(|(sequence, _)| *sequence).collect();
            prop_assert_eq!(&in_batch, &sequences);
            prop_assert_eq!(batch.rows, expected.iter().map(|(_, rows)| rows).sum::<usize>());
            prop_assert!(batch.rows <= limit || in_batch.len() == 1 || recorded.contains(&batch.range));
        }
        let stored: usize = batches.iter().map(|batch| batch.rows).sum();
        prop_assert_eq!(stored, sent.iter().map(|(_, rows)| rows).sum::<usize>());
        let cut: Vec<Range> = batches.iter().map(|batch| batch.range.clone()).take(recorded.len()).collect();
        prop_assert_eq!(cut, recorded);
    }
}
