//! What is stored once also when the record, the stream or an instance is not what
//! it was.

mod expired;
mod lease;
mod lost_checkpoint;
mod lost_tail;
mod restored;

const ANALYTICS: &str = "batch_size: 60, flush_interval_seconds: 0.1";
