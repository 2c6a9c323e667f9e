//! The driver's handle: one [`World`] for the loops and the scripted peers of a run.
//!
//! A peer is a script that holds an [`End`] and moves when the driver lets it. All calls return at once; what cannot go on
//! now is `WouldBlock`. Time stands still unless the driver or a sleeping loop moves it.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::network::{End, Network, Place, Refusal, Trace};
use super::random::{Faults, Random};
use crate::buffers::slots::Key;

thread_local! {
    static CURRENT: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// A network in memory with its time and its chance. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct World(pub(super) Rc<RefCell<Network>>);

/// While this lives, [`super::Simulated`] backends that are opened on this thread belong to its world.
pub struct Entered(Option<World>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// A place where a scripted server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service(Key);

impl World {
    /// A world in which everything is drawn from `seed`, the faults' intensities included.
    pub fn new(seed: u64) -> World {
        let faults = Faults::draw(&mut Random::new(!seed));
        World::with_faults(seed, faults)
    }

    /// A world with chosen faults.
    pub fn with_faults(seed: u64, faults: Faults) -> World {
        World(Rc::new(RefCell::new(Network::new(seed, faults))))
    }

    /// Makes this the world of the backends that are opened on this thread from now on.
    pub fn enter(&self) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }

    pub(super) fn current() -> Option<World> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Changes the faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// From now on a loop's wait returns at once with or without events, and only the driver moves time. For a driver with
    /// several parties on one thread: a loop that slept would keep all others from moving.
    pub fn drive(&self) {
        self.0.borrow_mut().driven = true;
    }

    /// Where to write what happens, for the replay of a failing seed.
    pub fn trace_to(&self, trace: Trace) {
        self.0.borrow_mut().trace_to(Some(trace));
    }

    /// Adds a line of the driver's to the trace.
    pub fn note(&self, line: fmt::Arguments<'_>) {
        self.0.borrow_mut().note(line);
    }

    // --- Chance and time ---

    /// A number below `bound`; 0 for a bound of 0. Also how a driver chooses which party moves next.
    pub fn below(&self, bound: usize) -> usize {
        self.0.borrow_mut().random.below(bound)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&self, low: usize, high: usize) -> usize {
        self.0.borrow_mut().random.between(low, high)
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&self, per_mille: u32) -> bool {
        self.0.borrow_mut().random.chance(per_mille)
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.0.borrow().now
    }

    /// Moves time.
    pub fn advance(&self, by: Duration) {
        self.0.borrow_mut().now += by;
    }

    /// Moves time to the next instant at which anything can happen: bytes arrive, a loop wants to wake, or `other`, which is
    /// the scripts' own next deadline. False, and time stays, when nothing is to come.
    pub fn advance_to_next(&self, other: Option<Instant>) -> bool {
        let mut network = self.0.borrow_mut();
        let next = [network.next_arrival(), network.next_wake(), other];
        let Some(next) = next.into_iter().flatten().min() else { return false };
        network.now = network.now.max(next);
        network.activity += 1;
        true
    }

    /// Grows with everything that anybody does or notices. While it stands still over a round of all parties, only time can
    /// change something. A bell that nobody has heard yet counts as change.
    pub fn activity(&self) -> u64 {
        let mut network = self.0.borrow_mut();
        if network.any_bell() {
            network.activity += 1;
        }
        network.activity
    }

    /// Says that the driver has done something that a loop may have to notice, such as posting mail.
    pub fn touch(&self) {
        self.0.borrow_mut().activity += 1;
    }

    // --- Places ---

    /// A listening socket for [`crate::backends::Backend::listen`]. The descriptor stands for the place and is good for
    /// nothing else. Several at one address share its connections, as SO_REUSEPORT does.
    pub fn listener(&self, place: Place) -> io::Result<OwnedFd> {
        let descriptor = OwnedFd::from(File::open("/dev/null")?);
        let mut network = self.0.borrow_mut();
        let gate = network.open(place, 128);
        network.descriptors.insert(descriptor.as_raw_fd(), gate);
        Ok(descriptor)
    }

    /// Listens with a script at a Unix path.
    pub fn serve(&self, path: &Path, backlog: usize) -> Service {
        Service(self.0.borrow_mut().open(Place::Unix(path.to_owned()), backlog))
    }

    /// Listens with a script at a TCP address.
    pub fn serve_tcp(&self, address: SocketAddr, backlog: usize) -> Service {
        Service(self.0.borrow_mut().open(Place::Tcp(address), backlog))
    }

    /// The next connection that waits at a service.
    pub fn accept(&self, service: Service) -> Option<End> {
        self.0.borrow_mut().accept(service.0)
    }

    /// Whether connects to a service are refused from now on.
    pub fn refuse(&self, service: Service, refusing: bool) {
        self.0.borrow_mut().refuse(service.0, refusing);
    }

    /// Ends a service: connects find nobody, and connections that waited are reset. Returns what each of these had sent.
    pub fn stop(&self, service: Service) -> Vec<Vec<u8>> {
        self.0.borrow_mut().shut_down(service.0)
    }

    /// What the death of a server process does: the service ends, and so do all its connections, with a reset where bytes
    /// were left unread. Returns for each connection what nobody has read of it.
    pub fn kill(&self, service: Service, connections: &[End]) -> Vec<Vec<u8>> {
        let mut unread = self.stop(service);
        let mut network = self.0.borrow_mut();
        unread.extend(connections.iter().map(|end| network.close(*end, false)));
        unread
    }

    // --- A peer's end of a connection ---

    /// Connects a script to a place. Bytes can be written at once; a refusal is an error, also a full backlog (`WouldBlock`).
    pub fn connect(&self, place: &Place) -> io::Result<End> {
        match self.0.borrow_mut().connect(place) {
            Ok((end, _)) => Ok(end),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::BacklogFull) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Sends a part of `bytes`, at least one.
    pub fn write(&self, end: End, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(end, bytes)
    }

    /// Receives at most `most` bytes behind those in `into`; `Ok(0)` at the end.
    pub fn read(&self, end: End, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        let start = into.len();
        let mut network = self.0.borrow_mut();
        into.resize(start + most.min(network.held(end)).max(1), 0);
        let result = network.read(end, &mut into[start..]);
        into.truncate(start + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// Whether a read would bring something: bytes, the end, or an error.
    pub fn is_readable(&self, end: End) -> bool {
        self.0.borrow_mut().is_readable(end)
    }

    /// Finishes sending.
    pub fn finish(&self, end: End) {
        self.0.borrow_mut().shut(end);
    }

    /// Closes the end; with bytes unread, that is a reset. Returns these bytes.
    pub fn close(&self, end: End) -> Vec<u8> {
        self.0.borrow_mut().close(end, false)
    }

    /// Closes the end with a reset. Returns the bytes that were not read.
    pub fn reset(&self, end: End) -> Vec<u8> {
        self.0.borrow_mut().close(end, true)
    }

    /// Whether this end was not closed yet by its own side.
    pub fn is_open(&self, end: End) -> bool {
        self.0.borrow().is_open(end)
    }

    /// Whether the other side has not closed its end yet.
    pub fn other_is_open(&self, end: End) -> bool {
        self.0.borrow().is_open(end.other())
    }

    /// Whether the other side will send no more, and may still receive.
    pub fn other_has_finished(&self, end: End) -> bool {
        self.0.borrow().has_finished(end.other())
    }

    // --- Leak checks ---

    /// Connections of which at least one end is open, those in backlogs included.
    pub fn live(&self) -> usize {
        self.0.borrow().connections()
    }

    /// Whether no connection is open and nobody listens any more.
    pub fn quiescent(&self) -> bool {
        let network = self.0.borrow();
        network.connections() == 0 && network.gates() == 0 && network.descriptors.is_empty()
    }
}
