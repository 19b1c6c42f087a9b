//! How much waits in the stream, and how full it is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use tracing::debug;

use super::metrics::Lag;
use super::progress::Progress;

/// Often enough that a look at the figures shows what is going on now.
const PERIOD: Duration = Duration::from_secs(5);

/// The consumer is missing while it is being put in place.
const SOON: Duration = Duration::from_millis(500);

/// Asks JetStream again and again. While it does not answer, the figures stay.
pub async fn watch(stream: Stream, consumer: String, progress: Arc<Progress>) -> Infallible {
    let metrics = &progress.metrics;
    loop {
        match stream.get_info().await {
            Ok(info) => {
                metrics.stream_bytes.set(signed(info.state.bytes));
                metrics.stream_max_bytes.set(info.config.max_bytes.max(0));
            }
            Err(error) => debug!(%error, "the stream's size is not known"),
        }
        let pause = match stream.consumer_info(&consumer).await {
            Ok(consumer) => {
                metrics.set_lag(Lag {
                    pending: signed(consumer.num_pending),
                    ack_pending: signed(consumer.num_ack_pending as u64),
                });
                PERIOD
            }
            Err(error) => {
                debug!(%error, "the consumer's lag is not known");
                SOON
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
