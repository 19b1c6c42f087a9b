use std::process::ExitCode;

/// A million messages are twenty million small allocations, mostly freed on another
/// thread than the one that made them. ARCHITECTURE.md has what was measured.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc reads its settings from this name. What is freed of half a megabyte or more goes
/// back to the system at once: kept for ten seconds, as by default, it was 140 MB beside
/// 360 MB in use.
#[expect(unsafe_code, reason = "a symbol that jemalloc looks for")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 26] = b"oversize_threshold:524288\0";

fn main() -> ExitCode {
    analytics_server::cli::main()
}
