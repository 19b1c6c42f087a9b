//! What an insert does about each answer of ClickHouse, and about none.

use std::collections::HashMap;
use std::future::IntoFuture;
use std::time::Duration;

use ::clickhouse::Client;
use analytics_server::internal::{CODES, Class};
use analytics_server::pb;
use analytics_server::pb::analytics_event::EventType;
use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message;

use crate::support::daemon::Daemon;
use crate::support::events::{event, publish_samples};
use crate::support::fake_clickhouse::{Attempt, FakeClickHouse, Fate, Presence};
use crate::support::{World, clickhouse, eventually};

/// A daemon that inserts through a fake ClickHouse.
async fn start(world: &World, analytics: &str) -> (FakeClickHouse, Daemon) {
    let fake = FakeClickHouse::start().await;
    let config = world.config_at("analytics.yml", &fake.url, analytics, "");
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.takes_over().await;
    (fake, daemon)
}

/// Every event of `codes` is stored once, by the third attempt of its insert.
async fn stored_by_the_third_attempt(codes: &[(u16, &str)], message: &str) {
    let world = World::new().await;
    let analytics = "batch_size: 1, max_in_flight: 8, flush_interval_seconds: 0.1";
    let (fake, daemon) = start(&world, analytics).await;
    for (code, name) in codes {
        let answer = Fate::code(*code, message, name);
        fake.plan([answer.clone(), answer]);
    }
    for _ in codes {
        world.publish("app.start", event("a")).await;
    }
    world.settled(codes.len() as u64, 0).await;
    fake.repeats_are_alike();
    let mut attempts = HashMap::new();
    for attempt in fake.attempts() {
        *attempts.entry(attempt.token).or_insert(0) += 1;
    }
    assert_eq!(attempts.len(), codes.len());
    assert!(attempts.values().all(|count| *count == 3), "{attempts:?}");
    let log = daemon.log();
    for (code, name) in codes {
        assert!(log.contains(&format!("({name})")), "{code} is not shown");
    }
}

#[tokio::test]
async fn an_error_that_is_not_the_datas_fault_is_shown_and_the_same_bytes_go_again() {
    let codes = CODES.iter().filter(|code| code.class != Class::Refused);
    let codes: Vec<_> = codes.map(|code| (code.code, code.name)).collect();
    stored_by_the_third_attempt(&codes, "Planned by a test").await;
}

#[tokio::test]
async fn an_error_of_a_view_makes_no_dead_letter_whatever_its_code() {
    let codes = CODES.iter().filter(|code| code.class == Class::Refused);
    let codes: Vec<_> = codes.map(|code| (code.code, code.name)).collect();
    let message = "Constraint `c` for table a.t is violated at row 1. Column values: x = 'bad': \
                   while pushing to view a.v";
    stored_by_the_third_attempt(&codes, message).await;
}

#[tokio::test]
async fn codes_are_named_as_clickhouse_names_them() {
    let client = Client::default().with_url(clickhouse::url());
    for code in CODES {
        let sql = format!("SELECT errorCodeToName({})", code.code);
        let name = client.query(&sql).fetch_one::<String>().await.unwrap();
        assert_eq!(name, code.name, "{}", code.code);
    }
}

#[tokio::test]
async fn an_insert_whose_connection_breaks_or_whose_answer_is_late_is_stored_once() {
    const EVENTS: usize = 1_000;
    let world = World::new().await;
    let analytics = "batch_size: 100, flush_interval_seconds: 0.1";
    let (fake, _daemon) = start(&world, analytics).await;
    let late = Fate::Late(Duration::from_secs(2));
    let plans = [
        vec![Fate::CutBefore],
        vec![Fate::CutAfter],
        vec![Fate::CutWithin, Fate::CutWithin],
        vec![
            Fate::CutAfter,
            Fate::CutAfter,
            Fate::CutBefore,
            Fate::CutAfter,
        ],
        vec![late.clone()],
        vec![Fate::CutAfter, late],
        vec![Fate::Answer(502, "<html>Bad Gateway</html>".to_owned())],
    ];
    for plan in &plans {
        fake.plan(plan.clone());
    }
    publish_samples(&world, EVENTS).await;
    world.stored_once(EVENTS as u64, 0).await;
    fake.repeats_are_alike();
    let planned: usize = plans.iter().map(Vec::len).sum();
    let (attempts, late) = (fake.attempts().len(), 2);
    assert!(
        attempts >= EVENTS / 100 + planned - late,
        "{attempts} attempts"
    );
}

#[tokio::test]
async fn an_insert_that_takes_too_long_is_sent_again_and_stored_once() {
    const EVENTS: usize = 300;
    let world = World::new().await;
    let analytics = "batch_size: 100, flush_interval_seconds: 0.1, insert_timeout_seconds: 1";
    let (fake, daemon) = start(&world, analytics).await;
    fake.plan([Fate::Hang, Fate::Hang]);
    fake.plan([Fate::Late(Duration::from_secs(3)), Fate::CutAfter]);
    publish_samples(&world, EVENTS).await;
    world.stored_once(EVENTS as u64, 0).await;
    fake.repeats_are_alike();
    assert!(fake.attempts().len() >= EVENTS / 100 + 4);
    daemon.logs("outcome unknown").await;
}

/// A clock that stood still, as a suspended machine's does, would say that the lease has not
/// run out: the record alone decides.
#[tokio::test]
async fn an_insert_is_not_repeated_by_an_instance_that_was_replaced_whatever_its_clock_says() {
    let world = World::new().await;
    let analytics =
        "flush_interval_seconds: 0.1, insert_timeout_seconds: 1, lease_timeout_seconds: 3600";
    let (fake, daemon) = start(&world, analytics).await;
    fake.plan([Fate::Hang]);
    world.publish("app.start", event("a")).await;
    fake.stores_the_first().await;
    let mut record = world.record().await;
    record["owner"] = "another".into();
    world.put_record(&record).await;
    daemon
        .logs("another instance, another, has taken over")
        .await;
    assert_eq!(fake.attempts().len(), 1);
}

#[tokio::test]
async fn rows_that_clickhouse_refuses_become_dead_letters_and_their_neighbours_are_stored() {
    let world = World::new().await;
    let (fake, _daemon) = start(&world, "flush_interval_seconds: 1").await;
    world
        .run("ALTER TABLE analytics_events ADD CONSTRAINT c CHECK client_id != 'bad'")
        .await;
    // Of a known type: what is stored of such an event is columns, not its bytes.
    let app_start = |client: &str| pb::AnalyticsEvent {
        event_type: Some(EventType::AppStart(pb::AppStartEvent {})),
        ..pb::AnalyticsEvent::decode(&event(client)[..]).unwrap()
    };
    let bad_event = app_start("bad").encode_to_vec();
    let batch = pb::BatchRecordEventsRequest {
        events: ["a", "bad", "b", "bad"].map(app_start).to_vec(),
    };
    let mut bad = Vec::new();
    for index in 0..20 {
        let sequence = match index {
            3 | 11 | 12 => world.publish("app.start", bad_event.clone()).await,
            7 => {
                let sequence = world.publish("batch", batch.encode_to_vec()).await;
                bad.push((sequence, 1));
                bad.push((sequence, 3));
                continue;
            }
            _ => {
                world.publish("app.start", event("good")).await;
                continue;
            }
        };
        bad.push((sequence, 0));
    }
    let good = 20 - 4 + 2;
    world.stored_once(good, bad.len() as u64).await;
    fake.repeats_are_alike();
    let sql = "SELECT stream_seq, batch_index, reason, error, hex(payload) AS payload FROM dead_letters ORDER BY ALL";
    let letters = world.rows(sql).await;
    let places = letters.iter().map(|letter| {
        let number = |name: &str| letter[name].as_u64().unwrap();
        (number("stream_seq"), number("batch_index"))
    });
    assert_eq!(places.collect::<Vec<_>>(), bad);
    let payload: String = bad_event.iter().map(|it| format!("{it:02X}")).collect();
    for letter in letters {
        assert_eq!(letter["reason"], "refused");
        assert_eq!(letter["error"], "Code: 469. (VIOLATED_CONSTRAINT)");
        assert_eq!(letter["payload"], payload);
    }
    let sql = "SELECT uniqExact(stream_seq, batch_index) AS n FROM analytics_events WHERE client_id != 'bad'";
    assert_eq!(world.number(sql).await, good);
}

#[tokio::test]
async fn what_was_stored_before_it_was_refused_is_no_dead_letter() {
    let refusal = Fate::code(
        469,
        "Constraint `c` for table a.t is violated at row 1. Expression: (x != 'bad'). \
         Column values: x = 'bad'",
        "VIOLATED_CONSTRAINT",
    );
    for rows in [1, 4] {
        let world = World::new().await;
        let analytics = format!("batch_size: {rows}, flush_interval_seconds: 3600");
        let (fake, _daemon) = start(&world, &analytics).await;
        // Stored, but nobody knows; then somebody adds a constraint.
        fake.plan([Fate::CutAfter, refusal.clone()]);
        for _ in 0..rows {
            world.publish("app.start", event("bad")).await;
        }
        world.stored_once(rows, 0).await;
    }
}

#[tokio::test]
async fn an_insert_that_was_never_answered_is_stored_once_after_a_restart() {
    let world = World::new().await;
    let (fake, daemon) = start(&world, "flush_interval_seconds: 0.1").await;
    fake.plan([Fate::Hang]);
    world.publish("app.start", event("a")).await;
    fake.stores_the_first().await;
    daemon.kill();
    let _daemon = Daemon::start(&world.dir.path().join("analytics.yml"));
    world.stored_once(1, 0).await;
    fake.repeats_are_alike();
    assert_eq!(fake.attempts().len(), 2);
}

#[tokio::test]
async fn clickhouse_may_be_away_for_long_and_is_not_run_over_when_it_is_back() {
    const SAMPLES: usize = 20_000;
    const LARGE: usize = 10_000;
    const LARGE_BYTES: usize = 10_000;
    const EVENTS: u64 = (SAMPLES + LARGE) as u64;
    let world = World::new().await;
    let analytics = "batch_size: 500, batch_max_bytes: 1MiB, flush_interval_seconds: 0.1";
    let (fake, daemon) = start(&world, analytics).await;
    fake.set(Presence::Away);
    publish_samples(&world, SAMPLES).await;
    let large = Bytes::from(event(&"x".repeat(LARGE_BYTES)));
    let jetstream = world.nats.jetstream().await;
    for _ in 0..LARGE / 100 {
        let publish = || jetstream.publish("fechatter.analytics.app.start", large.clone());
        let acks = join_all((0..100).map(|_| publish())).await;
        join_all(acks.into_iter().map(|ack| ack.unwrap().into_future())).await;
    }
    eventually("the daemon tries again and again", async || {
        (fake.missed() >= 8).then_some(())
    })
    .await;
    fake.set(Presence::Silent);
    let missed = fake.missed();
    eventually("the daemon waits for an answer", async || {
        (fake.missed() > missed).then_some(())
    })
    .await;
    assert_eq!(world.stored().await, 0);

    fake.set(Presence::Here);
    world.stored_once(EVENTS, 0).await;
    fake.repeats_are_alike();
    assert!(fake.most_open() <= 2, "{} at a time", fake.most_open());
    let answers = fake.attempts().into_iter().map(|attempt| attempt.answer);
    let bad: Vec<_> = answers.filter(|answer| *answer != Some(200)).collect();
    assert!(bad.is_empty(), "{bad:?}");

    let stream = world.nats.stream().await;
    let consumer = stream.consumer_info("analytics-processor").await;
    assert_eq!(consumer.unwrap().num_redelivered, 0);
    let log = daemon.log();
    assert_eq!(log.matches("checkpoint taken over").count(), 1, "{log}");
    // What waited was far more than what the daemon held of it.
    if let Some(most) = daemon.most_memory() {
        assert!(most < 100_000_000, "{most} bytes");
    }
}

#[tokio::test]
async fn blocks_are_compressed_where_that_is_asked_for() {
    // `auto` is `none` here: the fake is on this machine.
    for (compression, compressed) in [("lz4", true), ("auto", false)] {
        let world = World::new().await;
        let analytics = format!("flush_interval_seconds: 0.1, compression: {compression}");
        let (fake, _daemon) = start(&world, &analytics).await;
        publish_samples(&world, 2_000).await;
        world.settled(2_000, 0).await;
        let attempts = fake.attempts();
        let as_asked = |attempt: &Attempt| attempt.compressed == compressed;
        assert!(attempts.iter().all(as_asked), "{compression}: {attempts:?}");
    }
}
