//! What a message costs between JetStream and ClickHouse: decoding it, and putting it
//! into a block. One core, no servers.
//!
//! ```sh
//! cargo bench --bench encode
//! ```

use std::error::Error;
use std::time::{Duration, UNIX_EPOCH};

use analytics_server::clickhouse::native::{self, Block, Column, LowCardinality, Plain};
use analytics_server::config::Subjects;
use analytics_server::event::{Columns, Event};
use analytics_server::pipeline::batch::{Batcher, Limits};
use analytics_server::pipeline::decode::Decoder;
use analytics_server::pipeline::encode::{Content, Encoder};
use analytics_server::pipeline::message::{Headers, Message};
use analytics_server::sample::Population;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use prost::Message as _;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Messages at a time; a figure per second is of as many a second.
const MESSAGES: u64 = 10_000;
const STREAM: &str = "ANALYTICS@1";

fn main() {
    divan::main();
}

fn decoder() -> Decoder {
    Decoder::new(STREAM, &Subjects::default())
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

fn events() -> Vec<Event> {
    let decoder = decoder();
    let messages = messages();
    let decoded = messages.iter().map(|message| decoder.decode(message));
    decoded.flat_map(|decoded| decoded.events).collect()
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let (decoder, messages) = (decoder(), messages());
    bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
        for message in &messages {
            black_box(decoder.decode(message));
        }
    });
}

#[divan::bench]
fn build_a_block_of_decoded_events(bencher: Bencher<'_, '_>) {
    let events = events();
    bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
        let mut columns = Columns::default();
        for event in &events {
            columns.push(event);
        }
        Columns::block(STREAM, vec![columns])
    });
}

/// All that is done between the two servers.
#[divan::bench]
fn cut_decode_and_encode(bencher: Bencher<'_, '_>) {
    let encoder = Encoder::new(STREAM.to_owned(), decoder());
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
            let mut batches = messages
                .into_iter()
                .flat_map(|message| batcher.push(message, 1, now));
            match encoder.encode(Vec::new(), batches.next()?).content {
                Content::Rows(piece) => Some(piece.block),
                Content::Messages(_) => None,
            }
        });
}

/// Columns of three types, by this project's builder and by that of the crate
/// `clickhouse`, which has no LowCardinality. Its block is not yet written then; this
/// project's is.
mod a_block_of_six_columns {
    use super::*;

    #[divan::bench]
    fn of_this_project(bencher: Bencher<'_, '_>) {
        let events = events();
        bencher
            .counter(ItemsCount::new(MESSAGES))
            .bench(|| -> Block {
                let rows = events.len();
                let mut block = native::BlockBuilder::new(rows, rows * 120);
                block
                    .values("stream_seq", events.iter().map(|e| &e.source.place.0))
                    .values("client_ts", events.iter().map(|e| &e.client_ts.0))
                    .values("client_id", events.iter().map(|e| &*e.context.client_id))
                    .values("session_id", events.iter().map(|e| &*e.context.session_id))
                    .values("user_agent", events.iter().map(|e| &*e.context.user_agent))
                    .values("event_type", events.iter().map(|e| &*e.event_type));
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
                    column.add_all(events.iter().map($value))?;
                };
            }
            column!("stream_seq", u64, |e| e.source.place.0);
            column!("client_ts", i64, |e| e.client_ts.0);
            column!("client_id", &str, |e| &*e.context.client_id);
            column!("session_id", &str, |e| &*e.context.session_id);
            column!("user_agent", &str, |e| &*e.context.user_agent);
            column!("event_type", &str, |e| &*e.event_type);
            Ok(block.build()?)
        };
        bencher.counter(ItemsCount::new(MESSAGES)).bench(build);
    }
}

/// Values that repeat, as what they are and as strings.
mod a_column_that_repeats {
    use super::*;

    #[divan::bench]
    fn as_low_cardinality(bencher: Bencher<'_, '_>) {
        let events = events();
        bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
            let mut column = LowCardinality::default();
            for (row, event) in events.iter().enumerate() {
                column.set(row, &event.context.app_version);
            }
            let mut out = Vec::new();
            Column::write(vec![(column, events.len())], &mut out);
            out
        });
    }

    #[divan::bench]
    fn as_string(bencher: Bencher<'_, '_>) {
        let events = events();
        bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
            let mut column = Plain::<str>::default();
            for (row, event) in events.iter().enumerate() {
                column.set(row, &event.context.app_version);
            }
            let mut out = Vec::new();
            Column::write(vec![(column, events.len())], &mut out);
            out
        });
    }
}
