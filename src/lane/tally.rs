//! How many events there are of each type and producer.

use crate::event::Event;
use crate::nats::Headers;

/// Where an event that names no producer came from.
pub const UNKNOWN_SERVICE: &str = "unknown";

/// Events of types that their kind does not name, and of producers beyond the maximum.
pub const OTHER: &str = "other";

/// The headers that name the producer, the first one that is there.
const HEADERS: [&str; 2] = ["service", "Nats-Service"];

/// Counts of events. Producers are few, so that looking through them is fast.
#[derive(Debug, Clone, Default)]
pub struct Tally(Vec<Producer>);

#[derive(Debug, Clone)]
struct Producer {
    service: Box<str>,
    /// By type, of which there are few, too.
    counts: Vec<(&'static str, u64)>,
}

impl Tally {
    /// Counts an event.
    pub fn add(&mut self, event: &Event) {
        let event_type = event.row.event_type.unwrap_or(OTHER);
        *self.count(service(&event.source.headers), event_type) += 1;
    }

    /// Counts events.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut tally = Self::default();
        events.into_iter().for_each(|event| tally.add(event));
        tally
    }

    /// Adds what another one has counted.
    pub fn extend(&mut self, other: &Self) {
        for (service, event_type, count) in other.iter() {
            *self.count(service, event_type) += count;
        }
    }

    /// Takes off what another one has counted of the same events.
    pub fn subtract(&mut self, other: &Self) {
        for (service, event_type, count) in other.iter() {
            *self.count(service, event_type) -= count;
        }
    }

    /// Producer, type and count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.0.iter().flat_map(|producer| {
            let counts = producer.counts.iter();
            counts.map(|(event_type, count)| (&*producer.service, *event_type, *count))
        })
    }

    /// All events.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, _, count)| count).sum()
    }

    fn count(&mut self, service: &str, event_type: &'static str) -> &mut u64 {
        let place = match self.0.iter().position(|it| &*it.service == service) {
            Some(place) => place,
            None => {
                self.0.push(Producer {
                    service: service.into(),
                    counts: Vec::new(),
                });
                self.0.len() - 1
            }
        };
        let counts = &mut self.0[place].counts;
        // Names of types are constants: mostly the same pointer.
        let place = match counts.iter().position(|(name, _)| *name == event_type) {
            Some(place) => place,
            None => {
                counts.push((event_type, 0));
                counts.len() - 1
            }
        };
        &mut counts[place].1
    }
}

/// The producer that a message names.
fn service(headers: &Headers) -> &str {
    let named = HEADERS.iter().find_map(|name| headers.get(name));
    named
        .filter(|name| !name.is_empty())
        .unwrap_or(UNKNOWN_SERVICE)
}
