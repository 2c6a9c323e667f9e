//! Who gets in: the limit on the connections of all loops together.
//!
//! The limit is exact: a connection is let in by [`Admission::enter`], and one that was accepted beyond it waits, unread
//! and bounded by what one turn accepts, until another leaves. Above fifteen sixteenths of the limit each newcomer takes the
//! place of the connection that has been idle longest, and for [`FRESH`] at least: in a burst of newcomers those who have not asked yet are
//! not idle, and those who ask again and again are, for a moment. While somebody waits and none is idle at all, none is kept after its
//! answer. So idle ones never keep anybody out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::access::Checks;
use crate::backends::{Backend, How, Peer, Sock, TAKEN_AHEAD};
use crate::buffers::slots::Key;
use crate::buffers::wheel::{Look, nanos};
use crate::config::{Front, ListenAddress};
use crate::limits::Crowd;
use crate::log::Level;
use crate::mailbox::{Message, Wanted};
use crate::tls::Policy;

use super::{Arrival, Loop, Tolds};
use crate::connection::{Client, Role, State};
use crate::listener::ListenerSetup;

/// How long a request may be on its way to a process that has handed its work over: a client that keeps its connection busy asks again
/// within this time.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Who has been idle for less may just be asking again, and is closed for nobody.
const FRESH: Duration = Duration::from_millis(250);
/// How often place is looked for while somebody waits.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A listener of a loop. What it is stays as long as somebody is there whom it has let in.
pub(crate) struct Listener {
    /// [`Sock::NONE`]: it is closed.
    pub sock: Sock,
    /// See [`ListenerSetup::id`].
    pub id: u32,
    /// See [`ListenerSetup::asked`].
    pub asked: ListenAddress,
    /// The local port, for `X-Forwarded-Port`; 0 for a Unix socket.
    pub port: u16,
    /// What TLS demands there, where it is spoken.
    pub tls: Option<Arc<Policy>>,
    /// It serves the documents of the server's own and nothing else.
    pub admin: bool,
    /// What stands in front of it.
    pub front: Arc<Front>,
    /// Nobody in front is trusted, `Forwarded` is not written, and clients show no certificates.
    pub plain: bool,
}

/// Connections that admin listeners let in beyond the limit: a crowd of clients must not hide the server from its operator.
pub(crate) const ADMIN_PLACES: usize = 32;

/// A loop's listeners, and whether they let anybody in.
#[derive(Default)]
pub(crate) struct Accepting {
    pub listeners: Vec<Listener>,
    /// What trusted proxies say; `None` where no listener has any.
    pub tolds: Option<Box<Tolds>>,
    /// They are paused: for `max_connections`, or until another process hands its work over.
    paused: bool,
    /// A graceful stop has begun.
    pub draining: bool,
    /// In that stop those who watch the server are let in until there is nothing left to be seen ([`Message::CloseAdmin`]).
    watched: bool,
    /// It has begun in this turn: who is idle after the next one's events is closed. A request that came while this turn was under way, before
    /// the word to stop, is still to be read.
    pub dismisses: bool,
    /// Another process serves on the same sockets: in that stop nobody is sent away who may just be asking for something.
    handed_over: bool,
    /// This loop has its backend take no more ahead than there are places.
    scarce: bool,
    /// Accepted beyond the limit: the socket, the listener's index, the peer.
    waiting: VecDeque<(Sock, u16, Peer)>,
}

impl Accepting {
    /// Whether nobody is to be let in any more, `but_watchers` or not: the listeners have ended, and nobody whom they had accepted waits.
    pub fn is_over(&self, but_watchers: bool) -> bool {
        let is_closed =
            |listener: &Listener| listener.sock == Sock::NONE || (but_watchers && listener.admin && self.watched);
        self.draining && self.waiting.is_empty() && self.listeners.iter().all(is_closed)
    }

    /// Whether a client came by a listener for those who watch the server.
    fn is_watcher(&self, client: &Client) -> bool {
        self.listeners[client.listener as usize].admin
    }

    /// Closes the listeners for those who watch that a stop has left open; whether it has.
    pub fn close_admin(&mut self, backend: &mut impl Backend) -> bool {
        let watched = std::mem::take(&mut self.watched);
        if watched {
            self.listeners.iter().filter(|listener| listener.admin).for_each(|it| backend.close(it.sock, How::Now));
        }
        watched
    }

    /// The backend is done with a listener.
    pub fn listener_closed(&mut self, index: u16) {
        self.listeners[index as usize].sock = Sock::NONE;
    }
}

/// The bound on the connections of all loops together.
#[derive(Default)]
pub struct Admission {
    active: AtomicUsize,
    /// How many wait, in all loops.
    waiting: AtomicUsize,
    /// When place was looked for last, nobody was idle in any loop.
    crowded: AtomicBool,
    /// Some loop has paused its listeners.
    paused: AtomicBool,
    /// So few places are left that what backends take ahead might be more.
    scarce: AtomicBool,
    /// Who they are, as far as the connections of an address are limited.
    crowd: Crowd,
    /// Passwords that are being checked; the loops and the connections that wait for that.
    pub(super) checks: Checks<(u16, Sock)>,
}

impl Admission {
    /// Client connections that were let in and are open now, in all loops.
    pub fn active(&self) -> usize {
        // In one order with the flag, see `pause_accepting`.
        self.active.load(Ordering::SeqCst)
    }

    /// Whether somebody waits and nobody is idle.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && self.crowded.load(Ordering::Relaxed)
    }

    /// Lets one in, unless `limit` are: how many there are with it.
    fn enter(&self, limit: usize) -> Option<usize> {
        let entered = self
            .active
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |active| (active < limit).then_some(active + 1));
        entered.ok().map(|before| before + 1)
    }
}

/// What there was where an idle connection was to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    Closed,
    /// All were [fresh](FRESH).
    Fresh,
    Nobody,
}

impl<B: Backend> Loop<B> {
    /// A connection was accepted.
    pub fn accepted(&mut self, listener: u16, sock: Sock, peer: Peer) {
        let admin = self.accepting.listeners[listener as usize].admin;
        let drains = self.accepting.draining && !self.accepting.handed_over;
        if drains && !(admin && self.accepting.watched) {
            return self.backend.close(sock, How::Now);
        }
        let limit = self.apps.settings.bounds.connections + if admin { ADMIN_PLACES } else { 0 };
        let entered = self.shared.admission.enter(limit);
        self.look_at_places();
        match entered {
            Some(active) if active > limit - limit / 16 => {
                if active == limit {
                    self.want_places(1);
                } else {
                    self.close_longest_idle();
                }
                self.admit(sock, listener, peer);
            }
            Some(_) => self.admit(sock, listener, peer),
            // Nobody who waits is let in any more.
            None if drains => self.backend.close(sock, How::Now),
            None => {
                if self.accepting.waiting.is_empty() {
                    self.look_again();
                }
                self.accepting.waiting.push_back((sock, listener, peer));
                self.shared.admission.waiting.fetch_add(1, Ordering::SeqCst);
                self.want_places(1);
                self.pause_accepting();
            }
        }
    }

    /// Closes so many idle connections, of other loops where this one has fewer.
    fn want_places(&mut self, places: usize) {
        self.make_places(Wanted { places, loops: self.shared.postboxes.len() as u16 - 1, fresh: false });
    }

    /// The same as far as this loop can; the next one does the rest.
    pub fn make_places(&mut self, mut wanted: Wanted) {
        while wanted.places > 0 {
            match self.close_longest_idle() {
                Idle::Closed => wanted.places -= 1,
                found => {
                    wanted.fresh |= found == Idle::Fresh;
                    break;
                }
            }
        }
        if wanted.places > 0 && wanted.loops > 0 {
            wanted.loops -= 1;
            let next = (self.index + 1) % self.shared.postboxes.len() as u16;
            self.shared.postboxes.post(next, Message::CloseIdle(wanted));
        } else {
            self.shared.admission.crowded.store(wanted.places > 0 && !wanted.fresh, Ordering::Relaxed);
        }
    }

    /// Has [`Loop::look_for_places`] called in a while, by the timer of a listener.
    fn look_again(&mut self) {
        if let Some(listener) = self.accepting.listeners.iter().find(|listener| listener.sock != Sock::NONE) {
            self.time.connections.arm_after(listener.sock.index, LOOK_AGAIN);
        }
    }

    /// Some have waited a while, if they still do.
    pub fn look_for_places(&mut self) {
        if !self.accepting.waiting.is_empty() {
            self.look_again();
            self.want_places(self.accepting.waiting.len());
        }
    }

    /// Whether no connection stays that has nothing to do: a stop has begun, or somebody waits.
    #[inline]
    pub fn sends_away(&self) -> bool {
        (self.accepting.draining && !self.accepting.handed_over) || self.shared.admission.is_crowded()
    }

    /// How long a connection may wait for a request: `usual`, or in a handover as long as one takes that is on its way. Its answer then
    /// says that the connection closes, and the client comes back to the other process.
    #[inline]
    pub fn patience(&self, usual: Duration) -> Duration {
        if self.accepting.draining { usual.min(ON_ITS_WAY) } else { usual }
    }

    /// Who is idle is so for as long as is said now, from now on, where something else was said `before`: their deadlines tell who has been
    /// idle longest, and for how long.
    pub fn arm_idle(&mut self, before: Duration) {
        let idle = self.apps.settings.timeouts.idle;
        if idle == before {
            return;
        }
        let is_idle = |role: &Role| matches!(role, Role::Client(client) if client.is_idle() && client.requested);
        let socks: Vec<Sock> = self.table.roles().filter(|(_, role)| is_idle(role)).map(|(sock, _)| sock).collect();
        socks.into_iter().for_each(|sock| self.arm(sock, self.patience(idle)));
    }

    /// Closes the connection of this loop that has been idle longest.
    pub fn close_longest_idle(&mut self) -> Idle {
        let (table, backend) = (&mut self.table, &self.backend);
        // Idle since then, or before.
        let latest =
            self.time.nanos().saturating_sub(nanos(FRESH)).saturating_add(nanos(self.apps.settings.timeouts.idle));
        let mut found = Idle::Nobody;
        let idle = self.time.connections.first(|index, due| {
            let sock = table.at(index);
            match table.client(sock) {
                Some(client) if client.exchange != Key::NONE && !client.behind => Look::Disarm,
                Some(client) if client.is_idle() && client.requested && backend.unsent(sock) == 0 => {
                    if due <= latest {
                        return Look::Take;
                    }
                    found = Idle::Fresh;
                    Look::Stop
                }
                _ => Look::Pass,
            }
        });
        let Some(index) = idle else { return found };
        let sock = self.table.at(index);
        self.count().idle_closed.add(1);
        self.close_answered(sock, false);
        Idle::Closed
    }

    /// Whether one more connection may come from where a client has come from. Proxies that are trusted speak for many, and clients on
    /// Unix sockets have no address: neither is counted.
    #[inline]
    pub fn has_place(&mut self, sock: Sock) -> bool {
        self.apps.settings.bounds.connections_per_ip.is_none_or(|most| self.takes_place(sock, most))
    }

    #[cold]
    fn takes_place(&mut self, sock: Sock, most: u32) -> bool {
        let enters = self.is_counted_in(sock, most);
        if !enters {
            self.count().crowded_out.add(1);
            self.close_client(sock, How::Now);
        }
        enters
    }

    /// Counts those who are there when it begins to matter how many each address has open. Who still waits for its proxy's word comes in later.
    #[cold]
    pub fn count_those_there(&mut self) {
        let is_in = |client: &Client| {
            let front = &self.accepting.listeners[client.listener as usize].front;
            !client.entrance.counted && (client.state != State::Accepting || front.proxies.is_empty())
        };
        let is_in = |role: &Role| matches!(role, Role::Client(client) if is_in(client));
        let there: Vec<Sock> = self.table.roles().filter(|(_, role)| is_in(role)).map(|(sock, _)| sock).collect();
        for sock in there {
            self.is_counted_in(sock, u32::MAX);
        }
    }

    /// Counts a client by its address, if it is one of those that are; false where so many are there already.
    fn is_counted_in(&mut self, sock: Sock, most: u32) -> bool {
        let Some(client) = self.table.client(sock) else { return true };
        let trusted = &self.accepting.listeners[client.listener as usize].front.trusted;
        let address = client.arrival.peer.address();
        if client.admin || address.is_none() || trusted.contains(address) {
            return true;
        }
        client.entrance.counted = self.shared.admission.crowd.enter(address, most);
        client.entrance.counted
    }

    /// One connection less: whoever paused its listeners for the limit may accept again. `counted`: from where it came, if that is
    /// counted.
    pub fn departed(&mut self, counted: Option<Peer>) {
        if let Some(peer) = counted {
            self.shared.admission.crowd.leave(peer.address());
        }
        self.count().active_connections.decrement();
        let admission = &self.shared.admission;
        admission.active.fetch_sub(1, Ordering::SeqCst);
        if admission.paused.load(Ordering::SeqCst) && admission.paused.swap(false, Ordering::SeqCst) {
            self.shared.postboxes.broadcast(|| Message::Accept);
        }
    }

    fn pause_accepting(&mut self) {
        self.accepting.paused = true;
        for listener in self.accepting.listeners.iter().filter(|listener| !listener.admin) {
            self.backend.pause(listener.sock);
        }
        self.shared.admission.paused.store(true, Ordering::SeqCst);
        // A connection may have left between the count and the flag: then nobody else would wake this loop. Store and load here,
        // and count and load there, must not pass each other: hence one order for all of them.
        if self.shared.admission.active() < self.apps.settings.bounds.connections {
            self.resume_accepting();
        }
    }

    /// Has no more connections taken ahead than there are places for: what the kernel has brought and nobody has let in has a descriptor, too, and
    /// the reserve of those is for workers and for who asks how the server is.
    #[inline]
    pub fn look_at_places(&mut self) {
        let bounds = &self.apps.settings.bounds;
        let left = bounds.connections.saturating_add(bounds.spare).saturating_sub(self.shared.admission.active());
        if self.accepting.scarce || left < self.shared.postboxes.len() * TAKEN_AHEAD {
            self.share_places(left);
        }
    }

    #[cold]
    fn share_places(&mut self, left: usize) {
        let (admission, loops) = (&self.shared.admission, self.shared.postboxes.len());
        let plenty = loops * TAKEN_AHEAD;
        self.accepting.scarce = left < plenty + plenty / 8;
        if !self.accepting.scarce {
            admission.scarce.store(false, Ordering::Relaxed);
            return self.backend.accept_ahead(None);
        }
        // The other loops know of what they have let in themselves.
        if !admission.scarce.swap(true, Ordering::Relaxed) {
            self.shared.postboxes.broadcast(|| Message::FewPlaces);
        }
        self.backend.accept_ahead(Some(left / (loops * self.accepting.listeners.len().max(1))));
    }

    /// Lets those in who wait, and accepts again, as far as the limit allows.
    pub fn resume_accepting(&mut self) {
        if self.accepting.draining && !self.accepting.handed_over {
            return;
        }
        self.look_at_places();
        let limit = self.apps.settings.bounds.connections;
        while !self.accepting.waiting.is_empty() {
            if self.shared.admission.enter(limit).is_none() {
                // Whoever leaves next is to tell.
                return self.pause_accepting();
            }
            if let Some((sock, listener, peer)) = self.accepting.waiting.pop_front() {
                self.shared.admission.waiting.fetch_sub(1, Ordering::SeqCst);
                self.admit(sock, listener, peer);
            }
        }
        if std::mem::take(&mut self.accepting.paused) && !self.accepting.draining {
            for listener in &self.accepting.listeners {
                self.backend.resume(listener.sock);
            }
        }
    }

    /// In a stop: closes a connection between two requests, at once, or in a handover when none is on its way.
    pub fn drain_idle(&mut self, sock: Sock) {
        let is_watcher = |client: &mut Client| !client.requested && self.accepting.is_watcher(client);
        if self.accepting.watched && self.table.client(sock).is_some_and(is_watcher) {
            // Its first question is on its way, and is answered as long as anybody's is.
            return;
        }
        if self.sends_away() {
            self.close_answered(sock, false);
        } else if self.table.client(sock).is_some_and(|client| !client.behind) {
            self.arm(sock, self.patience(self.apps.settings.timeouts.idle));
        }
    }

    /// Opens listeners, also while this loop runs; those that a new configuration brings.
    ///
    /// # Errors
    /// When the kernel or the backend refuses one. Those before it are open.
    pub fn open_listeners(&mut self, setups: Vec<ListenerSetup>) -> std::io::Result<()> {
        if self.accepting.draining {
            return Ok(());
        }
        for ListenerSetup { id, asked, descriptor, port, tls, admin, front } in setups {
            let sock = self.backend.listen(descriptor)?;
            if self.accepting.paused && !admin {
                self.backend.pause(sock);
            }
            let trusts = !front.trusted.is_empty();
            let plain = !trusts && !front.writes_forwarded && tls.is_none();
            if trusts {
                self.accepting.tolds.get_or_insert_default();
            }
            let listener = Listener { sock, id, asked, port, tls, admin, front, plain };
            let index = self.vacant_listener();
            self.table.put(sock, Role::Listener(index as u16));
            match self.accepting.listeners.get_mut(index) {
                Some(place) => *place = listener,
                None => self.accepting.listeners.push(listener),
            }
        }
        self.look_at_places();
        Ok(())
    }

    /// The place of a listener that is closed and has left nobody, or a new one.
    fn vacant_listener(&mut self) -> usize {
        let mut left: Vec<bool> = self.accepting.listeners.iter().map(|listener| listener.sock == Sock::NONE).collect();
        if left.contains(&true) {
            for (_, role) in self.table.roles() {
                if let Role::Client(client) = role {
                    left[client.listener as usize] = false;
                }
            }
            self.accepting.waiting.iter().for_each(|(_, listener, _)| left[*listener as usize] = false);
        }
        left.iter().position(|left| *left).unwrap_or(left.len())
    }

    /// Closes a listener that is not configured any more. Whom the kernel has accepted already comes up before; connections stay.
    pub fn close_listener(&mut self, id: u32) {
        for listener in self.accepting.listeners.iter().filter(|listener| listener.id == id) {
            self.backend.close(listener.sock, How::Flushed);
        }
    }

    /// Accepts nobody until mail says so ([`Message::Accept`]).
    pub fn hold_listeners(&mut self) {
        self.accepting.paused = true;
        for listener in &self.accepting.listeners {
            self.backend.pause(listener.sock);
        }
    }

    /// Asks the kernel anew for clients that wait. io_uring's accepts are woken one at a time (and epoll's waits all): a wake that went to an
    /// accept which was being cancelled is lost for the others.
    pub fn accept_anew(&mut self) {
        if self.accepting.paused || self.accepting.draining {
            return;
        }
        for listener in &self.accepting.listeners {
            self.backend.pause(listener.sock);
            self.backend.resume(listener.sock);
        }
    }

    /// A graceful stop begins: no new connections, idle ones close, busy ones after their answer. `handed_over`: another process
    /// accepts on the same sockets. Else those who watch the server can see it drain, as long as somebody is there to say that this is over.
    pub fn stop_accepting(&mut self, handed_over: bool) {
        (self.accepting.draining, self.accepting.handed_over) = (true, handed_over);
        self.accepting.dismisses = true;
        let open = |listener: &Listener| listener.admin && listener.sock != Sock::NONE;
        let watched = !handed_over && self.shared.desk.is_attended() && self.accepting.listeners.iter().any(open);
        self.accepting.watched = watched;
        // Their names die, their ports are still told to workers for requests that come until the end.
        for listener in self.accepting.listeners.iter().filter(|listener| !(listener.admin && watched)) {
            // Who was accepted before the handover is served.
            self.backend.close(listener.sock, if handed_over { How::Flushed } else { How::Now });
        }
        if !handed_over {
            self.refuse_waiting();
        }
    }

    /// Whether a stop lets nobody in any more, and nobody is owed a word by hubs.
    #[inline]
    pub fn has_ended(&self) -> bool {
        self.accepting.is_over(false) && self.hubs.is_quiet()
    }

    /// Tells the supervisor once a stop has come so far that only those are left who watch the server.
    #[inline]
    pub fn note_drained(&self) {
        if self.accepting.draining && !self.counters.drained.load(Ordering::Relaxed) && self.is_drained() {
            self.counters.drained.store(true, Ordering::Release);
        }
    }

    #[cold]
    fn is_drained(&self) -> bool {
        let is_other = |role: &Role| matches!(role, Role::Client(client) if !self.accepting.is_watcher(client));
        let only_watchers = || self.accepting.watched && !self.table.roles().any(|(_, role)| is_other(role));
        self.accepting.is_over(true) && self.hubs.is_quiet() && (self.table.clients() == 0 || only_watchers())
    }

    /// Closes those who were accepted beyond the limit.
    pub fn refuse_waiting(&mut self) {
        for (sock, _, _) in std::mem::take(&mut self.accepting.waiting) {
            self.shared.admission.waiting.fetch_sub(1, Ordering::SeqCst);
            self.backend.close(sock, How::Now);
        }
    }

    /// No descriptor or memory was left for one more: the backend tries again in a moment.
    pub fn exhausted(&mut self, error: &std::io::Error) {
        self.count().accept_pauses.add(1);
        let fields: [(&str, &dyn std::fmt::Display); 1] = [("error", error)];
        self.shared.log.seldom(Level::Warn, "cannot accept connections for a moment", &fields);
    }

    fn admit(&mut self, sock: Sock, listener: u16, peer: Peer) {
        let (admin, port, front, tls) = match self.accepting.listeners.get(listener as usize) {
            Some(it) => (
                it.admin || it.front.tls.redirect_https.is_some(),
                it.port,
                !it.front.proxies.is_empty(),
                it.tls.is_some(),
            ),
            None => (false, 0, false, false),
        };
        self.table.put(sock, Role::Client(Client::new(listener, admin, Arrival::new(peer, port))));
        self.count().total_connections.add(1);
        self.count().active_connections.increment();
        self.count().moved(None, Some(State::Accepting));
        match (front, tls) {
            (false, _) if !self.has_place(sock) => {}
            (true, _) => self.await_proxy_header(sock, peer),
            (false, true) => self.begin_handshake(sock, None),
            (false, false) => self.await_first_request(sock),
        }
    }
}
