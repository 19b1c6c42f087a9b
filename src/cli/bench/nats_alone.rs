//! NATS alone: the stream is pulled as the pipeline pulls it, and acknowledged.

use anyhow::{Result, bail};
use async_nats::jetstream::AckKind;
use indicatif::ProgressBar;

use super::scratch::Scratch;
use crate::pipeline::consume::Delivery;

/// Messages between two steps of the progress bar: each one would be a part of what
/// is measured.
pub const STEP: u64 = 1_000;

/// Reads the stream up to the sequence `last`, with one acknowledgement a batch.
pub async fn run(scratch: &Scratch, last: u64, progress: &ProgressBar) -> Result<()> {
    let batch_size = scratch.config.features.analytics.batch_size.get();
    let mut consumer = scratch.consumer().await?;
    let mut read = 0;
    while consumer.last() < last {
        let delivery = match consumer.arrived() {
            Some(arrived) => arrived,
            None => consumer.next().await,
        };
        let Delivery::Message { message, .. } = delivery? else {
            bail!("the stream has lost messages");
        };
        read += 1;
        if (read % batch_size == 0 || message.sequence >= last)
            && let Some(reply) = message.reply
        {
            scratch.nats.publish(reply, AckKind::Ack.into()).await?;
        }
        if message.sequence.is_multiple_of(STEP) {
            progress.set_position(message.sequence);
        }
    }
    scratch.nats.flush().await?;
    Ok(())
}
