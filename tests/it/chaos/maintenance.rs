//! What is done to the servers while no daemon runs: an operator moves a table or puts the
//! stream back from a backup, or NATS' clock is set back.

use std::fmt::Debug;
use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::{Mutex, MutexGuard};

use super::plan::Plan;
use super::publishers::Publishers;
use super::record;
use crate::support::backup::{backup, restore, restored};
use crate::support::nats::Nats;
use crate::support::restricted::{EVERYTHING, RestrictedClickHouse};

/// The servers, each broken or worked on by one task at a time.
pub struct Shared<'a> {
    pub clickhouse: Mutex<&'a mut RestrictedClickHouse>,
    pub nats: Mutex<&'a mut Nats>,
}

pub struct Maintenance<'a, 'b> {
    pub servers: &'a Shared<'b>,
    pub publishers: &'a Publishers,
    pub sql: clickhouse::Client,
    pub database: String,
    /// What ClickHouse's user may do, except during maintenance.
    pub grants: &'a [String],
}

/// What is moved when it is not `analytics_events`: where inserts and views lead.
const TABLES: [&str; 9] = [
    "{database}.dead_letters",
    "{database}.daily_active_users",
    "{database}.event_counts_by_type",
    "{database}.error_tracking",
    "{database}.session_totals",
    "{database}.error_users",
    "{database}.events_by_day",
    "operators.clients",
    "operators.activity",
];

impl<'b> Maintenance<'_, 'b> {
    /// Replaces a table with a copy that has all of its rows and knows no token, as moving
    /// it to other disks or restoring it from a backup would. Returns its name.
    pub async fn move_a_table<F: Copy + Debug>(&self, plan: &mut Plan<F>) -> String {
        let table = match plan.any_of(2) {
            0 => "{database}.analytics_events",
            _ => TABLES[plan.any_of(TABLES.len())],
        };
        let name = table.replace("{database}.", "");
        let table = table.replace("{database}", &self.database);
        let moved = format!("{table}_moved");
        let mut clickhouse = self.servers.clickhouse.lock().await;
        clickhouse.grant(&[EVERYTHING.to_owned()]);
        // Ends what a daemon that is gone has sent and nobody is waiting for.
        clickhouse.kill_and_start_again(Duration::ZERO).await;
        self.run(&format!("CREATE TABLE {moved} AS {table}")).await;
        for partition in self.partitions(&table).await {
            let attach =
                format!("ALTER TABLE {moved} ATTACH PARTITION ID '{partition}' FROM {table}");
            self.run(&attach).await;
        }
        self.run(&format!("EXCHANGE TABLES {table} AND {moved}"))
            .await;
        self.run(&format!("DROP TABLE {moved} SYNC")).await;
        clickhouse.start(self.grants).await;
        name
    }

    async fn partitions(&self, table: &str) -> Vec<String> {
        let sql = "SELECT DISTINCT partition_id FROM system.parts WHERE active AND database || '.' || table = ?";
        let partitions = self.sql.query(sql).bind(table).fetch_all();
        partitions.await.unwrap()
    }

    async fn run(&self, sql: &str) {
        self.sql.query(sql).execute().await.unwrap();
    }

    /// Kills ClickHouse, and starts it again.
    pub async fn kill_clickhouse(&self) {
        let mut clickhouse = self.servers.clickhouse.lock().await;
        clickhouse.kill_and_start_again(Duration::ZERO).await;
    }

    /// Makes the checkpoint say that JetStream stored everything later than JetStream
    /// itself says, by anything from a millisecond to hours. Returns how many ranges are in
    /// flight.
    pub async fn set_clock_back<F: Copy + Debug>(&self, plan: &mut Plan<F>) -> Option<usize> {
        let most = 10_u64.pow(1 + plan.any_of(7) as u32);
        let shift = plan.between(1, most);
        let nats = self.nats().await;
        let nanoseconds = i64::try_from(shift.as_nanos()).unwrap();
        record::shift_times(&nats.jetstream().await, nanoseconds).await
    }

    /// Takes the stream out and puts it back: the same messages, of a stream that was
    /// created at another time.
    pub async fn restore_stream(&self) {
        let _quiet = self.publishers.pause().await;
        let nats = self.nats().await;
        let client = nats.client().await;
        let backup = backup(&client, "ANALYTICS").await;
        let jetstream = jetstream::new(client.clone());
        jetstream.delete_stream("ANALYTICS").await.unwrap();
        restore(&client, &backup).await;
        restored(&client, &backup).await;
    }

    /// NATS, which answers and is left alone for as long as this is held.
    async fn nats(&self) -> MutexGuard<'_, &'b mut Nats> {
        let nats = self.servers.nats.lock().await;
        nats.is_back().await;
        nats
    }
}
