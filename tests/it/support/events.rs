//! What the tests publish.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use analytics_server::internal::Population;
use analytics_server::pb;
use prost::Message;
use uuid::Uuid;

use super::World;
use super::nats::Nats;

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
    event_of(client_id, 0)
}

/// As [`event`], with the server's time in milliseconds since the Unix epoch.
pub fn event_of(client_id: &str, server_ts: i64) -> Vec<u8> {
    let context = pb::EventContext {
        client_id: client_id.to_owned(),
        server_ts,
        ..Default::default()
    };
    pb::AnalyticsEvent {
        context: Some(context),
        event_type: None,
    }
    .encode_to_vec()
}

/// Publishes an event with this `Nats-Msg-Id`, and with a header that the client library
/// refuses to read: as bytes, since it does not send one either. `login` holds more
/// members of what a client says first.
pub fn publish_with_an_odd_header(nats: &Nats, login: &str, id: Uuid) {
    let headers = [
        b"NATS/1.0\r\nX: \xff\r\nNats-Msg-Id: ".as_slice(),
        id.to_string().as_bytes(),
        b"\r\n\r\n",
    ]
    .concat();
    let payload = event("odd header");
    let connect = format!("CONNECT {{{login}\"headers\":true,\"verbose\":false}}\r\n");
    let publish = format!(
        "HPUB fechatter.analytics.app.start {} {}\r\n",
        headers.len(),
        headers.len() + payload.len()
    );
    let mut connection = TcpStream::connect(nats.url().trim_start_matches("nats://")).unwrap();
    connection.write_all(connect.as_bytes()).unwrap();
    connection
        .write_all(&[publish.as_bytes(), &headers, &payload, b"\r\nPING\r\n"].concat())
        .unwrap();
    let mut answer = String::new();
    while !answer.contains("PONG") {
        let mut bytes = [0; 4096];
        let count = connection.read(&mut bytes).unwrap();
        assert!(count > 0, "{answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(!answer.contains("-ERR"), "{answer}");
}
