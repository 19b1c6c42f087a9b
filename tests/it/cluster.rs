//! A NATS cluster of three servers, one of which is lost, and what a restore makes of a
//! stream.

use std::time::SystemTime;

use analytics_server::internal::{Happening, Population};
use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream;
use futures_util::{StreamExt, stream};
use prost::Message;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::backup::{backup, restore, restored};
use crate::support::daemon::Daemon;
use crate::support::nats::Nats;
use crate::support::{World, eventually};

/// Publishes one event until JetStream says that it has it.
async fn publish(jetstream: &jetstream::Context, sample: Happening) {
    let subject = format!("fechatter.analytics.{}", sample.subject);
    let payload = sample.event.encode_to_vec();
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, Uuid::new_v4().to_string());
    eventually("an event is published", async || {
        let (subject, headers) = (subject.clone(), headers.clone());
        let ack = jetstream.publish_with_headers(subject, headers, payload.clone().into());
        ack.await.ok()?.await.ok()
    })
    .await;
}

/// The server that leads a stream, by its place; `None` while there is none, or while
/// one of the three is behind.
async fn leader(jetstream: &jetstream::Context, stream: &str) -> Option<usize> {
    let stream = jetstream.get_stream(stream).await.ok()?;
    let cluster = stream.cached_info().cluster.as_ref()?;
    let complete = cluster.replicas.len() == 2 && cluster.replicas.iter().all(|it| it.current);
    let leader = cluster.leader.as_ref().filter(|_| complete)?;
    Some(leader.parse().unwrap())
}

#[tokio::test]
async fn the_leader_of_a_replicated_stream_is_killed_while_events_flow_and_none_is_lost() {
    const EVENTS: usize = 20_000;
    let mut nodes = Nats::cluster().await;
    let urls: Vec<String> = nodes.iter().map(Nats::url).collect();
    let client = async_nats::connect(urls.as_slice()).await.unwrap();
    let jetstream = jetstream::new(client);
    let mut world = World::with_nats(nodes.remove(0));
    let urls = urls.join(",");
    let messaging = format!("nats_url: '{urls}', jetstream: {{num_replicas: 3}}");
    let config = world.config("batch_size: 500, flush_interval_seconds: 0.1", &messaging);
    let daemon = Daemon::start_with(&config, &[], "info");
    daemon.logs("checkpoint taken over").await;
    let streams = ["ANALYTICS", "KV_analytics-checkpoints"];
    for name in streams {
        let stream = jetstream.get_stream(name).await.unwrap();
        assert_eq!(stream.cached_info().config.num_replicas, 3, "{name}");
    }

    let mut population = Population::new(7);
    for (round, name) in (0..).zip(streams) {
        let samples: Vec<Happening> = (0..EVENTS / streams.len())
            .map(|_| population.event(SystemTime::now(), None))
            .collect();
        let publishing = stream::iter(samples)
            .for_each_concurrent(64, async |sample| publish(&jetstream, sample).await);
        let killing = async {
            let enough = (EVENTS / streams.len() * round + EVENTS / 10) as u64;
            eventually("some more is stored", async || {
                (world.stored().await >= enough).then_some(())
            })
            .await;
            let leader = eventually("all three have everything", async || {
                leader(&jetstream, name).await
            })
            .await;
            let node = match leader {
                0 => &mut world.nats,
                other => &mut nodes[other - 1],
            };
            node.kill();
            node
        };
        // What is left is published to the two that remain.
        let (_, killed) = tokio::join!(publishing, killing);
        killed.start_again();
    }

    eventually("all three have everything", async || {
        leader(&jetstream, "ANALYTICS").await
    })
    .await;
    world.settled(EVENTS as u64, 0).await;
    let ids = "SELECT uniqExact(event_id) AS n FROM analytics_events";
    assert_eq!(world.number(ids).await, EVENTS as u64);
    world.views_equal_a_recount().await;
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
}

/// When JetStream stored each message of the stream, by sequence.
async fn storage_times(stream: &jetstream::stream::Stream) -> Vec<(u64, OffsetDateTime)> {
    let state = &stream.cached_info().state;
    let mut times = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        times.push((message.sequence, message.time));
    }
    times
}

#[tokio::test]
async fn a_restored_stream_has_the_same_messages_and_was_created_at_another_time() {
    let alone = Nats::start().await;
    let cluster = Nats::cluster().await;
    for (nats, num_replicas) in [(&alone, 1), (&cluster[0], 3)] {
        let client = nats.client().await;
        let jetstream = nats.jetstream().await;
        let config = jetstream::stream::Config {
            name: "ANALYTICS".to_owned(),
            subjects: vec!["fechatter.analytics.>".to_owned()],
            num_replicas,
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        let mut population = Population::new(7);
        // Enough for several pieces.
        let samples: Vec<Happening> = (0..3000)
            .map(|_| population.event(SystemTime::now(), None))
            .collect();
        stream::iter(samples)
            .for_each_concurrent(64, async |sample| publish(&jetstream, sample).await)
            .await;
        // Sequences that do not begin at 1.
        let before = jetstream.get_stream("ANALYTICS").await.unwrap();
        before.purge().sequence(11).await.unwrap();
        let before = jetstream.get_stream("ANALYTICS").await.unwrap();
        let times = storage_times(&before).await;
        assert_eq!(times.len(), 2990);

        let backup = backup(&client, "ANALYTICS").await;
        jetstream.delete_stream("ANALYTICS").await.unwrap();
        restore(&client, &backup).await;
        let after = restored(&client, &backup).await;
        assert_eq!(storage_times(&after).await, times, "{num_replicas}");
        let created = [&before, &after].map(|stream| stream.cached_info().created);
        assert_ne!(created[0], created[1], "{num_replicas}");
    }
}
