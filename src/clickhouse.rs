//! ClickHouse: the client, the blocks that it sends, the schema, and the engine itself for
//! machines without a server.

pub mod client;
pub mod codes;
pub mod embedded;
pub mod guarantees;
pub mod migrations;
pub mod native;
pub mod quote;
pub mod reach;
pub mod rebuild;
mod row_policy;
pub mod schema;
pub mod stored;
pub mod tables;
mod transport;
pub mod views;
pub mod writers;

pub use client::{ClickHouse, InsertError};
