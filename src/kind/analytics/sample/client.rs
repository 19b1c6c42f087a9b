//! One installation of the app: the context that all its events share.

use std::time::{Duration, SystemTime};

use rand::{RngExt, rngs::SmallRng};

use crate::pb::{EventContext, GeoLocation, SystemInfo};

/// After a pause as long as this, people come back to a new session.
const SESSION_PAUSE: Duration = Duration::from_secs(30 * 60);

const VERSIONS: [&str; 4] = ["1.8.2", "1.8.2", "1.8.1", "1.7.14"];

struct Device {
    os: &'static str,
    arch: &'static str,
    browser: &'static str,
    browser_version: &'static str,
    user_agent: &'static str,
}

const DEVICES: [Device; 6] = [
    Device {
        os: "Windows",
        arch: "x86_64",
        browser: "Chrome",
        browser_version: "138.0.0.0",
        user_agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    },
    Device {
        os: "macOS",
        arch: "arm64",
        browser: "Safari",
        browser_version: "18.5",
        user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15",
    },
    Device {
        os: "macOS",
        arch: "arm64",
        browser: "Chrome",
        browser_version: "138.0.0.0",
        user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    },
    Device {
        os: "Linux",
        arch: "x86_64",
        browser: "Firefox",
        browser_version: "140.0",
        user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    },
    Device {
        os: "Android",
        arch: "arm64",
        browser: "Chrome",
        browser_version: "138.0.0.0",
        user_agent: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Mobile Safari/537.36",
    },
    Device {
        os: "iOS",
        arch: "arm64",
        browser: "Safari",
        browser_version: "18.5",
        user_agent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
    },
];

/// Country, region, city, time zone, locale.
const PLACES: [[&str; 5]; 10] = [
    ["US", "CA", "San Francisco", "America/Los_Angeles", "en-US"],
    ["US", "NY", "New York", "America/New_York", "en-US"],
    ["CN", "31", "上海", "Asia/Shanghai", "zh-CN"],
    ["CN", "11", "北京", "Asia/Shanghai", "zh-CN"],
    ["JP", "13", "東京", "Asia/Tokyo", "ja-JP"],
    ["DE", "BY", "München", "Europe/Berlin", "de-DE"],
    ["GB", "ENG", "London", "Europe/London", "en-GB"],
    ["FR", "IDF", "Paris", "Europe/Paris", "fr-FR"],
    ["BR", "SP", "São Paulo", "America/Sao_Paulo", "pt-BR"],
    ["IN", "KA", "Bengaluru", "Asia/Kolkata", "en-IN"],
];

/// The address ranges that are set aside for documentation: nobody's.
const NETWORKS: [&str; 3] = ["192.0.2", "198.51.100", "203.0.113"];

pub(super) struct Client {
    pub(super) user: usize,
    context: EventContext,
    last_seen: Option<SystemTime>,
}

impl Client {
    /// One of the user's devices. The user's number alone decides on the place, so
    /// that somebody with two devices is in one place with both.
    pub(super) fn new(user: usize, rng: &mut SmallRng) -> Self {
        let device = pick(&DEVICES, rng);
        let [country, region, city, timezone, locale] = PLACES[user % PLACES.len()];
        let network = pick(&NETWORKS, rng);
        let context = EventContext {
            client_id: format!("client-{:08x}", rng.random::<u32>()),
            session_id: session_id(rng),
            user_id: (100_000 + user).to_string(),
            app_version: (*pick(&VERSIONS, rng)).into(),
            client_ts: 0,
            server_ts: 0,
            user_agent: device.user_agent.into(),
            ip: format!("{network}.{}", rng.random_range(1..255)),
            system: Some(SystemInfo {
                os: device.os.into(),
                arch: device.arch.into(),
                locale: locale.into(),
                timezone: timezone.into(),
                browser: device.browser.into(),
                browser_version: device.browser_version.into(),
            }),
            geo: Some(GeoLocation {
                country: country.into(),
                region: region.into(),
                city: city.into(),
            }),
        };
        Self {
            user,
            context,
            last_seen: None,
        }
    }

    pub(super) fn start_session(&mut self, rng: &mut SmallRng) {
        self.context.session_id = session_id(rng);
    }

    /// The context of an event that reaches the server now.
    pub(super) fn context(&mut self, now: SystemTime, rng: &mut SmallRng) -> EventContext {
        let pause = self
            .last_seen
            .and_then(|seen| now.duration_since(seen).ok());
        if pause.is_some_and(|pause| pause > SESSION_PAUSE) {
            self.start_session(rng);
        }
        self.last_seen = Some(now);
        let server_ts = unix_ms(now);
        EventContext {
            // On the way from the client to the server.
            client_ts: server_ts - rng.random_range(15..1_500),
            server_ts,
            ..self.context.clone()
        }
    }
}

fn session_id(rng: &mut SmallRng) -> String {
    format!("s-{:016x}", rng.random::<u64>())
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn pick<'a, T>(choices: &'a [T], rng: &mut SmallRng) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}
