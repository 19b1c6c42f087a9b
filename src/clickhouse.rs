//! ClickHouse: the client, the blocks that it sends, the schema, and the engine
//! itself for machines that have no server.

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
mod transport;
pub mod views;

pub use client::{ClickHouse, InsertError};
