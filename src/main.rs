use std::process::ExitCode;

/// A million messages are twenty million small allocations, mostly freed on a thread
/// other than the one that made them. docs/measurements.md has the figures.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    analytics_server::main()
}
