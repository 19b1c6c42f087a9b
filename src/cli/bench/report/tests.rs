use super::*;

const LOAD: Load = Load {
    events: 2_000_000,
    payload_bytes: 440_000_000,
};

fn used(seconds: u64, cpu_seconds: [Option<u64>; 3]) -> Used {
    let [analytics_server, nats_server, clickhouse] = cpu_seconds;
    let each = Each {
        analytics_server,
        nats_server,
        clickhouse,
    };
    Used {
        elapsed: Duration::from_secs(seconds),
        cpu: each.map(|seconds| seconds.map(Duration::from_secs)),
        peak_memory: each.map(|seconds| seconds.map(|seconds| seconds * 10_000_000)),
    }
}

fn report(latency: Option<Latency>) -> Report {
    let speeds = Speeds {
        nats_alone: Speed::new(LOAD, &used(8, [Some(3), None, None])),
        clickhouse_alone: Speed::new(LOAD, &used(20, [Some(1), None, Some(24)])),
        pipeline: Speed::new(LOAD, &used(25, [Some(5), None, Some(130)])),
    };
    let versions = Each {
        analytics_server: "0.1.0".to_owned(),
        nats_server: "2.15.1".to_owned(),
        clickhouse: "26.7.2.1".to_owned(),
    };
    let settings = Settings {
        batch_size: 50_000,
        max_in_flight: 2,
        flush_interval_seconds: 1.0,
    };
    let mut report = Report::new(versions, settings, LOAD, speeds, latency);
    // The same whatever the test is built with.
    report.optimised = latency.is_some();
    report
}

fn latency() -> Latency {
    let each = (1..=200).rev().map(Duration::from_millis).collect();
    let used = used(1, [Some(2), None, None]);
    Latency::new(100, Duration::from_secs(2), each, &used)
}

#[test]
fn rates_are_the_load_over_the_time_it_took() {
    let speed = Speed::new(LOAD, &used(20, [Some(1), None, Some(24)]));
    assert_eq!(speed.events_per_second, 100_000.0);
    assert_eq!(speed.megabytes_per_second, 22.0);
    let cpu = speed.cpu_seconds_per_million_events;
    assert_eq!(cpu.analytics_server, Some(0.5));
    assert_eq!(cpu.nats_server, None);
    assert_eq!(cpu.clickhouse, Some(12.0));
    assert_eq!(report(None).mean_payload_bytes, 220.0);
}

#[test]
fn the_pipeline_is_held_against_the_slower_of_the_two() {
    let mut report = report(None);
    assert_eq!(report.slower, Slower::Clickhouse);
    assert_eq!(report.ratio_to_slower, 0.8);
    let speeds = Speeds {
        nats_alone: report.pipeline,
        clickhouse_alone: report.clickhouse_alone,
        pipeline: report.pipeline,
    };
    report = Report::new(report.versions, report.settings, LOAD, speeds, None);
    assert_eq!(report.slower, Slower::Nats);
    assert_eq!(report.ratio_to_slower, 1.0);
}

#[test]
fn a_percentile_is_a_value_that_was_measured() {
    let ms = |values: &[u64]| values.iter().copied().map(Duration::from_millis).collect();
    let sorted: Vec<Duration> = ms(&[15, 20, 35, 40, 50]);
    let of = |percent| percentile(&sorted, percent).as_millis();
    assert_eq!([5, 30, 40, 50, 100].map(of), [15, 20, 20, 35, 50]);
    let one: Vec<Duration> = ms(&[7]);
    assert_eq!(
        [1, 50, 99].map(|percent| percentile(&one, percent).as_millis()),
        [7; 3]
    );
    assert_eq!(percentile(&[], 50), Duration::ZERO);
    let latency = latency();
    let percentiles = (latency.p50_ms, latency.p95_ms, latency.p99_ms);
    assert_eq!(percentiles, (100.0, 190.0, 198.0));
    assert_eq!(latency.events_per_second, 100.0);
}

#[test]
fn the_table_says_what_each_number_is() {
    insta::assert_snapshot!("table", report(Some(latency())).to_string());
}

#[test]
fn a_build_for_development_says_so_first() {
    let shown = report(None).to_string();
    assert!(
        shown.starts_with("WARNING: built without optimisation"),
        "{shown}"
    );
    assert!(!shown.contains("p50"), "{shown}");
}
