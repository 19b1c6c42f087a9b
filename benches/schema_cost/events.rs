//! Blocks as the daemon makes them, of the sample's events.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use analytics_server::internal::native::Block;
use analytics_server::internal::{
    Analytics, Batcher, Content, Cut, Encoder, Headers, Limits, Message, Population, Run, Subjects,
};
use analytics_server::pb::EventContext;
use prost::Message as _;
use tokio::time::Instant;

use super::Args;

const STREAM: &str = "ANALYTICS 2026-01-01T00:00:00Z";
const DAY: u64 = 86_400;
/// Events per second: 50,000 rows fill a batch in two and a half seconds.
const RATE: f64 = 20_000.0;

/// All from yesterday: one partition in every table, and no row expires.
pub fn blocks(args: &Args) -> Vec<Block> {
    let today = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / DAY);
    let start = UNIX_EPOCH + Duration::from_secs(today * DAY - DAY);
    let mut populations: Vec<Population> =
        (0..args.populations as u64).map(Population::new).collect();
    let kind = Arc::new(Analytics::new(&Subjects::default()));
    let encoder = Encoder::new(kind, STREAM.to_owned());
    let mut sequence = 0;
    let mut message = || {
        let index = sequence as usize * 7 % populations.len();
        let now = start + Duration::from_secs_f64(sequence as f64 / RATE);
        sequence += 1;
        let mut sample = populations[index].event(now, None);
        if let Some(context) = &mut sample.event.context {
            spread(context, index, args);
        }
        let stored_at = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Message {
            sequence,
            // On the way from the producer to the stream.
            stored_at: (stored_at.as_nanos() as i64) + 3_000_000,
            subject: format!("fechatter.analytics.{}", sample.subject).into(),
            headers: Headers::default(),
            payload: sample.event.encode_to_vec().into(),
            reply: None,
        }
    };
    let limits = Limits {
        rows: args.block_rows,
        bytes: usize::MAX,
        interval: Duration::from_secs(DAY),
    };
    let mut batcher = Batcher::new(limits, []);
    let mut runs: Vec<Run> = Vec::new();
    let mut blocks = Vec::new();
    while blocks.len() < args.rows / args.block_rows {
        for cut in batcher.push(message(), 1, Instant::now()) {
            match cut {
                Cut::Chunk(messages) => runs.push(encoder.decode(messages)),
                Cut::End(batch) => {
                    let encoded = encoder.encode(std::mem::take(&mut runs), batch);
                    if let Content::Rows(piece) = encoded.content {
                        blocks.push(piece.block);
                    }
                }
            }
        }
    }
    blocks
}

/// The sample's populations have the same users, and few addresses and user agents, but
/// which type is better depends on having as many different values as there would be.
fn spread(context: &mut EventContext, population: usize, args: &Args) {
    if let Ok(user) = context.user_id.parse::<usize>() {
        context.user_id = (user + 1_000 * population).to_string();
    }
    let digits = context.client_id.trim_start_matches("client-");
    let client = u32::from_str_radix(digits, 16).unwrap_or_default();
    let [_, a, b, c] = client.to_be_bytes();
    // The range that is set aside for benchmarks: nobody's.
    context.ip = format!("198.{}.{a}.{b}", 18 + c % 2);
    context.user_agent = format!("{} Build/{}", context.user_agent, client % args.user_agents);
}
