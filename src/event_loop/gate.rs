//! Who gets in by a route, and how often: first the address, then the limits.
//!
//! What is refused is answered here, and the connection goes on, for a client that has to come again costs more than one that stays. A
//! request that has to wait stays where it is: unread, at the front of its connection's input, which receives nothing meanwhile; when
//! its time has come it is read again, and has paid already.
//!
//! A server on which nobody is kept out never comes here.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::apps::Guard;
use crate::backends::{Backend, Sock};
use crate::buffers::block::Block;
use crate::http::head::Request;
use crate::http::reply::{self, Reply};
use crate::http::{Method, Version, body_len};
use crate::limits::{By, Limit, Policy, Verdict, network, retry_after};

use super::{Loop, Route, Task, Written};

/// What is known of the request at the front of a client's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Nothing.
    #[default]
    Fresh,
    /// It waits for its time.
    Waits,
    /// The limits have counted it.
    Paid,
}

impl Pass {
    /// Whether it is not to be read yet.
    pub fn waits(self) -> bool {
        self == Pass::Waits
    }
}

/// Whether a client may go on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entrance {
    /// Requests wait in its input until the outbox has drained, or for what `pass` says.
    pub stalled: bool,
    /// What is known of the request that its input begins with.
    pub pass: Pass,
    /// It counts among the connections of its address.
    pub counted: bool,
}

/// What becomes of a request.
pub(crate) enum Gate {
    /// It goes on.
    Open,
    /// It is refused, with that answer.
    Shut(Written),
    /// It is to be looked at again after that time.
    Later(Duration),
}

impl<B: Backend> Loop<B> {
    /// Whether a request may come in by its route; `input` begins with its head.
    #[inline(never)]
    pub fn gate(&mut self, sock: Sock, route: Route, input: &[u8], request: &Request) -> Gate {
        let Some((guard, series)) = self.apps.routes.guard(route) else { return Gate::Open };
        let Some(client) = self.table.client(sock) else { return Gate::Open };
        let pass = std::mem::take(&mut client.entrance.pass);
        let told = self.heads.origin.trusted;
        let address = if told { self.heads.origin.client } else { client.arrival.peer.address() };
        if !guard.admits(address) {
            self.count().denied.add(1);
            let refusal = Refusal { status: 403, ..Refusal::new("this address is not allowed here") };
            return Gate::Shut(self.turn_away(input, request, series, &refusal));
        }
        if pass == Pass::Fresh {
            match self.pay(&guard, address, input) {
                Verdict::Pass => {}
                Verdict::Wait(nanos) => return Gate::Later(Duration::from_nanos(nanos)),
                Verdict::Refuse(which) => {
                    let refusal = self.too_many(&guard, which, address, input);
                    return Gate::Shut(self.turn_away(input, request, series, &refusal));
                }
            }
        }
        Gate::Open
    }

    /// Keeps a request that is not to be answered yet.
    #[cold]
    pub fn put_aside(&mut self, sock: Sock, input: Block, after: Duration) {
        if !self.memory.has_reserve() {
            self.count().memory_refused.add(1);
            return self.refuse(sock, 503, "the server has no memory left for requests that have to wait");
        }
        let input = input.settle(&self.memory.pool);
        let Some(client) = self.table.client(sock) else { return };
        (client.input, client.body) = (Some(input), None);
        (client.entrance.pass, client.entrance.stalled) = (Pass::Waits, true);
        self.arm(sock, after);
    }

    /// A request that was put aside can be looked at again.
    pub fn let_pass(&mut self, sock: Sock, pass: Pass) {
        let Some(client) = self.table.client(sock) else { return };
        (client.entrance.pass, client.entrance.stalled) = (pass, false);
        self.work.push_back(Task::Resume(sock));
    }

    /// Has the limits count a request: the longest that any of them makes it wait, or the index of the one that refuses it. Those before
    /// that one have counted it.
    fn pay(&self, guard: &Rc<Guard>, address: Option<IpAddr>, input: &[u8]) -> Verdict {
        let now = guard.times.nanos(self.time.now);
        let mut longest = 0;
        for (index, (policy, limit)) in guard.limits.iter().enumerate() {
            let key = self.key(policy, limit, address, input);
            let verdict = limit.take(key, policy, now);
            if verdict != Verdict::Pass {
                limit.note(key, policy, verdict, || self.shown_key(policy, address, input));
            }
            match verdict {
                Verdict::Refuse(_) if !policy.dry_run => return Verdict::Refuse(index as u64),
                Verdict::Wait(nanos) if !policy.dry_run => longest = longest.max(nanos),
                _ => {}
            }
        }
        if longest > 0 { Verdict::Wait(longest) } else { Verdict::Pass }
    }

    fn key(&self, policy: &Policy, limit: &Limit, address: Option<IpAddr>, input: &[u8]) -> u64 {
        match &policy.by {
            By::Address { v4, v6 } => limit.key(&network(address, *v4, *v6)),
            By::All => limit.key(b""),
            By::Field(name) => match self.heads.fields.find_name(input, name) {
                Some(value) => limit.key(value),
                None => limit.key(&network(address, 32, 64)),
            },
        }
    }

    /// A key as the operator sees it. A field may hold a secret: of it only the beginning.
    #[cold]
    fn shown_key(&self, policy: &Policy, address: Option<IpAddr>, input: &[u8]) -> String {
        let address = || address.map_or_else(|| "unix".to_owned(), |address| address.to_string());
        match &policy.by {
            By::Address { .. } => address(),
            By::All => "all".to_owned(),
            By::Field(name) => self.heads.fields.find_name(input, name).map_or_else(address, |value| {
                let text = String::from_utf8_lossy(value);
                format!("{name}: {}…", text.chars().take(4).filter(|letter| !letter.is_control()).collect::<String>())
            }),
        }
    }

    /// The refusal of a limit. Asked anew how long it would be, which costs the client nothing.
    #[cold]
    fn too_many(&self, guard: &Guard, index: u64, address: Option<IpAddr>, input: &[u8]) -> Refusal {
        let Some((policy, limit)) = guard.limits.get(index as usize) else { return Refusal::new("too many requests") };
        let now = guard.times.nanos(self.time.now);
        let key = self.key(policy, limit, address, input);
        let wait = match limit.take(key, policy, now) {
            Verdict::Refuse(nanos) | Verdict::Wait(nanos) => nanos,
            Verdict::Pass => 0,
        };
        let seconds = retry_after(wait, key ^ now >> 10);
        let mut lines = format!("\r\nRateLimit-Policy: {}\r\n", policy.field());
        // Writing to a string cannot fail.
        let _ = write!(lines, "RateLimit: \"{}\";r=0;t={}", policy.name, wait.div_ceil(1_000_000_000).max(1));
        Refusal { status: policy.status, lines, retry_after: Some(seconds), ..Refusal::new("too many requests: slow down") }
    }

    /// Writes the answer to a request that does not come in.
    #[cold]
    fn turn_away(&mut self, input: &[u8], request: &Request, series: u16, refusal: &Refusal) -> Written {
        let reply = Reply {
            format: reply::negotiate(request.accept.of(input)),
            keep_alive: self.keeps_alive(request),
            http10: request.version == Version::Http10,
            head_only: request.method == Method::Head,
            retry_after: refusal.retry_after,
            lines: refusal.lines.as_bytes(),
            ..Reply::new(refusal.status, refusal.detail, &self.time.day.date)
        };
        self.count().requests.add(1);
        let head_and_body = self.memory.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        self.counters.of_series(series).answered_here(refusal.status);
        let bytes = body_len(&head_and_body) as u64;
        Written { head_and_body, status: refusal.status, bytes }
    }
}

/// Why a request does not come in.
struct Refusal {
    status: u16,
    detail: &'static str,
    /// Further lines of the head, each behind a line's end.
    lines: String,
    retry_after: Option<u32>,
}

impl Refusal {
    fn new(detail: &'static str) -> Refusal {
        Refusal { status: 429, detail, lines: String::new(), retry_after: None }
    }
}
