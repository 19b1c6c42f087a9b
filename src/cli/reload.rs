//! Reading the configuration again while the daemon runs.

use std::path::{Path, PathBuf};

use serde_yaml::Value;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::telemetry::Filter;
use crate::config::Config;
use crate::lane::batch::Limits;

/// What changes without a restart.
const RELOADABLE: [&str; 4] = [
    "features.analytics.batch_size",
    "features.analytics.batch_max_bytes",
    "features.analytics.flush_interval_seconds",
    "observability.log_filter",
];

/// What the daemon runs with, as far as a reload changes it.
pub struct Reload {
    /// As it was given; otherwise the file is looked for as at startup.
    path: Option<PathBuf>,
    /// The file as it was at startup.
    keys: Value,
    filter: Filter,
    limits: watch::Sender<Limits>,
}

impl Reload {
    pub fn new(config: &Config, path: Option<PathBuf>, filter: Filter) -> Self {
        filter.set(config.observability.log_filter.as_deref());
        Self {
            keys: keys(path.as_deref()),
            path,
            filter,
            limits: watch::Sender::new(Limits::of(&config.features.analytics)),
        }
    }

    /// The limits of batches, as they change.
    pub fn limits(&self) -> watch::Receiver<Limits> {
        self.limits.subscribe()
    }

    /// Reads the file again. An invalid one changes nothing.
    pub fn reload(&self) {
        let config = match Config::load(self.path.as_deref(), super::environment) {
            Ok((config, _)) => config,
            Err(error) => {
                error!(%error, "configuration not reloaded: continuing with the old one");
                return;
            }
        };
        self.filter.set(config.observability.log_filter.as_deref());
        self.limits
            .send_replace(Limits::of(&config.features.analytics));
        info!("configuration reloaded");
        let mut changed = Vec::new();
        compare(&self.keys, &keys(self.path.as_deref()), "", &mut changed);
        changed.retain(|key| !RELOADABLE.contains(&key.as_str()));
        if !changed.is_empty() {
            warn!(
                keys = changed.join(", "),
                "changed keys that need a restart"
            );
        }
    }
}

/// The file's keys and values, as they are written.
fn keys(path: Option<&Path>) -> Value {
    let path = Config::find(path);
    let text = path.and_then(|path| std::fs::read_to_string(path).ok());
    let keys = text.and_then(|text| serde_yaml::from_str(&text).ok());
    keys.unwrap_or_default()
}

/// Adds the keys below `key` whose values differ.
fn compare(before: &Value, after: &Value, key: &str, changed: &mut Vec<String>) {
    if before == after {
        return;
    }
    let names = [before, after].map(|value| value.as_mapping().into_iter().flatten());
    let mut names: Vec<&Value> = names.into_iter().flatten().map(|(name, _)| name).collect();
    if names.is_empty() {
        changed.push(key.to_owned());
        return;
    }
    names.sort_by_key(|name| name.as_str());
    names.dedup();
    for name in names {
        let below = name.as_str().unwrap_or_default();
        let below = match key {
            "" => below.to_owned(),
            key => format!("{key}.{below}"),
        };
        let of = |value: &Value| value.get(name).cloned().unwrap_or_default();
        compare(&of(before), &of(after), &below, changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_are_named_with_their_sections() {
        let before = "server: {port: 1, db_name: a}\nfeatures: {analytics: {batch_size: 1}}";
        let after = "server: {port: 2, db_name: a}\nobservability: {log_filter: warn}";
        let [before, after] = [before, after].map(|text| serde_yaml::from_str(text).unwrap());
        let mut changed = Vec::new();
        compare(&before, &after, "", &mut changed);
        assert_eq!(
            changed,
            [
                "features.analytics.batch_size",
                "observability.log_filter",
                "server.port"
            ]
        );
        changed.clear();
        compare(&Value::Null, &Value::Null, "", &mut changed);
        assert!(changed.is_empty());
    }
}
