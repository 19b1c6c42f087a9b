use std::process::ExitCode;

fn main() -> ExitCode {
    analytics_server::cli::main()
}
