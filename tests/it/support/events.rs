//! What the tests publish.

use std::collections::VecDeque;
use std::time::SystemTime;

use analytics_server::pb;
use analytics_server::sample::Population;
use prost::Message;

use super::World;

/// Publishes sample events without waiting for each answer.
pub async fn publish_samples(world: &World, count: usize) {
    let jetstream = world.nats.jetstream().await;
    let mut population = Population::new(7);
    let mut acks = VecDeque::new();
    for _ in 0..count {
        let sample = population.event(SystemTime::now(), None);
        let subject = format!("fechatter.analytics.{}", sample.subject);
        let payload = sample.event.encode_to_vec();
        acks.push_back(jetstream.publish(subject, payload.into()).await.unwrap());
        if acks.len() >= 200 {
            acks.pop_front().unwrap().await.unwrap();
        }
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

/// The bytes of an event that says nothing but who sent it.
pub fn event(client_id: &str) -> Vec<u8> {
    let context = pb::EventContext {
        client_id: client_id.to_owned(),
        ..Default::default()
    };
    pb::AnalyticsEvent {
        context: Some(context),
        event_type: None,
    }
    .encode_to_vec()
}
