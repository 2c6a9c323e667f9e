//! The backend: what a loop asks of the kernel, in the shape of completions.
//!
//! One trait, two real implementations and one for tests:
//!
//! - `readiness`: epoll on Linux, kqueue on macOS and the BSDs, through mio;
//! - `io_uring`: completions on Linux;
//! - `simulated`: a seeded network in memory, for tests.
//!
//! Rules of the contract, which one conformance suite checks against every backend that is compiled:
//!
//! - At most one receive and one send are in flight per socket. [`Backend::recv`] arms one receive; sends gather.
//! - A call on a dead name does nothing and answers 0.
//! - Everything queued in a turn leaves at the next [`Backend::wait`], in one gathered send per socket and batch.
//! - Short writes, starved block pools, EAGAIN and EMFILE are the backend's affair. Who has to act on one is told: by
//!   [`Event::Full`], [`Backend::is_starved`], [`Event::Exhausted`].
//! - A block of the pool never waits for a peer. A peer is behind from the moment when the kernel takes less than it was offered
//!   until its outbox is empty. What is queued then, and whatever is queued while it lasts or before the connect has ended, is moved
//!   to the heap and charged to the budget.
//! - [`Event::Close`] comes exactly once for every socket that was closed, and nothing comes after it. A socket that
//!   failed or ended is still open until its owner closes it.
//! - Events own what they carry and borrow nothing.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::SockAddr;

pub use crate::buffers::block::Size;
use crate::buffers::block::{Block, Census, Pool};
pub use crate::buffers::outbox::Piece;
pub(crate) use progress::Progress;

mod closing;
mod flags;
#[cfg(backend_io_uring)]
pub mod io_uring;
mod progress;
#[cfg(backend_readiness)]
pub mod readiness;
mod shortage;
pub mod simulated;

/// The name of a socket or listener in its backend: entry and life. Valid from the event or call that brought it until
/// its [`Event::Close`].
pub type Sock = crate::buffers::slots::Key;

/// An outbox with more unsent bytes than this holds enough: who fills it should ask for room ([`Backend::await_room`]) first.
pub const HIGH_MARK: usize = 64 * 1024;
/// How much of long transfers, those whose last receive filled its block or whose peer is behind, is moved in one turn and direction,
/// in bytes: whoever wants a little never waits behind thousands that want a lot. What is left has its turn in the next ones.
pub const BULK_BYTES: usize = 256 * 1024;
/// Bytes of files that all of them are sent in a turn at most ([`Backend::send_file`]).
pub const FILES_A_TURN: u64 = 4 * BULK_BYTES as u64;
/// Connections taken from one listener in one turn at most, so that accepts never starve requests.
pub const ACCEPT_BATCH: usize = 32;

/// Connections that a backend may take from the kernel before their turn where places are plenty ([`Backend::accept_ahead`]): what comes
/// within a turn or two.
pub const TAKEN_AHEAD: usize = 4096;

/// Who is at the other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address; the loopback address for a Unix socket's peer.
    pub ip: IpAddr,
    /// The port; 0 for a Unix socket's peer.
    pub port: u16,
    /// Whether it came over a Unix socket.
    pub unix: bool,
}

impl Peer {
    /// The peer of a connection over a Unix socket.
    pub const UNIX: Peer = Peer { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 0, unix: true };

    /// The address, which a Unix socket's peer has none of.
    #[inline]
    pub fn address(self) -> Option<IpAddr> {
        (!self.unix).then_some(self.ip)
    }
}

/// Which half of a socket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It never got connected. Only `close` makes sense now.
    Connect,
    /// A receive failed: no more bytes will come. Sends may go on.
    Receive,
    /// A send failed: what was queued is dropped and [`Backend::send`] does nothing from now on. Receives go on: an early
    /// answer may be waiting.
    Send,
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// At once; what is unsent is dropped.
    Now,
    /// Once the outbox is empty, with a FIN; a peer that acknowledges nothing of it for [`Options::stall`] is cut with a reset. Bytes
    /// that arrive meanwhile are discarded. When input may be left unread, the write side is shut first and input is discarded until the peer ends or [`Options::linger`] is over, so that the
    /// peer can read the answer and does not lose it to a reset (RFC 9112 §9.6). No input is left after End; and an armed
    /// receive at which nothing has come says that all was read and no more is expected, unless [`Backend::finish`] was
    /// called before: then it lingers in any case. The last bytes may leave together with the FIN; so where none is expected,
    /// input that arrives in the very moment of the close costs the peer the answer.
    Flushed,
    /// At once and with an RST (SO_LINGER 0 on TCP), so that a cut answer does not look whole.
    Reset,
}

/// What happened to a socket. All owned.
#[derive(Debug)]
pub enum Event {
    /// A listener has a new connection. No receive is armed yet.
    Accept {
        /// Which listener.
        listener: Sock,
        /// The new connection.
        sock: Sock,
        /// Its other end, read at accept.
        peer: Peer,
    },
    /// A connect has succeeded.
    Connect {
        /// Which socket.
        sock: Sock,
    },
    /// The armed receive is done: at least one byte. No receive is armed now. At most one per socket and turn.
    Receive {
        /// Which socket.
        sock: Sock,
        /// The bytes.
        block: Block,
    },
    /// The peer has finished sending; comes once, in place of a receive.
    End {
        /// Which socket.
        sock: Sock,
    },
    /// The kernel has taken less than it was offered: the peer is behind, and what waits for it lies on the heap, charged to the
    /// budget. Told once until the outbox is empty again; and of a file that is sent from where it lies.
    Full {
        /// Which socket.
        sock: Sock,
    },
    /// The answer to [`Backend::await_room`]: the kernel has taken more of the outbox since, or nothing waits in it.
    Drain {
        /// Which socket.
        sock: Sock,
    },
    /// One half failed; each half fails at most once.
    Fail {
        /// Which socket.
        sock: Sock,
        /// Which half.
        side: Side,
        /// Why.
        error: io::Error,
    },
    /// Nothing is in flight any more; the name is dead.
    Close {
        /// Which socket.
        sock: Sock,
    },
    /// Accepting has failed for lack of descriptors or memory, or for good, and rests; it is tried again by itself, after
    /// [`Options::accept_retry`] each time. Told once until a connection was accepted again.
    Exhausted {
        /// Which listener.
        listener: Sock,
        /// Why.
        error: io::Error,
    },
    /// The bell was rung.
    Wake,
}

impl Event {
    /// The socket that it is about; for [`Event::Accept`] the new one, for [`Event::Exhausted`] the listener, and
    /// [`Sock::NONE`] for [`Event::Wake`].
    pub fn sock(&self) -> Sock {
        match self {
            Event::Accept { sock, .. }
            | Event::Connect { sock }
            | Event::Receive { sock, .. }
            | Event::End { sock }
            | Event::Full { sock }
            | Event::Drain { sock }
            | Event::Fail { sock, .. }
            | Event::Close { sock }
            | Event::Exhausted { listener: sock, .. } => *sock,
            Event::Wake => Sock::NONE,
        }
    }
}

/// Wakes a loop from another thread.
pub trait Bell: Clone + Send + Sync + 'static {
    /// Makes the loop's [`Backend::wait`] return soon with an [`Event::Wake`]. Rings may be merged.
    fn ring(&self);
}

/// What a backend needs to know at its start.
#[derive(Clone)]
pub struct Options {
    /// Sockets and listeners alive at once, at most. Room for all is reserved and not touched.
    pub max_sockets: usize,
    /// The loop's receive memory.
    pub pool: Pool,
    /// How long a [`How::Flushed`] close waits for a peer that acknowledges nothing while bytes are still to be sent, counted from
    /// the last progress, and never shorter. Then the rest is cut, with a reset.
    pub stall: Duration,
    /// How long it waits, once all is sent, for the peer to stop sending.
    pub linger: Duration,
    /// For how long accepting stays paused after EMFILE or ENFILE before it is tried again.
    pub accept_retry: Duration,
}

/// What has become of bytes of a file ([`Backend::send_file`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// So many have left. [`Event::Drain`] follows when there is room for more, unless the sending half has failed.
    Sent(u64),
    /// The file has none there any more.
    Ended,
    /// They have to be read, and sent as pieces: they are not in memory, or this backend cannot.
    Unable,
}

/// One loop's access to its sockets. See the module for the contract.
pub trait Backend: Sized {
    /// Wakes this backend.
    type Bell: Bell;

    /// Opens the backend, on the loop's own thread. An error says that the kernel refuses it.
    fn new(options: Options) -> io::Result<Self>;

    /// A handle to wake this loop with.
    fn bell(&self) -> Self::Bell;

    /// The time, sampled once per wait.
    fn now(&self) -> Instant;

    /// Starts to accept on a bound, listening TCP or Unix socket. In the ordinary case accepted sockets get TCP_NODELAY by
    /// inheritance from the listener (Linux) or are given it.
    fn listen(&mut self, listener: OwnedFd) -> io::Result<Sock>;

    /// [`Options::stall`], for closes that begin from now on.
    fn set_stall(&mut self, stall: Duration);

    /// Stops accepting until [`Backend::resume`]. Accepts already brought by the kernel may still arrive.
    fn pause(&mut self, listener: Sock);

    /// Accepts again.
    fn resume(&mut self, listener: Sock);

    /// How many connections a backend may take from the kernel at each listener before their turn, one at least; `None`: as many as come, and
    /// up to [`TAKEN_AHEAD`] of all listeners together. Each has a descriptor that nobody else counts. Where a turn accepts what it brings up
    /// and no more, there is nothing to be bounded.
    fn accept_ahead(&mut self, _most: Option<usize>) {}

    /// Starts a connection to a TCP or Unix address. `Connect` or `Fail` follows; sends may be queued at once and leave when
    /// it is connected. `None`: the Unix socket's backlog is full (EAGAIN), ask again later. An error means that no
    /// descriptor or no entry was left here; it says nothing about the other side, whose refusals arrive as `Fail`.
    /// Receives on a connected socket take blocks from the workers' share.
    fn connect(&mut self, address: &SockAddr) -> io::Result<Option<Sock>>;

    /// Arms one receive into a block of that size, or into a small one when no large one is free; idempotent while one is
    /// armed. Does nothing after End or a failed receive. Before `Connect` it is kept until then.
    fn recv(&mut self, sock: Sock, size: Size);

    /// Queues a piece; it leaves at the end of the turn.
    fn send(&mut self, sock: Sock, piece: Piece);

    /// Sends bytes of a file from where the kernel has them in memory, behind what is queued: they are not copied, and never waited for. At most
    /// [`BULK_BYTES`] at a time, and [`FILES_A_TURN`] for all in a turn.
    fn send_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed;

    /// Bytes queued that the kernel has not taken yet; of an accepted socket whose sending half has failed, until it is closed, those that it
    /// never will.
    fn unsent(&self, sock: Sock) -> usize;

    /// Whether the peer has not taken all that it was offered since [`Event::Full`] has told so: what is queued, or bytes of a file.
    fn is_behind(&self, sock: Sock) -> bool;

    /// Bytes that the kernel has taken since the socket was opened, as far as is known here.
    fn sent(&self, sock: Sock) -> u64;

    /// Bytes that the kernel was given since the socket was opened: those of [`Backend::sent`], and those of a send in flight,
    /// which may have left although nobody has been told. Decides retries: what was not offered has not been delivered.
    fn offered(&self, sock: Sock) -> u64 {
        self.sent(sock)
    }

    /// Bytes that the peer has acknowledged since the socket was opened: write progress, which the kernel's own buffers hide from
    /// [`Backend::sent`] for as long as the peer needs for some megabytes. On Linux what was sent without what the kernel still
    /// holds, which on a Unix socket counts with its bookkeeping: never too much, and it may go back when more is sent. Elsewhere
    /// what was sent. Costs a system call.
    fn acknowledged(&self, sock: Sock) -> u64;

    /// Bytes that the kernel has taken since the start from all accepted sockets, as far as is known here; those that we connected do
    /// not count.
    fn taken(&self) -> u64;

    /// Asks for one [`Event::Drain`]: it follows once the kernel has taken more of what is queued, or in the next turn when nothing
    /// waits. Idempotent until then. None follows when the sending half fails, or after a close.
    fn await_room(&mut self, sock: Sock);

    /// Whether an armed receive waits for a block of the pool: then silence is not the peer's.
    fn is_starved(&self, sock: Sock) -> bool;

    /// Shuts the sending half once the outbox is empty.
    fn finish(&mut self, sock: Sock);

    /// Closes; exactly one [`Event::Close`] follows, in a later turn's events or in this one's. A second call can only make it
    /// harsher (`Flushed` to `Now` or `Reset`). A listener that is closed with `Flushed` first brings up whom the kernel has accepted already.
    fn close(&mut self, sock: Sock, how: How);

    /// Sends what is queued, then sleeps until something happens or the timeout is over. `None` sleeps without end;
    /// zero only polls.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next event of this turn; never sleeps. `None` ends the turn.
    fn next(&mut self) -> Option<Event>;

    /// Sockets and listeners alive, for limits and leak checks.
    fn live(&self) -> usize;

    /// Counts the blocks of the pool that it holds now: those with pieces that were not tried yet or are in flight, with receives
    /// that were not told yet, and, where the kernel chooses a block itself, those that lie ready for it. Any other that is out is
    /// its loop's to account for. For checks of invariants: looks at everything.
    fn count_blocks(&self, census: &mut Census);
}
