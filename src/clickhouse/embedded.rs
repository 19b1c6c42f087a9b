//! The ClickHouse engine in this process (libchdb) behind ClickHouse's HTTP interface,
//! for the first hour and for tests: ordinary clients cannot tell it from a server.
//!
//! A request's path:
//! - `http`: routes and answers;
//! - `request`: what URL, headers and form say;
//! - `compression`: how bodies are packed;
//! - `running`: bodies both ways, between the network and a blocking thread;
//! - `query_ids`: that no two of them have the same id;
//! - `execute`: the request on a connection of its own, in that thread;
//!   `statement` tells how to run a text, `formats` how to join streamed pieces;
//! - `engine`: opens, connects, kills, closes; `libchdb`: the C functions;
//! - `exception`: what goes wrong, as ClickHouse words it.

mod compression;
mod engine;
mod exception;
mod execute;
mod formats;
mod http;
mod libchdb;
mod query_ids;
mod request;
mod running;
mod statement;

pub use engine::Engine;
pub use http::serve;
pub use request::Credentials;
