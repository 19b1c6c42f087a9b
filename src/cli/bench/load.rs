//! Publishing the realistic mix: as fast as JetStream takes it, or at a steady rate.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Error, Result};
use async_nats::Client;
use async_nats::jetstream;
use indicatif::ProgressBar;

use super::report::Load;
use crate::cli::publish::{self, Outgoing, Published};
use crate::config::Config;
use crate::kind::Samples;
use crate::lane::Lane;
use crate::nats;

pub struct Publisher {
    jetstream: jetstream::Context,
    samples: Box<dyn Samples>,
}

impl Publisher {
    /// On a connection of its own: answers to publishes would get in the way of messages on
    /// the pipeline's.
    pub async fn connect(config: &Config) -> Result<Self> {
        let client: Client = nats::connect(&config.integrations.messaging).await?;
        let samples = Lane::first(config).kind.samples(1);
        Ok(Self {
            jetstream: jetstream::new(client),
            samples: samples.map_err(Error::msg)?,
        })
    }

    /// As fast as JetStream takes them.
    pub async fn at_once(&mut self, events: u64, progress: &ProgressBar) -> Result<Load> {
        let mut load = Load::default();
        let mut rest = 0..events;
        let next = async || {
            rest.next()?;
            Some(sample(&mut *self.samples))
        };
        publish::publish(&self.jetstream, next, |published| {
            load.events += 1;
            load.payload_bytes += published.bytes as u64;
            progress.inc(1);
        })
        .await?;
        Ok(load)
    }

    /// At `rate` events a second; returns what was published, and how long it took.
    pub async fn steadily(&mut self, rate: u64, events: u64) -> Result<(Vec<Published>, Duration)> {
        let mut all = Vec::new();
        let started = Instant::now();
        let mut numbers = 0..events;
        let next = async || {
            let number = numbers.next()?;
            let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
            Some(sample(&mut *self.samples))
        };
        publish::publish(&self.jetstream, next, |published| all.push(published)).await?;
        // Including the last one's share of the time.
        let until_last = all.last().map_or(started, |last| last.sent) - started;
        Ok((all, until_last + Duration::from_secs_f64(1.0 / rate as f64)))
    }
}

fn sample(samples: &mut dyn Samples) -> Outgoing {
    Outgoing::new(samples.next(SystemTime::now(), None))
}
