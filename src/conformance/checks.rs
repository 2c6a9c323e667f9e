//! The rows about a worker that serves: from its start to clients that leave.

use std::io::Write;
use std::time::Duration;

use super::Check;
use super::bench::{Bench, Trouble, seconds};
use super::report::{Finding, Report};
use super::talk::{ANSWER_TIME, Answer, Client, get, head};
use crate::http::{Framing, Method, Version};

/// Bytes of the large body: what the server gathers before it asks for a worker, its default `request_buffer`.
const LARGE_BODY: usize = 1024 * 1024;
/// Bytes of one chunk of the chunked body.
const CHUNK: usize = 16 * 1024;
/// How long a request may be held before another connection counts as being in its way.
const HELD_TIME: Duration = Duration::from_secs(3);
/// The pause between the pieces of a request; long enough for the worker to read each by itself.
const PIECE_PAUSE: Duration = Duration::from_millis(5);
/// How long a connection may stay open behind an answer that was to be its last.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// What earlier rows found out that later ones need.
#[derive(Debug, Default)]
pub struct Facts {
    /// Connections stay open behind an answer.
    pub keeps: bool,
    /// `Keep-Alive: timeout=N` of the first answer.
    pub keep_alive_timeout: Option<u32>,
    /// A path whose answer takes a while, if one was named.
    pub slow_path: Option<String>,
    /// Seen at the end of the first worker.
    pub left_socket: Option<bool>,
    /// Seen at the end of the first worker: somebody of its group outlived it.
    pub left_company: Option<bool>,
}

/// The rows while the worker serves.
pub const SERVING: &[Check] = &[
    Check { name: "answer", run: answer, advice: "GET / has to be answered in HTTP/1.1, whatever the status" },
    Check {
        name: "keep-alive",
        run: keep_alive,
        advice: "end a connection only behind an answer with Connection: close, or run with --keepalive off",
    },
    Check { name: "keep-alive time", run: keep_alive_time, advice: "" },
    Check {
        name: "idle connection",
        run: idle_connection,
        advice: "other connections have to be answered once an idle one is closed",
    },
    Check {
        name: "two at once",
        run: two_at_once,
        advice: "answer the second request, hold it, or answer 503 with Rip-Worker-Busy: 1; never drop it",
    },
    Check { name: "HEAD", run: head_request, advice: "answer HEAD as GET, without the body" },
    Check {
        name: "body of 1 MiB",
        run: large_body,
        advice: "read the body to its end, or refuse with an answer (413) before the connection is closed",
    },
    Check {
        name: "body in chunks",
        run: chunked_body,
        advice: "read Transfer-Encoding: chunked, or refuse with 411 or 501 and Connection: close",
    },
    Check {
        name: "request in pieces",
        run: in_pieces,
        advice: "read on until the head's empty line; one read(2) is not one request",
    },
    Check {
        name: "client leaves",
        run: client_leaves,
        advice: "a connection that ends within a request is an everyday thing: close it and go on",
    },
    Check {
        name: "no Host",
        run: no_host,
        advice: "refuse it with 400, or answer it; the server forwards none without",
    },
];

/// The first two rows: start and readiness. False: there is no worker to go on with.
pub fn begin(bench: &mut Bench, report: &mut Report<impl Write>) -> Result<bool, Trouble> {
    let id = bench.start(false)?;
    report.row("start", &Finding::pass(format!("process {id}")));
    let finding = match bench.until_ready(bench.patience()) {
        Ok(took) => Finding::pass(format!("accepts after {} on {}", seconds(took), bench.door())),
        Err(trouble @ Trouble::NotReady(_)) => Finding::fail(trouble.to_string(), where_to_listen(bench)),
        Err(trouble) => return Err(trouble),
    };
    report.row("ready", &finding);
    Ok(!finding.is_failure())
}

fn where_to_listen(bench: &Bench) -> &'static str {
    if bench.is_undecided() {
        return "listen on the Unix socket $SOCKET_PATH or on 127.0.0.1, on the port $PORT; {socket} and {port} in the command stand for them";
    }
    match (bench.is_inherited(), bench.is_tcp()) {
        (true, _) => "accept on descriptor 3 (sd_listen_fds(3)) and stay in the foreground",
        (_, true) => "listen on 127.0.0.1, on the port $PORT, which {port} in the command stands for too",
        _ => "listen on the Unix socket $SOCKET_PATH, which {socket} in the command stands for too",
    }
}

fn answer(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut client = bench.connect()?;
    client.send(get("/"));
    let answer = bench.answer(&mut client, Method::Get, ANSWER_TIME)?;
    facts.keep_alive_timeout = answer.keep_alive_timeout;
    let seen = describe(&answer);
    if answer.version == Version::Http10 {
        return Ok(Finding::note(format!("{seen}, as HTTP/1.0"), "HTTP/1.1 would let connections be kept"));
    }
    if answer.framing == Framing::UntilClose {
        let advice = "send Content-Length or chunks: a cut answer looks whole without them";
        return Ok(Finding::note(format!("{seen}, ended by closing the connection"), advice));
    }
    if answer.status >= 500 {
        return Ok(Finding::note(seen, "a valid answer; whether it should be an error is the app's affair"));
    }
    Ok(Finding::pass(seen))
}

fn describe(answer: &Answer) -> String {
    let framing = match answer.framing {
        Framing::Chunked => " in chunks",
        _ => "",
    };
    format!("{}, {} bytes{framing}", answer.status, answer.body)
}

fn keep_alive(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut client = bench.connect()?;
    client.send(get("/"));
    let first = bench.answer(&mut client, Method::Get, ANSWER_TIME)?;
    if !first.keep_alive {
        return Ok(Finding::note("closes after each answer", "works as it is; --keepalive off says so from the start"));
    }
    client.send(get("/"));
    let second = bench.answer(&mut client, Method::Get, ANSWER_TIME)?;
    facts.keeps = true;
    Ok(Finding::pass(format!("a second request on the same connection: {}", describe(&second))))
}

fn keep_alive_time(_: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    Ok(match (facts.keeps, facts.keep_alive_timeout) {
        (false, _) => Finding::skip("no connection is kept", ""),
        (true, Some(time @ (0 | 1))) => Finding::note(
            format!("says Keep-Alive: timeout={time}: too short, the server keeps none"),
            "raise the worker's keep-alive time to 5 s or more",
        ),
        (true, Some(time)) => {
            Finding::info(format!("says Keep-Alive: timeout={time}: the server keeps {} s", time - 1))
        }
        (true, None) => {
            Finding::info("says no Keep-Alive time: the server keeps connections until the worker ends them")
        }
    })
}

/// A connection with nothing under way must not be in another's way: the server's loops each keep their own.
fn idle_connection(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut idle = bench.connect()?;
    if facts.keeps {
        idle.send(get("/"));
        bench.answer(&mut idle, Method::Get, ANSWER_TIME)?;
    }
    let mut other = bench.connect()?;
    other.send(get("/"));
    match bench.answer(&mut other, Method::Get, HELD_TIME) {
        Ok(_) => return Ok(Finding::pass("does not keep another one from being answered")),
        Err(Trouble::Late(_)) => idle.leave(),
        Err(trouble) => return Err(trouble),
    }
    bench.answer(&mut other, Method::Get, ANSWER_TIME)?;
    let seen = "blocks the others until it is closed: a blocking worker";
    if facts.keeps {
        Ok(Finding::note(seen, "run with --keepalive off"))
    } else {
        Ok(Finding::info(format!("{seen}; the server leaves none open here")))
    }
}

/// One request is under way, half of its body still to come; then a second one on another connection.
fn two_at_once(bench: &mut Bench, _: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut first = bench.connect()?;
    first.send(head("POST", "/", "Content-Length: 10\r\n"));
    first.send("hello");
    bench.flush(&mut first)?;
    let mut second = bench.connect()?;
    second.send(get("/"));
    let early = match bench.answer(&mut second, Method::Get, HELD_TIME) {
        Ok(answer) => Some(answer),
        Err(Trouble::Late(_)) => None,
        Err(trouble) => return Err(trouble),
    };
    first.send("world");
    bench.answer(&mut first, Method::Post, ANSWER_TIME)?;
    let Some(answer) = early else {
        // Who serves one connection at a time goes on when this one ends.
        first.leave();
        bench.answer(&mut second, Method::Get, ANSWER_TIME)?;
        return Ok(Finding::pass("the second request is held until the first is done: one at a time"));
    };
    Ok(match answer {
        Answer { busy: true, .. } => Finding::pass("503 with Rip-Worker-Busy: the server asks another worker"),
        Answer { draining: true, .. } => {
            Finding::note("503 with Rip-Worker-Draining, though it was not told to stop", "say so only when stopping")
        }
        _ => Finding::pass("the second request is answered while the first is under way"),
    })
}

fn head_request(bench: &mut Bench, _: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut client = bench.connect()?;
    client.send(head("HEAD", "/", "Connection: close\r\n"));
    let answer = bench.answer(&mut client, Method::Head, ANSWER_TIME)?;
    let closed = bench.until_end(&mut client, CLOSE_TIME)?;
    if client.surplus() > 0 {
        let seen = format!("{}, and {} bytes of a body behind it", answer.status, client.surplus());
        return Ok(Finding::fail(seen, "answer HEAD without a body (RFC 9110 §9.3.2)"));
    }
    let seen = format!("{} without a body", answer.status);
    if closed {
        return Ok(Finding::pass(seen));
    }
    let seen = format!("{seen}; the connection stays open despite Connection: close");
    Ok(Finding::note(seen, "the server closes it itself"))
}

/// Sends a body of 1 MiB and then, if the connection is kept, another request behind it.
fn large_body(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut client = bench.connect()?;
    client.send(head("POST", "/", &format!("Content-Length: {LARGE_BODY}\r\n")));
    client.send(vec![b'x'; LARGE_BODY]);
    let answer = bench.answer(&mut client, Method::Post, ANSWER_TIME)?;
    behind_a_body(bench, facts, client, &answer)
}

fn chunked_body(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut client = bench.connect()?;
    client.send(head("POST", "/", "Transfer-Encoding: chunked\r\n"));
    for _ in 0..3 {
        client.send(format!("{CHUNK:x}\r\n"));
        client.send(vec![b'x'; CHUNK]);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    let answer = bench.answer(&mut client, Method::Post, ANSWER_TIME)?;
    behind_a_body(bench, facts, client, &answer)
}

/// Whether the bytes behind a body are the next request, and not taken for part of the body or the other way round.
fn behind_a_body(bench: &mut Bench, facts: &Facts, mut client: Client, answer: &Answer) -> Result<Finding, Trouble> {
    let seen = describe(answer);
    if !answer.keep_alive || !facts.keeps {
        return Ok(Finding::pass(format!("{seen}, then closes")));
    }
    bench.flush(&mut client)?;
    if client.surplus() > 0 {
        return Ok(Finding::fail(
            format!("{seen}, and {} bytes behind the answer", client.surplus()),
            "the body, or a piece of it, was taken for another request",
        ));
    }
    client.send(get("/"));
    let next = match bench.answer(&mut client, Method::Get, ANSWER_TIME) {
        Err(Trouble::Ended(0) | Trouble::Broken(_)) => {
            let advice =
                "say Connection: close where a body is left unread; the server sees the end, and asks again if need be";
            return Ok(Finding::note(format!("{seen}, then closes without a word"), advice));
        }
        next => next?,
    };
    if next.status == 400 {
        let advice = "read the whole body before the next request, or close the connection behind the answer";
        return Ok(Finding::fail(format!("{seen}; the request behind the body is refused with 400"), advice));
    }
    Ok(Finding::pass(format!("{seen}; the connection goes on behind it")))
}

fn in_pieces(bench: &mut Bench, _: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let mut client = bench.connect()?;
    let request = get("/");
    let pieces = [&request[..1], &request[1..6], &request[6..17], &request[17..request.len() - 1]];
    for piece in pieces {
        client.send(piece);
        bench.flush(&mut client)?;
        bench.until(PIECE_PAUSE, |_| false)?;
    }
    client.send(&request[request.len() - 1..]);
    let answer = bench.answer(&mut client, Method::Get, ANSWER_TIME)?;
    if answer.status == 400 {
        return Ok(Finding::fail("400", "read on until the head's empty line; one read(2) is not one request"));
    }
    Ok(Finding::pass(describe(&answer)))
}

/// Clients that leave within a head, within a body, and before their answer.
fn client_leaves(bench: &mut Bench, _: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let body = format!("{}hello", head("POST", "/", "Content-Length: 1000\r\n"));
    for request in ["GET / HT", &body, &get("/")] {
        let mut client = bench.connect()?;
        client.send(request);
        bench.flush(&mut client)?;
        bench.until(PIECE_PAUSE, |_| false)?;
        client.leave();
    }
    let answer = bench.ask(&get("/"))?;
    Ok(Finding::pass(format!("three left within a request; the next one gets {}", answer.status)))
}

fn no_host(bench: &mut Bench, _: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    let answer = bench.ask("GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    Ok(Finding::info(match answer.status {
        400 => "refuses a request without Host (400), as RFC 9112 §3.2 has it".to_owned(),
        status => format!("answers a request without Host ({status}); the server refuses it before"),
    }))
}
