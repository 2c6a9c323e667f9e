//! Every format to the letter, and that no request can break out of any of them.

use proptest::prelude::*;

use super::*;
use crate::config::{Redaction, Sampling};

/// The lines of some records under some settings.
fn lines(settings: &AccessLogSettings, records: &[AccessRecord<'_>]) -> String {
    let captured = Captured::default();
    let log = Log::disabled();
    let output = output::Output::Stream(Box::new(captured.clone()));
    let sink = routes::start_sink(&Arc::downgrade(&log.0), "access log", output, framing::Framing::Lines).unwrap();
    log.access_to(sink, settings);
    let mut access = log.access_log();
    records.iter().for_each(|record| access.record(record));
    access.flush();
    assert!(log.flush(LONG));
    captured.text()
}

fn format(text: &str) -> AccessLogFormat {
    AccessLogFormat::read(text).unwrap()
}

fn line(text: &str, record: &AccessRecord<'_>) -> String {
    lines(&AccessLogSettings::new(LogTarget::Off, format(text)), &[*record])
}

fn note(mark: &str, media_type: &str) -> AnswerNote {
    AnswerNote { silent: false, mark: mark.as_bytes().into(), media_type: media_type.as_bytes().into() }
}

const HEAD: &[u8] = b"GET /a?b=1 HTTP/1.1\r\nHost: example.org\r\nReferer: http://r/?q=\"1\"\r\nUser-Agent: curl/8\r\n\
    Authorization: Basic YWxpY2U6czNjcmV0\r\nX-Team: red\r\n\r\n";

#[test]
fn each_format_is_what_its_readers_expect() {
    let note = note("order 7", "text/html");
    let full = AccessRecord { head: HEAD, note: Some(&note), ..record() };
    // TZ is the same for whoever runs this, and the two formats with local time are asked for nothing else.
    let local = |text: String| text.replace(&line("{time_local}", &full).trim_end().replace("\\x20", " "), "LOCAL");
    assert_eq!(
        local(line("combined", &full)),
        "192.0.2.7 - alice [LOCAL] \"GET /a?b=1 HTTP/1.1\" 200 1536 \"http://r/?q=\\x221\\x22\" \"curl/8\"\n"
    );
    let bare = AccessRecord { head: b"GET / HTTP/1.1\r\nUser-Agent:\r\n\r\n", ..record() };
    assert!(line("combined", &bare).ends_with(" 1536 \"-\" \"\"\n"), "a field that is there and empty");
    assert_eq!(local(line("common", &full)), "192.0.2.7 - - [LOCAL] \"GET /a?b=1 HTTP/1.1\" 200 1536\n");
    let empty = AccessRecord { bytes: 0, status: 304, target: b"/\"\x01\\\n\xc3", ..full };
    assert_eq!(local(line("common", &empty)), "192.0.2.7 - - [LOCAL] \"GET /\\\"\\x01\\\\\\n\\xc3 HTTP/1.1\" 304 -\n");
    assert_eq!(line("human", &full), "03:45:56.123 200    1.234ms     1.5K GET /a?b=1 192.0.2.7 #2 mark=order 7\n");
    let rip = line("rip", &full);
    assert_eq!(&rip[10..13], " 03", "{rip}");
    assert_eq!(&rip[19..], ".123 +0000 1.2ms │ 200 html 1.5kB │ GET /a │ order 7\n");
    assert_eq!(
        line("rip-json", &full),
        "{\"t\":\"2026-11-21T03:45:56.123Z\",\"ip\":\"192.0.2.7\",\"app\":\"web\",\"method\":\"GET\",\"path\":\"/a\",\
         \"status\":200,\"totalSeconds\":0.001234,\"workerSeconds\":0.001000,\"type\":\"text/html\",\"length\":1536,\
         \"mark\":\"order 7\"}\n"
    );
    let page = include_str!("../../../docs/logs.md");
    for text in ["human", "combined", "common", "json", "rip", "rip-json"] {
        let shown = local(line(text, &full)).replace("LOCAL", "21/Nov/2026:03:45:56 +0000");
        assert!(page.contains(&shown) || text == "rip", "docs/logs.md has another line than {shown}");
    }
    let own = AccessRecord { worker: None, took: Took { upstream_us: None, ..full.took }, note: None, ..full };
    assert!(line("rip-json", &own).contains("\"workerSeconds\":0.000000,\"length\":1536}"));
    assert!(line("rip", &own).contains(" │ 200      1.5kB │ "), "what was sent, whoever has answered");
    let unknown = AccessRecord { method: b"", target: b"", protocol: "", head: b"", ..own };
    assert!(line("human", &unknown).contains(" - - 192.0.2.7"));
    for text in ["combined", "common"] {
        assert!(line(text, &unknown).contains("] \"-\" 200 1536"));
    }
    assert_eq!(line("{method} {target} {path} {protocol}", &unknown), "- - - -\n");
    let json: serde_json::Value = serde_json::from_str(&line("json", &unknown)).unwrap();
    for absent in ["http.request.method", "url.path", "network.protocol.version", "server.address"] {
        assert!(json.get(absent).is_none() && json["http.response.status_code"] == 200, "{absent}");
    }
    assert!(line("rip-json", &unknown).contains("\"method\":\"-\",\"path\":\"-\""));
    assert!(line("json", &full).contains("\"user_agent.original\":\"curl/8\",\"mark\":\"order 7\"}"));
    assert_eq!(
        line("{time} {client} {user} \"{method} {target} {protocol}\" {path} {query} {host} {status} {bytes}", &full),
        "2026-11-21T03:45:56.123Z 192.0.2.7 alice \"GET /a?b=1 HTTP/1.1\" /a b=1 example.org 200 1536\n"
    );
    assert_eq!(
        line(
            "{duration_ms}|{queue_ms}|{upstream_ms}|{app}.{worker} {request_id} {mark} {type} {header:x-team} {one_of}",
            &full
        ),
        "1.234|0.056|1.000|web.2 abc order\\x207 text/html red 1\n"
    );
    assert_eq!(
        line(
            "{referer} '{user_agent}' {query} {mark} {queue_ms} {header:x-no} {{}}",
            &AccessRecord { target: b"/", took: Took { queue_us: None, ..record().took }, ..record() }
        ),
        "- 'curl/8' - - - - {}\n"
    );
}

#[test]
fn what_is_hidden_is_hidden_in_every_format() {
    let head =
        b"GET /a?token=SECRET HTTP/1.1\r\nHost: h\r\nReferer: http://r/?TOKEN=SECRET&x=1\r\nUser-Agent: SECRET\r\n\
        Authorization: Basic U0VDUkVUOng=\r\nCookie: SECRET\r\n\r\n";
    let redact = Redaction {
        fields: ["user-agent", "authorization", "cookie"].map(str::to_owned).to_vec(),
        query: vec!["token".to_owned()],
    };
    let pattern = "{target} {query} {referer} {user_agent} {user} {header:Cookie} {header:referer} {header:user-agent}";
    for text in ["human", "combined", "common", "json", "rip", "rip-json", pattern] {
        let settings =
            AccessLogSettings { redact: redact.clone(), ..AccessLogSettings::new(LogTarget::Off, format(text)) };
        let secret = AccessRecord { target: b"/a?token=SECRET&y=2", head, ..record() };
        let text = lines(&settings, &[secret]);
        assert!(!text.contains("SECRET"), "{text}");
        let plain = lines(&AccessLogSettings::new(LogTarget::Off, settings.format), &[secret]);
        assert!(plain.contains("SECRET") || text == plain, "{plain}");
    }
    let settings = AccessLogSettings { redact, ..AccessLogSettings::new(LogTarget::Off, format("json")) };
    let json: serde_json::Value =
        serde_json::from_str(&lines(&settings, &[AccessRecord { target: b"/a?token=x&y=2", head, ..record() }]))
            .unwrap();
    assert_eq!(json["url.query"], "token=[redacted]&y=2");
    assert_eq!(json["http.request.header.referer"], "http://r/?TOKEN=[redacted]&x=1");
    assert_eq!(json["user_agent.original"], "[redacted]");
}

#[test]
fn some_statuses_are_sampled_and_silent_answers_left_out() {
    let sampling = ["404:0", "2xx:1/10", "4xx:all"].map(|text| Sampling::read(text).unwrap()).to_vec();
    let settings =
        AccessLogSettings { sampling, ..AccessLogSettings::new(LogTarget::Off, format("{status} {one_of}")) };
    let of = |status| AccessRecord { status, ..record() };
    let records: Vec<AccessRecord<'_>> =
        (0..25).flat_map(|_| [of(200), of(404), of(403)]).chain((0..3).map(|_| of(500))).collect();
    let text = lines(&settings, &records);
    let count = |line: &str| text.lines().filter(|found| *found == line).count();
    assert_eq!((count("200 10"), count("403 1"), count("500 1")), (3, 25, 3));
    assert_eq!(text.lines().count(), 31, "{text}");
    let silent = AnswerNote { silent: true, ..AnswerNote::default() };
    assert_eq!(line("combined", &AccessRecord { note: Some(&silent), ..record() }), "");
    let json = AccessLogSettings { format: format("json"), ..settings };
    assert!(lines(&json, &[of(200)]).contains(",\"one_of\":10,"));
}

#[test]
fn a_note_is_kept_where_a_line_shows_it() {
    let head = |lines: &str| {
        format!("HTTP/1.1 200 OK\r\n{lines}Content-Type: text/html; charset=utf-8\r\nContent-Length: 7\r\n\r\n")
    };
    let noted = |access: AccessLog, head: String| {
        use crate::http::{Method, head, head::HeadLimits};
        let (limits, mut fields) = (HeadLimits::new(32_768, 100), Default::default());
        let response = head::response(head.as_bytes(), Method::Get, false, &limits, &mut fields).unwrap().unwrap();
        access.note(head.as_bytes(), &response)
    };
    let note = |text: &str, lines: &str| {
        let log = Log::disabled();
        let output = output::Output::Stream(Box::new(io::sink()));
        let sink = routes::start_sink(&Arc::downgrade(&log.0), "x", output, framing::Framing::Lines).unwrap();
        log.access_to(sink, &AccessLogSettings::new(LogTarget::Off, format(text)));
        noted(log.access_log(), head(lines))
    };
    assert_eq!(note("json", ""), None);
    assert!(note("json", "Rip-No-Log: 1\r\n").unwrap().silent);
    assert_eq!(&*note("combined", "Rip-Mark: m\r\n").unwrap().mark, b"m");
    for text in ["rip", "rip-json", "{type}"] {
        let note = note(text, "").unwrap();
        assert_eq!(&*note.media_type, b"text/html");
    }
    assert_eq!(noted(Log::disabled().access_log(), head("Rip-Mark: m\r\n")), None);
}

#[test]
fn long_requests_keep_of_their_heads_what_their_line_shows() {
    let digest = |text: &str| {
        let log = Log::disabled();
        let output = output::Output::Stream(Box::new(io::sink()));
        let sink = routes::start_sink(&Arc::downgrade(&log.0), "x", output, framing::Framing::Lines).unwrap();
        log.access_to(sink, &AccessLogSettings::new(LogTarget::Off, format(text)));
        log.access_log().digest(HEAD)
    };
    for text in ["human", "combined", "common", "json", "{host} {user} {header:x-team} {user_agent} {referer}"] {
        let kept = digest(text);
        let whole = AccessRecord { head: HEAD, ..record() };
        assert_eq!(line(text, &whole), line(text, &AccessRecord { head: &kept, ..whole }));
    }
    assert_eq!(digest("human"), b"GET /a?b=1 HTTP/1.1\r\n");
}

/// A mark with a quote in it has a line made in the other of two ways.
#[test]
fn a_json_line_is_the_same_however_it_is_made() {
    let (plain, quoted, long) = (note("m", ""), note("m\"", ""), "y".repeat(5000));
    let v6 = Some(IpAddr::V6("2001:db8::7".parse().unwrap()));
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\nReferer: http://r/{long}\r\n\r\n");
    for record in [
        record(),
        AccessRecord { head: HEAD, client: v6, protocol: "HTTP/1.0", ..record() },
        AccessRecord {
            client: None,
            took: Took { queue_us: None, upstream_us: None, ..record().took },
            worker: None,
            app: "",
            request_id: b"",
            ..record()
        },
        AccessRecord {
            took: Took { duration_us: u64::MAX, ..record().took },
            bytes: u64::MAX,
            worker: Some(u32::MAX),
            status: 599,
            ..record()
        },
        AccessRecord { target: long.as_bytes(), bytes: 0, took: Took { duration_us: 0, ..record().took }, ..record() },
        AccessRecord { head: head.as_bytes(), time_micros: 1_000_000_999_999, bytes: 9, ..record() },
        AccessRecord { shown: Some([b"other", b"here", b"there"]), bytes: 10, ..record() },
    ] {
        let of = |note| line("json", &AccessRecord { note: Some(note), ..record });
        let (one, other) = (of(&plain), of(&quoted));
        assert!(one.contains("\"m\"") && other.contains("\"m\\\"\""), "{one}{other}");
        assert_eq!(one, other.replace("\"m\\\"\"", "\"m\""));
    }
}

/// A receiver of syslog takes 8 KiB: what would be longer is shorter, and whole in its own way.
#[test]
fn what_is_too_long_for_a_message_is_shortened() {
    for long in ["\u{1}".repeat(30_000), "é".repeat(15_000), "ä€𝄞".repeat(3_000)] {
        let head = format!("GET / HTTP/1.1\r\nHost: {long}\r\nReferer: {long}\r\nUser-Agent: {long}\r\n\r\n");
        let note = note(&long, &long);
        let long = long.as_bytes();
        let record = AccessRecord {
            method: long,
            target: long,
            request_id: long,
            head: head.as_bytes(),
            note: Some(&note),
            ..record()
        };
        for text in ["json", "rip-json", "human"] {
            let message = bare(text, &framing::Framing::syslog(), &record);
            let message = String::from_utf8(message[framing::LENGTH..].to_vec()).unwrap();
            assert!(message.len() <= 8192, "{}", message.len());
            if text != "human" {
                let (_, object) = message.split_once(" access - ").unwrap_or_else(|| panic!("{message}"));
                let object: serde_json::Value = serde_json::from_str(object).unwrap();
                assert!(object["mark"].as_str().unwrap().len() > 10);
            }
        }
    }
    let mut text = vec![0; framing::LENGTH];
    text.extend("x€".repeat(4000).bytes());
    framing::Framing::syslog().end(&mut text, 0);
    assert_eq!(text[framing::LENGTH..], *"x€".repeat(2048).as_bytes(), "8192 bytes end behind a character");
    let mut text = vec![0; framing::LENGTH];
    text.extend("€".repeat(4000).bytes());
    framing::Framing::syslog().end(&mut text, 0);
    assert_eq!(text[framing::LENGTH..], *"€".repeat(2730).as_bytes(), "and where they would not, before it");
}

/// A line without a thread that writes it.
fn bare(text: &str, framing: &framing::Framing, record: &AccessRecord<'_>) -> Vec<u8> {
    let look = access::Look::new(&AccessLogSettings::new(LogTarget::Off, format(text)), framing.clone(), false);
    Log::disabled().access_log().line(look, record)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever bytes stand in a request and in what the app says of it: one line, nothing that steers a terminal, as many fields as
    /// ever, and JSON that reads back.
    #[test]
    fn nothing_breaks_out_of_its_field(
        method in hostile(), target in hostile(), value in hostile(), mark in hostile(), media in hostile(), id in hostile(),
    ) {
        // A field's value has no line feed, nor anything else that ends a line for the parser.
        let value: Vec<u8> = value.into_iter().filter(|byte| !b"\n".contains(byte)).collect();
        let head = [b"GET / HTTP/1.1\r\nHost: ", &value[..], b"\r\nReferer: ", &value, b"\r\nUser-Agent: ", &value, b"\r\n\r\n"].concat();
        let note = AnswerNote { silent: false, mark: mark.into(), media_type: media.into() };
        let record = AccessRecord {
            method: &method, target: &target, head: &head, request_id: &id, note: Some(&note), ..record()
        };
        let pattern = "{method} {target} {path} {query} {host} {referer} {user_agent} {mark} {type} {request_id} {header:referer}";
        for text in ["human", "combined", "common", "json", "rip", "rip-json", pattern, "{mark}|{referer}|\"{target}\""] {
            let line = String::from_utf8(bare(text, &framing::Framing::Lines, &record)).unwrap();
            prop_assert!(line.ends_with('\n'));
            let line = &line[..line.len() - 1];
            prop_assert!(!line.contains(|letter: char| letter.is_control() || "\u{2028}\u{2029}".contains(letter)), "{line:?}");
            match text {
                "json" | "rip-json" => {
                    let json: serde_json::Value = serde_json::from_str(line).unwrap();
                    prop_assert!(json.as_object().unwrap().len() >= 8);
                    prop_assert_eq!(json["status"].as_u64().or(json["http.response.status_code"].as_u64()), Some(200));
                }
                // Two pairs of quotes more than the request's own.
                "combined" => prop_assert_eq!(line.matches('"').count(), 6),
                "common" => prop_assert_eq!(line.replace("\\\\", "").replace("\\\"", "").matches('"').count(), 2),
                _ if text == pattern => prop_assert_eq!(line.split(' ').count(), 11, "{}", line),
                "human" | "rip" => {}
                _ => {
                    prop_assert_eq!(line.matches('|').count() - line.split('"').nth(1).unwrap().matches('|').count(), 2);
                    prop_assert_eq!(line.matches('"').count(), 2);
                }
            }
        }
    }

    /// The same for what goes to syslog and the journal: one message, no field more.
    #[test]
    fn nothing_breaks_out_of_its_message(target in hostile(), mark in hostile()) {
        let note = AnswerNote { silent: false, mark: mark.into(), ..AnswerNote::default() };
        let record = AccessRecord { target: &target, note: Some(&note), ..record() };
        for framing in [framing::Framing::syslog(), framing::Framing::Journal] {
            let bytes = bare("human", &framing, &record);
            let (message, rest) = framing::first(&bytes).unwrap();
            prop_assert!(rest.is_empty());
            let text = std::str::from_utf8(message).unwrap();
            if matches!(framing, framing::Framing::Journal) {
                // Twelve fields always, and those for a query and a mark if there are any.
                let fields = 15 + usize::from(memchr::memchr(b'?', &target).is_some_and(|at| at + 1 < target.len()))
                    + usize::from(!note.mark.is_empty())
                    - usize::from(target.split(|byte| *byte == b'?').next().unwrap().is_empty());
                prop_assert_eq!(text.lines().count(), fields, "{}", text);
                prop_assert!(text.lines().all(|line| line.contains('=')));
            } else {
                prop_assert!(!text.contains(char::is_control));
            }
        }
    }
}

/// Bytes that loggers trip over, more often than others.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(&b"\"\\\n\r\t\x00\x1b\x7f |,;?&=%{}[]\xc2\x85\xe2\x80\xa8\x9b"[..]),
        prop::sample::select(&b"abc/"[..]),
    ];
    prop::collection::vec(byte, 0..40)
}
