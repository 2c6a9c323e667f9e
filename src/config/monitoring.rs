//! What is told of the server to those who watch it: metrics, health, and where. The settings, and their keys.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{FROM_ZERO, Key, POSITIVE, key, store};
use super::units::{choice, duration, listen, switch};

/// Which metrics are told, and to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Whether `/metrics` is answered.
    pub prometheus: bool,
    /// Whether the names of Bungate are told as well.
    pub bungate: bool,
    /// Where they are pushed to by StatsD's protocol.
    pub statsd: Option<SocketAddr>,
    /// How.
    pub statsd_form: Statsd,
    /// Where they are written for CloudWatch.
    pub cloudwatch: Option<CloudWatch>,
    /// CloudWatch's namespace.
    pub namespace: String,
    /// How often that is done.
    pub cloudwatch_interval: Duration,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            prometheus: true,
            bungate: false,
            statsd: None,
            statsd_form: Statsd {
                datadog: false,
                prefix: String::new(),
                tags: Vec::new(),
                interval: Duration::from_secs(10),
            },
            cloudwatch: None,
            namespace: "production_server".to_owned(),
            cloudwatch_interval: Duration::from_secs(60),
        }
    }
}

/// How metrics are pushed by StatsD's protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Statsd {
    /// With labels as tags, as Datadog's agent reads them; else they are parts of the name.
    pub datadog: bool,
    /// What stands before each name.
    pub prefix: String,
    /// Tags of each metric, as NAME:VALUE. Only with `datadog`.
    pub tags: Vec<String>,
    /// How often.
    pub interval: Duration,
}

/// Where metrics are written for CloudWatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudWatch {
    /// To stdout.
    Stdout,
    /// To the end of a file.
    File(PathBuf),
}

/// A word that begins each name: letters, digits, dots, dashes and underscores.
fn name(text: &str, most: usize) -> Result<String, String> {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | '/');
    match !text.is_empty() && text.len() <= most && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected at most {most} letters, digits, dots, dashes, slashes or underscores")),
    }
}

fn tag(text: &str) -> Result<String, String> {
    let fine =
        |part: &str| !part.is_empty() && !part.contains(|letter: char| letter.is_control() || ",|#:@".contains(letter));
    match text.split_once(':') {
        Some((name, value)) if fine(name) && fine(value) && text.len() <= 200 => Ok(text.to_owned()),
        _ => Err("expected NAME:VALUE without commas, bars and further colons".to_owned()),
    }
}

fn statsd(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| "expected the IP address and the port of a StatsD server".to_owned())
}

/// The keys.
pub const KEYS: &[Key] = &[
    key("admin", "ADDRESS", "", ADMIN_HELP, |settings, text| {
        settings.telling.admin.push(listen(text)?);
        Ok(())
    })
    .many()
    .example("127.0.0.1:9090"),
    key("metrics", "on|off", "on", "Answer /metrics, for Prometheus", |settings, text| {
        store(&mut settings.telling.metrics.prometheus, switch(text))
    }),
    key("bungate-metrics", "", "", "Tell the metrics by Bungate's names as well", |settings, text| {
        store(&mut settings.telling.metrics.bungate, switch(text))
    })
    .example("on"),
    key("statsd", "IP:PORT", "", "Push metrics to a StatsD server, by UDP", |settings, text| {
        store(&mut settings.telling.metrics.statsd, statsd(text).map(Some))
    })
    .example("127.0.0.1:8125"),
    key(
        "statsd-format",
        "FORMAT",
        "plain",
        "plain (labels are parts of the name) or datadog (tags)",
        |settings, text| {
            store(
                &mut settings.telling.metrics.statsd_form.datadog,
                choice(text, &[("plain", false), ("datadog", true)]),
            )
        },
    ),
    key("statsd-prefix", "PREFIX", "", "What stands before each name", |settings, text| {
        store(&mut settings.telling.metrics.statsd_form.prefix, name(text, 100))
    })
    .example("site1."),
    key("statsd-tag", "NAME:VALUE", "", "A tag of every metric, in Datadog's format", |settings, text| {
        settings.telling.metrics.statsd_form.tags.push(tag(text)?);
        Ok(())
    })
    .many()
    .example("env:prod"),
    key("statsd-interval", "DURATION", "10s", "How often metrics are pushed", |settings, text| {
        store(&mut settings.telling.metrics.statsd_form.interval, duration(text, POSITIVE))
    }),
    key("cloudwatch", "PATH|-", "", "Write metrics in CloudWatch's embedded format; - is stdout", |settings, text| {
        settings.telling.metrics.cloudwatch = Some(match text {
            "-" => CloudWatch::Stdout,
            _ if text.is_empty() || text.contains('\0') => return Err("expected a path".to_owned()),
            _ => CloudWatch::File(PathBuf::from(text)),
        });
        Ok(())
    })
    .example("-"),
    key("cloudwatch-namespace", "NAME", "production_server", "The namespace of those", |settings, text| {
        store(&mut settings.telling.metrics.namespace, name(text, 255))
    }),
    key("cloudwatch-interval", "DURATION", "60s", "How often they are written", |settings, text| {
        store(&mut settings.telling.metrics.cloudwatch_interval, duration(text, POSITIVE))
    }),
    key("pre-stop-delay", "DURATION", "0s", PRE_STOP_HELP, |settings, text| {
        store(&mut settings.leaving.pre_stop_delay, duration(text, FROM_ZERO))
    }),
];

const ADMIN_HELP: &str = "An address where the server answers /metrics, /status, /livez, /readyz and /health_check to whoever reaches \
    it, and nothing else";

const PRE_STOP_HELP: &str = "How long a graceful stop fails /readyz before listeners close, for balancers to look away";
