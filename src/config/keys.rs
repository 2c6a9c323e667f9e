//! Every key once: its flag, its names in the environment, its default for people, and how its value is read.

mod logs;

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use super::units::{
    account, choice, count, count_or_auto, duration, internal, listen, milliseconds, mode, percent, rate, ready,
    signal, size, switch, upstream, variable, worker_range,
};
use super::{BackendChoice, Balance, Buffering, Command, HotReload, Pin, Settings, WorkerSocket, cores, places};

/// What all variables of the server's own begin with; the flag's name in capitals follows.
pub const PREFIX: &str = "PRODUCTION_SERVER_";

/// One key. See the module.
#[derive(Debug)]
pub struct Key {
    /// The long flag without its dashes.
    pub name: &'static str,
    /// The short flag.
    pub short: Option<char>,
    /// What stands for the value in the help; empty for a switch.
    pub value: &'static str,
    /// The default as people read it; empty if there is none.
    pub default: &'static str,
    /// A good value, for error messages.
    pub example: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// Whether it may be given many times.
    pub many: bool,
    /// Variables that others set for it, besides the one of our own, which wins.
    pub variables: &'static [&'static str],
    /// Reads one value into the settings, or says what would have been right.
    pub set: Setter,
    /// Which part of a wrong value is to be pointed at, where it is not the whole.
    pub wrong_part: Option<WrongPart>,
}

/// Which part of a wrong value is wrong, if not the whole.
pub type WrongPart = fn(&str) -> Option<Range<usize>>;

/// Reads one value into the settings, or says what would have been right, beginning with "expected".
pub type Setter = fn(&mut Settings, &str) -> Result<(), String>;

impl Key {
    /// The name of its variable, as in `PRODUCTION_SERVER_MAX_QUEUE`.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Whether it says something of an app.
    pub fn is_of_app(&self) -> bool {
        places::main_of(self.name).is_some_and(|place| place.path.starts_with("apps."))
    }

    /// Whether it takes no value as a flag.
    pub fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    const fn short(self, short: char) -> Key {
        Key { short: Some(short), ..self }
    }

    pub(super) const fn many(self) -> Key {
        Key { many: true, ..self }
    }

    const fn variables(self, variables: &'static [&'static str]) -> Key {
        Key { variables, ..self }
    }

    pub(super) const fn example(self, example: &'static str) -> Key {
        Key { example, ..self }
    }

    const fn wrong_part(self, wrong_part: WrongPart) -> Key {
        Key { wrong_part: Some(wrong_part), ..self }
    }
}

/// A key whose default is also a good example.
pub(super) const fn key(
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    set: Setter,
) -> Key {
    Key {
        name,
        short: None,
        value,
        default,
        example: default,
        help,
        many: false,
        variables: &[],
        set,
        wrong_part: None,
    }
}

const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);
/// Any wait that may be zero.
pub(super) const FROM_ZERO: RangeInclusive<Duration> = Duration::ZERO..=DAY;
/// Any wait that must not be zero.
pub(super) const POSITIVE: RangeInclusive<Duration> = MILLISECOND..=DAY;
const HOUR: RangeInclusive<Duration> = MILLISECOND..=Duration::from_secs(3600);

/// Stores a value that was read.
pub(super) fn store<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

/// All keys by the heading of the help under which they stand.
pub const GROUPS: &[(&str, &[Key])] = &[
    ("App and workers", APP),
    ("Replacing, reloading and limiting workers", LIVES),
    ("Waiting and deadlines of the worker side", WAITING),
    ("Health of workers and upstreams", super::health::KEYS),
    ("Compressing answers", super::compress::KEYS),
    ("Listening and loops", LOOPS),
    ("TLS", super::tls::KEYS),
    ("Certificates that come by themselves", super::acme::KEYS),
    ("The process", PROCESS),
    ("Deadlines and limits of the client side", LIMITS),
    ("Who gets in, and how often", super::limits::KEYS),
    ("Real time", super::hub::KEYS),
    ("Logs and statistics", logs::LOGS),
    ("Metrics and health", super::monitoring::KEYS),
];

/// All keys in the order of the help.
pub fn all() -> impl Iterator<Item = &'static Key> {
    GROUPS.iter().flat_map(|(_, keys)| keys.iter())
}

/// The key of that name. Only for names that stand in this file.
pub fn by_name(name: &str) -> &'static Key {
    all().find(|key| key.name == name).expect("a key that the program names is in the table")
}

/// Which of the free workers gets the next request.
pub const BALANCES: &[(&str, Balance)] =
    &[("lifo", Balance::Lifo), ("round-robin", Balance::RoundRobin), ("least", Balance::Least)];

const APP: &[Key] = &[
    key("workers", "N|MIN..MAX|auto|join", "auto", WORKERS_HELP, |settings, text| {
        settings.app.scaling = worker_range(text)?;
        settings.app.workers = match settings.app.scaling {
            Some(scaling) => scaling.min,
            None if text.eq_ignore_ascii_case("join") => 0,
            None => count_or_auto(text, 1..=1024)?.map_or(cores().max(2), |workers| workers as usize),
        };
        Ok(())
    })
    .short('w')
    .example("4")
    .variables(&["WEB_CONCURRENCY"]),
    key("concurrency", "N", "1", "Requests in flight per worker or upstream at once", |settings, text| {
        store(&mut settings.app.sharing.concurrency, count(text, 1..=65_535).map(|number| number as u32))
    })
    .short('c'),
    key("balance", "WAY", "lifo", "Which free worker is next: lifo, round-robin or least", |settings, text| {
        store(&mut settings.app.sharing.balance, choice(text, BALANCES))
    }),
    key("ready", "WAY", "listen", "When a worker is ready: listen, http:PATH, notify or join", |settings, text| {
        store(&mut settings.app.life.ready.by, ready(text))
    })
    .example("http:/ready"),
    key("ready-timeout", "DURATION", "15s", READY_TIMEOUT_HELP, |settings, text| {
        store(&mut settings.app.life.ready.timeout, duration(text, POSITIVE))
    }),
    key("socket", "KIND", "auto", SOCKET_HELP, |settings, text| {
        let kinds = [
            ("auto", WorkerSocket::Auto),
            ("unix", WorkerSocket::Unix),
            ("inherit", WorkerSocket::Inherit),
            ("tcp", WorkerSocket::Tcp),
        ];
        store(&mut settings.app.program.socket, choice(text, &kinds))
    }),
    key("directory", "PATH", "", DIRECTORY_HELP, |settings, text| {
        store(&mut settings.app.program.directory, path(text).map(Some))
    })
    .example("/srv/app/current"),
    key("environment", "NAME=VALUE", "", "A variable for the workers, besides the server's own", |settings, text| {
        let (name, value) = variable(text)?;
        settings.app.program.environment.insert(name, value);
        Ok(())
    })
    .many()
    .example("NODE_ENV=production"),
    key("required", "on|off", "on", REQUIRED_HELP, |settings, text| store(&mut settings.app.required, switch(text))),
    key("watchdog", "DURATION", "", WATCHDOG_HELP, |settings, text| {
        store(&mut settings.app.life.watchdog, duration(text, POSITIVE).map(Some))
    })
    .example("30s"),
    key("keepalive", "on|off", "on", "Keep connections to workers; off for blocking workers", |settings, text| {
        store(&mut settings.app.sharing.keepalive, switch(text))
    }),
    key(
        "upstream",
        "URL",
        "",
        "Forward to unix:PATH or http://HOST:PORT that something else runs",
        |settings, text| {
            settings.app.instead.upstreams.push(upstream(text)?);
            settings.app.program.command = Command::None;
            Ok(())
        },
    )
    .many()
    .example("unix:/run/app.sock"),
    key("static", "DIR", "", STATIC_HELP, |settings, text| {
        let root = super::route::root(text)?;
        settings.app.program.command = Command::None;
        settings.app.instead.files = Some(super::route::Files { root, ..Default::default() });
        Ok(())
    })
    .example("./public"),
    key("respond", "TEXT", "", "Answer every request with TEXT from the loop itself", |settings, text| {
        settings.app.instead.respond = Some(text.to_owned());
        settings.app.program.command = Command::None;
        Ok(())
    })
    .example("hello"),
    key(
        "run-dir",
        "PATH",
        "",
        "Where sockets and the lock lie [default: $RUNTIME_DIRECTORY, \
        $XDG_RUNTIME_DIR/production_server-PORT or /tmp/production_server-UID-PORT]",
        |settings, text| store(&mut settings.process.run_dir, path(text)),
    )
    .example("/run/production_server"),
];

const LIVES: &[Key] = &[
    key("max-requests", "N|auto", "auto", MAX_REQUESTS_HELP, |settings, text| {
        let recycle = &mut settings.app.life.recycle;
        if let Some(requests) = count_or_auto(text, 0..=1_000_000_000_000)? {
            (recycle.requests, recycle.requests_not_before) = (requests, Duration::ZERO);
        }
        Ok(())
    })
    .example("10000"),
    key("recycle-jitter", "PERCENT", "10%", "By how much that number varies between workers", |settings, text| {
        store(&mut settings.app.life.recycle.jitter_percent, percent(text, 0..=100))
    }),
    key("max-lifetime", "DURATION", "", "Replace a worker after that time", |settings, text| {
        let range = Duration::from_secs(1)..=DAY * 365;
        store(&mut settings.app.life.recycle.lifetime, duration(text, range).map(Some))
    })
    .example("1h"),
    key("max-memory", "SIZE", "", "Replace a worker whose processes hold more memory (PSS)", |settings, text| {
        store(&mut settings.app.life.recycle.memory, size(text, 1 << 20..=1 << 44).map(Some))
    })
    .example("400MiB"),
    key("max-reloads", "N", "10", "Replace a worker after N hot reloads; 0: never", |settings, text| {
        store(&mut settings.app.life.recycle.reloads, count(text, 0..=1_000_000))
    })
    .variables(&["RIP_MAX_RELOADS"]),
    key("hot-reload", "WAY", "none", HOT_RELOAD_HELP, |settings, text| {
        let ways = [("none", HotReload::None), ("process", HotReload::Process), ("module", HotReload::Module)];
        store(&mut settings.app.reload.by, choice(text, &ways))
    })
    .variables(&["RIP_HOT_RELOAD"]),
    key(
        "watch",
        "PATH",
        "",
        "A file or directory that hot reload watches, else those of the command",
        |settings, text| {
            settings.app.reload.watch.push(path(text)?);
            Ok(())
        },
    )
    .many()
    .example("src"),
    key("reload-signal", "SIGNAL", "HUP", "What tells a worker to load its code again", |settings, text| {
        store(&mut settings.app.reload.signal, signal(text))
    }),
    key(
        "module",
        "PATH",
        "",
        "The built-in worker answers with the handler in this shared object",
        |settings, text| store(&mut settings.app.program.module, path(text).map(Some)),
    )
    .example("./handler.so"),
    key("drain", "DURATION", "30s", "How long a leaving worker may finish its requests", |settings, text| {
        store(&mut settings.app.life.restart.drain, duration(text, FROM_ZERO))
    }),
    key("start-parallel", "N|auto", "auto", START_PARALLEL_HELP, |settings, text| {
        settings.app.life.restart.start_parallel =
            count_or_auto(text, 1..=1024)?.map_or(cores(), |count| count as usize);
        Ok(())
    })
    .example("2"),
    key("restart-parallel", "N", "1", "Workers that a rolling restart replaces at a time", |settings, text| {
        store(&mut settings.app.life.restart.parallel, count(text, 1..=1024).map(|number| number as usize))
    }),
    key("max-unavailable", "N", "0", "Workers that may be missing while they are replaced", |settings, text| {
        store(&mut settings.app.life.restart.max_unavailable, count(text, 0..=1024).map(|number| number as usize))
    }),
    key(
        "restart-base",
        "DURATION",
        "1s",
        "The second delay before a crashed worker is started again, and how long one must live to reset it",
        |settings, text| store(&mut settings.app.life.restart.base, duration(text, POSITIVE)),
    ),
    key("restart-max", "DURATION", "30s", "The longest such delay", |settings, text| {
        store(&mut settings.app.life.restart.max, duration(text, POSITIVE))
    }),
    key(
        "max-restarts",
        "N",
        "10",
        "Crashes within an hour before a first answer until a worker is given up",
        |settings, text| {
            store(&mut settings.app.life.restart.max_restarts, count(text, 1..=1_000_000).map(|number| number as u32))
        },
    ),
    key("give-up", "N/DURATION", "5/60s", "The same, but within that time", |settings, text| {
        let (crashes, within) = rate(text, 1..=10_000, POSITIVE)?;
        (settings.app.life.restart.crashes, settings.app.life.restart.within) = (crashes as u32, within);
        Ok(())
    }),
    key("give-up-exit", "", "", GIVE_UP_EXIT_HELP, |settings, text| {
        store(&mut settings.app.life.restart.give_up_exit, switch(text))
    })
    .example("on"),
    key("dump-signal", "SIGNAL", "", "Sent to a worker that is stuck, before it is killed", |settings, text| {
        store(&mut settings.app.life.dump_signal, signal(text).map(Some))
    })
    .example("QUIT"),
];

const STATIC_HELP: &str = "Serve the files in DIR, and run no app";

const WORKERS_HELP: &str = "Worker processes; MIN..MAX: as the load asks; auto: one per core, at least 2; \
    join: none but those that join";

const MAX_REQUESTS_HELP: &str =
    "Replace a worker after N answers; 0: never; auto: after 10000, but none younger than ten minutes";

const GIVE_UP_EXIT_HELP: &str = "End with 69 when all are given up; else one is tried again, first after --restart-max, then ever \
    later, up to 5 minutes";

const READY_TIMEOUT_HELP: &str = "How long a worker may take to get ready; up to four times as long while it burns CPU";

const START_PARALLEL_HELP: &str = "Workers that may be on their way to readiness at once; auto: one per core";

const SOCKET_HELP: &str = "What a worker listens on: unix ($SOCKET_PATH), tcp ($PORT), inherit (descriptor 3), or auto: whichever \
    of the first two it opens";

const DIRECTORY_HELP: &str = "Where workers start; a link on the way is followed anew at each start [default: where the server was \
    started, by the path in $PWD]";

const REQUIRED_HELP: &str = "Whether /server answers 503 when this app has failed";

const WATCHDOG_HELP: &str = "Replace a worker that has said WATCHDOG=1 and then nothing for that time (sd_notify)";

const HOT_RELOAD_HELP: &str = "What changed files do: none, process (rolling restart) or module (reload signal)";

const FAIR_HELP: &str = "Those who wait take turns, so that a client which floods waits behind itself: told apart by client_ip, \
    field:NAME or user; off: first come, first served";

const WAITING: &[Key] = &[
    key("max-queue", "N", "8192", "Requests that may wait for a worker; beyond: 503", |settings, text| {
        store(&mut settings.app.queue.size, count(text, 0..=1_000_000).map(|number| number as usize))
    })
    .variables(&["RIP_MAX_QUEUE"]),
    key("queue-timeout-ms", "MS", "2000", "How long one may wait in the queue; then 504", |settings, text| {
        store(&mut settings.app.queue.timeout, milliseconds(text, HOUR))
    })
    .variables(&["RIP_QUEUE_TIMEOUT_MS"]),
    key("fair-queue", "KEY|off", "off", FAIR_HELP, |settings, text| {
        let fair = super::limits::whom(text);
        if fair.is_none() && !text.eq_ignore_ascii_case("off") {
            return Err("expected client_ip, field:NAME, user or off".to_owned());
        }
        settings.app.queue.fair = fair;
        Ok(())
    })
    .example("client_ip"),
    key("hold", "DURATION", "10s", "How long one is held while no worker is ready; then 503", |settings, text| {
        store(&mut settings.app.queue.hold, duration(text, FROM_ZERO))
    }),
    key("connect-timeout-ms", "MS", "200", "To get connected to a worker", |settings, text| {
        store(&mut settings.app.timeouts.connect, milliseconds(text, HOUR))
    })
    .variables(&["RIP_CONNECT_TIMEOUT_MS"]),
    key("read-timeout-ms", "MS", "5000", READ_HELP, |settings, text| {
        store(&mut settings.app.timeouts.read, milliseconds(text, HOUR))
    })
    .variables(&["RIP_READ_TIMEOUT_MS"]),
    key("request-timeout", "DURATION", "30s", REQUEST_HELP, |settings, text| {
        store(&mut settings.app.timeouts.request, duration(text, POSITIVE))
    }),
    key("answer-timeout", "DURATION", "", ANSWER_HELP, |settings, text| {
        store(&mut settings.app.timeouts.answer, duration(text, POSITIVE).map(Some))
    })
    .example("10m"),
    key("max-tunnels", "N", "", TUNNELS_HELP, |settings, text| {
        store(&mut settings.app.sharing.max_tunnels, count(text, 0..=1_000_000).map(|number| number as u32))
    })
    .example("1000"),
];

const READ_HELP: &str = "Without a byte from the worker while it is waited for: 504, and behind the head of an answer the \
    answer is cut";

const REQUEST_HELP: &str = "From when a worker was given a request to the head of its answer; then 504, and a worker that was \
    silent, and on which nothing else moves, is replaced";

const ANSWER_HELP: &str =
    "From when a worker was given a request to the end of its answer [default: as long as it takes]";

const TUNNELS_HELP: &str =
    "WebSockets through each worker at once; beyond: 503 [default: as many as there are connections]";

const LOOPS: &[Key] = &[
    key("listen", "ADDRESS", "0.0.0.0:8080", LISTEN_HELP, |settings, text| {
        settings.listening.at.push(listen(text)?);
        Ok(())
    })
    .many()
    .variables(&["PORT"]),
    key("listen-mode", "MODE", "0666", "Permissions of Unix sockets that are listened on", |settings, text| {
        store(&mut settings.listening.unix.mode, mode(text))
    })
    .example("0660"),
    key("listen-owner", "USER|UID", "", "Who owns them", |settings, text| {
        store(&mut settings.listening.unix.owner, account(text).map(Some))
    })
    .example("www-data"),
    key("listen-group", "GROUP|GID", "", "Which group they belong to", |settings, text| {
        store(&mut settings.listening.unix.group, account(text).map(Some))
    })
    .example("www-data"),
    key("trusted-proxies", "WHOM", "", TRUSTED_HELP, |settings, text| settings.listening.front.trusted.add(text))
        .many()
        .example("10.0.0.0/8"),
    key("forwarded", "keep|write", "keep", FORWARDED_HELP, |settings, text| {
        store(&mut settings.listening.front.writes_forwarded, choice(text, &[("keep", false), ("write", true)]))
    })
    .example("write"),
    key("proxy-protocol", "WHOM", "", PROXY_HELP, |settings, text| settings.listening.front.proxies.add(text))
        .many()
        .example("10.0.0.0/8"),
    key("proxy-protocol-timeout", "DURATION", "5s", "How long such a header may take to come", |settings, text| {
        store(&mut settings.listening.front.header_timeout, duration(text, POSITIVE))
    })
    .example("2s"),
    key(
        "loops",
        "N|auto",
        "auto",
        "Event loops; auto: one per core that affinity and cgroup allow",
        |settings, text| {
            settings.loops.count = count_or_auto(text, 1..=1024)?.map_or(cores(), |loops| loops as usize);
            Ok(())
        },
    )
    .example("2"),
    key("backend", "BACKEND", "auto", BACKEND_HELP, |settings, text| {
        store(&mut settings.loops.backend, choice(text, BACKENDS))
    }),
    key("pin", "on|off|auto", "auto", "Pin loops to cores; auto: where no workers share them", |settings, text| {
        store(&mut settings.loops.pin, choice(text, &[("on", Pin::On), ("off", Pin::Off), ("auto", Pin::Auto)]))
    }),
    key("max-connections", "N", "10000", "Client connections open at once", |settings, text| {
        store(&mut settings.bounds.connections, count(text, 1..=1_000_000).map(|number| number as usize))
    }),
    key("helpers", "N", "2", HELPERS_HELP, |settings, text| {
        store(&mut settings.loops.helpers, count(text, 1..=64).map(|number| number as usize))
    }),
    key("error-page", "STATUS=FILE", "", ERROR_PAGE_HELP, |settings, text| {
        settings.error_pages.push(super::error_page::error_page(text)?);
        Ok(())
    })
    .many()
    .example("503=/srv/errors/busy.html"),
    key(
        "internal",
        "on|off|PREFIX",
        "on",
        "Answer /server, /status, /metrics, /livez, /readyz and /health_check, at PREFIX/server and so on, or leave them to the app",
        |settings, text| store(&mut settings.telling.internal, internal(text)),
    ),
    key("shutdown", "DURATION", "5s", "How long a graceful stop may take", |settings, text| {
        store(&mut settings.leaving.shutdown, duration(text, FROM_ZERO))
    }),
];

const TRUSTED_HELP: &str = "Proxies whose X-Forwarded-*, X-Real-IP, Forwarded, X-Request-Id and the like are believed: networks, \
    addresses, loopback, unix";

const FORWARDED_HELP: &str =
    "What workers are told as Forwarded (RFC 7239): keep: what a trusted proxy says; write: always one of our own";

const PROXY_HELP: &str = "Who may connect, and has to begin with a PROXY protocol header, of version 1 or 2 [default: all may, \
    without one]";

const HELPERS_HELP: &str = "Threads for what would block a loop, as opening files does; they run where something that is configured needs them";

const ERROR_PAGE_HELP: &str = "A file that is shown in the place of the server's own errors of that status, 503 while no worker is ready \
    among them: .html, .json or .txt, at most 64 KiB";

const LISTEN_HELP: &str =
    "IP:PORT, a port, unix:PATH, systemd:NAME (sockets that systemd has opened) or systemd: (all of them)";

const PROCESS: &[Key] = &[
    key("pid-file", "PATH", "", PID_FILE_HELP, |settings, text| {
        store(&mut settings.process.pid_file, path(text).map(Some))
    })
    .example("/run/production_server.pid"),
    key("user", "USER|UID", "", USER_HELP, |settings, text| store(&mut settings.process.user, account(text).map(Some)))
        .example("www-data"),
    key("group", "GROUP|GID", "", "Its group [default: that user's]", |settings, text| {
        store(&mut settings.process.group, account(text).map(Some))
    })
    .example("www-data"),
    key("upgrade-timeout", "DURATION", "60s", UPGRADE_HELP, |settings, text| {
        store(&mut settings.leaving.upgrade_timeout, duration(text, POSITIVE))
    }),
];

const PID_FILE_HELP: &str = "The file with the number of the process that serves; it follows an upgrade";

const USER_HELP: &str = "Whom server and workers run as, once the listeners are bound [default: whoever starts it]";

const UPGRADE_HELP: &str = "How long a new binary may take until all its workers are ready; then the old one stays";

const LIMITS: &[Key] = &[
    key("header-timeout", "DURATION", "10s", "From a request's first byte to the end of its head", |settings, text| {
        store(&mut settings.timeouts.header, duration(text, POSITIVE))
    }),
    key("body-timeout", "DURATION", "30s", BODY_HELP, |settings, text| {
        store(&mut settings.timeouts.body, duration(text, POSITIVE))
    }),
    key("idle-timeout", "DURATION", "60s", IDLE_HELP, |settings, text| {
        store(&mut settings.timeouts.idle, duration(text, POSITIVE))
    }),
    key(
        "write-timeout",
        "DURATION",
        "30s",
        "A client is cut that for so long has acknowledged less of an answer than 512 bytes a second, or than 16 KiB where that is less",
        |settings, text| store(&mut settings.timeouts.write, duration(text, POSITIVE)),
    ),
    key("half-close", "cancel|serve", "cancel", HALF_CLOSE_HELP, |settings, text| {
        store(&mut settings.app.answering.serve_half_closed, choice(text, &[("cancel", false), ("serve", true)]))
    }),
    key("request-buffering", "disk|memory|off", "disk", BUFFERING_HELP, |settings, text| {
        let choices = [("disk", Buffering::Disk), ("memory", Buffering::Memory), ("off", Buffering::Off)];
        store(&mut settings.app.buffers.larger, choice(text, &choices))
    }),
    key("max-body", "SIZE", "64MiB", "The largest request body; beyond: 413", |settings, text| {
        store(&mut settings.bounds.body, size(text, 0..=1 << 40))
    }),
    key(
        "max-head",
        "SIZE",
        "32KiB",
        "The largest head of a request; beyond: 431; or of an answer: 502",
        |settings, text| store(&mut settings.bounds.head, size(text, 1 << 10..=1 << 20).map(|bytes| bytes as usize)),
    ),
    key("max-fields", "N", "200", "The most field lines of such a head", |settings, text| {
        store(&mut settings.bounds.fields, count(text, 10..=10_000).map(|number| number as usize))
    }),
    key(
        "buffer-bytes",
        "SIZE",
        "256MiB",
        "Memory held for slow clients and waiting requests together",
        |settings, text| {
            let bytes = size(text, 1 << 20..=1 << 40)?;
            store(
                &mut settings.stores.buffer_bytes,
                usize::try_from(bytes).map_err(|_| "expected less memory".to_owned()),
            )
        },
    ),
    key("spool-bytes", "SIZE", "1GiB", SPOOL_HELP, |settings, text| {
        store(&mut settings.stores.spool_bytes, size(text, 0..=1 << 50))
    }),
    key("spool-dir", "PATH", "", SPOOL_DIR_HELP, |settings, text| {
        store(&mut settings.stores.spool_dir, path(text).map(Some))
    })
    .example("/var/spool/production_server"),
];

const BUFFERING_HELP: &str = "Where a request's body is gathered before a worker is asked for: up to 1 MiB in memory and beyond that on disk; \
    in memory alone, so that larger ones stream; or nowhere";

const SPOOL_HELP: &str =
    "Disk for what goes beyond that memory, answers and request bodies, so that slow clients hold no worker; 0: none";

const SPOOL_DIR_HELP: &str = "Where those bytes wait, in files without a name [default: the run directory, or /var/tmp where that is in \
    memory]";

const BODY_HELP: &str =
    "Since the last byte of a request body; one below a mean rate of 1 KiB/s ends as well; then 408";

const IDLE_HELP: &str = "Between two requests, and for quiet event streams and tunnels";

const HALF_CLOSE_HELP: &str = "What a client gets that ends its side while its request runs, as one does that has left: \
    nothing, or its answer; one whose last request said Connection: close is always served";

#[cfg(all(backend_readiness, target_os = "linux", backend_io_uring))]
const BACKENDS: &[(&str, BackendChoice)] =
    &[("auto", BackendChoice::Auto), ("epoll", BackendChoice::Epoll), ("io_uring", BackendChoice::IoUring)];
#[cfg(all(backend_readiness, target_os = "linux", not(backend_io_uring)))]
const BACKENDS: &[(&str, BackendChoice)] = &[("auto", BackendChoice::Auto), ("epoll", BackendChoice::Epoll)];
#[cfg(all(backend_readiness, not(target_os = "linux")))]
const BACKENDS: &[(&str, BackendChoice)] = &[("auto", BackendChoice::Auto), ("kqueue", BackendChoice::Kqueue)];
#[cfg(not(backend_readiness))]
const BACKENDS: &[(&str, BackendChoice)] = &[("auto", BackendChoice::Auto), ("io_uring", BackendChoice::IoUring)];

const BACKEND_HELP: &str = "auto, epoll, kqueue or io_uring, as far as this build and system have them";

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') { Err("expected a path".to_owned()) } else { Ok(PathBuf::from(text)) }
}
