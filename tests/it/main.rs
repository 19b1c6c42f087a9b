//! Everything over real servers: nats-server, ClickHouse, the binary itself.

mod commands;
mod contract;
mod embedded;
mod pipeline;
mod support;
