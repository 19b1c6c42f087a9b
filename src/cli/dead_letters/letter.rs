//! A letter as it is read back, and how it is found.

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use clickhouse::Row;
use clickhouse::error::Error;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::clickhouse::ClickHouse;
use crate::clickhouse::native::Millis;
use crate::clickhouse::quote::quote_string;
use crate::event::PayloadIs;
use crate::kind::{Contents, Kind};
use crate::nats::{Headers, Message};

/// A row of `dead_letters` without the payload, which may be large.
#[derive(Debug, Clone, Row, Deserialize)]
pub struct Letter {
    pub stream: String,
    pub stream_seq: u64,
    pub batch_index: u32,
    pub subject: String,
    received_ms: i64,
    pub reason: String,
    pub error: String,
    pub payload_bytes: u64,
    payload_is: String,
    replayed_ms: i64,
}

/// What `list` leaves out.
#[derive(Debug, Row, Deserialize)]
pub struct Content {
    stream: String,
    stream_seq: u64,
    batch_index: u32,
    received_ms: i64,
    /// A JSON object of arrays.
    headers: String,
    payload_base64: String,
}

#[derive(Debug, Clone, Copy)]
pub enum Order {
    NewestFirst,
    OldestFirst,
}

/// The letters that meet `condition`, each once: a range that was inserted twice under
/// two tokens has left its letters twice.
pub async fn find(
    clickhouse: &ClickHouse,
    condition: &str,
    order: Order,
    limit: Option<u64>,
) -> Result<Vec<Letter>, Error> {
    let direction = match order {
        Order::NewestFirst => "DESC",
        Order::OldestFirst => "ASC",
    };
    let limit = limit.map_or(String::new(), |limit| format!("LIMIT {limit}"));
    let sql = format!(
        "SELECT toString(stream) AS stream, stream_seq, batch_index, toString(subject) AS subject,
             toUnixTimestamp64Milli(received_at) AS received_ms, toString(reason) AS reason, error,
             length(payload) AS payload_bytes, toString(payload_is) AS payload_is,
             toUnixTimestamp64Milli(replayed_at) AS replayed_ms
         FROM dead_letters WHERE {condition}
         ORDER BY received_at {direction}, stream_seq {direction}, batch_index {direction}, replayed_at DESC
         LIMIT 1 BY stream, stream_seq, batch_index, received_at {limit}"
    );
    clickhouse.rows(&sql, &[]).await
}

/// What `letters` hold, in their order.
pub async fn contents(clickhouse: &ClickHouse, letters: &[Letter]) -> Result<Vec<Content>, Error> {
    let sql = format!(
        "SELECT toString(stream) AS stream, stream_seq, batch_index,
             toUnixTimestamp64Milli(received_at) AS received_ms,
             headers, base64Encode(payload) AS payload_base64
         FROM dead_letters WHERE {}
         LIMIT 1 BY stream, stream_seq, batch_index, received_at",
        these(letters)
    );
    let mut found: Vec<Content> = clickhouse.rows(&sql, &[]).await?;
    let place = |content: &Content| letters.iter().position(|letter| content.is_of(letter));
    found.sort_by_key(place);
    Ok(found)
}

/// The condition that picks exactly `letters`. The time is a part of a letter's name: a
/// stream that lost its tail has given the same sequences to other messages.
pub fn these(letters: &[Letter]) -> String {
    let times = || letters.iter().map(Letter::received_at);
    let (Some(first), Some(last)) = (times().min(), times().max()) else {
        return "false".to_owned();
    };
    let keys: Vec<String> = letters
        .iter()
        .map(|letter| {
            let Letter {
                stream_seq,
                batch_index,
                received_ms,
                ..
            } = letter;
            let stream = quote_string(&letter.stream);
            format!("({stream}, {stream_seq}, {batch_index}, {received_ms})")
        })
        .collect();
    // The first half finds the rows by the table's order, the second tells them apart.
    format!(
        "received_at BETWEEN {} AND {} AND (stream, stream_seq, batch_index, toUnixTimestamp64Milli(received_at)) IN ({})",
        time(first),
        time(last),
        keys.join(", ")
    )
}

/// A time as ClickHouse reads it in SQL.
pub fn time(millis: Millis) -> String {
    format!("fromUnixTimestamp64Milli(toInt64({}), 'UTC')", millis.0)
}

impl Letter {
    /// When JetStream stored the message.
    pub fn received_at(&self) -> Millis {
        Millis(self.received_ms)
    }

    pub fn replayed_at(&self) -> Option<Millis> {
        (self.replayed_ms > 0).then_some(Millis(self.replayed_ms))
    }

    /// Its name among the letters of its stream.
    pub fn name(&self) -> String {
        format!("{}/{}", self.stream_seq, self.batch_index)
    }

    /// The `Nats-Msg-Id` under which it is replayed, always the same: the event's id if the
    /// letter is one event of a message of its own. Not the producer's, which JetStream may
    /// still know, and would then drop the replay.
    pub fn replay_id(&self) -> Uuid {
        /// Any fixed value does; it keeps these ids apart from other version 5 ids.
        const NAMESPACE: Uuid = Uuid::from_u128(0x8f4e_11a2_52c7_4d0e_9a36_6b1f_c0de_0002);
        let name = format!("{}/{}@{}", self.stream, self.name(), self.received_ms);
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }

    /// What its payload is. Letters from before that was recorded are told apart by what they hold:
    /// the whole of an unreadable batch cannot be read as a batch.
    pub fn payload_is(&self, payload: &Bytes, kind: &dyn Kind) -> PayloadIs {
        let is_event = match self.payload_is.as_str() {
            "event" => true,
            "message" => false,
            _ => {
                kind.may_hold_batches(&self.subject)
                    && (self.batch_index > 0
                        || self.reason != "undecodable"
                        || self.can_be_read(payload, kind))
            }
        };
        if is_event {
            PayloadIs::Event
        } else {
            PayloadIs::Message
        }
    }

    fn can_be_read(&self, payload: &Bytes, kind: &dyn Kind) -> bool {
        let message = Message {
            sequence: self.stream_seq,
            stored_at: self.received_ms * 1_000_000,
            subject: self.subject.as_str().into(),
            headers: Headers::default(),
            payload: payload.clone(),
            reply: None,
        };
        !matches!(kind.contents(&message), Contents::Unreadable(_))
    }

    /// For programs; without the payload.
    pub fn to_json(&self) -> Value {
        json!({
            "letter": format!("{}/{}", self.stream, self.name()),
            "stream": self.stream,
            "stream_seq": self.stream_seq,
            "batch_index": self.batch_index,
            "subject": self.subject,
            "received_at": rfc3339(self.received_at()),
            "reason": self.reason,
            "error": self.error,
            "payload_bytes": self.payload_bytes,
            "replayed_at": self.replayed_at().map(rfc3339),
            "replay_id": self.replay_id(),
        })
    }
}

impl Content {
    pub fn is_of(&self, letter: &Letter) -> bool {
        self.stream_seq == letter.stream_seq
            && self.batch_index == letter.batch_index
            && self.received_ms == letter.received_ms
            && self.stream == letter.stream
    }

    pub fn payload(&self) -> Bytes {
        // ClickHouse wrote it.
        let payload = BASE64_STANDARD.decode(&self.payload_base64);
        payload.unwrap_or_default().into()
    }

    pub fn payload_base64(&self) -> &str {
        &self.payload_base64
    }

    /// Names and values, a name once for each value.
    pub fn headers(&self) -> Vec<(String, String)> {
        let headers: serde_json::Map<String, Value> =
            serde_json::from_str(&self.headers).unwrap_or_default();
        let values = |(name, values): (String, Value)| {
            let values = values.as_array().cloned().unwrap_or_default();
            values.into_iter().filter_map(move |value| {
                let value = value.as_str()?.to_owned();
                Some((name.clone(), value))
            })
        };
        headers.into_iter().flat_map(values).collect()
    }
}

/// A time for people and programs, in UTC.
pub fn rfc3339(time: Millis) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Subjects;
    use crate::kind::analytics::Analytics;

    fn letter(subject: &str, reason: &str) -> Letter {
        Letter {
            stream: "A@1".to_owned(),
            stream_seq: 7,
            batch_index: 0,
            subject: subject.to_owned(),
            received_ms: 1,
            reason: reason.to_owned(),
            error: String::new(),
            payload_bytes: 0,
            payload_is: String::new(),
            replayed_ms: 0,
        }
    }

    #[test]
    fn an_old_letter_is_told_to_be_a_message_or_one_event_of_a_batch() {
        // A context with a client of one byte, which is not text.
        let event = [0x0a, 3, 0x0a, 1, 0xff];
        let subjects = Subjects {
            analytics_batch: "batch".to_owned(),
            ..Subjects::default()
        };
        let kind = Analytics::new(&subjects);
        let is = |letter: &Letter, payload: &[u8]| {
            letter.payload_is(&Bytes::copy_from_slice(payload), &kind)
        };
        let single = letter("single", "undecodable");
        assert_eq!(is(&single, &event), PayloadIs::Message);
        let undecodable = letter("batch", "undecodable");
        assert_eq!(is(&undecodable, &event), PayloadIs::Event);
        assert_eq!(is(&undecodable, &[0xff]), PayloadIs::Message);
        assert_eq!(
            is(&letter("batch", "missing_context"), &[]),
            PayloadIs::Event
        );
        let written_down = Letter {
            payload_is: "message".to_owned(),
            ..undecodable
        };
        assert_eq!(is(&written_down, &event), PayloadIs::Message);
    }

    #[test]
    fn a_letter_is_replayed_under_one_id_that_no_other_letter_has() {
        let id = letter("a", "undecodable").replay_id();
        assert_eq!(letter("b", "missing_context").replay_id(), id);
        for other in [
            Letter {
                batch_index: 1,
                ..letter("a", "")
            },
            Letter {
                received_ms: 2,
                ..letter("a", "")
            },
            Letter {
                stream: "A@2".to_owned(),
                ..letter("a", "")
            },
        ] {
            assert_ne!(other.replay_id(), id);
        }
    }
}
