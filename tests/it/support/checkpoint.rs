//! The daemon's record, as it lies in its bucket.

use async_nats::jetstream::kv::Store;
use serde_json::Value;

use super::World;

const BUCKET: &str = "analytics-checkpoints";
const KEY: &str = "ANALYTICS.analytics-processor";

impl World {
    pub async fn record(&self) -> Value {
        let record = self.bucket().await.get(KEY).await.unwrap().unwrap();
        serde_json::from_slice(&record).unwrap()
    }

    /// Puts a record in the place of the daemon's, as another instance would.
    pub async fn put_record(&self, record: &Value) {
        let record = record.to_string().into();
        self.bucket().await.put(KEY, record).await.unwrap();
    }

    /// Deletes the bucket with the record.
    pub async fn lose_checkpoint(&self) {
        let jetstream = self.nats.jetstream().await;
        jetstream.delete_key_value(BUCKET).await.unwrap();
    }

    async fn bucket(&self) -> Store {
        let jetstream = self.nats.jetstream().await;
        jetstream.get_key_value(BUCKET).await.unwrap()
    }
}
