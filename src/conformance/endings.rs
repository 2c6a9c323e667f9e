//! The rows about a worker's end: TERM, what it leaves, and the start of the next one.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use std::os::unix::process::ExitStatusExt;

use super::Check;
use super::bench::{Bench, LOOK_AGAIN, Trouble, ended_how, seconds};
use super::checks::Facts;
use super::report::Finding;
use super::talk::get;
use crate::http::Method;

/// From TERM to KILL, as the supervisor has it.
const GRACE: Duration = Duration::from_secs(5);
/// How long processes of the group may outlive the first one before they count as left behind.
const COMPANY_TIME: Duration = Duration::from_secs(2);
/// How long a request on the slow path is under way before TERM, once the worker has read it.
const UNDER_WAY: Duration = Duration::from_millis(150);
/// The longest that the slow path may take.
const SLOW_TIME: Duration = Duration::from_secs(30);
/// Added to a multiple of the first start's time for a start over a stale socket file.
const STALE_TIME: Duration = Duration::from_secs(4);

/// The rows at the end.
pub const ENDINGS: &[Check] = &[
    Check { name: "TERM while idle", run: term_idle, advice: "" },
    Check { name: "nothing left", run: nothing_left, advice: "" },
    Check { name: "socket file", run: socket_file, advice: "" },
    Check {
        name: "stale socket file",
        run: stale_socket,
        advice: "the server removes stale files first; without it the worker has to",
    },
    Check {
        name: "TERM in flight",
        run: term_in_flight,
        advice: "on TERM stop accepting, finish the requests in flight, then exit",
    },
];

/// TERM with no connection open: that is how the server does it, since it drains first.
fn term_idle(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    bench.signal(libc::SIGTERM);
    let told = Instant::now();
    let mut refused = None;
    let gone = bench.until(GRACE, |bench| {
        if refused.is_none() && !accepts(bench) {
            refused = Some(told.elapsed());
        }
        bench.exit().is_some()
    })?;
    let took = told.elapsed();
    let Some(status) = bench.exit().filter(|_| gone) else {
        let advice = "exit on SIGTERM when nothing is in flight; without that each stop takes 5 s";
        return Ok(Finding::fail("still there after 5 s: the server sends KILL then", advice));
    };
    facts.left_company = Some(!bench.until(COMPANY_TIME, |bench| !bench.has_company())?);
    facts.left_socket = bench.socket_path().map(std::path::Path::exists);
    let refused = refused.map_or_else(String::new, |time| format!("refuses connections after {}, ", seconds(time)));
    let seen = format!("{refused}{} after {}", ended_how(status), seconds(took));
    if is_clean(status) {
        return Ok(Finding::pass(seen));
    }
    Ok(Finding::note(seen, "exit with 0, or let the signal end the process: the log shows the code"))
}

fn accepts(bench: &mut Bench) -> bool {
    bench.address().is_ok_and(|address| {
        let domain = socket2::Domain::from(i32::from(address.family()));
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None);
        socket.and_then(|socket| socket.connect_timeout(&address, LOOK_AGAIN)).is_ok()
    })
}

/// An exit with 0, or by the very signal: both are a stop as it was asked for.
fn is_clean(status: ExitStatus) -> bool {
    status.code() == Some(0) || status.signal() == Some(libc::SIGTERM)
}

fn nothing_left(_: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    Ok(match facts.left_company {
        Some(false) => Finding::pass("no process of its group outlives it"),
        Some(true) => Finding::fail(
            "processes of its group outlive it; the server kills them",
            "on TERM end the children too and wait for them before exiting",
        ),
        None => Finding::skip("it did not end by itself", ""),
    })
}

fn socket_file(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    Ok(match facts.left_socket {
        _ if bench.is_tcp() => Finding::skip("it has none", ""),
        Some(false) => Finding::info("removed at the exit"),
        Some(true) => Finding::info("stays behind; the server removes it"),
        None => Finding::skip("it did not end by itself", ""),
    })
}

/// A worker that was killed leaves its file, and half of the frameworks refuse to start over it.
fn stale_socket(bench: &mut Bench, _: &mut Facts) -> Result<Finding, Trouble> {
    bench.ensure()?;
    if bench.is_tcp() || bench.is_inherited() {
        return Ok(Finding::skip("it opens no socket file", ""));
    }
    let patience = bench.patience().min(bench.start_time() * 4 + STALE_TIME);
    // What it says about the file is no last word of a worker that failed.
    let started = bench.quietly(|bench| {
        bench.start(true)?;
        let started = bench.until_ready(patience);
        bench.end().and(started)
    });
    match started {
        Ok(_) => Ok(Finding::info("starts over it")),
        Err(Trouble::NotReady(_)) => Ok(Finding::info("does not start over it; the server removes it first")),
        Err(trouble) => Err(trouble),
    }
}

fn term_in_flight(bench: &mut Bench, facts: &mut Facts) -> Result<Finding, Trouble> {
    let Some(path) = facts.slow_path.clone() else {
        return Ok(Finding::skip("no slow path is known", "name one: --slow-path '/sleep?ms=500'"));
    };
    bench.ensure()?;
    let mut client = bench.connect()?;
    client.send(get(&path));
    bench.flush(&mut client)?;
    bench.until(GRACE, |_| client.is_read())?;
    match bench.answer(&mut client, Method::Get, UNDER_WAY) {
        Err(Trouble::Late(_)) => {}
        Ok(answer) => {
            let seen = format!("{path} was answered ({}) within {}", answer.status, seconds(UNDER_WAY));
            return Ok(Finding::skip(seen, "name a path that takes half a second or more"));
        }
        Err(trouble) => return Err(trouble),
    }
    bench.signal(libc::SIGTERM);
    let answer = bench.answer(&mut client, Method::Get, SLOW_TIME)?;
    let answered = Instant::now();
    drop(client);
    if !bench.until(GRACE, |bench| bench.exit().is_some())? {
        let advice = "exit once the last request in flight is answered";
        return Ok(Finding::fail(format!("answers ({}), but is still there 5 s later", answer.status), advice));
    }
    let status = bench.exit().map_or_else(String::new, ended_how);
    let seen = format!("the request is answered ({}); {status} {} later", answer.status, seconds(answered.elapsed()));
    Ok(Finding::pass(seen))
}
