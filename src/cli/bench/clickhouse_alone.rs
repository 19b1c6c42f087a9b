//! ClickHouse alone: blocks that are ready are inserted, each under its token.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use futures_util::stream;
use indicatif::ProgressBar;
use tokio_util::task::AbortOnDropHandle;

use super::blocks::Blocks;
use super::scratch::Scratch;
use crate::clickhouse::ClickHouse;

/// Inserts all blocks in order, as many at a time as the pipeline.
pub async fn run(scratch: &Scratch, blocks: &Blocks, progress: &ProgressBar) -> Result<()> {
    let max_in_flight = scratch.config.features.analytics.max_in_flight.get();
    let clickhouse = ClickHouse::new(&scratch.config);
    let inserts = (0..blocks.len()).map(|index| insert(scratch, &clickhouse, blocks, index));
    let mut inserts = stream::iter(inserts).buffered(max_in_flight);
    while let Some(rows) = inserts.next().await {
        progress.inc(rows? as u64);
    }
    Ok(())
}

/// Inserts one block; returns how many rows it has.
pub async fn insert(
    scratch: &Scratch,
    clickhouse: &ClickHouse,
    blocks: &Blocks,
    index: usize,
) -> Result<usize> {
    let table = scratch.lane.kind.tables().events;
    let (token, block) = blocks.read(index).await?;
    let (rows, clickhouse) = (block.rows, clickhouse.clone());
    let insert = async move { clickhouse.insert(table, &block, &token).await };
    // On a task of its own, as the pipeline's are.
    AbortOnDropHandle::new(tokio::spawn(insert))
        .await?
        .context("an insert failed")?;
    Ok(rows)
}
