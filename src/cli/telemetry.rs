use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Without RUST_LOG, logs at info; from the libraries only what is wrong, since what
/// matters there is logged here, once. That holds for everything that the NATS client says.
const DEFAULT_FILTER: &str = "warn,async_nats=off,analytics_server=info";

/// Determines which lines are logged, while the program runs.
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Logs what `directives` say, or what is logged by default. RUST_LOG takes precedence.
    pub fn set(&self, directives: Option<&str>) {
        if of_environment().is_none() {
            // It fails only without a subscriber, and there is one until the end.
            let _ = self.0.reload(directives.unwrap_or(DEFAULT_FILTER));
        }
    }
}

/// Sends log lines to stderr; `quiet` leaves only what is wrong, unless RUST_LOG is set.
pub fn init(format: LogFormat, quiet: bool) -> Filter {
    let default = match quiet {
        true => "warn,async_nats=off",
        false => DEFAULT_FILTER,
    };
    let filter = of_environment().unwrap_or_else(|| EnvFilter::new(default));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        // There may be nobody left to read them; they would panic on that.
        .log_internal_errors(false)
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(is_coloured()).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    Filter(handle)
}

fn of_environment() -> Option<EnvFilter> {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let directives = directives.filter(|directives| !directives.is_empty())?;
    EnvFilter::try_new(directives).ok()
}

/// As <https://no-color.org> asks for.
fn is_coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}
