//! Reading what `/metrics` says.

use std::collections::BTreeMap;

/// Every series with its value, without the `analytics_` before its name. Of the text format, only
/// what this program itself writes is understood.
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let name = name.strip_prefix("analytics_").unwrap_or(name);
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    /// A series that counts something. 0 if there is none.
    pub fn count(&self, series: &str) -> u64 {
        self.get(series) as u64
    }

    /// The series of a family with one label: the label's value, and the series'.
    pub fn of<'a>(&'a self, family: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.iter().filter_map(move |(series, value)| {
            let label = series.strip_prefix(family)?.strip_prefix('{')?;
            Some((label.split('"').nth(1)?, *value as u64))
        })
    }

    pub fn sum(&self, family: &str) -> u64 {
        self.of(family).map(|(_, value)| value).sum()
    }

    /// The series of one lane, without that label.
    pub fn of_lane(&self, lane: &str) -> Self {
        let label = format!("lane=\"{lane}\"");
        let series = self.0.iter().filter_map(|(series, value)| {
            let (name, labels) = series.split_once('{')?;
            let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
            let others = labels.iter().filter(|other| **other != label);
            let others = others.copied().collect::<Vec<_>>();
            let series = match others.as_slice() {
                _ if others.len() == labels.len() => return None,
                [] => name.to_owned(),
                others => format!("{name}{{{}}}", others.join(",")),
            };
            Some((series, *value))
        });
        Self(series.collect())
    }

    /// When the process was started, in Unix time; known on Linux only.
    pub fn start(&self) -> Option<u64> {
        Some(self.count("process_start_time_seconds")).filter(|start| *start > 0)
    }

    /// What happened since `before`: counters and histograms minus what they were then. A process
    /// that was started in between has counted from 0.
    pub fn since(&self, before: &Self) -> Self {
        if self.start() != before.start() {
            return Self(self.0.clone());
        }
        let less = |(series, value): (&String, &f64)| {
            let grown = value - before.get(series);
            (series.clone(), grown)
        };
        Self(self.0.iter().map(less).collect())
    }

    /// The mean of what a histogram has seen; `None` if that is nothing.
    pub fn mean(&self, histogram: &str) -> Option<f64> {
        let count = self.get(&format!("{histogram}_count"));
        (count > 0.0).then(|| self.get(&format!("{histogram}_sum")) / count)
    }

    /// The value below which `share`, from 0 to 1, of what a histogram has seen lies. Within a
    /// bucket, values are assumed to be spread evenly, as Prometheus does.
    pub fn quantile(&self, histogram: &str, share: f64) -> Option<f64> {
        let family = format!("{histogram}_bucket");
        let mut buckets: Vec<(f64, f64)> = self
            .of(&family)
            // Prometheus' `+Inf` is a number to Rust, too.
            .filter_map(|(limit, count)| Some((limit.parse().ok()?, count as f64)))
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let rank = share * buckets.last().filter(|(_, count)| *count > 0.0)?.1;
        let (mut lower, mut below) = (0.0, 0.0);
        for (upper, count) in buckets {
            if count >= rank {
                let is_open = upper.is_infinite();
                let part = (rank - below) / (count - below);
                return Some(if is_open {
                    lower
                } else {
                    lower + (upper - lower) * part
                });
            }
            (lower, below) = (upper, count);
        }
        None
    }

    fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP analytics_time Time
# TYPE analytics_time histogram
analytics_time_bucket{le=\"1\"} 10
analytics_time_bucket{le=\"2\"} 20
analytics_time_bucket{le=\"+Inf\"} 20
analytics_time_sum 25
analytics_time_count 20
analytics_letters{reason=\"one\"} 3
analytics_letters{reason=\"two\"} 4
process_start_time_seconds 1000
";

    #[test]
    fn means_and_quantiles_are_those_of_the_histogram() {
        let figures = Figures::parse(TEXT);
        assert_eq!(figures.mean("time"), Some(1.25));
        assert_eq!(figures.quantile("time", 0.5), Some(1.0));
        assert_eq!(figures.quantile("time", 0.75), Some(1.5));
        assert_eq!(figures.quantile("time", 1.0), Some(2.0));
        assert_eq!(figures.mean("other"), None);
        assert_eq!(figures.quantile("other", 0.5), None);
        assert_eq!(figures.sum("letters"), 7);
        assert_eq!(figures.of("letters").next(), Some(("one", 3)));
    }

    #[test]
    fn the_figures_of_a_lane_are_its_own() {
        let text = "\
analytics_received{lane=\"a\"} 1
analytics_received{lane=\"b\"} 2
analytics_letters{lane=\"a\",reason=\"one\"} 3
process_start_time_seconds 1000
";
        let figures = Figures::parse(text).of_lane("a");
        assert_eq!(figures.count("received"), 1);
        assert_eq!(figures.of("letters").next(), Some(("one", 3)));
        assert_eq!(figures.start(), None);
    }

    #[test]
    fn what_happened_since_is_the_difference_or_all_of_a_new_process() {
        let before = Figures::parse(TEXT);
        let now = Figures::parse(&TEXT.replace("} 4", "} 9"));
        assert_eq!(now.since(&before).sum("letters"), 5);
        assert_eq!(now.since(&before).mean("time"), None);
        let restarted = TEXT.replace("start_time_seconds 1000", "start_time_seconds 2000");
        assert_eq!(Figures::parse(&restarted).since(&before).sum("letters"), 7);
    }
}
