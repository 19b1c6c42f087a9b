//! Makes sure that no other lane inserts into this lane's table.
//!
//! The checkpoint sees to it that one instance of a lane is active. But a lane of another
//! stream may have been pointed at the same table by mistake, perhaps from another NATS
//! server: then the days of views that either of them rebuilds lose what the other inserts
//! meanwhile. So the active instance registers in ClickHouse, which is all that the two
//! have in common, and says so again and again. It writes first and then looks: of two that
//! begin at the same time, at least one sees the other.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::store::Store;
use crate::checkpoint::Moment;
use crate::clickhouse::writers::{self, Registered, Registration};

/// Lease timeouts after which a lane that says nothing is taken to be gone: two minutes
/// by default. This lease is not renewed between two batches, but by a statement that
/// ClickHouse runs.
const LEASES: u32 = 12;

/// How long a registration counts, for instances with this lease timeout.
pub fn lease(lease_timeout: Duration) -> Duration {
    lease_timeout * LEASES
}

/// How often another lane that may be gone is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long ClickHouse may take to hear that this instance stops.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error(
    "table `{table}` is filled from stream {stream} by consumer `{consumer}` (instance {owner}), too: \
     views of two streams in one table cannot be kept exact. Give this stream another db_name"
)]
pub struct NotAlone {
    table: &'static str,
    stream: String,
    consumer: String,
    owner: String,
}

/// The registration of an active instance.
pub struct SoleWriter {
    store: Store,
    registration: Registration,
    /// The instances whose registrations are history: this one's own, under an earlier
    /// identity of the stream, and that of the one whose checkpoint was taken over.
    predecessors: [String; 2],
    lease: Duration,
    confirmed: Mutex<Moment>,
}

impl SoleWriter {
    /// Registers, once no other lane is registered. Waits for one that may be gone.
    ///
    /// # Errors
    /// When another lane writes to the table.
    pub async fn register(
        store: &Store,
        registration: Registration,
        predecessor: String,
        lease_timeout: Duration,
    ) -> Result<Self, NotAlone> {
        let alone = Self {
            store: store.clone(),
            predecessors: [registration.owner.clone(), predecessor],
            registration,
            lease: lease(lease_timeout),
            confirmed: Mutex::new(Moment::now()),
        };
        let blocker = store.progress.blocker();
        let mut seen: Option<Registered> = None;
        while let Some(other) = alone.other().await {
            match &seen {
                None => {
                    warn!(
                        table = alone.registration.table,
                        stream = other.stream,
                        consumer = other.consumer,
                        owner = other.owner,
                        "another lane has written to this table: waiting to see whether it still does"
                    );
                    blocker.say(format!(
                        "{} may still be filled from {}",
                        alone.registration.table, other.stream
                    ));
                    seen = Some(other);
                }
                Some(before) if *before != other => return Err(alone.not_alone(other)),
                Some(_) => {}
            }
            tokio::time::sleep(LOOK.min(lease_timeout / 4)).await;
        }
        alone.renew().await?;
        Ok(alone)
    }

    /// Makes sure that this lane is still the only one, unless it was sure of it a short
    /// while ago.
    pub async fn confirm(&self) -> Result<(), NotAlone> {
        let confirmed = *self.confirmed.lock().await;
        match confirmed.is_younger_than(self.lease / 2) {
            true => Ok(()),
            false => self.renew().await,
        }
    }

    /// Renews the registration again and again.
    pub async fn keep(&self) -> Result<Infallible, NotAlone> {
        loop {
            tokio::time::sleep(self.lease / 4).await;
            self.renew().await?;
        }
    }

    /// Says that this instance stops, so that another lane need not wait.
    pub async fn release(&self) {
        let release = writers::register(&self.store.clickhouse, &self.registration, false);
        match tokio::time::timeout(FAREWELL, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the registration was not released"),
            Err(_) => debug!("the registration was not released: ClickHouse does not answer"),
        }
    }

    async fn renew(&self) -> Result<(), NotAlone> {
        let Store { clickhouse, .. } = &self.store;
        let what = "registering as the writer of a table";
        // ClickHouse's time of the registration is later than this.
        let begun = Moment::now();
        self.store
            .ask(what, || {
                writers::register(clickhouse, &self.registration, true)
            })
            .await;
        match self.other().await {
            None => {
                *self.confirmed.lock().await = begun;
                Ok(())
            }
            Some(other) => {
                self.release().await;
                Err(self.not_alone(other))
            }
        }
    }

    /// Another lane that is registered for the table.
    async fn other(&self) -> Option<Registered> {
        let Registration {
            table,
            stream,
            consumer,
            ..
        } = &self.registration;
        let what = "asking ClickHouse who else writes to a table";
        let registered = self
            .store
            .ask(what, || {
                writers::active(&self.store.clickhouse, table, self.lease)
            })
            .await;
        registered.into_iter().find(|other| {
            (&other.stream, &other.consumer) != (stream, consumer)
                && !self.predecessors.contains(&other.owner)
        })
    }

    fn not_alone(&self, other: Registered) -> NotAlone {
        NotAlone {
            table: self.registration.table,
            stream: other.stream,
            consumer: other.consumer,
            owner: other.owner,
        }
    }
}
