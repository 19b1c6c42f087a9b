//! One message of a stream, by a request whose answer is JSON: headers arrive in a form
//! that nothing parses on the way, and no consumer is needed.

use std::str::FromStr;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A message as it is in its stream.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    pub sequence: u64,
    /// Nanoseconds since the Unix epoch.
    pub stored_at: i64,
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the message at or after sequence {sequence} of stream `{stream}`: {reason}")]
pub struct StoredMessageError {
    stream: String,
    sequence: u64,
    reason: String,
}

/// The first message of `stream` at or after `sequence` on `subject`, which may
/// have wildcards. `None` at the end of the stream.
pub async fn stored_message(
    jetstream: &jetstream::Context,
    stream: &str,
    sequence: u64,
    subject: &str,
) -> Result<Option<StoredMessage>, StoredMessageError> {
    let failed = |reason: String| StoredMessageError {
        stream: stream.to_owned(),
        sequence,
        reason,
    };
    let request = GetMessage {
        seq: sequence,
        next_by_subj: subject,
    };
    let api = format!("STREAM.MSG.GET.{stream}");
    let message: JsonMessage = match jetstream.request(api, &request).await {
        Ok(Response::Ok(GotMessage { message })) => message,
        Ok(Response::Err { error }) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
            return Ok(None);
        }
        Ok(Response::Err { error }) => return Err(failed(error.to_string())),
        Err(error) => return Err(failed(error.to_string())),
    };
    let bytes = |text: &str| {
        BASE64_STANDARD
            .decode(text)
            .map_err(|error| failed(error.to_string()))
    };
    Ok(Some(StoredMessage {
        sequence: message.seq,
        stored_at: nanoseconds(message.time),
        headers: readable_headers(&bytes(&message.hdrs)?),
        payload: bytes(&message.data)?.into(),
        subject: message.subject,
    }))
}

/// A request to `$JS.API.STREAM.MSG.GET`, as nats-server documents it.
#[derive(Serialize)]
struct GetMessage<'a> {
    seq: u64,
    next_by_subj: &'a str,
}

#[derive(Deserialize)]
struct GotMessage {
    message: JsonMessage,
}

/// Headers and data are in base64, and left out if there are none.
#[derive(Deserialize)]
struct JsonMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
}

/// The headers of a message as they are in the stream, except those that the client library
/// refuses: names and values that are not text, or no pair at all.
fn readable_headers(raw: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in raw.split(|byte| *byte == b'\n').skip(1) {
        let Some((name, value)) = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once(':'))
        else {
            continue;
        };
        if !name.is_empty()
            && let (Ok(name), Ok(value)) = (
                HeaderName::from_str(name),
                HeaderValue::from_str(value.trim()),
            )
        {
            headers.append(name, value);
        }
    }
    headers
}

/// Nanoseconds since the Unix epoch, which reach to the year 2262.
pub fn nanoseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_cannot_be_read_are_left_out_and_the_others_kept() {
        let raw = b"NATS/1.0\r\nNats-Msg-Id: 17\r\nX: \xff\r\nno pair\r\n: nameless\r\nb: 1\r\nb: 2\r\n\r\n";
        let headers = readable_headers(raw);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), "17");
        assert_eq!(headers.get_all("b").count(), 2);
    }
}
