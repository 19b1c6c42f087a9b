use async_nats::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::nats::Headers;
use crate::pb;

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

fn kind() -> Analytics {
    Analytics::new(&Subjects::default())
}

/// The events of a message as they were sent.
fn sources(message: &Message) -> Vec<Source> {
    match kind().contents(message) {
        Contents::Event => vec![Source::whole(message)],
        Contents::Batch(events) => (0..)
            .zip(events)
            .map(|(index, payload)| Source::of_batch(message, index, payload))
            .collect(),
        Contents::Unreadable(error) => panic!("{error}"),
    }
}

fn decode(source: &Source) -> Result<Event<'_>, Unfit> {
    kind().decode("ANALYTICS@1", source)
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
        bytes_of(Some(context(""))),
        Bytes::from_static(b"\xff"),
        good,
    ]);
    let sources = sources(&message("fechatter.analytics.batch", payload));
    let fates: Vec<_> = sources.iter().map(decode).collect();
    let [Ok(first), bad @ .., Ok(last)] = fates.as_slice() else {
        panic!("{fates:?}");
    };
    assert_ne!(first.id, last.id);
    let reasons: Vec<_> = bad
        .iter()
        .map(|fate| fate.as_ref().unwrap_err().reason)
        .collect();
    assert_eq!(
        reasons,
        [
            Reason::MissingContext,
            Reason::MissingClientId,
            Reason::Undecodable
        ]
    );
    assert_eq!(sources[3].payload.as_ref(), b"\xff");
    assert_eq!(sources[3].payload_is, PayloadIs::Event);
}

#[test]
fn a_batch_that_cannot_be_read_is_one_row() {
    let message = message("fechatter.analytics.batch", Bytes::from_static(b"\xff"));
    assert!(matches!(kind().contents(&message), Contents::Unreadable(_)));
    assert_eq!(kind().rows(&message), 1);
}

#[test]
fn an_unknown_type_is_named_by_its_subject_and_keeps_its_bytes() {
    let payload = bytes_of(Some(context("a")));
    for (subject, name) in [
        ("fechatter.analytics.poll.created", "poll_created"),
        ("fechatter.analytics.a-b.C.$x", "a-b_C_$x"),
        ("elsewhere.poll", "elsewhere_poll"),
    ] {
        let sources = sources(&message(subject, payload.clone()));
        let event = decode(&sources[0]).unwrap();
        assert_eq!(event.event_type, name);
        assert_eq!(event.source.payload, payload);
    }
    let sources = sources(&message(
        "fechatter.analytics.batch",
        batch_of(std::slice::from_ref(&payload)),
    ));
    let event = decode(&sources[0]).unwrap();
    assert_eq!(event.event_type, "unknown");
    assert_eq!(event.source.payload, payload);
}

#[test]
fn the_id_is_the_header_where_that_is_a_uuid_and_is_derived_otherwise() {
    let id = Uuid::from_u128(5);
    let payload = bytes_of(Some(context("a")));
    let id_of = |message: &Message| decode(&sources(message)[0]).unwrap().id;
    let with_header = |subject, header: &str, payload| {
        let mut message = message(subject, payload);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, header);
        message.headers = Headers::from(&headers);
        id_of(&message)
    };
    let subject = "fechatter.analytics.app.start";
    let derived = id_of(&message(subject, payload.clone()));

    assert_eq!(with_header(subject, &id.to_string(), payload.clone()), id);
    assert_eq!(with_header(subject, "order-17", payload.clone()), derived);
    let batch = batch_of(std::slice::from_ref(&payload));
    assert_ne!(
        with_header("fechatter.analytics.batch", &id.to_string(), batch),
        id
    );

    let sources = sources(&message(subject, payload));
    let recreated = kind().decode("ANALYTICS@2", &sources[0]).unwrap();
    assert_ne!(recreated.id, derived);
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
    fn any_bytes_become_one_event_or_a_reason(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let message = message("fechatter.analytics.user.login", bytes);
        let sources = sources(&message);
        prop_assert_eq!(sources.len(), kind().rows(&message));
        let _ = decode(&sources[0]);
    }

    #[test]
    fn every_event_of_a_batch_has_its_own_index(
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20),
    ) {
        let events: Vec<Bytes> = events.into_iter().map(Bytes::from).collect();
        let message = message("fechatter.analytics.batch", batch_of(&events));
        prop_assert_eq!(kind().rows(&message), events.len());
        let sources = sources(&message);
        let indexes: Vec<u32> = sources.iter().map(|source| source.place.1).collect();
        prop_assert_eq!(indexes, (0..events.len() as u32).collect::<Vec<_>>());
        let payloads: Vec<Bytes> = sources.into_iter().map(|source| source.payload).collect();
        prop_assert_eq!(payloads, events);
    }
}
