//! Everything over real servers: nats-server, ClickHouse, the binary itself.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod bench;
mod chaos;
mod cluster;
mod commands;
mod contract;
mod crashes;
mod dead_letters;
mod embedded;
mod exclusion;
mod guarantees;
mod http;
mod inserts;
mod login;
mod memory;
mod permissions;
mod pipeline;
mod rebuilds;
mod recovery;
mod reload;
mod status;
mod support;
mod tls;
mod verify;
mod views;
