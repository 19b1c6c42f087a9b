//! Which instance is active: the one whose checkpoint it is.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use tracing::{info, warn};
use uuid::Uuid;

use super::error::Lost;
use super::metrics::Role;
use super::sole_writer::{NotAlone, SoleWriter};
use super::{Pipeline, PipelineError, identity};
use crate::checkpoint::{self, Checkpoint, Claim, Turn};
use crate::clickhouse::writers::Registration;
use crate::nats::{self, StreamId};

/// What the active instance has.
#[derive(Clone)]
pub struct Lead {
    pub jetstream: jetstream::Context,
    pub stream: Stream,
    pub checkpoint: Arc<Checkpoint>,
    pub sole_writer: Arc<SoleWriter>,
}

impl Pipeline {
    /// Waits until it is this instance's turn to write, or not at all if it is `at_once`,
    /// then makes the checkpoint its own.
    pub(super) async fn take_over(&mut self, at_once: bool) -> Result<Lead, PipelineError> {
        let metrics = &self.store.progress.metrics;
        let jetstream = jetstream::new(self.nats.clone());
        let mut patient = false;
        loop {
            let stream = nats::open_stream(&jetstream, &self.lane.stream).await?;
            let num_replicas = stream.cached_info().config.num_replicas;
            let bucket = checkpoint::open_bucket(&jetstream, num_replicas).await?;
            let current = StreamId::of(&stream);
            let mut claim = Claim {
                owner: self.owner.clone(),
                created: current.created.clone(),
                stream: current,
                consumer: self.lane.stream.consumer.clone(),
                lease_timeout: self.settings.lease_timeout,
                at_once,
                writes: metrics.checkpoint_writes.clone(),
            };
            let turn = checkpoint::wait_for_turn(&bucket, &claim, |owner| {
                if metrics.set_role(Some(Role::Standby)) {
                    info!(owner, "standing by: another instance is active");
                }
            })
            .await?;
            // Until now, it was standing by or had no role.
            if metrics.set_role(None) {
                // What this instance once wrote is history.
                self.last = None;
            }
            // As it is after the record was read: the record must not say more than the
            // stream has.
            let Some(stream) = nats::find_stream(&jetstream, &claim.stream.name).await? else {
                continue;
            };
            let record = match &turn {
                Turn::Found(found) => Some(found.as_ref()),
                Turn::Vacant => self.last.as_ref(),
            };
            claim.created = StreamId::of(&stream).created;
            let record = record.map(|written| &written.record);
            let predecessor = record.map_or_else(String::new, |record| record.owner.clone());
            claim.stream = identity::of(&jetstream, &stream, record, &self.store).await?;
            let is_lost = matches!(turn, Turn::Vacant)
                && self.last.is_none()
                && self.store.holds_any(&claim.stream.to_string()).await;
            if is_lost && !patient {
                warn!(
                    "there is no checkpoint, though ClickHouse holds rows of this stream: waiting to see whether an instance is still active"
                );
                tokio::time::sleep(claim.lease_timeout).await;
                patient = true;
                continue;
            }
            let taken = Checkpoint::take_over(bucket, claim, turn, self.last.clone()).await?;
            if let Some(checkpoint) = taken {
                metrics.checkpoint_takeovers.inc();
                metrics.set_role(Some(Role::Active));
                let registering = self.register(&checkpoint, predecessor);
                let sole_writer = checkpoint.keep_during(registering).await?;
                return Ok(Lead {
                    jetstream,
                    stream,
                    sole_writer: Arc::new(sole_writer.map_err(Lost::from)?),
                    checkpoint: Arc::new(checkpoint),
                });
            }
            // Somebody else wrote in between, or what was read was stale.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes sure that no other lane writes to the table. `predecessor` had the checkpoint
    /// before.
    async fn register(
        &self,
        checkpoint: &Checkpoint,
        predecessor: String,
    ) -> Result<SoleWriter, NotAlone> {
        let registration = Registration {
            table: self.store.tables.events,
            stream: checkpoint.stream().to_string(),
            consumer: self.lane.stream.consumer.clone(),
            owner: self.owner.clone(),
        };
        let lease_timeout = self.settings.lease_timeout;
        SoleWriter::register(&self.store, registration, predecessor, lease_timeout).await
    }

    /// Keeps what the next take-over starts from.
    pub(super) async fn remember(
        &mut self,
        checkpoint: &Checkpoint,
        outcome: &Result<(), PipelineError>,
    ) {
        let fenced = matches!(outcome, Err(error) if error.is_fenced());
        self.last = if fenced {
            self.careful.forget();
            None
        } else {
            Some(checkpoint.last().await)
        };
    }
}

/// A name for an instance in the checkpoint: one that says something to a person, and that
/// no other instance has.
pub fn new_owner() -> String {
    let host = std::env::var("HOSTNAME")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() {
        "unknown-host"
    } else {
        host
    };
    format!("{host}-{}-{}", std::process::id(), Uuid::new_v4().simple())
}
