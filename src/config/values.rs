//! Values that serde alone would accept but that cannot work. Each error names its key:
//! serde knows only the section that it is in.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, de::Error};
use tracing_subscriber::EnvFilter;

use super::{Address, Authority};

/// A switch that exists for the sake of other services.
fn must_be_true<'de, D: Deserializer<'de>>(
    deserializer: D,
    key: &str,
    reason: &str,
) -> Result<bool, D::Error> {
    if bool::deserialize(deserializer)? {
        Ok(true)
    } else {
        Err(D::Error::custom(format!("{key} must be true: {reason}")))
    }
}

pub fn enabled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    must_be_true(
        deserializer,
        "enabled",
        "the daemon reads events from NATS and from nowhere else",
    )
}

pub fn jetstream_enabled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    must_be_true(
        deserializer,
        "jetstream_enabled",
        "plain NATS would lose events",
    )
}

/// A stream's or a consumer's name, safe in a NATS subject, a file name and a
/// key of a KV bucket.
pub fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(safe) {
        return Err(D::Error::custom(format!(
            "a stream's or consumer's name has letters, digits, `-` and `_` only, not `{name}`"
        )));
    }
    Ok(name)
}

/// One address or several, which async-nats can read.
pub fn nats_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    let address = Address::deserialize(deserializer)?;
    check_nats_url(&address).map_err(D::Error::custom)?;
    Ok(address)
}

pub fn check_nats_url(address: &Address) -> Result<(), String> {
    for one in address.expose().split(',') {
        one.trim().parse::<ServerAddr>().map_err(|error| {
            format!("nats_url `{address}` is not an address such as `nats://host:4222`: {error}")
        })?;
    }
    Ok(())
}

pub fn subject<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let subject = String::deserialize(deserializer)?;
    if subject.split('.').any(str::is_empty) || subject.contains(char::is_whitespace) {
        return Err(D::Error::custom(format!(
            "`{subject}` is not a NATS subject"
        )));
    }
    Ok(subject)
}

pub fn optional_subject<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    subject(deserializer).map(Some)
}

pub fn batch_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroUsize, D::Error> {
    // ClickHouse's own limit for one block of an insert.
    const MOST: usize = 1_000_000;
    let size = NonZeroUsize::deserialize(deserializer)?;
    if size.get() > MOST {
        return Err(D::Error::custom(format!(
            "batch_size is `{size}`, more than {MOST} rows"
        )));
    }
    Ok(size)
}

pub fn batch_max_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let size = ByteSize::deserialize(deserializer)
        .map_err(|_| D::Error::custom("batch_max_bytes is not a size such as `32MiB`"))?;
    if !(ByteSize::kib(1)..=ByteSize::gib(1)).contains(&size) {
        return Err(D::Error::custom(format!(
            "batch_max_bytes is `{size}`, not between 1KiB and 1GiB"
        )));
    }
    Ok(size)
}

fn seconds<'de, D: Deserializer<'de>>(
    deserializer: D,
    key: &str,
    (least, most): (f64, f64),
) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    if !(least..=most).contains(&seconds) {
        return Err(D::Error::custom(format!(
            "{key} is `{seconds}`, not between {least} and {most}"
        )));
    }
    Ok(Duration::from_secs_f64(seconds))
}

pub fn flush_interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    seconds(deserializer, "flush_interval_seconds", (0.001, 3600.0))
}

pub fn insert_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // Far shorter than it takes for the inserts that follow to fill the deduplication
    // window.
    seconds(deserializer, "insert_timeout_seconds", (1.0, 600.0))
}

pub fn lease_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // It is renewed four times within that time, over the network.
    seconds(deserializer, "lease_timeout_seconds", (1.0, 3600.0))
}

pub fn max_in_flight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroUsize, D::Error> {
    // The deduplication window must hold many times the parts that they can make,
    // and the record names them all.
    const MOST: usize = 32;
    let inserts = NonZeroUsize::deserialize(deserializer)?;
    if inserts.get() > MOST {
        return Err(D::Error::custom(format!(
            "max_in_flight is `{inserts}`, more than {MOST} inserts at a time"
        )));
    }
    Ok(inserts)
}

pub fn decode_workers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<NonZeroUsize, D::Error> {
    const MOST: usize = 64;
    let workers = NonZeroUsize::deserialize(deserializer)?;
    if workers.get() > MOST {
        return Err(D::Error::custom(format!(
            "decode_workers is `{workers}`, more than {MOST}"
        )));
    }
    Ok(workers)
}

pub fn log_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let Some(filter) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    match EnvFilter::try_new(&filter) {
        Ok(_) => Ok(Some(filter)),
        Err(error) => Err(D::Error::custom(format!(
            "log_filter `{filter}` is not a log filter: {error}"
        ))),
    }
}

pub fn max_age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    const CENTURY: u64 = 100 * 366 * 24;
    let hours = u64::deserialize(deserializer)?;
    if !(1..=CENTURY).contains(&hours) {
        return Err(D::Error::custom(format!(
            "max_age_hours is `{hours}`, not between one hour and a century"
        )));
    }
    Ok(Duration::from_secs(hours * 3600))
}

fn authority<'de, D: Deserializer<'de>>(
    deserializer: D,
    key: &str,
) -> Result<Option<Authority>, D::Error> {
    let path: Option<PathBuf> = Option::deserialize(deserializer)?;
    path.map(Authority::read)
        .transpose()
        .map_err(|message| D::Error::custom(format!("{key}: {message}")))
}

pub fn tls_ca_file<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Authority>, D::Error> {
    authority(deserializer, "tls_ca_file")
}

pub fn db_tls_ca_file<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Authority>, D::Error> {
    authority(deserializer, "db_tls_ca_file")
}
