//! Who gets in by a route, and how often: first the address, then the limits, then the credentials, and last the limits on whom these name.
//!
//! What is refused is answered here, and the connection goes on, for a client that has to come again costs more than one that stays. A
//! request that has to wait stays where it is: unread, at the front of its connection's input, which receives little meanwhile, so that its
//! client is seen to leave; when its time has come it is read again, and has paid already.
//!
//! A server on which nobody is kept out never comes here.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{Asked, Auth, Checked, Found, Try, User};
use crate::apps::{App, Guard};
use crate::backends::{Backend, Sock};
use crate::buffers::block::Block;
use crate::connection::Role;
use crate::helpers::Kind;
use crate::http::head::Request;
use crate::http::reply::{self, Reply};
use crate::http::{Method, Version, body_len};
use crate::limits::{By, Limit, Policy, Rate, Verdict, network, retry_after};
use crate::mailbox::Message;

use super::{Loop, Route, Shared, Task, Written};

/// What is known of the request at the front of a client's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Nothing.
    #[default]
    Fresh,
    /// It waits for its time, and then is what is said here.
    Waits(Paid),
    /// The limits on clients that nobody knows yet have counted it, or all have.
    Paid(Paid),
    /// Somebody checks its password, or others first that come from the same address.
    Asked,
    /// That password is wrong.
    Wrong,
    /// Nobody could check it.
    Unknown,
    /// Another app is asked about it (`forward.rs`).
    Inquires,
}

/// Which limits have counted a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paid {
    /// Those by what it comes from and what it says.
    Some,
    /// Those by who has sent it, too.
    All,
}

impl Pass {
    /// Whether it is not to be read yet.
    pub fn waits(self) -> bool {
        matches!(self, Pass::Waits(_) | Pass::Asked | Pass::Inquires)
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
    /// The request that waits for what `pass` says is answered also where its client finishes sending meanwhile.
    pub half_closed: bool,
}

impl Entrance {
    /// Whether what waits in its input is answered although its client has finished sending; the connection `closes` after the request in hand.
    pub fn outlasts_end(&self, closes: bool) -> bool {
        !self.pass.waits() || self.half_closed || closes
    }
}

/// What becomes of a request.
pub(crate) enum Gate {
    /// It goes on.
    Open,
    /// It is refused, with that answer.
    Shut(Written),
    /// It is to be looked at again: after that time, or when it is known whether its password is right, for which it may take so long.
    Later(Pass, Duration),
}

impl<B: Backend> Loop<B> {
    /// Whether a request may come in by its route; `input` begins with its head.
    #[inline(never)]
    pub fn gate(&mut self, sock: Sock, route: Route, input: &[u8], request: &Request) -> Gate {
        self.heads.identity.clear();
        self.heads.quota.clear();
        self.heads.seat = None;
        let Some(client) = self.table.client(sock) else { return Gate::Open };
        let pass = std::mem::take(&mut client.entrance.pass);
        (self.heads.word, self.heads.route) = (self.heads.words.take(sock), Some(route));
        // Browsers show nothing of a user when they ask whether a page may ask, and hubs answer them so much and no more.
        if matches!((route, request.method), (Route::Hub(_), Method::Options)) {
            return Gate::Open;
        }
        let Some((guard, series)) = self.apps.routes.guard(route) else { return Gate::Open };
        let address = self.address_of(sock);
        let stop = self.stop(sock, (&guard, address, pass), input);
        let stop = stop.or_else(|| self.take_seat(&guard, route));
        // Who is asked may refuse it.
        let ends = !matches!(&stop, Some(Stop::Later(pass, _)) if *pass != Pass::Inquires);
        if guard.tells_quota && ends {
            self.tell_quota(&guard, address, input);
        }
        match stop {
            None => Gate::Open,
            Some(Stop::Later(pass, after)) => Gate::Later(pass, after),
            Some(Stop::Refused(refusal)) => Gate::Shut(self.turn_away(input, request, series, &refusal)),
        }
    }

    /// What is in a request's way: its address, how many there are already, its credentials, how many that client has sent.
    fn stop(&mut self, sock: Sock, (guard, address, pass): Asker<'_>, input: &[u8]) -> Option<Stop> {
        let listener = self.table.client(sock).map(|client| client.listener)?;
        if !guard.admits(&self.accepting.listeners[listener as usize].asked, address) {
            self.count().denied.add(1);
            return Some(Refusal { status: 403, ..Refusal::new("this address is not allowed here") }.into());
        }
        if pass == Pass::Fresh
            && let Some(stop) = self.pay(guard, address, input, Paid::Some)
        {
            return Some(stop);
        }
        if let Some(auth) = guard.demands(address) {
            let stop = self.authenticate(sock, auth, (guard, address, pass), input);
            self.count_identified(&stop);
            if stop.is_some() {
                return stop;
            }
        }
        if pass == Pass::Paid(Paid::All) { None } else { self.pay(guard, address, input, Paid::All) }
    }

    /// Takes a place among the requests that a route may have under way.
    fn take_seat(&mut self, guard: &Guard, route: Route) -> Option<Stop> {
        let (most, flight) = guard.flight.as_ref().filter(|_| matches!(route, Route::App(_)))?;
        self.heads.seat = flight.take(*most);
        if self.heads.seat.is_some() { None } else { Some(Refusal::later(FULL).into()) }
    }

    /// Keeps a request that is not to be answered yet.
    #[cold]
    pub fn put_aside(&mut self, sock: Sock, input: Block, pass: Pass, after: Duration) {
        if !self.memory.has_reserve() {
            self.count().memory_refused.add(1);
            return self.refuse_unread(
                sock,
                &input,
                (503, "the server has no memory left for requests that have to wait"),
            );
        }
        let input = input.settle(&self.memory.pool);
        let half_closed = match self.heads.route {
            Some(Route::App(route)) => self.apps.routes.serves_half_closed(route),
            _ => false,
        };
        let Some(client) = self.table.client(sock) else { return };
        (client.input, client.body) = (Some(input), None);
        client.entrance = Entrance { stalled: true, pass, half_closed, ..client.entrance };
        if let Some(word) = self.heads.word.take() {
            self.heads.words.put(sock, word, &self.table);
        }
        self.arm(sock, after);
        self.watch(sock);
        if pass == Pass::Inquires {
            self.inquire(sock);
        }
    }

    /// The time of a request has come that was put aside.
    #[cold]
    pub fn waited_enough(&mut self, sock: Sock) {
        match self.table.client(sock).map(|client| client.entrance.pass) {
            Some(Pass::Waits(paid)) => self.let_pass(sock, Pass::Paid(paid)),
            Some(Pass::Inquires) => self.heard_nothing(sock),
            // Nothing that comes later may be taken for an answer to another request.
            Some(Pass::Asked) => self.refuse(sock, 503, BUSY),
            _ => {}
        }
    }

    /// It is known whether a password is right, as far as it will be, or there may be place for its check.
    pub fn checked(&mut self, sock: Sock, said: Checked) {
        if self.table.client(sock).is_some_and(|client| client.entrance.pass == Pass::Asked) {
            self.let_pass(
                sock,
                match said {
                    Checked::Again => Pass::Paid(Paid::Some),
                    Checked::Wrong => Pass::Wrong,
                    Checked::Unknown => Pass::Unknown,
                },
            );
        }
    }

    /// A request that was put aside can be looked at again.
    pub fn let_pass(&mut self, sock: Sock, pass: Pass) {
        let Some(client) = self.table.client(sock) else { return };
        (client.entrance.pass, client.entrance.stalled) = (pass, false);
        let behind = client.behind;
        self.work.push_back(Task::Resume(sock));
        if behind {
            // The wait has had the timer, and that the client is behind is not told again.
            self.watch_write(sock);
        }
    }

    /// Has the limits count a request: the longest that any of them makes it wait, or the refusal of the first that does not let it
    /// through; then none counts it, as far as no other loop is quicker between the question and the counting.
    fn pay(&self, guard: &Guard, address: Option<IpAddr>, input: &[u8], paid: Paid) -> Option<Stop> {
        let now = guard.times.nanos(self.time.now);
        let limits = || guard.limits.iter().filter(|(policy, _)| (policy.by == By::User) == (paid == Paid::All));
        if limits().count() > 1 {
            for (policy, limit) in limits().filter(|(policy, _)| !policy.dry_run) {
                let key = self.key(policy, limit, address, input);
                if let Some(wait) = limit.refuses(key, policy, now) {
                    limit.note(key, policy, Verdict::Refuse(wait), || self.shown_key(policy, address, input));
                    return Some(too_many(policy, wait, key ^ now >> 10).into());
                }
            }
        }
        let mut longest = 0;
        for (policy, limit) in limits() {
            let key = self.key(policy, limit, address, input);
            let verdict = limit.take(key, policy, now);
            if verdict != Verdict::Pass {
                limit.note(key, policy, verdict, || self.shown_key(policy, address, input));
            }
            match verdict {
                Verdict::Refuse(wait) if !policy.dry_run => {
                    return Some(too_many(policy, wait, key ^ now >> 10).into());
                }
                Verdict::Wait(nanos) if !policy.dry_run => longest = longest.max(nanos),
                _ => {}
            }
        }
        (longest > 0).then(|| Stop::Later(Pass::Waits(paid), Duration::from_nanos(longest)))
    }

    /// Writes down what is left of the limits that say so. Of those on whom credentials name, only where these were shown.
    #[cold]
    fn tell_quota(&mut self, guard: &Guard, address: Option<IpAddr>, input: &[u8]) {
        let now = guard.times.nanos(self.time.now);
        let known = self.heads.user().is_some();
        let told = guard.limits.iter().filter(|(policy, _)| policy.tells() && (policy.by != By::User || known));
        let told = told.map(|(policy, limit)| {
            let (left, whole) = limit.left(self.key(policy, limit, address, input), policy, now);
            (policy.field(), format!("\"{}\";r={left};t={}", policy.name, whole.div_ceil(1_000_000_000)))
        });
        let (policies, quotas): (Vec<String>, Vec<String>) = told.unzip();
        if !policies.is_empty() {
            let lines = format!("RateLimit-Policy: {}\r\nRateLimit: {}\r\n", policies.join(", "), quotas.join(", "));
            self.heads.quota = lines.into_bytes();
        }
    }

    /// Finds out whether a client may come in, by its credentials and by the word of an app that is asked.
    #[cold]
    fn authenticate(&mut self, sock: Sock, auth: &Auth, asker: Asker<'_>, input: &[u8]) -> Option<Stop> {
        let Some((_, forward)) = &asker.0.forward else { return self.identify(sock, auth, asker, input) };
        let shows = || auth.look(|name| self.heads.fields.find_name(input, name)) != Found::Nothing;
        if auth.has_ways() && (!auth.or_address || shows()) {
            let stop = self.identify(sock, auth, asker, input);
            if stop.is_some() || auth.or_address {
                return stop;
            }
        }
        match self.heads.word.as_ref().filter(|word| word.is_of(forward)) {
            Some(word) => {
                word.tell(&mut self.heads.identity);
                None
            }
            None => Some(Stop::Later(Pass::Inquires, forward.timeout)),
        }
    }

    /// Finds out who a client is, by its credentials.
    #[cold]
    fn identify(&mut self, sock: Sock, auth: &Auth, (guard, address, pass): Asker<'_>, input: &[u8]) -> Option<Stop> {
        let found = auth.look(|name| self.heads.fields.find_name(input, name));
        let now = guard.times.nanos(self.time.now);
        let refused = |wrong| {
            let detail = if wrong { "these credentials are not accepted" } else { "credentials are needed here" };
            Some(Refusal { status: 401, lines: auth.challenge(wrong), ..Refusal::new(detail) }.into())
        };
        let guessed = || self.guessed(guard, address, now).map(Stop::from).or_else(|| refused(true));
        let attempt = match (found, pass) {
            (Found::User(user), _) => return self.know(&user),
            (Found::Unknown, _) => return Some(Refusal::later(NO_KEYS).into()),
            (Found::Nothing, _) => return refused(false),
            (Found::Wrong { guessed: false }, _) => return refused(true),
            (Found::Wrong { guessed: true }, _) => return guessed(),
            // It has been counted before it was checked.
            (Found::Slow(_), Pass::Wrong) => return refused(true),
            (Found::Slow(_), Pass::Unknown) => return Some(Refusal::later(BUSY).into()),
            (Found::Slow(attempt), _) => attempt,
        };
        // There is one wherever credentials are demanded.
        let Some(limit) = &guard.failures else { return Some(Refusal::later(BUSY).into()) };
        let checks = &self.shared.admission.checks;
        let from = by_address(limit, address);
        if checks.knows(&attempt, from, now) {
            return self.know(&attempt.user);
        }
        let take = || match limit.take(from, &guessing(), now) {
            Verdict::Refuse(wait) => Some(wait),
            Verdict::Pass | Verdict::Wait(_) => None,
        };
        match checks.ask(&attempt, from, (self.index, sock), take) {
            Asked::Refused(wait) => return Some(self.too_often(limit, address, wait, now).into()),
            Asked::Check => self.have_checked(attempt, limit, from, guard),
            Asked::Wait => {}
        }
        Some(Stop::Later(Pass::Asked, PATIENCE))
    }

    fn know(&mut self, user: &User) -> Option<Stop> {
        self.heads.identity.extend_from_slice(user.lines().as_bytes());
        None
    }

    /// Has a helper compare a password with its hash, or says that there is no room for that.
    fn have_checked(&self, attempt: Try, limit: &Arc<Limit>, from: u64, guard: &Guard) {
        let (shared, times, asked) = (self.shared.clone(), guard.times.clone(), attempt.clone());
        let (own, kept) = (attempt.clone(), limit.clone());
        let tell = move |right| tell_checked(&shared, (&own, &kept, from), right, times.nanos(Instant::now()));
        if !self.shared.have_done(self.count(), Kind::Computes, move || asked.is_right(), tell) {
            tell_checked(&self.shared, (&attempt, limit, from), None, guard.times.nanos(self.time.now));
        }
    }

    /// Counts wrong credentials; what is said to an address that has shown too many.
    fn guessed(&self, guard: &Guard, address: Option<IpAddr>, now: u64) -> Option<Refusal> {
        let limit = guard.failures.as_ref()?;
        let Verdict::Refuse(wait) = limit.take(by_address(limit, address), &guessing(), now) else { return None };
        Some(self.too_often(limit, address, wait, now))
    }

    /// What is said to an address that has shown too many wrong credentials, and may show the next in so many nanoseconds.
    fn too_often(&self, limit: &Limit, address: Option<IpAddr>, wait: u64, now: u64) -> Refusal {
        let (policy, key) = (guessing(), by_address(limit, address));
        limit.note(key, &policy, Verdict::Refuse(wait), || self.shown_key(&policy, address, b""));
        too_many(&policy, wait, key ^ now >> 10)
    }

    fn count_identified(&self, stop: &Option<Stop>) {
        let counters = self.count();
        match stop {
            None => counters.auth_passed.add(1),
            Some(Stop::Refused(refusal)) if refusal.status == 503 => counters.auth_busy.add(1),
            Some(Stop::Refused(_)) => counters.auth_refused.add(1),
            Some(Stop::Later(..)) => {}
        }
    }

    fn key(&self, policy: &Policy, limit: &Limit, address: Option<IpAddr>, input: &[u8]) -> u64 {
        self.key_by(&policy.by, |bytes| limit.key(bytes), address, input)
    }

    fn key_by(&self, by: &By, hash: impl Fn(&[u8]) -> u64, address: Option<IpAddr>, input: &[u8]) -> u64 {
        match by {
            By::Address { v4, v6 } => hash(&network(address, *v4, *v6)),
            By::All => hash(b""),
            By::Field(name) => match self.heads.fields.find_name(input, name) {
                Some(value) => hash(value),
                None => hash(&network(address, 32, 64)),
            },
            // Of what an app has said only who it is: the rest may be another each time.
            By::User => match self.heads.user() {
                Some(line) => hash(line),
                None => hash(&network(address, 32, 64)),
            },
        }
    }

    /// With whom a request takes turns while it waits for a worker; `input` begins with its head.
    #[inline(always)]
    pub fn turn(&self, app: &App, sock: Sock, input: &[u8]) -> u64 {
        match &app.settings.queue.fair {
            None => 0,
            Some(by) => self.turn_by(by, app, sock, input),
        }
    }

    #[cold]
    fn turn_by(&self, by: &By, app: &App, sock: Sock, input: &[u8]) -> u64 {
        let address = self.address_of(sock);
        self.key_by(by, |bytes| app.dispatch.key(bytes), address, input)
    }

    /// The address of the client whose request is looked at.
    fn address_of(&self, sock: Sock) -> Option<IpAddr> {
        match self.table.role(sock) {
            _ if self.heads.origin.trusted => self.heads.origin.client,
            Role::Client(client) => client.arrival.peer.address(),
            _ => None,
        }
    }

    /// A key as the operator sees it. A field may hold a secret: of it only the beginning.
    #[cold]
    fn shown_key(&self, policy: &Policy, address: Option<IpAddr>, input: &[u8]) -> String {
        let address = || address.map_or_else(|| "unix".to_owned(), |address| address.to_string());
        match &policy.by {
            By::Address { .. } => address(),
            By::All => "all".to_owned(),
            By::User if !self.heads.identity.is_empty() => {
                let line = self.heads.identity.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let text = String::from_utf8_lossy(line);
                text.split_once(": ").map_or_else(String::new, |(_, user)| user.to_owned())
            }
            By::User => address(),
            By::Field(name) => self.heads.fields.find_name(input, name).map_or_else(address, |value| {
                let text = String::from_utf8_lossy(value);
                format!("{name}: {}…", text.chars().take(4).filter(|letter| !letter.is_control()).collect::<String>())
            }),
        }
    }

    /// Writes the answer to a request that does not come in.
    #[cold]
    fn turn_away(&mut self, input: &[u8], request: &Request, series: u16, refusal: &Refusal) -> Written {
        let mut lines = refusal.lines.clone().into_bytes();
        if !refusal.limited && !self.heads.quota.is_empty() {
            lines.extend_from_slice(b"\r\n");
            lines.extend_from_slice(self.heads.quota.trim_ascii_end());
        }
        let reply = Reply {
            format: reply::negotiate(request.accept.of(input)),
            keep_alive: self.keeps_alive(request),
            http10: request.version == Version::Http10,
            head_only: request.method == Method::Head,
            retry_after: refusal.retry_after,
            lines: &lines,
            ..Reply::new(refusal.status, refusal.detail, &self.time.day.date)
        };
        self.count().requests.add(1);
        self.count().errors.add(1);
        let edits = self.heads.route.and_then(|route| self.apps.routes.response(route));
        let reply = Reply { page: self.apps.page(&reply, edits.as_deref()), ..reply };
        let head_and_body = self.memory.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        self.counters.of_series(series).answered_here(refusal.status);
        let bytes = body_len(&head_and_body) as u64;
        Written { head_and_body, status: refusal.status, bytes }
    }
}

/// The guard of a route, the client's address, and what is known of the request.
type Asker<'a> = (&'a Rc<Guard>, Option<IpAddr>, Pass);

/// What is in a request's way.
enum Stop {
    Refused(Refusal),
    /// See [`Gate::Later`].
    Later(Pass, Duration),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}

/// Tells all who wait for what comes of a try from there, in whatever loop. What it has taken from the allowance of wrong ones is given back unless
/// it was wrong.
fn tell_checked(shared: &Shared, (attempt, limit, from): (&Try, &Limit, u64), right: Option<bool>, now: u64) {
    let give_back = || limit.give_back(from, &guessing());
    for ((index, sock), said) in shared.admission.checks.done(attempt, from, right, now, give_back) {
        shared.postboxes.post(index, Message::Checked(sock, said));
    }
}

/// The key of an address, and of IPv6 of the network that a provider gives to one customer, whatever a policy counts by.
fn by_address(limit: &Limit, address: Option<IpAddr>) -> u64 {
    limit.key(&network(address, 32, 64))
}

/// How long a check of a password may take with its place in line.
const PATIENCE: Duration = Duration::from_secs(20);
const FULL: &str = "as many requests as this route takes at once are under way: try again in a moment";
const NO_KEYS: &str = "the keys of tokens are not known yet: try again in a moment";
const BUSY: &str = "too many passwords wait to be checked: try again in a moment";

/// How many wrong credentials an address may show.
fn guessing() -> Policy {
    Policy::new("wrong credentials", Rate { count: 10, per: Duration::from_secs(60) })
}

/// The refusal of a limit, which lets the next one through in so many nanoseconds.
#[cold]
fn too_many(policy: &Policy, wait: u64, random: u64) -> Refusal {
    let seconds = wait.div_ceil(1_000_000_000).max(1);
    let lines = format!("\r\nRateLimit-Policy: {}\r\nRateLimit: \"{}\";r=0;t={seconds}", policy.field(), policy.name);
    let retry_after = Some(retry_after(wait, random));
    let limited = true;
    Refusal { status: policy.status, lines, retry_after, limited, ..Refusal::new("too many requests: slow down") }
}

/// Why a request does not come in.
struct Refusal {
    status: u16,
    detail: &'static str,
    /// Further lines of the head, each behind a line's end.
    lines: String,
    retry_after: Option<u32>,
    /// It tells of a limit.
    limited: bool,
}

impl Refusal {
    fn later(detail: &'static str) -> Refusal {
        Refusal { status: 503, retry_after: Some(1), ..Refusal::new(detail) }
    }

    fn new(detail: &'static str) -> Refusal {
        Refusal { status: 429, detail, lines: String::new(), retry_after: None, limited: false }
    }
}
