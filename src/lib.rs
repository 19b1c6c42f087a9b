//! Carries fechatter's analytics events from NATS JetStream into ClickHouse,
//! every event exactly once.
//!
//! The data's path, and where each step lives:
//!
//! | step | module |
//! |---|---|
//! | the stream | [`nats`] |
//! | consume → batch → decode → encode → insert → commit → ack | [`pipeline`], a file a step |
//! | the row, the dead letter | [`event`], [`dead_letter`] |
//! | blocks, schema, client | [`clickhouse`] |
//!
//! Around it: [`config`] (`analytics.yml`), [`cli`] (a file a command), [`http`]
//! (health and [`metrics`]), [`pb`] (the wire contract), [`sample`] (made-up events for `send` and
//! `bench`), [`retry`] (waiting for a server, and saying so once), [`versions`] (of
//! servers), `tls` (what is wrong with a certificate).
//!
//! A step knows its neighbour's type and nothing else; batching, decoding and
//! encoding do no I/O and have no clock. `ARCHITECTURE.md` says why it is exactly once.

pub mod cli;
pub mod clickhouse;
pub mod config;
pub mod dead_letter;
pub mod event;
pub mod http;
pub mod metrics;
pub mod nats;
pub mod pb;
pub mod pipeline;
pub mod retry;
pub mod sample;
mod tls;
pub mod versions;
