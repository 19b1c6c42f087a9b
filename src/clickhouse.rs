//! ClickHouse: the client, the blocks that it sends, the schema.

pub mod client;
pub mod migrations;
pub mod native;
pub mod schema;

pub use client::{ClickHouse, InsertError};
