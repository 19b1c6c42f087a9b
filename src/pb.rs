//! The wire contract's types, generated from `protos/fechatter/v1/analytics.proto`.
//!
//! Public, so that producers written in Rust encode with the very types that
//! this daemon decodes with.

include!(concat!(env!("OUT_DIR"), "/fechatter.v1.rs"));
