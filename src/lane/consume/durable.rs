//! The durable consumer, as it is created.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::Stream;

use super::ConsumeError;
use crate::nats::StreamSpec;

/// JetStream sends again what is not acknowledged for this long. Nothing needs
/// it: what was lost on the way is read again from the checkpoint. So it is long enough
/// for ClickHouse to be away without a storm of repeats.
const ACK_WAIT: Duration = Duration::from_secs(24 * 3600);

/// What the durable consumer is created from.
#[derive(Debug, Clone)]
pub struct Durable {
    /// The durable's name.
    pub name: String,
    /// None of them covers another.
    pub subjects: Vec<String>,
    /// The largest payload that NATS takes, in bytes.
    pub max_payload: usize,
}

impl Durable {
    pub fn new(spec: &StreamSpec, max_payload: usize) -> Self {
        Self {
            name: spec.consumer.clone(),
            subjects: spec.subjects.clone(),
            max_payload,
        }
    }
}

/// Creates the durable, which must be missing, to read after the sequence `last`.
pub async fn create(
    stream: &Stream,
    durable: &Durable,
    last: u64,
) -> Result<PullConsumer, ConsumeError> {
    stream
        .create_consumer(config(durable, last))
        .await
        .map_err(|error| ConsumeError::Consumer {
            name: durable.name.clone(),
            error: error.to_string(),
        })
}

/// The durable as it is put in place to read after the sequence `last`.
fn config(durable: &Durable, last: u64) -> pull::Config {
    let mut config = pull::Config {
        durable_name: Some(durable.name.clone()),
        description: Some(
            "Put in place by analytics-server at every start, at its checkpoint".to_owned(),
        ),
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: last + 1,
        },
        // One acknowledgement per batch.
        ack_policy: AckPolicy::All,
        ack_wait: ACK_WAIT,
        // The daemon bounds what is in flight itself, by bytes.
        max_ack_pending: -1,
        ..Default::default()
    };
    // Servers before 2.10 do not know the plural.
    match durable.subjects.as_slice() {
        [subject] => config.filter_subject.clone_from(subject),
        subjects => config.filter_subjects = subjects.to_vec(),
    }
    config
}
