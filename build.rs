//! Generates the wire contract's types, without needing `protoc` on the machine.

use std::io::Result;

const PROTO: &str = "protos/fechatter/v1/analytics.proto";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["protos"]).map_err(std::io::Error::other)?;
    prost_build::Config::new().compile_fds(descriptors)
}
