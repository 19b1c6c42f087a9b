//! What `/metrics` says, in Prometheus' text format.
//!
//! Every series is there from the start, so that an alert on its growth sees the first
//! step, too. Figures that belong together change together, and are read together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::Collector;
use prometheus::{IntGaugeVec, Opts, Result, TextEncoder};

/// What the name of every metric begins with, but for those of the process.
pub const PREFIX: &str = "analytics_";

const DEPENDENCIES: [&str; 2] = ["nats", "clickhouse"];

/// All metrics of the process.
pub struct Registry {
    registry: prometheus::Registry,
    dependency_up: IntGaugeVec,
    books: Mutex<Vec<Books>>,
}

/// A lock that is held while figures that belong together change, and while all are read.
#[derive(Clone, Default)]
pub struct Books(Arc<Mutex<()>>);

impl Books {
    pub fn open(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// # Errors
    /// Here and below: when a name or a label is not a valid one, or is there twice.
    pub fn new() -> Result<Self> {
        let gauges = |name, help, label| {
            IntGaugeVec::new(Opts::new(format!("{PREFIX}{name}"), help), &[label])
        };
        let dependency_up = gauges("dependency_up", "Whether a server answers", "dependency")?;
        for dependency in DEPENDENCIES {
            dependency_up.with_label_values(&[dependency]);
        }
        let build = gauges("build_info", "1, with the version", "version")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let registry = Self {
            registry: prometheus::Registry::new(),
            dependency_up: dependency_up.clone(),
            books: Mutex::default(),
        };
        registry.add(dependency_up)?;
        registry.add(build)?;
        #[cfg(target_os = "linux")]
        registry.add(prometheus::process_collector::ProcessCollector::for_self())?;
        Ok(registry)
    }

    pub fn add(&self, metric: impl Collector + 'static) -> Result<()> {
        self.registry.register(Box::new(metric))
    }

    /// Figures under this lock will be read together.
    pub fn add_books(&self, books: Books) {
        self.all_books().push(books);
    }

    /// Says whether the servers answer.
    pub fn set_up(&self, nats: bool, clickhouse: bool) {
        for (name, up) in DEPENDENCIES.iter().zip([nats, clickhouse]) {
            self.dependency_up.with_label_values(&[name]).set(up.into());
        }
    }

    /// All figures, in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let families = {
            let all = self.all_books();
            let _open: Vec<_> = all.iter().map(Books::open).collect();
            self.registry.gather()
        };
        // It fails only for families without a metric, and gather leaves them out.
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_default()
    }

    fn all_books(&self) -> MutexGuard<'_, Vec<Books>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
