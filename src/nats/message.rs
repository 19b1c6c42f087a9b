//! A message of the stream, in as little memory as it needs: many thousands of them wait
//! for ClickHouse at a time.

use async_nats::{HeaderMap, Subject};
use bytes::{Bytes, BytesMut};

/// A message as it is in the stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// Sequence in the stream.
    pub sequence: u64,
    /// When JetStream stored it, in nanoseconds since the Unix epoch.
    pub stored_at: i64,
    pub subject: Subject,
    pub headers: Headers,
    pub payload: Bytes,
    /// Where the acknowledgement goes; `None` for one that was fetched by request.
    pub reply: Option<Subject>,
}

impl Message {
    /// Bytes of subject, headers and payload.
    pub fn size(&self) -> usize {
        self.size_as_rows(1)
    }

    /// Bytes of subject, headers and payload, the first two for each of `rows` rows: each
    /// dead letter of a batch message has those of its message.
    pub fn size_as_rows(&self, rows: usize) -> usize {
        rows.max(1) * (self.subject.len() + self.headers.size()) + self.payload.len()
    }
}

/// A message's headers. Names may repeat.
#[derive(Debug, Clone, Default)]
pub struct Headers(
    /// Each name and each value, preceded by its length.
    Bytes,
);

/// Bytes that a length takes.
const LENGTH: usize = size_of::<u32>();

impl Headers {
    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find_map(|(other, value)| (other == name).then_some(value))
    }

    /// Bytes in memory, which are a few more than those of names and values.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Names and values; several values of one name keep their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.0.as_ref();
        let mut next = move || {
            let (length, after) = rest.split_at_checked(LENGTH)?;
            let length = u32::from_le_bytes(length.try_into().ok()?);
            let (text, after) = after.split_at_checked(length as usize)?;
            rest = after;
            std::str::from_utf8(text).ok()
        };
        std::iter::from_fn(move || Some((next()?, next()?)))
    }
}

impl From<&HeaderMap> for Headers {
    fn from(headers: &HeaderMap) -> Self {
        let mut arena = Arena::default();
        arena.headers(headers)
    }
}

/// Memory for messages that arrive one after the other and are freed together.
///
/// They are moved here from the buffers in which they arrived, which hold twice as much,
/// including the protocol around them.
#[derive(Debug, Default)]
pub struct Arena(BytesMut);

/// A fraction of a batch, so that little of it is left over.
const CHUNK: usize = 256 * 1024;

impl Arena {
    pub fn bytes(&mut self, bytes: &[u8]) -> Bytes {
        self.reserve(bytes.len());
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }

    pub fn subject(&mut self, subject: Subject) -> Subject {
        // It was text before.
        Subject::from_utf8(self.bytes(subject.as_bytes())).unwrap_or(subject)
    }

    pub fn headers(&mut self, headers: &HeaderMap) -> Headers {
        let pairs = || {
            headers.iter().flat_map(|(name, values)| {
                let name: &str = name.as_ref();
                values.iter().map(move |value| (name, value.as_str()))
            })
        };
        let size = pairs().map(|(name, value)| 2 * LENGTH + name.len() + value.len());
        self.reserve(size.sum());
        for text in pairs().flat_map(|(name, value)| [name, value]) {
            self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
            self.0.extend_from_slice(text.as_bytes());
        }
        Headers(self.0.split().freeze())
    }

    fn reserve(&mut self, bytes: usize) {
        if self.0.capacity() < bytes {
            self.0 = BytesMut::with_capacity(bytes.max(CHUNK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_every_value_in_its_order() {
        let mut map = HeaderMap::new();
        map.append("a", "1");
        map.append("a", "2");
        map.insert("Nats-Msg-Id", "");
        let headers = Headers::from(&map);
        let mut pairs: Vec<_> = headers.iter().collect();
        pairs.sort_by_key(|(name, _)| *name);
        assert_eq!(pairs, [("Nats-Msg-Id", ""), ("a", "1"), ("a", "2")]);
        assert_eq!(headers.get("a"), Some("1"));
        assert_eq!(headers.get("A"), None);
        assert_eq!(Headers::default().iter().count(), 0);
    }

    #[test]
    fn what_was_kept_before_stays_as_it_was() {
        let mut arena = Arena::default();
        let kept: Vec<(Vec<u8>, Bytes)> = (0..40u8)
            .map(|number| {
                // Some of them larger than what is taken at a time.
                let bytes = vec![number; usize::from(number) * CHUNK / 20];
                let kept = arena.bytes(&bytes);
                (bytes, kept)
            })
            .collect();
        assert!(kept.iter().all(|(bytes, kept)| bytes == kept));
    }
}
