//! How it is found out whether workers and upstreams are well, and when an upstream is left out. The settings, and their keys.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::keys::{Key, POSITIVE, key, store};
use super::units::{count, duration};

/// Active health checks: a GET of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked for; `None`: nothing is.
    pub path: Option<String>,
    /// From the end of one check to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Failures in a row until the one that is asked counts as unhealthy, at least 1.
    pub unhealthy: u32,
    /// Successes in a row until it counts as healthy again, at least 1.
    pub healthy: u32,
    /// The status codes of a success.
    pub status: RangeInclusive<u16>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            path: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            unhealthy: 3,
            healthy: 2,
            status: 200..=399,
        }
    }
}

/// When an upstream that fails is left out for a while, as long as there is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eject {
    /// Failures in a row; 0: never.
    pub failures: u32,
    /// For how long the first time; each further time for twice as long.
    pub time: Duration,
    /// The longest time.
    pub max: Duration,
}

impl Default for Eject {
    fn default() -> Eject {
        Eject { failures: 3, time: Duration::from_secs(10), max: Duration::from_secs(300) }
    }
}

pub(super) const KEYS: &[Key] = &[
    key("health-check", "PATH", "", CHECK_HELP, |settings, text| {
        store(&mut settings.app.health.path, path(text).map(Some))
    })
    .example("/healthz"),
    key("health-interval", "DURATION", "10s", INTERVAL_HELP, |settings, text| {
        store(&mut settings.app.health.interval, duration(text, POSITIVE))
    })
    .example("5s"),
    key("health-timeout", "DURATION", "5s", TIMEOUT_HELP, |settings, text| {
        store(&mut settings.app.health.timeout, duration(text, POSITIVE))
    })
    .example("2s"),
    key("health-unhealthy", "N", "3", UNHEALTHY_HELP, |settings, text| {
        store(&mut settings.app.health.unhealthy, count(text, 1..=1000).map(|number| number as u32))
    })
    .example("5"),
    key("health-healthy", "N", "2", HEALTHY_HELP, |settings, text| {
        store(&mut settings.app.health.healthy, count(text, 1..=1000).map(|number| number as u32))
    })
    .example("1"),
    key("health-status", "STATUS|FROM-TO", "200-399", "Which status is a success", |settings, text| {
        store(&mut settings.app.health.status, statuses(text))
    })
    .example("200-299"),
    key("eject-after", "N", "3", AFTER_HELP, |settings, text| {
        store(&mut settings.app.eject.failures, count(text, 0..=1000).map(|number| number as u32))
    })
    .example("5"),
    key("eject-time", "DURATION", "10s", TIME_HELP, |settings, text| {
        store(&mut settings.app.eject.time, duration(text, POSITIVE))
    })
    .example("30s"),
    key("eject-max", "DURATION", "5m", "The longest such time", |settings, text| {
        store(&mut settings.app.eject.max, duration(text, POSITIVE))
    })
    .example("1m"),
];

const CHECK_HELP: &str = "A path that each worker or upstream is asked for now and then; a worker that fails is replaced, an \
    upstream gets no requests until it passes, unless none does";

const INTERVAL_HELP: &str = "From the end of one such check to the next, a little longer by chance";

const TIMEOUT_HELP: &str = "How long its answer may take";

const UNHEALTHY_HELP: &str = "Failed checks in a row until a worker or upstream counts as unhealthy";

const HEALTHY_HELP: &str = "Passed checks in a row until it counts as healthy again";

const AFTER_HELP: &str = "Failures in a row until an upstream gets no requests for a while, where there are others: \
    connections refused or lost, timeouts, 502, 503, 504; 0: never";

const TIME_HELP: &str = "For how long the first time, doubled each time; then it comes back slowly";

/// What a request may ask for.
fn path(text: &str) -> Result<String, String> {
    let plain = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if plain { Ok(text.to_owned()) } else { Err("expected a path that begins with a slash".to_owned()) }
}

/// A status, or the first and the last of several.
fn statuses(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| count(text.trim(), 200..=599).map(|code| code as u16);
    match (code(first), code(last)) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => {
            Err("expected a status from 200 to 599, or the first and the last of several with a dash between"
                .to_owned())
        }
    }
}
