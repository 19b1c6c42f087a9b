//! Carries fechatter's analytics events from NATS JetStream into ClickHouse,
//! every event exactly once.
//!
//! The data's path, and where each step lives:
//!
//! | step | module |
//! |---|---|
//! | the stream and its messages | `nats` |
//! | consume → batch → decode → encode → insert → commit → ack | `lane`, a file for each step |
//! | what is particular to an event: its tables, its rows | `kind` |
//! | who writes, up to where everything is stored | `checkpoint` |
//! | blocks, schema, client | `clickhouse` |
//!
//! Around it: `config` (`analytics.yml`), `cli` (a file for each command), `http` (health and
//! `metrics`), [`pb`] (the wire contract), `retry` (waiting for a server, and saying so
//! once), `versions` (of servers), `tls` (what is wrong with a certificate).
//!
//! A step knows its neighbour's type and nothing else; batching, decoding and
//! encoding do no I/O and have no clock. `ARCHITECTURE.md` says why it is exactly once.

mod checkpoint;
mod cli;
mod clickhouse;
mod config;
mod dead_letter;
mod event;
mod http;
mod kind;
mod lane;
mod metrics;
mod nats;
pub mod pb;
mod retry;
mod tls;
mod versions;

pub use cli::main;

/// What the project's own tests and benches need. It changes as they do.
#[doc(hidden)]
pub mod internal {
    pub use crate::checkpoint::{Checkpoint, Claim, Turn, open_bucket, wait_for_turn};
    pub use crate::clickhouse::client::{PIECE, insert_settings};
    pub use crate::clickhouse::codes::{CODES, Class};
    pub use crate::clickhouse::native;
    pub use crate::clickhouse::quote::quote_identifier;
    pub use crate::clickhouse::{ClickHouse, migrations, schema};
    pub use crate::config::{Address, Config, Database, ENVIRONMENT, Subjects};
    pub use crate::kind::Kind;
    pub use crate::kind::analytics::sample::{Happening, Population};
    pub use crate::kind::analytics::{Analytics, BatchMessage};
    pub use crate::lane::Lane;
    pub use crate::lane::batch::{Batcher, Cut, Limits};
    pub use crate::lane::encode::{Content, Encoder, Run};
    pub use crate::nats::{Headers, Message, StreamId};
}
