use super::*;
use crate::clickhouse::stored::Place;

fn stream() -> StreamId {
    StreamId {
        name: "S".to_owned(),
        created: "monday".to_owned(),
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

fn record(committed: u64, in_flight: &[Range]) -> Record {
    let mut record = Record::new("old", &stream());
    record.committed = committed;
    record.committed_stored_at = committed as i64 * 10;
    for range in in_flight {
        record.begin(range, Vec::new());
    }
    record
}

fn part(first: u64, last: u64) -> Part {
    Part {
        rows: Rows::Events,
        first: Place(first, 0),
        last: Place(last, 3),
        attempt: 1,
    }
}

fn ranges(record: &Record) -> Vec<Range> {
    let in_flight = record.in_flight.iter();
    in_flight.map(|recorded| recorded.range.clone()).collect()
}

#[test]
fn a_range_is_recorded_once_and_retired_in_order() {
    let mut record = record(5, &[range(6, 9)]);
    // A recovered range is there already, and may have been inserted.
    assert!(record.begin(&range(6, 9), Vec::new()).1);
    assert!(!record.begin(&range(10, 12), Vec::new()).1);
    record.retire(&range(6, 9));
    assert_eq!((record.committed, record.committed_stored_at), (9, 90));
    assert_eq!(ranges(&record), [range(10, 12)]);
    record.retire(&range(10, 12));
    assert_eq!((record.committed, record.in_flight.len()), (12, 0));
}

#[test]
fn a_recovered_range_is_inserted_as_it_was_recorded_last() {
    let mut record = record(5, &[range(6, 9)]);
    let (mut changed, _) = record.begin(&range(6, 9), Vec::new());
    changed.parts = vec![part(8, 9)];
    record.change(&changed);
    record.raise_generation(7);
    let (found, recovered) = record.begin(&range(6, 9), Vec::new());
    assert_eq!((found.parts, recovered), (vec![part(8, 9)], true));
    // Its tokens are those under which it was sent.
    assert_eq!(found.generation, 0);
    assert_eq!(record.begin(&range(10, 10), Vec::new()).0.generation, 7);
}

#[test]
fn after_a_lost_tail_the_next_messages_are_not_taken_for_stored_ones() {
    let mut record = record(15, &[range(16, 19), range(20, 29)]);
    assert_eq!(record.end(), (29, 290));
    record.cut_off(19, 190);
    assert_eq!(
        (record.committed, ranges(&record)),
        (15, vec![range(16, 19)])
    );
    record.cut_off(12, 120);
    assert_eq!((record.committed, record.in_flight.len()), (12, 0));
}

#[test]
fn a_raised_generation_was_never_there_before() {
    let mut record = record(0, &[]);
    record.raise_generation(1_790_000_000);
    assert_eq!(record.generation, 1_790_000_000);
    // Twice within a second, or with a clock that went back.
    record.raise_generation(1_790_000_000);
    assert_eq!(record.generation, 1_790_000_001);
}

#[test]
fn no_two_inserts_of_a_range_share_a_token() {
    let mut record = record(5, &[]);
    let (in_flight, _) = record.begin(&range(6, 9), Vec::new());
    let stream = stream();
    let half = part(6, 7);
    let tokens = [0, 1, 2].map(|attempt| in_flight.token(&stream, &Part { attempt, ..half }));
    assert_eq!(
        tokens,
        [
            "S@monday/0/6@60-9@90",
            "S@monday/0/6@60-9@90/6.0-7.3/1",
            "S@monday/0/6@60-9@90/6.0-7.3/2",
        ]
    );
}

fn incarnation(process: &str, tables: &str) -> Incarnation {
    Incarnation {
        process: process.to_owned(),
        tables: tables.to_owned(),
    }
}

#[test]
fn a_record_of_an_older_build_is_read() {
    let old = r#"{"owner":"old","stream_created":"monday","generation":0,"committed":5,"in_flight":[{"first":6,"last":9,"first_stored_at":60,"last_stored_at":90}],"clickhouse":"one"}"#;
    let record: Record = serde_json::from_str(old).unwrap();
    assert_eq!(record.incarnation, incarnation("one", ""));
    // Nobody knows which ClickHouse its range was sent to: it is recounted.
    let repeated = History {
        repeated: true,
        looked_for: false,
    };
    assert!(record.in_flight[0].may_be_miscounted(repeated, "one"));
}

#[test]
fn a_range_is_recounted_where_its_clickhouse_or_its_tables_may_not_be_the_same() {
    let mut record = record(5, &[]);
    record.incarnation = incarnation("one", "abc");
    let (first, _) = record.begin(&range(6, 9), Vec::new());
    record.incarnation = incarnation("two", "abc");
    let (second, _) = record.begin(&range(10, 11), Vec::new());
    let history = |repeated, looked_for| History {
        repeated,
        looked_for,
    };
    for (range, history, process, is_suspect) in [
        (&first, history(false, false), "two", false),
        (&first, history(true, false), "one", false),
        (&first, history(true, false), "two", true),
        (&second, history(true, false), "two", false),
        (&second, history(false, true), "two", true),
    ] {
        assert_eq!(range.may_be_miscounted(history, process), is_suspect);
    }
    // After a swap, each of them is.
    record.recount_in_flight();
    for range in &record.in_flight {
        assert!(range.may_be_miscounted(history(true, false), "two"));
    }
}

#[test]
fn landmarks_are_the_fewer_the_further_back() {
    let mut record = record(0, &[]);
    for sequence in 1..=100_000 {
        record.begin(&range(sequence, sequence), Vec::new());
        record.retire(&range(sequence, sequence));
    }
    let distances: Vec<u64> = record
        .landmarks
        .iter()
        .map(|(sequence, _)| 100_000 - sequence)
        .collect();
    assert!(distances.len() < 30, "{distances:?}");
    assert_eq!(distances.last(), Some(&0));
    // Wherever the tail was lost, little more than what was lost is compared again.
    for lost in [1, 10, 1_000, 20_000] {
        let least = distances.iter().rev().find(|distance| **distance >= lost);
        assert!(
            least.is_some_and(|least| *least <= 8 * lost),
            "{lost}: {distances:?}"
        );
    }
    record.cut_off(50_000, 7);
    assert!(
        record
            .known_messages()
            .all(|(sequence, _)| sequence <= 50_000)
    );
    assert_eq!(record.known_messages().next(), Some((50_000, 7)));
}

#[test]
fn the_record_is_readable_json() {
    let mut record = record(4, &[]);
    record.incarnation = incarnation("one", "abc");
    for range in [range(5, 5), range(6, 9), range(10, 11)] {
        record.begin(&range, Vec::new());
    }
    record.retire(&range(5, 5));
    let (mut changed, _) = record.begin(&range(10, 11), Vec::new());
    changed.parts = vec![part(11, 11)];
    record.change(&changed);
    assert_eq!(
        serde_json::to_string(&record).unwrap(),
        r#"{"owner":"old","stream_created":"monday","generation":0,"committed":5,"committed_stored_at":50,"in_flight":[{"first":6,"last":9,"first_stored_at":60,"last_stored_at":90,"generation":0,"clickhouse":"one","tables":"abc"},{"first":10,"last":11,"first_stored_at":100,"last_stored_at":110,"generation":0,"clickhouse":"one","tables":"abc","parts":[{"rows":"events","first":[11,0],"last":[11,3],"attempt":1}]}],"clickhouse":"one","tables":"abc","landmarks":[[5,50]]}"#
    );
}
