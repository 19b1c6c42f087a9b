//! The ClickHouse engine in this process (libchdb) behind ClickHouse's HTTP interface,
//! for the first hour and for tests: ordinary clients cannot tell it from a server.
//!
//! A request's path:
//! - [`http`]: routes, answers, sends bodies both ways;
//! - [`request`]: what URL, headers and form say;
//! - [`compression`]: how bodies are packed;
//! - [`execute`]: the request on a connection of its own, in a blocking thread;
//!   [`statement`] tells how to run a text, [`formats`] how to join streamed pieces;
//! - [`engine`]: opens, connects, kills, closes; [`libchdb`]: the C functions;
//! - [`exception`]: what goes wrong, as ClickHouse words it.

pub mod compression;
pub mod engine;
pub mod exception;
pub mod execute;
pub mod formats;
pub mod http;
pub mod libchdb;
pub mod request;
pub mod statement;

pub use engine::{Engine, EngineError};
pub use http::serve;
pub use request::Credentials;
