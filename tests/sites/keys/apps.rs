//! The keys of an app that hold from the next request or decision on: each is changed in an app of its name, all by one reload.

use std::sync::atomic::AtomicUsize;

use super::*;

/// One key.
struct Case {
    /// Below `apps.NAME.`; the app's name is this with dashes for dots and bars.
    key: &'static str,
    /// What the app is, and what is said of it from the beginning.
    base: &'static [Change<'static>],
    /// What the key becomes.
    to: &'static str,
    /// Demands its effect.
    shows: fn(&Rig, &str),
}

const fn case(key: &'static str, base: &'static [Change<'static>], to: &'static str, shows: fn(&Rig, &str)) -> Case {
    Case { key, base, to, shows }
}

/// Its effect takes longer than a test may, or more than can be arranged here: that it is taken over without anything being
/// replaced is all that is demanded.
fn told(_: &Rig, _: &str) {}

const ONE: Change<'static> = ("upstream", "FIRST");
const TWO: Change<'static> = ("upstream", "BOTH");
/// The worker of this folder.
const RUN: Change<'static> = ("command", "[WORKER, 'NAME', 'FOLDER']");
const COMPRESSED: Change<'static> = ("compress.codings", "'on'");
const GZIP: &str = "Content-Encoding: gzip";
const AT_ONCE: Change<'static> = ("restart.base", "'1ms'");
const PATIENT: Change<'static> = ("timeouts.read", LONG);
/// An app that may crash as often as it likes.
const CRASHING: &[Change<'static>] = &[
    RUN,
    AT_ONCE,
    ("workers", "1"),
    ("restart.max", SHORT),
    ("restart.give_up", "'1000/60s'"),
    ("restart.max_restarts", "1000"),
];

const CASES: &[Case] = &[
    case("workers", &[RUN, ("workers", "1")], "2", |rig, app| {
        until("there are two", || rig.pids(app).len() == 2 && rig.site.app(app)["workers_ready"] == 2);
    }),
    case("required", &[RUN, ("workers", "1")], "false", |rig, app| assert_eq!(rig.site.app(app)["needed"], false)),
    case("balance", &[TWO], "'round-robin'", |rig, app| {
        (0..4).for_each(|_| assert_eq!(rig.get(app, "/balanced").0, 200));
        for upstream in &rig.upstreams {
            let bytes = upstream.everything();
            assert_eq!(bytes.windows(9).filter(|bytes| bytes == b"/balanced").count(), 2);
        }
    }),
    case("keepalive", &[ONE], "false", |rig, app| {
        let index = || rig.get(app, "/").1.lines().next().unwrap().to_owned();
        // The first one may have been there before.
        index();
        assert_ne!(index(), index());
    }),
    case("max_tunnels", &[ONE], "0", |rig, app| {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        assert_eq!(rig.ask(app, "GET /", upgrade).status, 503);
    }),
    case("half_close", &[ONE], "'serve'", |rig, app| {
        let mut client = rig.begin(app, "/");
        client.finish();
        assert_eq!(client.answer().status, 200);
    }),
    case("request_buffering", &[ONE], "'off'", |rig, app| {
        let mut client = rig.client();
        client.send(format!("POST /begun HTTP/1.1\r\nHost: {app}\r\nContent-Length: 10\r\n\r\n12345"));
        until("its body streams", || rig.upstreams[0].of("/begun").is_some());
        client.send("67890");
        assert_eq!(client.answer().status, 200);
    }),
    case("upstream", &[ONE], "SECOND", |rig, app| {
        assert_eq!(rig.get(app, "/second").0, 200);
        assert!(rig.upstreams[1].of("/second").is_some());
    }),
    case("respond", &[("respond", "'old'")], "'new'", |rig, app| {
        assert_eq!(rig.get(app, "/"), (200, "new".to_owned()))
    }),
    case("compress.codings", &[ONE], "'gzip'", |rig, app| assert!(rig.coded(app, "/page", "").contains(GZIP))),
    case("compress.min", &[ONE, COMPRESSED], "601", |rig, app| assert!(!rig.coded(app, "/page", "").contains(GZIP))),
    case("compress.types", &[ONE, COMPRESSED], "'image/png'", |rig, app| {
        assert!(!rig.coded(app, "/page", "").contains(GZIP));
    }),
    case("compress.levels", &[ONE, COMPRESSED], "{ gzip = '1' }", |rig, app| {
        assert!(rig.coded(app, "/page", "").contains(GZIP));
    }),
    case("compress.jitter", &[ONE, COMPRESSED], "0", |rig, app| {
        let head = rig.coded(app, "/page", "");
        assert!(head.contains(GZIP) && !head.contains("X-Padding"), "{head}");
    }),
    case("compress.events", &[ONE, COMPRESSED], "true", |rig, app| {
        assert!(rig.coded(app, "/stream", "").contains(GZIP));
    }),
    case("compress.personal", &[ONE, COMPRESSED], "false", |rig, app| {
        assert!(rig.coded(app, "/page", "").contains(GZIP));
        assert!(!rig.coded(app, "/page", "Cookie: a=b\r\n").contains(GZIP));
    }),
    case("static", &[("static", "'/'")], "'FOLDER'", |rig, app| assert_eq!(rig.get(app, "/worker.py").0, 200)),
    case("dump_signal", &[RUN, PATIENT, AT_ONCE, ("timeouts.request", "'300ms'")], "'USR2'", |rig, app| {
        let _hanging = rig.begin(app, "/hang");
        until("it was dumped", || rig.file("dump_signal.USR2").exists());
    }),
    case("ready.timeout", &[RUN, AT_ONCE, ("workers", "1"), ("ready.timeout", LONG)], SHORT, |rig, app| {
        let starts = || rig.site.app(app)["lives"]["starts"].as_u64().unwrap();
        rig.tell("ready-timeout.slow", true);
        rig.site.word(&["scale", app, "2"]);
        until("those that do not get ready are replaced", || starts() > 2);
        scale_back(rig, app);
        rig.tell("ready-timeout.slow", false);
    }),
    case(
        "timeouts.connect",
        &[("upstream", "'unix:FOLDER/full'"), ("timeouts.connect", LONG), ("timeouts.request", LONG)],
        SHORT,
        |rig, app| {
            rig.full.lock().unwrap().fill();
            assert_eq!(rig.get(app, "/").0, 503);
        },
    ),
    case("timeouts.read", &[ONE, PATIENT, ("timeouts.request", LONG)], SHORT, |rig, app| {
        assert_eq!(rig.get(app, "/hang").0, 504);
    }),
    case("timeouts.request", &[ONE, PATIENT, ("timeouts.request", LONG)], "'300ms'", |rig, app| {
        assert_eq!(rig.get(app, "/hang").0, 504);
    }),
    case("timeouts.answer", &[ONE], SHORT, |rig, app| {
        let (answer, _) = rig.begin(app, "/slow").rest();
        assert!(answer.starts_with(b"HTTP/1.1 200") && !answer.ends_with(b"0\r\n\r\n"));
    }),
    case("queue.size", &[ONE, PATIENT, ("queue.timeout", LONG)], "0", |rig, app| {
        let _busy = hanging(rig, app);
        assert_eq!(rig.get(app, "/").0, 503);
    }),
    case("queue.timeout", &[ONE, PATIENT, ("queue.timeout", LONG)], SHORT, |rig, app| {
        let _busy = hanging(rig, app);
        assert_eq!(rig.get(app, "/").0, 504);
    }),
    case("queue.fair", &[ONE, PATIENT, ("queue.timeout", LONG), ("queue.size", "2")], "'client_ip'", |rig, app| {
        let (_busy, _waits) = (hanging(rig, app), rig.begin(app, "/"));
        until("one waits", || rig.site.app(app)["queue"]["depth"] == 1);
        assert_eq!(rig.get(app, "/").0, 503, "the other place is for others");
    }),
    case("queue.hold", &[("upstream", "'unix:FOLDER/nobody'"), ("queue.hold", LONG)], "'0s'", |rig, app| {
        assert_eq!(rig.get(app, "/").0, 503);
    }),
    case("health.path", &[ONE, ("health.interval", SHORT)], "'/asked-path'", |rig, _| {
        until("it is asked", || rig.upstreams[0].of("/asked-path").is_some());
    }),
    case("health.interval", &[ONE, ("health.path", "'/asked-often'"), ("health.interval", LONG)], SHORT, |rig, _| {
        let asked = |bytes: &[u8]| bytes.windows(12).filter(|bytes| bytes == b"/asked-often").count();
        until("it is asked again and again", || asked(&rig.upstreams[0].everything()) > 3);
    }),
    case(
        "health.timeout",
        &[ONE, ("health.path", "'/hang'"), ("health.interval", SHORT), ("health.timeout", LONG)],
        SHORT,
        failing,
    ),
    case(
        "health.unhealthy",
        &[ONE, ("health.path", "'/503'"), ("health.interval", SHORT), ("health.unhealthy", "1000")],
        "1",
        unwell,
    ),
    case("health.healthy", FLIPPING, "1", well_again),
    case("health.status", &[ONE, ("health.path", "'/'"), ("health.interval", SHORT)], "'204'", failing),
    case("eject.after", &[TWO, ("eject.after", "0"), ("eject.time", LONG), ("eject.max", LONG)], "1", ejected),
    case(
        "eject.time",
        &[TWO, ("eject.after", "1"), ("eject.time", LONG), ("eject.max", LONG)],
        SHORT,
        ejected_for_short,
    ),
    case(
        "eject.max",
        &[TWO, ("eject.after", "1"), ("eject.time", SHORT), ("eject.max", LONG)],
        SHORT,
        ejected_twice_for_short,
    ),
    case("recycle.requests", &[RUN, ("workers", "1"), ("recycle.requests", "0")], "1", |rig, app| {
        let before = rig.pids(app);
        until("it is replaced", || rig.get(app, "/").0 == 200 && rig.pids(app).is_disjoint(&before));
    }),
    case(
        "recycle.jitter",
        &[RUN, AT_ONCE, ("workers", "1"), ("recycle.requests", "30"), ("recycle.jitter", "'100%'")],
        "'0%'",
        |rig, app| {
            // The number is made for a worker as it starts.
            let first = rig.pids(app);
            rig.kill(app);
            let is_next = || rig.pids(app).is_disjoint(&first) && rig.site.app(app)["workers_ready"] == 1;
            until("another has come", is_next);
            let next = rig.pids(app);
            (0..29).for_each(|_| assert_eq!(rig.get(app, "/").0, 200));
            assert_eq!(rig.pids(app), next, "it varies no more");
            assert_eq!(rig.get(app, "/").0, 200);
            until("it is replaced", || rig.pids(app).is_disjoint(&next));
        },
    ),
    case("recycle.lifetime", &[RUN, ("workers", "1")], "'1s'", |rig, app| {
        let before = rig.pids(app);
        until("it is replaced", || rig.pids(app).is_disjoint(&before));
    }),
    // It is measured three times, every five seconds.
    case("recycle.memory", &[RUN, ("workers", "1")], "'1000GiB'", told),
    case(
        "recycle.reloads",
        &[
            RUN,
            ("workers", "1"),
            ("recycle.reloads", "0"),
            ("hot_reload.by", "'module'"),
            ("hot_reload.watch", "'FOLDER/none'"),
        ],
        "1",
        |rig, app| {
            let before = rig.pids(app);
            rig.site.word(&["reload", app]);
            until("it is replaced", || rig.pids(app).is_disjoint(&before));
        },
    ),
    case(
        "restart.drain",
        &[RUN, PATIENT, ("workers", "1"), ("concurrency", "2"), ("timeouts.request", LONG), ("restart.drain", LONG)],
        SHORT,
        |rig, app| {
            let mut busy = hanging(rig, app);
            rig.site.word(&["restart", app]);
            until("its drain is over", || rig.get(app, "/").0 == 200 && busy.has_input());
            assert_eq!(busy.answer().status, 502);
        },
    ),
    case(
        "restart.start_parallel",
        &[RUN, ("workers", "1"), ("ready.timeout", LONG), ("restart.start_parallel", "1")],
        "3",
        |rig, app| {
            rig.tell("restart-start_parallel.slow", true);
            rig.site.word(&["scale", app, "5"]);
            until("three start at once", || in_state(rig, app, "starting") == 3);
            scale_back(rig, app);
            rig.tell("restart-start_parallel.slow", false);
        },
    ),
    case("restart.parallel", &[RUN, ("workers", "2"), ("restart.parallel", "1")], "2", |rig, app| {
        rig.site.word(&["restart", app]);
        // Nobody asks: the first are on trial for long.
        let new = || {
            let app = rig.site.app(app);
            app["workers"].as_array().unwrap().iter().filter(|worker| worker["generation"] == 2).count()
        };
        until("two are replaced at once", || new() == 2);
        until("it is over", || rig.get(app, "/").0 == 200 && rig.site.app(app)["roll"]["state"] == "done");
    }),
    // It takes a machine whose memory is full.
    case("restart.max_unavailable", &[RUN, ("workers", "1")], "1", told),
    case("restart.base", &[RUN, ("workers", "1"), ("restart.base", LONG), ("restart.max", LONG)], SHORT, |rig, app| {
        // The first one comes back at once whatever it is.
        for _ in 0..2 {
            let before = rig.pids(app);
            rig.kill(app);
            until("another comes", || !rig.pids(app).is_empty() && rig.pids(app).is_disjoint(&before));
            until("it is ready", || rig.site.app(app)["workers_ready"] == 1);
        }
    }),
    case(
        "restart.max",
        &[RUN, AT_ONCE, ("workers", "1"), ("restart.give_up", "'1/60s'"), ("restart.max", LONG)],
        SHORT,
        |rig, app| {
            given_up(rig, app, "restart-max.crash");
            until("it is tried again", || rig.site.app(app)["workers_ready"] == 1);
        },
    ),
    case("restart.max_restarts", CRASHING, "2", |rig, app| {
        given_up(rig, app, "restart-max_restarts.crash");
    }),
    case("restart.give_up", CRASHING, "'2/60s'", |rig, app| {
        given_up(rig, app, "restart-give_up.crash");
    }),
    case("hot_reload.by", &[RUN, ("workers", "1"), ("hot_reload.watch", "'FOLDER/by'")], "'process'", |rig, app| {
        rolled_by(rig, app, "by");
    }),
    case(
        "hot_reload.watch",
        &[RUN, ("workers", "1"), ("hot_reload.by", "'process'"), ("hot_reload.watch", "'FOLDER/none'")],
        "'FOLDER/watch'",
        |rig, app| {
            rolled_by(rig, app, "watch");
        },
    ),
    case(
        "hot_reload.signal",
        &[
            RUN,
            ("workers", "1"),
            ("hot_reload.by", "'module'"),
            ("hot_reload.watch", "'FOLDER/none'"),
            ("recycle.reloads", "0"),
        ],
        "'USR2'",
        |rig, app| {
            rig.site.word(&["reload", app]);
            until("it is told by that signal", || rig.file("hot_reload-signal.USR2").exists());
        },
    ),
];

const FLIPPING: &[Change<'static>] = &[
    ONE,
    ("health.path", "'/flip'"),
    ("health.interval", SHORT),
    ("health.unhealthy", "1"),
    ("health.healthy", "1000"),
];

/// What an app is called whose key that is.
fn name(key: &str) -> String {
    key.replace('.', "-")
}

/// All apps, each with a route by its name, and one more in front of what no reload may close.
pub fn begin(text: &mut Text) {
    text.set(("apps.kept.upstream", "FIRST"));
    text.set(("apps.kept.concurrency", "10"));
    // What is held is held until the test lets it go.
    text.set(("apps.kept.timeouts.read", LONG));
    text.set(("apps.kept.timeouts.request", LONG));
    route_to(text, "kept");
    for case in CASES {
        let app = name(case.key);
        for (key, value) in case.base {
            text.set((&format!("apps.{app}.{key}"), &value.replace("NAME", &app)));
        }
        // Most of them fail because they are to.
        if case.key != "required" {
            text.set((&format!("apps.{app}.required"), "false"));
        }
        route_to(text, &app);
    }
}

/// Requests for the host of that name go to the app of that name.
pub fn route_to(text: &mut Text, app: &str) {
    // Behind those of the test's own.
    let index = 100 + text.lists.keys().filter(|(list, _)| list == "routes").count();
    text.set((&format!("routes[{index}].match.host"), &format!("'{app}'")));
    text.set((&format!("routes[{index}].app"), &format!("'{app}'")));
}

/// All by one reload, and then the effect of each.
pub fn live(whole: &mut Rig) {
    let keys: Vec<String> = CASES.iter().map(|case| format!("apps.{}.{}", name(case.key), case.key)).collect();
    let changes: Vec<Change<'_>> = keys.iter().zip(CASES).map(|(key, case)| (key.as_str(), case.to)).collect();
    for key in &keys {
        assert_eq!(whole.class(key), "live", "{key}");
    }
    whole.change(&changes);
    // Beside each other, for most of them wait for something.
    let (rig, next) = (&*whole, AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    (case.shows)(rig, &name(case.key));
                }
            });
        }
    });
    // Else every further reload would wait for them.
    whole.change(&[("apps.hot_reload-by.hot_reload.by", ""), ("apps.hot_reload-watch.hot_reload.by", "")]);
}

/// A request that is with an app and stays there.
fn hanging(rig: &Rig, app: &str) -> Client {
    let client = rig.begin(app, "/hang");
    until("it is busy", || rig.site.app(app)["workers_busy"] == 1);
    client
}

fn in_state(rig: &Rig, app: &str, state: &str) -> usize {
    let app = rig.site.app(app);
    app["workers"].as_array().unwrap().iter().filter(|worker| worker["state"] == state).count()
}

/// Those that were too many are gone: nobody is to take their end for that of a later change.
fn scale_back(rig: &Rig, app: &str) {
    rig.site.word(&["scale", app, "1"]);
    until("it has one again", || rig.pids(app).len() == 1);
}

/// The app whose upstreams are asked, by the name of the app or by its route.
fn health(rig: &Rig, app: &str) -> Value {
    rig.site.app(app)["workers"][0]["health"].clone()
}

pub fn failing(rig: &Rig, app: &str) {
    until("checks fail", || health(rig, app)["failures"].as_u64().is_some_and(|failures| failures > 0));
}

pub fn unwell(rig: &Rig, app: &str) {
    until("it is unhealthy", || health(rig, app)["healthy"] == false);
}

pub fn well_again(rig: &Rig, app: &str) {
    unwell(rig, app);
    rig.released.store(true, Ordering::Relaxed);
    until("it is healthy", || health(rig, app)["healthy"] == true);
    rig.released.store(false, Ordering::Relaxed);
}

fn ejections(rig: &Rig, app: &str) -> u64 {
    let app = rig.site.app(app);
    app["workers"].as_array().unwrap().iter().filter_map(|worker| worker["ejections"].as_u64()).sum()
}

pub fn ejected(rig: &Rig, app: &str) {
    assert_eq!(rig.get(app, "/503").0, 503);
    until("it is left out", || ejections(rig, app) == 1 && in_state(rig, app, "ejected") == 1);
}

pub fn ejected_for_short(rig: &Rig, app: &str) {
    assert_eq!(rig.get(app, "/503").0, 503);
    until("it was left out", || ejections(rig, app) == 1 && in_state(rig, app, "running") == 2);
}

pub fn ejected_twice_for_short(rig: &Rig, app: &str) {
    until("it was left out twice", || rig.get(app, "/503").0 == 503 && ejections(rig, app) > 3);
    assert_eq!(rig.told(&["upstream-ejected", app, "0.1 s"]), 0, "no longer than at first");
}

/// It crashes until it is given up, and could start again.
fn given_up(rig: &Rig, app: &str, crash: &str) {
    rig.tell(crash, true);
    rig.kill(app);
    until("it has failed", || rig.site.app(app)["state"] == "failed");
    rig.tell(crash, false);
}

/// A changed file has the workers replaced.
fn rolled_by(rig: &Rig, app: &str, folder: &str) {
    let before = rig.pids(app);
    std::fs::write(rig.file(folder).join("changed"), "").unwrap();
    until("it is replaced", || rig.get(app, "/").0 == 200 && rig.pids(app).is_disjoint(&before));
}
