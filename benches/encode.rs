//! What a message costs between JetStream and ClickHouse: decoding it, and putting it
//! into a block. One core, no servers.
//!
//! ```sh
//! cargo bench --bench encode
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use analytics_server::internal::native::{
    Block, BlockBuilder, Column, Columns, LowCardinality, Plain,
};
use analytics_server::internal::{
    Analytics, Batcher, Content, Cut, Encoder, Headers, Limits, Message, Population, Run, Subjects,
};
use analytics_server::pb::{AnalyticsEvent, EventContext};
use divan::Bencher;
use divan::counter::ItemsCount;
use prost::Message as _;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Messages at a time; a figure per second counts as many of them per second.
const MESSAGES: u64 = 10_000;
const STREAM: &str = "ANALYTICS@1";

fn main() {
    divan::main();
}

fn encoder() -> Encoder {
    let kind = Arc::new(Analytics::new(&Subjects::default()));
    Encoder::new(kind, STREAM.to_owned())
}

/// The realistic mix.
fn messages() -> Vec<Message> {
    let mut population = Population::new(1);
    let stored_at = 1_795_000_000_000_000_000;
    let now = UNIX_EPOCH + Duration::from_nanos(stored_at);
    (1..=MESSAGES)
        .map(|sequence| {
            let sample = population.event(now, None);
            Message {
                sequence,
                stored_at: (stored_at + sequence) as i64,
                subject: format!("fechatter.analytics.{}", sample.subject).into(),
                headers: Headers::default(),
                payload: sample.event.encode_to_vec().into(),
                reply: None,
            }
        })
        .collect()
}

fn events() -> Vec<AnalyticsEvent> {
    let messages = messages();
    let decode = |message: &Message| AnalyticsEvent::decode(message.payload.as_ref());
    messages
        .iter()
        .filter_map(|message| decode(message).ok())
        .collect()
}

/// Into columns, which are not yet a block.
#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let encoder = encoder();
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .with_inputs(messages)
        .bench_values(|messages| encoder.decode(messages));
}

/// Everything that is done between the two servers.
#[divan::bench]
fn cut_decode_and_encode(bencher: Bencher<'_, '_>) {
    let encoder = encoder();
    let limits = Limits {
        rows: MESSAGES as usize,
        bytes: usize::MAX,
        interval: Duration::from_secs(3600),
    };
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .with_inputs(messages)
        .bench_values(|messages| {
            let now = Instant::now();
            let mut batcher = Batcher::new(limits, []);
            let mut runs: Vec<Run> = Vec::new();
            for cut in messages.into_iter().flat_map(|it| batcher.push(it, 1, now)) {
                match cut {
                    Cut::Chunk(messages) => runs.push(encoder.decode(messages)),
                    Cut::End(batch) => {
                        let encoded = encoder.encode(std::mem::take(&mut runs), batch);
                        if let Content::Rows(piece) = encoded.content {
                            return Some(piece.block);
                        }
                    }
                }
            }
            None
        });
}

/// Columns of three types, by this project's builder and by that of the crate
/// `clickhouse`, which has no LowCardinality. Its block is not yet written at that
/// point; this project's is.
mod a_block_of_six_columns {
    use super::*;

    #[divan::bench]
    fn of_this_project(bencher: Bencher<'_, '_>) {
        let events = events();
        bencher
            .counter(ItemsCount::new(MESSAGES))
            .bench(|| -> Block {
                let rows = events.len();
                let mut block = BlockBuilder::new(rows, rows * 120);
                block
                    .values("server_ts", contexts(&events).map(|e| &e.server_ts))
                    .values("client_ts", contexts(&events).map(|e| &e.client_ts))
                    .values("client_id", contexts(&events).map(|e| &*e.client_id))
                    .values("session_id", contexts(&events).map(|e| &*e.session_id))
                    .values("user_agent", contexts(&events).map(|e| &*e.user_agent))
                    .values("app_version", contexts(&events).map(|e| &*e.app_version));
                block.build()
            });
    }

    #[divan::bench]
    fn of_the_crate(bencher: Bencher<'_, '_>) {
        let events = events();
        let build = || -> Result<_, Box<dyn Error + Send + Sync>> {
            let mut block = clickhouse::native::builder::BlockBuilder::new();
            macro_rules! column {
                ($name:literal, $type:ty, $value:expr) => {
                    let mut column = block.upsert_column::<$type>($name)?;
                    column.add_all(contexts(&events).map($value))?;
                };
            }
            column!("server_ts", i64, |e| e.server_ts);
            column!("client_ts", i64, |e| e.client_ts);
            column!("client_id", &str, |e| &*e.client_id);
            column!("session_id", &str, |e| &*e.session_id);
            column!("user_agent", &str, |e| &*e.user_agent);
            column!("app_version", &str, |e| &*e.app_version);
            Ok(block.build()?)
        };
        bencher.counter(ItemsCount::new(MESSAGES)).bench(build);
    }
}

fn contexts(events: &[AnalyticsEvent]) -> impl Iterator<Item = &EventContext> {
    events.iter().filter_map(|event| event.context.as_ref())
}

/// The block of one column.
fn block(column: impl Into<Column>) -> Block {
    let rows = MESSAGES as usize;
    let columns = vec![("app_version", column.into())];
    let columns = Columns { rows, columns };
    let mut block = BlockBuilder::new(rows, columns.size());
    block.columns(vec![columns]);
    block.build()
}

/// Values that repeat, as what they are and as strings.
mod a_column_that_repeats {
    use super::*;

    #[divan::bench]
    fn as_low_cardinality(bencher: Bencher<'_, '_>) {
        let events = events();
        bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
            let mut column = LowCardinality::default();
            for (row, context) in contexts(&events).enumerate() {
                column.set(row, &context.app_version);
            }
            block(column)
        });
    }

    #[divan::bench]
    fn as_string(bencher: Bencher<'_, '_>) {
        let events = events();
        bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
            let mut column = Plain::<str>::default();
            for (row, context) in contexts(&events).enumerate() {
                column.set(row, &context.app_version);
            }
            block(column)
        });
    }
}
