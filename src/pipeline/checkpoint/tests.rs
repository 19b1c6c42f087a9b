use super::*;

fn stream(created: &str) -> StreamId {
    StreamId {
        name: "S".to_owned(),
        created: created.to_owned(),
    }
}

fn range(first: u64, last: u64) -> Range {
    Range {
        first,
        last,
        first_stored_at: 1,
        last_stored_at: 2,
    }
}

fn record(committed: u64, in_flight: Vec<Range>) -> Record {
    Record {
        committed,
        in_flight,
        ..Record::new("old", &stream("monday"))
    }
}

#[test]
fn a_range_is_recorded_once_and_retired_in_order() {
    let mut record = record(5, vec![range(6, 9)]);
    // A recovered range stands there already: inserting it needs no write.
    assert!(!record.begin(&range(6, 9)));
    assert!(record.begin(&range(10, 12)));
    record.retire(&range(6, 9));
    assert_eq!(
        (record.committed, record.in_flight.as_slice()),
        (9, [range(10, 12)].as_slice())
    );
    record.retire(&range(10, 12));
    assert_eq!((record.committed, record.in_flight.len()), (12, 0));
}

#[test]
fn a_takeover_keeps_what_the_record_says() {
    let before = record(5, vec![range(6, 9)]);
    let after = before.clone().taken_over("new", &stream("monday"), 20);
    assert_eq!(
        after,
        Record {
            owner: "new".to_owned(),
            ..before
        }
    );
}

#[test]
fn the_record_of_a_stream_that_was_made_again_does_not_count() {
    let after = record(5, vec![range(6, 9)]).taken_over("new", &stream("tuesday"), 20);
    assert_eq!(after, Record::new("new", &stream("tuesday")));
}

#[test]
fn after_a_lost_tail_the_next_messages_are_not_taken_for_stored_ones() {
    let after = record(15, vec![range(16, 19)]).taken_over("new", &stream("monday"), 12);
    assert_eq!((after.committed, after.in_flight.len()), (12, 0));
}

#[test]
fn the_record_is_readable_json() {
    let json = String::from_utf8(to_json(&record(5, vec![range(6, 9)])).to_vec()).unwrap();
    assert_eq!(
        json,
        r#"{"owner":"old","stream_created":"monday","generation":0,"committed":5,"in_flight":[{"first":6,"last":9,"first_stored_at":1,"last_stored_at":2}]}"#
    );
}
