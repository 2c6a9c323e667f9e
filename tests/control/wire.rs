//! Requests and answers as they are on the wire.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use production_server::control::{Answer, Change, Command, ControlServer, Join, SOCKET_NAME, Version};
use production_server::socket_file::leave_dead;
use serde_json::{Value, json};

use super::rig::{Rig, TICKET, eventually, request};

#[test]
fn a_command_is_carried_out_and_answered() {
    let rig = Rig::new();
    let cases: Vec<(&str, &str, &str, Command, Value)> = vec![
        (
            "POST",
            "/restart",
            r#"{"app":"web"}"#,
            Command::Restart { app: Some("web".into()), wait: false },
            json!({"message": "it is under way"}),
        ),
        (
            "POST",
            "/scale",
            r#"{"change":-1}"#,
            Command::Scale { app: None, change: Change::By(-1) },
            json!({"message": "it is under way"}),
        ),
        ("POST", "/resume", "", Command::Resume { app: None }, json!({})),
        (
            "POST",
            "/worker",
            r#"{"op":"quit","workerId":7}"#,
            Command::Quit { app: None, worker_id: "7".into() },
            json!({"ok": true}),
        ),
    ];
    for (method, path, body, command, document) in cases {
        assert_eq!(rig.ask(method, path, body), (200, document), "{path} {body}");
        assert_eq!(rig.asked(), [command], "{path} {body}");
    }
    let (status, document) = rig.ask("GET", "/status", "");
    assert_eq!((status, &document["state"], &document["apps"][0]["name"]), (200, &json!("running"), &json!("web")));
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_carried_out() {
    let rig = Rig::new();
    let cases = [
        ("POST", "/restart", "app=web", 400, "no JSON object"),
        ("POST", "/restart", r#"{"app":"api"}"#, 404, "there is no app \"api\": expected web"),
        ("POST", "/scale", r#"{"workers":1e99}"#, 400, "from 0 to 1024"),
        ("POST", "/nothing", "", 404, "there is no /nothing"),
        ("DELETE", "/status", "", 405, "asked with GET"),
        ("POST", "/stop?now=true", "", 400, "takes no query"),
    ];
    for (method, path, body, code, part) in cases {
        let (status, document) = rig.ask(method, path, body);
        let error = document["error"].as_str().unwrap();
        assert!(status == code && error.contains(part), "{path} {body}: {status} {error}");
        assert_eq!(document.as_object().unwrap().len(), 1);
        assert_eq!(rig.asked(), []);
    }
    assert_eq!(rig.ask("POST", "/drain", ""), (409, json!({"error": "the server stops already"})));
}

#[test]
fn the_workers_protocol_has_its_own_answers() {
    let rig = Rig::new();
    let (status, refused) = rig.ask("POST", "/worker", r#"{"op":"join","workerId":"7"}"#);
    assert_eq!((status, &refused["ok"]), (400, &json!(false)));
    assert!(refused["error"].as_str().unwrap().contains("\"socket\""));
    let (status, refused) = rig.ask("POST", "/worker", r#"{"op":"quit","workerId":"8"}"#);
    assert_eq!((status, refused), (404, json!({"ok": false, "error": "no worker \"8\" has joined"})));
    assert_eq!(rig.asked(), [Command::Quit { app: None, worker_id: "8".into() }]);

    let join = r#"{"op":"join","workerId":"7","pid":4711,"socket":"/run/app.sock","version":"1.10"}"#;
    for (answer, expected) in [
        (Answer::Done(Value::Null), (200, json!({"ok": true}))),
        (Answer::done("welcome"), (200, json!({"ok": true}))),
        (Answer::refused(409, "nobody answers"), (400, json!({"ok": false, "error": "nobody answers"}))),
    ] {
        let mut client = rig.connect();
        client.send(&request("POST", "/worker", join));
        let asked = eventually("the join", || Some(rig.asked()).filter(|asked| !asked.is_empty()));
        let version = Version::parse("1.10");
        let socket = PathBuf::from("/run/app.sock");
        assert_eq!(asked, [Command::Join(Join { app: None, worker_id: "7".into(), pid: Some(4711), socket, version })]);
        rig.answer(TICKET, answer);
        assert_eq!(client.answer(), expected);
    }
}

#[test]
fn an_answer_may_come_later_and_to_all_that_wait_for_it() {
    let rig = Rig::new();
    let mut clients = [rig.connect(), rig.connect(), rig.connect()];
    for client in &mut clients {
        client.send(&request("POST", "/restart", r#"{"wait":true}"#));
        eventually("the request", || rig.asked().pop());
    }
    // One is gone, one has only finished sending, and one has already sent its next request.
    let [gone, mut finished, mut eager] = clients;
    drop(gone);
    finished.finish();
    eager.send(&request("POST", "/reload", ""));
    rig.answer(TICKET + 1, Answer::done("for somebody else"));
    assert_eq!(rig.ask("GET", "/status", "").0, 200);
    assert_eq!(rig.asked(), [Command::Status], "the next request waits for the answer to the one before it");
    rig.answer(TICKET, Answer::refused(409, "the replacement crashed"));
    let expected = (409, json!({"error": "the replacement crashed"}));
    assert_eq!(finished.answer(), expected);
    assert_eq!(finished.rest(), "");
    assert_eq!(eager.answer(), expected);
    assert_eq!(eager.answer().0, 200);
    assert_eq!(rig.asked(), [Command::Reload { app: None, wait: false }]);
}

/// Nothing is polled for that stays ready: a peer that hung up would otherwise keep the loop awake.
#[test]
fn a_connection_that_waits_costs_no_turns() {
    let rig = Rig::new();
    let mut half = rig.connect();
    half.send(&request("POST", "/restart", r#"{"wait":true}"#));
    half.finish();
    let mut gone = rig.connect();
    gone.send(&request("POST", "/restart", r#"{"wait":true}"#));
    let mut asked = 0;
    eventually("both requests", || {
        asked += rig.asked().len();
        (asked == 2).then_some(())
    });
    drop(gone);
    assert_eq!(rig.ask("GET", "/status", "").0, 200);
    let before = rig.turns();
    // Each of these takes a turn to be accepted and read, and at most one more to be closed.
    for _ in 0..20 {
        assert_eq!(rig.ask("GET", "/status", "").0, 200);
    }
    let turns = rig.turns() - before;
    assert!(turns <= 80, "20 requests took {turns} turns");
    rig.answer(TICKET, Answer::done("done"));
    assert_eq!(half.answer().0, 200);
}

#[test]
fn a_connection_is_kept_unless_asked_otherwise() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let requests = format!("{}{}", request("POST", "/reload", ""), request("POST", "/resume", "{}").repeat(20));
    client.send(&requests);
    for _ in 0..21 {
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("Connection:"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/json\r\n") && head.contains("\r\nDate: "), "{head}");
        assert!(client.body(&head).ends_with("}\n"));
    }
    assert_eq!(rig.asked().len(), 21);
    client.send("GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(client.head().contains("\r\nConnection: close\r\n"));
    assert!(client.rest().contains("\"apps\""));
    let mut old = rig.connect();
    old.send("GET /status HTTP/1.0\r\n\r\n");
    assert!(old.rest().starts_with("HTTP/1.1 200 OK\r\n"), "and then it ends");
}

#[test]
fn bodies_come_in_chunks_in_pieces_and_after_a_word_of_encouragement() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.send("POST /scale HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"wor\r\n");
    client.send("9\r\nkers\": 3}\r\n0\r\n\r\n");
    assert_eq!(client.answer().0, 200);
    client.send("POST /scale HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    for byte in "{\"workers\":3}".chars() {
        client.send(&byte.to_string());
    }
    assert_eq!(client.answer().0, 200);
    let scale = Command::Scale { app: None, change: Change::To(3) };
    assert_eq!(rig.asked(), [scale.clone(), scale]);
}

#[test]
fn heads_are_told_what_they_would_get() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.send("HEAD /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = client.rest();
    assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{answer}");
    assert!(answer.contains("\r\nAllow: GET\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn the_socket_is_for_its_user_alone_and_is_gone_in_the_end() {
    let mut rig = Rig::new();
    let metadata = std::fs::symlink_metadata(&rig.socket).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let Err(error) = ControlServer::open(&rig.socket) else { panic!("two servers on one socket") };
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::symlink_metadata(&rig.socket).unwrap().ino(), metadata.ino());
    let mut waiting = rig.connect();
    waiting.send(&request("POST", "/restart", r#"{"wait":true}"#));
    eventually("the request", || rig.asked().pop());
    rig.close();
    assert_eq!(waiting.answer(), (503, json!({"error": "the server has ended"})));
    assert_eq!(std::fs::read_dir(&rig.directory).unwrap().count(), 0);
}

#[test]
fn a_dead_servers_socket_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(SOCKET_NAME);
    leave_dead(&path).unwrap();
    let first = ControlServer::open(&path).unwrap();
    // Another one's file in its place stays when this one ends.
    std::fs::remove_file(&path).unwrap();
    let second = ControlServer::open(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
    std::fs::write(&path, "mine").unwrap();
    let Err(error) = ControlServer::open(&path) else { panic!("a file was taken for a socket") };
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}
