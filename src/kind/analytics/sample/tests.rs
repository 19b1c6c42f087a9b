use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use prost::Message;

use super::*;

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn events(seed: u64, count: usize) -> Vec<Happening> {
    let mut population = Population::new(seed);
    (0..count)
        .map(|second| population.event(noon() + Duration::from_secs(second as u64), None))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_first_thousand_events_show_every_type(seed: u64) {
        let subjects: HashSet<_> = events(seed, 1_000).iter().map(|sample| sample.subject.clone()).collect();
        prop_assert_eq!(subjects.len(), Type::ALL.len());
    }

    #[test]
    fn every_event_decodes_back_equal(seed: u64) {
        for sample in events(seed, 200) {
            let bytes = sample.event.encode_to_vec();
            prop_assert_eq!(AnalyticsEvent::decode(bytes.as_slice()), Ok(sample.event));
        }
    }

    #[test]
    fn a_seed_always_gives_the_same_events(seed: u64) {
        prop_assert_eq!(events(seed, 50), events(seed, 50));
    }
}

#[test]
fn an_event_is_of_the_type_asked_for() {
    let mut population = Population::new(1);
    for event_type in Type::ALL {
        let sample = population.event(noon(), Some(*event_type));
        assert_eq!(sample.subject.replace('.', "_"), event_type.name());
        let happened = format!("{:?}", sample.event.event_type.unwrap());
        assert!(
            happened.starts_with(&format!("{event_type:?}(")),
            "{happened}"
        );
    }
}

#[test]
fn events_are_as_large_as_in_production() {
    let total: usize = events(1, 10_000)
        .iter()
        .map(|sample| sample.event.encoded_len())
        .sum();
    let mean = total / 10_000;
    assert!((300..=370).contains(&mean), "{mean} bytes");
}

#[test]
fn a_client_keeps_its_device_and_user_over_its_sessions() {
    let mut sessions: HashMap<String, HashSet<String>> = HashMap::new();
    let mut contexts = HashMap::new();
    for sample in events(1, 10_000) {
        let mut context = sample.event.context.unwrap();
        sessions
            .entry(context.client_id.clone())
            .or_default()
            .insert(std::mem::take(&mut context.session_id));
        (context.client_ts, context.server_ts) = (0, 0);
        let known = contexts
            .entry(context.client_id.clone())
            .or_insert_with(|| context.clone());
        assert_eq!(*known, context);
    }
    assert!(sessions.values().filter(|ids| ids.len() > 1).count() > 100);
}

#[test]
fn a_few_clients_cause_most_events() {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for sample in events(1, 10_000) {
        *counts
            .entry(sample.event.context.unwrap().client_id)
            .or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    assert!(counts.len() > 500, "{} clients", counts.len());
    assert!(counts[..100].iter().sum::<usize>() > 5_000);
}

#[test]
fn clocks_and_addresses_are_plausible() {
    for sample in events(1, 1_000) {
        let context = sample.event.context.unwrap();
        let delay = context.server_ts - context.client_ts;
        assert!((0..5_000).contains(&delay), "{delay} ms");
        let documentation = ["192.0.2.", "198.51.100.", "203.0.113."];
        assert!(documentation.iter().any(|net| context.ip.starts_with(net)));
    }
}

#[test]
fn the_shares_add_up() {
    let total: usize = Type::ALL.iter().map(|it| per_thousand(*it)).sum();
    assert_eq!(total, 1000);
}
