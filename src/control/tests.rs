//! What is asked, read from bytes: every command, every mistake, and garbage.

use std::time::Duration;

use proptest::prelude::*;

use super::requests::{Asked, Fault, command};
use super::{Change, Command, Join, Version};

fn ask(method: &str, path: &str, body: &str) -> Result<Command, Fault> {
    command(&Asked { method: method.as_bytes(), path: path.as_bytes(), query: false, body: body.as_bytes() })
}

fn web() -> Option<String> {
    Some("web".to_owned())
}

fn join(pid: Option<u32>, version: Option<&str>) -> Command {
    Command::Join(Join {
        app: None,
        worker_id: "7".to_owned(),
        pid,
        socket: "/run/app.sock".into(),
        version: version.map(|text| Version::parse(text).unwrap()),
    })
}

#[test]
fn every_command_is_read() {
    let cases = [
        ("GET", "/status", "", Command::Status),
        ("GET", "/events", "", Command::Events),
        ("POST", "/restart", "", Command::Restart { app: None, wait: false }),
        ("POST", "/restart", r#" {"app":"web","wait":true} "#, Command::Restart { app: web(), wait: true }),
        ("POST", "/scale", r#"{"workers":0}"#, Command::Scale { app: None, change: Change::To(0) }),
        ("POST", "/scale", r#"{"workers":1024,"app":"web"}"#, Command::Scale { app: web(), change: Change::To(1024) }),
        ("POST", "/scale", r#"{"change":-1}"#, Command::Scale { app: None, change: Change::By(-1) }),
        ("POST", "/scale", r#"{"change":2,"app":null}"#, Command::Scale { app: None, change: Change::By(2) }),
        ("POST", "/signal", r#"{"signal":"HUP"}"#, Command::Signal { app: None, worker: None, signal: libc::SIGHUP }),
        (
            "POST",
            "/signal",
            r#"{"app":"web","worker":2,"signal":"sigusr1"}"#,
            Command::Signal { app: web(), worker: Some(2), signal: libc::SIGUSR1 },
        ),
        ("POST", "/signal", r#"{"signal":15}"#, Command::Signal { app: None, worker: None, signal: 15 }),
        ("POST", "/reload", "{}", Command::Reload { app: None, wait: false }),
        ("POST", "/drain", "", Command::Drain),
        ("POST", "/stop", "", Command::Stop { now: false }),
        ("POST", "/stop", r#"{"now":true}"#, Command::Stop { now: true }),
        ("POST", "/pause", "", Command::Pause { app: None, max: Duration::from_secs(30) }),
        (
            "POST",
            "/pause",
            r#"{"app":"web","max":"1500ms"}"#,
            Command::Pause { app: web(), max: Duration::from_millis(1500) },
        ),
        ("POST", "/resume", r#"{"app":"web"}"#, Command::Resume { app: web() }),
        (
            "POST",
            "/worker",
            r#"{"op":"join","workerId":"7","pid":4711,"socket":"/run/app.sock","version":"1.10"}"#,
            join(Some(4711), Some("1.10")),
        ),
        (
            "POST",
            "/worker",
            r#"{"op":"join","workerId":7,"socket":"/run/app.sock","version":3,"more":[]}"#,
            join(None, Some("3")),
        ),
        (
            "POST",
            "/worker",
            r#"{"op":"join","workerId":"7","pid":null,"socket":"/run/app.sock","version":null}"#,
            join(None, None),
        ),
        ("POST", "/worker", r#"{"op":"quit","workerId":"7"}"#, Command::Quit { app: None, worker_id: "7".to_owned() }),
    ];
    for (method, path, body, expected) in cases {
        assert_eq!(ask(method, path, body), Ok(expected), "{method} {path} {body}");
    }
}

/// (path, body, what the refusal must say)
#[test]
fn every_mistake_is_named_with_what_would_be_right() {
    let long = format!(r#"{{"app":"{}"}}"#, "x".repeat(129));
    let far = format!(r#"{{"op":"join","workerId":"7","socket":"/{}"}}"#, "x".repeat(107));
    #[rustfmt::skip]
    let cases: &[(&str, &str, &[&str])] = &[
        ("/restart", "restart", &["no JSON object", r#"{"app":"web"}"#]),
        ("/restart", r#"["web",true]"#, &["no JSON object"]),
        ("/restart", "null", &["no JSON object"]),
        ("/restart", "{", &["EOF while parsing", "line 1 column 1"]),
        ("/restart", r#"{"app":"web"} {}"#, &["trailing characters"]),
        ("/restart", r#"{"app":"web","wiat":true}"#, &["unknown field `wiat`", "expected `app` or `wait`"]),
        ("/restart", r#"{"app":"web","app":"api"}"#, &["duplicate field `app`"]),
        ("/restart", r#"{"app":7}"#, &["invalid type: integer `7`, expected a string"]),
        ("/restart", r#"{"wait":"yes"}"#, &["expected a boolean"]),
        ("/restart", r#"{"app":""}"#, &["\"app\" is \"\"", "1 to 128 printable characters"]),
        ("/restart", r#"{"app":"a\nb"}"#, &[r#"is "a\nb""#]),
        ("/restart", &long, &["1 to 128"]),
        ("/scale", "", &["either \"workers\"", "or \"change\""]),
        ("/scale", r#"{"workers":1,"change":1}"#, &["either \"workers\""]),
        ("/scale", r#"{"workers":-1}"#, &["\"workers\" is -1", "from 0 to 1024"]),
        ("/scale", r#"{"workers":1025}"#, &["is 1025", "from 0 to 1024"]),
        ("/scale", r#"{"workers":1e99}"#, &["is 1e+99", "from 0 to 1024"]),
        ("/scale", r#"{"workers":1e999}"#, &["number out of range"]),
        ("/scale", r#"{"workers":2.5}"#, &["is 2.5"]),
        ("/scale", r#"{"workers":"4"}"#, &["is \"4\""]),
        ("/scale", r#"{"change":0}"#, &["\"change\" is 0"]),
        ("/scale", r#"{"change":99999999999999999999}"#, &["from -1024 to 1024"]),
        ("/signal", "", &["expected \"signal\"", "HUP"]),
        ("/signal", r#"{"signal":"HUPP"}"#, &["\"signal\" is \"HUPP\"", "1 to 31"]),
        ("/signal", r#"{"signal":0}"#, &["\"signal\" is \"0\"", "1 to 31"]),
        ("/signal", r#"{"signal":"HUP","worker":0}"#, &["\"worker\" is 0", "from 1 to 4294967295"]),
        ("/drain", r#"{"app":"web"}"#, &["unknown field `app`"]),
        ("/stop", r#"{"now":1}"#, &["expected a boolean"]),
        ("/pause", r#"{"max":"30"}"#, &["\"max\" is \"30\"", "from 100ms to 1h", "\"30s\""]),
        ("/pause", r#"{"max":"2h"}"#, &["from 100ms to 1h"]),
        ("/worker", "", &["expected \"workerId\""]),
        ("/worker", r#"{"workerId":"7"}"#, &["expected \"op\" with \"join\" or \"quit\""]),
        ("/worker", r#"{"op":"leave","workerId":"7"}"#, &["expected \"op\""]),
        ("/worker", r#"{"op":"quit","workerId":-7}"#, &["expected \"workerId\""]),
        ("/worker", r#"{"op":"quit","workerId":""}"#, &["\"workerId\" is \"\""]),
        ("/worker", r#"{"op":"join","workerId":"7"}"#, &["expected \"socket\""]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"app.sock"}"#, &["\"app.sock\"", "an absolute path"]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a\u0000b"}"#, &["an absolute path"]),
        ("/worker", &far, &["an absolute path of at most"]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a","pid":0}"#, &["\"pid\" is 0", "from 1 to"]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a","version":1.10}"#, &["\"version\" is 1.1", "\"1.10.2\""]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a","version":"new"}"#, &["\"version\" is \"new\""]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a","version":"+1"}"#, &["\"version\" is \"+1\""]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a","version":"1."}"#, &["\"version\" is \"1.\""]),
        ("/worker", r#"{"op":"join","workerId":"7","socket":"/a","version":[1]}"#, &["\"version\" is [1]"]),
    ];
    for (path, body, parts) in cases {
        let fault = ask("POST", path, body).unwrap_err();
        assert_eq!((fault.status, fault.allow), (400, None), "{path} {body}");
        for part in *parts {
            assert!(fault.message.contains(part), "{path} {body}: {:?} lacks {part:?}", fault.message);
        }
    }
    let deep = format!("{{\"app\":{}", "[".repeat(50_000));
    assert_eq!(ask("POST", "/restart", &deep).unwrap_err().status, 400);
    let not_text = Asked { method: b"POST", path: b"/restart", query: false, body: b"{\"app\":\"\xff\"}" };
    assert!(command(&not_text).unwrap_err().message.contains("invalid unicode"));
}

#[test]
fn paths_and_methods_are_named_when_they_are_wrong() {
    let unknown = ask("GET", "/stat\u{1b}us", "").unwrap_err();
    assert_eq!(unknown.status, 404);
    assert!(unknown.message.starts_with("there is no /stat\\x1bus: expected one of /status, /events"), "{unknown:?}");
    let wrong = ask("GET", "/stop", "").unwrap_err();
    assert_eq!((wrong.status, wrong.allow), (405, Some("POST")));
    assert_eq!(wrong.message, "/stop is asked with POST, not with GET");
    assert_eq!(ask("HEAD", "/status", "").unwrap_err().allow, Some("GET"));
    let query = Asked { method: b"POST", path: b"/stop", query: true, body: b"" };
    assert!(command(&query).unwrap_err().message.contains("takes no query"));
}

proptest! {
    #[test]
    fn garbage_is_refused_or_within_its_ranges(
        path in prop::sample::select(vec!["/restart", "/scale", "/signal", "/reload", "/drain", "/stop", "/pause", "/resume", "/worker"]),
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            "\\{(\"(app|wait|workers|change|signal|worker|now|max|op|workerId|pid|socket|version)\":(-?[0-9]{1,20}|true|null|\"[a-z/0-9.]{0,9}\"|\\[\\]),?){0,4}\\}"
                .prop_map(String::into_bytes),
        ],
    ) {
        match command(&Asked { method: b"POST", path: path.as_bytes(), query: false, body: &body }) {
            Ok(Command::Scale { change: Change::To(workers), .. }) => prop_assert!(workers <= 1024),
            Ok(Command::Scale { change: Change::By(by), .. }) => prop_assert!(by != 0 && by.abs() <= 1024),
            Ok(Command::Signal { signal, worker, .. }) => prop_assert!((1..=31).contains(&signal) && worker != Some(0)),
            Ok(Command::Pause { max, .. }) => prop_assert!(max >= Duration::from_millis(100) && max <= Duration::from_secs(3600)),
            Ok(Command::Join(join)) => prop_assert!(join.socket.is_absolute() && join.pid != Some(0) && !join.worker_id.is_empty()),
            Ok(_) => {}
            Err(fault) => prop_assert!(fault.status == 400 && !fault.message.is_empty()),
        }
    }
}
