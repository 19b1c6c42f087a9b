use async_nats::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::pb;
use crate::pipeline::message::Headers;

const NOW: i64 = 1_795_000_000_000;

fn message(subject: &str, payload: impl Into<Bytes>) -> Message {
    Message {
        sequence: 7,
        stored_at: NOW * 1_000_000 + 999_999,
        subject: subject.into(),
        headers: Headers::default(),
        payload: payload.into(),
        reply: None,
    }
}

fn decoder() -> Decoder {
    Decoder::new("ANALYTICS@1", &Subjects::default())
}

fn context(client_id: &str) -> pb::EventContext {
    pb::EventContext {
        client_id: client_id.to_owned(),
        ..Default::default()
    }
}

fn bytes_of(context: Option<pb::EventContext>) -> Bytes {
    AnalyticsEvent {
        context,
        event_type: None,
    }
    .encode_to_vec()
    .into()
}

fn batch_of(events: &[Bytes]) -> Bytes {
    BatchMessage {
        events: events.to_vec(),
    }
    .encode_to_vec()
    .into()
}

#[test]
fn a_bad_event_of_a_batch_leaves_its_neighbours_alone() {
    let good = bytes_of(Some(context("a")));
    let payload = batch_of(&[
        good.clone(),
        bytes_of(None),
        Bytes::from_static(b"\xff"),
        good,
    ]);
    let decoded = decoder().decode(&message("fechatter.analytics.batch", payload));

    let stored: Vec<u32> = decoded
        .events
        .iter()
        .map(|event| event.source.place.1)
        .collect();
    assert_eq!(stored, [0, 3]);
    let dead: Vec<_> = decoded
        .dead_letters
        .iter()
        .map(|letter| (letter.source.place.1, letter.reason))
        .collect();
    assert_eq!(
        dead,
        [(1, Reason::MissingContext), (2, Reason::Undecodable)]
    );
    assert_eq!(decoded.dead_letters[1].source.payload.as_ref(), b"\xff");
    assert_eq!(decoded.dead_letters[1].source.payload_is, PayloadIs::Event);
    assert_ne!(decoded.events[0].source.id, decoded.events[1].source.id);
}

#[test]
fn a_batch_that_cannot_be_read_is_one_letter_with_the_whole_message() {
    let message = message("fechatter.analytics.batch", Bytes::from_static(b"\xff"));
    let decoded = decoder().decode(&message);
    let [letter] = decoded.dead_letters.as_slice() else {
        panic!("not one letter: {:?}", decoded.dead_letters);
    };
    assert_eq!(letter.source.payload_is, PayloadIs::Message);
}

#[test]
fn an_unknown_type_is_named_by_its_subject_and_keeps_its_bytes() {
    let payload = bytes_of(Some(context("a")));
    for (subject, name) in [
        ("fechatter.analytics.poll.created", "poll_created"),
        ("fechatter.analytics.a-b.C.$x", "a-b_C_$x"),
        ("elsewhere.poll", "elsewhere_poll"),
    ] {
        let decoded = decoder().decode(&message(subject, payload.clone()));
        assert_eq!(decoded.events[0].event_type, name);
        assert_eq!(decoded.events[0].source.payload, payload);
    }
    let decoded = decoder().decode(&message(
        "fechatter.analytics.batch",
        batch_of(std::slice::from_ref(&payload)),
    ));
    assert_eq!(decoded.events[0].event_type, "unknown");
    assert_eq!(decoded.events[0].source.payload, payload);
}

#[test]
fn the_id_is_the_header_where_that_is_a_uuid_and_is_derived_otherwise() {
    let id = Uuid::from_u128(5);
    let payload = bytes_of(Some(context("a")));
    let with_header = |subject, header: &str, payload| {
        let mut message = message(subject, payload);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, header);
        message.headers = Headers::from(&headers);
        decoder().decode(&message).events[0].source.id
    };
    let subject = "fechatter.analytics.app.start";
    let derived = decoder().decode(&message(subject, payload.clone())).events[0]
        .source
        .id;

    assert_eq!(with_header(subject, &id.to_string(), payload.clone()), id);
    assert_eq!(with_header(subject, "order-17", payload.clone()), derived);
    let batch = batch_of(std::slice::from_ref(&payload));
    assert_ne!(
        with_header("fechatter.analytics.batch", &id.to_string(), batch),
        id
    );

    let recreated = Decoder::new("ANALYTICS@2", &Subjects::default());
    assert_ne!(
        recreated.decode(&message(subject, payload)).events[0]
            .source
            .id,
        derived
    );
}

#[test]
fn a_clock_is_believed_only_where_it_can_be_true() {
    let received = Millis(NOW);
    assert_eq!(server_ts(0, received), received);
    assert_eq!(server_ts(NOW - 30 * DAY, received).0, NOW - 30 * DAY);
    assert_eq!(server_ts(NOW - 30 * DAY - 1, received), received);
    assert_eq!(server_ts(NOW + 5 * MINUTE, received).0, NOW + 5 * MINUTE);
    assert_eq!(server_ts(NOW + 5 * MINUTE + 1, received), received);
    assert_eq!(server_ts(i64::MIN, received), received);

    assert_eq!(client_ts(1, received).0, 1);
    assert_eq!(client_ts(4_102_444_799_999, received).0, 4_102_444_799_999);
    for lie in [0, -1, 4_102_444_800_000, i64::MIN, i64::MAX] {
        assert_eq!(client_ts(lie, received), received);
    }
}

proptest! {
    #[test]
    fn any_bytes_become_one_event_or_one_dead_letter(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let decoded = decoder().decode(&message("fechatter.analytics.user.login", bytes));
        prop_assert_eq!(decoded.events.len() + decoded.dead_letters.len(), 1);
    }

    #[test]
    fn every_event_of_a_batch_has_one_fate_and_its_own_index(
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20),
    ) {
        let events: Vec<Bytes> = events.into_iter().map(Bytes::from).collect();
        let decoded = decoder().decode(&message("fechatter.analytics.batch", batch_of(&events)));
        let mut indexes: Vec<u32> = decoded.events.iter().map(|event| event.source.place.1)
            .chain(decoded.dead_letters.iter().map(|letter| letter.source.place.1))
            .collect();
        indexes.sort_unstable();
        prop_assert_eq!(indexes, (0..events.len() as u32).collect::<Vec<_>>());
    }
}
