//! How much waits in the stream, and how full it is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use tracing::debug;

use super::progress::Progress;

/// Often enough that a look at the figures sees what is going on now.
const PERIOD: Duration = Duration::from_secs(5);

/// Asks JetStream again and again. While it does not answer, the figures stay.
pub async fn watch(stream: Stream, consumer: String, progress: Arc<Progress>) -> Infallible {
    let metrics = &progress.metrics;
    loop {
        match stream.consumer_info(&consumer).await {
            Ok(consumer) => {
                metrics.consumer_pending.set(signed(consumer.num_pending));
                metrics
                    .consumer_ack_pending
                    .set(signed(consumer.num_ack_pending as u64));
            }
            // It is missing while it is put in place.
            Err(error) => debug!(%error, "the consumer's lag is not known"),
        }
        match stream.get_info().await {
            Ok(info) => {
                metrics.stream_bytes.set(signed(info.state.bytes));
                metrics.stream_max_bytes.set(info.config.max_bytes.max(0));
            }
            Err(error) => debug!(%error, "the stream's size is not known"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
