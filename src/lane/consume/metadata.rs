//! What JetStream says about a message: it is in the subject that its acknowledgement
//! goes to.
//!
//! Source: ADR-15 of the NATS architecture. async-nats reads it, too, at four times
//! the cost, which is a twentieth of all that the daemon does.

/// `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer
/// sequence>.<stored at>.<pending>`. Newer servers may put domain and account before
/// the stream, and more at the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Metadata {
    pub stream_sequence: u64,
    /// Counts what the consumer has sent.
    pub consumer_sequence: u64,
    /// Nanoseconds since the Unix epoch.
    pub stored_at: i64,
    /// Messages that are still to come for the consumer.
    pub pending: u64,
}

/// Tokens of the short form.
const TOKENS: usize = 9;

impl Metadata {
    pub fn parse(subject: &str) -> Option<Self> {
        let rest = subject.strip_prefix("$JS.ACK.")?.as_bytes();
        let dots = subject.bytes().filter(|byte| *byte == b'.').count();
        let before_deliveries = if dots < TOKENS { 2 } else { 4 };
        let mut numbers = rest
            .split(|byte| *byte == b'.')
            .skip(before_deliveries + 1)
            .map(|token| std::str::from_utf8(token).unwrap_or_default());
        Some(Self {
            stream_sequence: numbers.next()?.parse().ok()?,
            consumer_sequence: numbers.next()?.parse().ok()?,
            stored_at: numbers.next()?.parse().ok()?,
            pending: numbers.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let metadata = Some(Metadata {
            stream_sequence: 17,
            consumer_sequence: 5,
            stored_at: 1_795_000_000_123_456_789,
            pending: 3,
        });
        for subject in [
            "$JS.ACK.ANALYTICS.analytics-processor.1.17.5.1795000000123456789.3",
            "$JS.ACK._.ACCOUNT.ANALYTICS.analytics-processor.1.17.5.1795000000123456789.3",
            "$JS.ACK.hub.ACCOUNT.ANALYTICS.analytics-processor.1.17.5.1795000000123456789.3.X1",
        ] {
            assert_eq!(Metadata::parse(subject), metadata, "{subject}");
        }
    }

    #[test]
    fn what_is_not_of_jetstream_is_not_read() {
        for subject in [
            "",
            "_INBOX.1.2",
            "$JS.ACK.ANALYTICS.c.1.17.5",
            "$JS.ACK.ANALYTICS.c.1.x.5.1795000000123456789.3",
        ] {
            assert_eq!(Metadata::parse(subject), None, "{subject}");
        }
    }
}
