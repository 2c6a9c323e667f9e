//! The keys of what is written, where and how.

use super::super::logging::{self, FORMATS};
use super::super::units::{choice, duration, switch};
use super::super::{AccessLogFormat, EventFormat, Level, LogTarget, Pattern, Sampling};
use super::{FROM_ZERO, Key, Range, key, store};

/// Of two keys the more special is read later: `log-format` before `json-logging`, and both before the format of one log alone.
pub(super) const LOGS: &[Key] = &[
    key("access-log", "TARGET", "-", ACCESS_HELP, |settings, text| {
        store(&mut settings.logs.access.target, LogTarget::read(text))
    })
    .example("/var/log/access.log"),
    key("no-access-log", "", "", "Write no access log", |settings, text| {
        if switch(text)? {
            settings.logs.access.target = LogTarget::Off;
        }
        Ok(())
    })
    .example("on"),
    key("log-format", "FORMAT", "", LOG_FORMAT_HELP, |settings, text| {
        let format = AccessLogFormat::read(text)?;
        settings.logs.events.format = match format {
            AccessLogFormat::Human | AccessLogFormat::Rip => EventFormat::Human,
            AccessLogFormat::Json | AccessLogFormat::RipJson => EventFormat::Json,
            _ => EventFormat::Auto,
        };
        settings.logs.access.format = format;
        Ok(())
    })
    .example("json")
    .wrong_part(wrong_in_pattern),
    key("json-logging", "", "", "Write the access log in JSON", |settings, text| {
        if switch(text)? {
            settings.logs.access.format = AccessLogFormat::Json;
        }
        Ok(())
    })
    .example("on"),
    key(
        "access-log-format",
        "FORMAT",
        "",
        "How access lines look, as --log-format says it of all [default: that of --log-format]",
        |settings, text| store(&mut settings.logs.access.format, AccessLogFormat::read(text)),
    )
    .example("combined")
    .wrong_part(wrong_in_pattern),
    key("redact-field", "NAME", "", "A request field that access lines do not show", |settings, text| {
        settings.logs.access.redact.fields.push(logging::field_name(text)?);
        Ok(())
    })
    .many()
    .example("authorization"),
    key("redact-query", "NAME", "", "A query parameter whose value access lines do not show", |settings, text| {
        settings.logs.access.redact.query.push(logging::parameter_name(text)?);
        Ok(())
    })
    .many()
    .example("token"),
    key("access-log-sample", "STATUS:SHARE", "", SAMPLE_HELP, |settings, text| {
        settings.logs.access.sampling.push(Sampling::read(text)?);
        Ok(())
    })
    .many()
    .example("2xx:1/100"),
    key("event-log", "TARGET", "stderr", EVENTS_HELP, |settings, text| {
        store(&mut settings.logs.events.target, LogTarget::read(text))
    })
    .example("syslog"),
    key("event-log-format", "FORMAT", "", EVENT_FORMAT_HELP, |settings, text| {
        let formats = [("auto", EventFormat::Auto), ("human", EventFormat::Human), ("json", EventFormat::Json)];
        store(&mut settings.logs.events.format, choice(text, &formats))
    })
    .example("json"),
    key(
        "log-level",
        "LEVEL",
        "info",
        "The least important events that are written: info, warn or error",
        |settings, text| {
            let levels = [("info", Level::Info), ("warn", Level::Warn), ("error", Level::Error)];
            store(&mut settings.logs.events.level, choice(text, &levels))
        },
    )
    .example("warn"),
    key("stats-interval", "DURATION", "10s", "How often statistics are printed; 0s: never", |settings, text| {
        store(&mut settings.telling.stats_interval, duration(text, FROM_ZERO))
    }),
];

const ACCESS_HELP: &str =
    "Where the access log goes: a path, - (stdout), stderr, syslog, syslog:PATH, syslog:HOST:PORT or journald";

const EVENTS_HELP: &str =
    "Where events and the lines of workers go, likewise; with stderr the workers' stdout goes to stdout";

const LOG_FORMAT_HELP: &str = "human, combined (as nginx writes it), common (as Apache does), json, rip, rip-json, or a pattern such as \
    \"{client} {path} {status}\" [default: human; events in JSON unless stderr is a terminal]";

const EVENT_FORMAT_HELP: &str = "How events look: human, json, or auto: json unless they go to a terminal, syslog or the journal [default: as --log-format says]";

const SAMPLE_HELP: &str =
    "How many requests with a status are logged, as in 2xx:1/100, 404:0 or 5xx:all; the first that fits counts";

fn wrong_in_pattern(text: &str) -> Option<Range<usize>> {
    // The name of a format has no braces.
    text.contains(['{', '}']).then(|| Pattern::read(text).err().map(|error| error.at)).flatten()
}

// The formats with a name are all in the help.
const _: () = assert!(FORMATS.len() == 6);
