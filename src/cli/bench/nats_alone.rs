//! NATS alone: the stream is pulled as the pipeline pulls it, and acknowledged.

use anyhow::{Result, bail};
use async_nats::jetstream::AckKind;
use indicatif::ProgressBar;

use super::scratch::Scratch;
use crate::lane::consume::Delivery;
use crate::nats::Message;

/// Messages between two steps of the progress bar: each step would be part of what is
/// measured.
const STEP: u64 = 1_000;

/// Reads the stream up to the sequence `last`, and nothing else.
pub async fn run(scratch: &Scratch, last: u64, progress: &ProgressBar) -> Result<()> {
    read(scratch, last, progress, |_| Ok(())).await
}

/// Reads the stream up to the sequence `last`, with one acknowledgement per batch: the more
/// is not acknowledged, the more it costs nats-server.
pub async fn read(
    scratch: &Scratch,
    last: u64,
    progress: &ProgressBar,
    mut each: impl FnMut(Message) -> Result<()>,
) -> Result<()> {
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
            && let Some(reply) = message.reply.clone()
        {
            scratch.nats.publish(reply, AckKind::Ack.into()).await?;
        }
        if message.sequence.is_multiple_of(STEP) {
            progress.set_position(message.sequence);
        }
        each(message)?;
    }
    scratch.nats.flush().await?;
    Ok(())
}
