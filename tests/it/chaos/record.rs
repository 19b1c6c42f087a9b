//! The daemon's checkpoint as its bucket has it, looked into and changed.

use async_nats::jetstream::{self, kv};
use serde_json::Value;

const KEY: &str = "ANALYTICS.analytics-processor";

/// The process that the checkpoint belongs to; its owner is `HOST-PID-UUID`.
pub async fn owner(nats: &jetstream::Context) -> Option<u32> {
    let (_, record) = read(nats).await?;
    record["owner"].as_str()?.rsplit('-').nth(1)?.parse().ok()
}

async fn read(nats: &jetstream::Context) -> Option<(kv::Store, Value)> {
    let bucket = nats.get_key_value("analytics-checkpoints").await.ok()?;
    let record = bucket.get(KEY).await.ok()??;
    Some((bucket, serde_json::from_slice(&record).ok()?))
}

/// Moves all storage times in the record, as if JetStream's clock had been ahead by this
/// many nanoseconds when it was written. Returns how many ranges are in flight; nobody may
/// write the record meanwhile.
pub async fn shift_times(nats: &jetstream::Context, nanoseconds: i64) -> Option<usize> {
    let (bucket, mut record) = read(nats).await?;
    shift(&mut record, nanoseconds);
    let text = record.to_string();
    bucket.put(KEY, text.into()).await.unwrap();
    Some(record["in_flight"].as_array().map_or(0, Vec::len))
}

fn shift(value: &mut Value, nanoseconds: i64) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    // Pairs of a sequence and its time.
                    "landmarks" => {
                        for pair in value.as_array_mut().into_iter().flatten() {
                            move_time(&mut pair[1], nanoseconds);
                        }
                    }
                    name if name.ends_with("stored_at") => move_time(value, nanoseconds),
                    _ => shift(value, nanoseconds),
                }
            }
        }
        Value::Array(values) => {
            for value in values {
                shift(value, nanoseconds);
            }
        }
        _ => {}
    }
}

fn move_time(value: &mut Value, nanoseconds: i64) {
    match value.as_i64() {
        // Stands for a time that is not known.
        None | Some(0) => {}
        Some(time) => *value = (time + nanoseconds).into(),
    }
}
