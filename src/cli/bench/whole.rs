//! The whole pipeline, as `serve` runs it, from an empty checkpoint.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use indicatif::ProgressBar;

use super::scratch::Scratch;
use crate::clickhouse::ClickHouse;
use crate::lane::{Pipeline, Progress};

/// Carries events until everything up to the sequence `last` is committed.
pub async fn run(scratch: &Scratch, last: u64, bar: &ProgressBar) -> Result<()> {
    let progress = scratch.progress()?;
    let mut pipeline = pipeline(scratch, Arc::clone(&progress));
    let show = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            bar.set_position(progress.metrics.stored().0);
        }
    };
    tokio::select! {
        outcome = pipeline.run_until(last) => Ok(outcome?),
        () = show => Ok(()),
    }
}

pub fn pipeline(scratch: &Scratch, progress: Arc<Progress>) -> Pipeline {
    Pipeline::new(
        scratch.lane.clone(),
        &scratch.config.features.analytics,
        scratch.nats.clone(),
        ClickHouse::new(&scratch.config),
        progress,
    )
}
