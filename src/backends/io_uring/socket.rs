//! What the backend keeps of a socket, and the plain system calls on it.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use socket2::SockAddr;

use super::super::closing::Facts;
use super::super::flags::Flagged;
use super::super::{Peer, Size};
use super::messages::NO_MESSAGE;
use crate::buffers::block::Share;
use crate::buffers::outbox::Outbox;

/// A receive is armed in the kernel.
pub(super) const ARMED: u32 = 1 << 0;
/// A receive waits for a block.
pub(super) const PARKED: u32 = 1 << 1;
/// A receive is to be armed at the end of the turn, or once the socket is connected.
pub(super) const WANTED: u32 = 1 << 2;
/// The receive is to fill a large block.
pub(super) const LARGE: u32 = 1 << 3;
/// The last receive left nothing behind, so that the next one may wait before it tries.
pub(super) const EMPTIED: u32 = 1 << 4;
/// The peer has finished sending.
pub(super) const ENDED: u32 = 1 << 5;
/// A receive has failed.
pub(super) const RECEIVE_FAILED: u32 = 1 << 6;
/// A send is in flight.
pub(super) const SENDING: u32 = 1 << 7;
/// The socket stands in the list of those with something to send.
pub(super) const DIRTY: u32 = 1 << 8;
/// The kernel's send buffer was full: there is to be room before the next send.
pub(super) const BLOCKED: u32 = 1 << 9;
/// The kernel has taken less than it was offered, and the outbox was not empty since: nothing in it lies in the pool.
pub(super) const BEHIND: u32 = 1 << 10;
/// A send has failed.
pub(super) const SEND_FAILED: u32 = 1 << 11;
/// The sending half is to be shut once the outbox is empty.
pub(super) const FINISH: u32 = 1 << 12;
/// The sending half is shut.
pub(super) const FINISHED: u32 = 1 << 13;
/// The connect is in flight.
pub(super) const CONNECTING: u32 = 1 << 14;
/// The connect has failed.
pub(super) const UNCONNECTED: u32 = 1 << 15;
/// We have connected to it: its receives draw from the workers' share.
pub(super) const WORKER: u32 = 1 << 16;
/// Its owner has closed it; only `Close` may follow.
pub(super) const CLOSING: u32 = 1 << 17;
/// The close is a flushed one, which goes on.
pub(super) const FLUSHED: u32 = 1 << 18;
/// All of it is sent; what still comes is discarded until the peer's end.
pub(super) const LINGERING: u32 = 1 << 19;
/// The close is to look like a failure to the peer.
pub(super) const RESET: u32 = 1 << 20;
/// The operations in flight were told to end.
pub(super) const ENDING: u32 = 1 << 21;
/// It is a listener.
pub(super) const LISTENER: u32 = 1 << 22;
/// It was closed with a receive armed, at which nothing has come since, and `finish` not called.
pub(super) const EXPECTS_NO_INPUT: u32 = 1 << 23;
/// Nothing is in flight any more, and its `Close` waits to be told. Its place is not given to another before that, for those above
/// free theirs at the `Close`.
pub(super) const GONE: u32 = 1 << 24;
/// `Drain` is to follow the next progress.
pub(super) const AWAITS_ROOM: u32 = 1 << 25;
/// The last receive filled its block: it is in the middle of a long transfer.
pub(super) const BULK: u32 = 1 << 26;
/// A poll for room in the kernel's send buffer is in flight.
pub(super) const POLLING: u32 = 1 << 27;

/// One socket or listener; 40 bytes.
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) flags: u32,
    pub(super) outbox: Outbox,
    /// Bytes that the kernel has taken.
    pub(super) sent: u64,
    /// Bytes offered to the kernel by the send in flight.
    pub(super) offered: u32,
    /// The message of the send in flight, if it has one.
    pub(super) message: u32,
}

impl Flagged for Socket {
    #[inline]
    fn flags(&self) -> u32 {
        self.flags
    }

    #[inline]
    fn flags_mut(&mut self) -> &mut u32 {
        &mut self.flags
    }
}

impl Socket {
    pub(super) fn new(fd: OwnedFd, flags: u32) -> Socket {
        Socket { fd, flags, outbox: Outbox::default(), sent: 0, offered: 0, message: NO_MESSAGE }
    }

    /// Clears the flags and says whether one of them was set.
    #[inline]
    pub(super) fn replace(&mut self, flags: u32) -> bool {
        let was = self.is(flags);
        self.clear(flags);
        was
    }

    pub(super) fn share(&self) -> Share {
        if self.is(WORKER) { Share::Worker } else { Share::Client }
    }

    pub(super) fn size(&self) -> Size {
        if self.is(LARGE) { Size::Large } else { Size::Small }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether an operation of the kernel still refers to the socket.
    pub(super) fn is_busy(&self) -> bool {
        self.is(ARMED | SENDING | POLLING | CONNECTING)
    }

    /// Whether bytes may still be sent.
    pub(super) fn can_send(&self) -> bool {
        !self.is(SEND_FAILED | UNCONNECTED | CLOSING | FINISHED | LISTENER)
    }

    /// Whether a receive may be armed.
    pub(super) fn can_receive(&self) -> bool {
        !self.is(ARMED | PARKED | WANTED | ENDED | RECEIVE_FAILED | UNCONNECTED | LISTENER)
    }

    /// What a close has to know of it.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            connected: !self.is(CONNECTING),
            unsent: self.is(SENDING) || !self.outbox.is_empty(),
            send_failed: self.is(SEND_FAILED | UNCONNECTED),
            input_over: self.is(ENDED | RECEIVE_FAILED),
            lingering: self.is(LINGERING),
        }
    }

    /// Whether a close may take it that nothing more comes. A receive that only was to be armed has seen nothing; but the one before
    /// it has, if it left nothing behind.
    pub(super) fn expects_no_input(&self) -> bool {
        let read_whole = !self.is(ARMED | PARKED) && self.is(EMPTIED);
        self.is(EXPECTS_NO_INPUT) && (read_whole || !self.has_unread_input())
    }

    /// shutdown(2) of the given halves. A peer that is gone already is no error of ours.
    pub(super) fn shut(&self, halves: libc::c_int) {
        // SAFETY: the descriptor is open as long as the socket is.
        unsafe { libc::shutdown(self.raw(), halves) };
    }

    /// Whether received bytes lie in the kernel that nobody has read.
    fn has_unread_input(&self) -> bool {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, which outlives the call.
        let result = unsafe { libc::ioctl(self.raw(), libc::FIONREAD, &mut bytes) };
        result == 0 && bytes > 0
    }

    /// Makes close(2) send an RST on TCP.
    pub(super) fn close_with_reset(&self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        set_option(self.raw(), libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }
}

/// setsockopt(2); an option that does not fit the socket's family is left alone.
pub(super) fn set_option<T: Copy>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) {
    // SAFETY: the value outlives the call, and its size is passed with it.
    unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t) };
}

/// The pending error of a socket (SO_ERROR), or 0.
pub(super) fn take_error(fd: RawFd) -> i32 {
    let mut error: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both places outlive the call, and the length is that of the value.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut len) };
    if result < 0 { errno() } else { error }
}

/// The calling thread's last error number.
pub(super) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// The address at the other end, or `None` when the peer is gone already.
pub(super) fn peer(fd: RawFd) -> Option<Peer> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the storage is as large as the length says, and both outlive the call.
    if unsafe { libc::getpeername(fd, storage.as_mut_ptr().cast(), &mut len) } < 0 {
        return None;
    }
    // SAFETY: getpeername has written the family at least.
    let family = unsafe { (*storage.as_ptr()).ss_family };
    match libc::c_int::from(family) {
        libc::AF_INET => {
            // SAFETY: the family says which address getpeername has written.
            let address = unsafe { &*storage.as_ptr().cast::<libc::sockaddr_in>() };
            let ip = IpAddr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some(Peer { ip, port: u16::from_be(address.sin_port), unix: false })
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which address getpeername has written.
            let address = unsafe { &*storage.as_ptr().cast::<libc::sockaddr_in6>() };
            let ip = IpAddr::from(address.sin6_addr.s6_addr).to_canonical();
            Some(Peer { ip, port: u16::from_be(address.sin6_port), unix: false })
        }
        _ => Some(Peer::UNIX),
    }
}

/// Whether the socket is of the Unix family.
pub(super) fn is_unix(fd: RawFd) -> bool {
    let mut domain: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both places outlive the call, and the length is that of the value.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &raw mut len) };
    result == 0 && domain == libc::AF_UNIX
}

/// Takes O_NONBLOCK away: on a non-blocking socket io_uring answers EAGAIN where it should wait.
pub(super) fn make_blocking(fd: RawFd) -> io::Result<()> {
    let mut off: libc::c_int = 0;
    // SAFETY: FIONBIO reads one int, which outlives the call.
    if unsafe { libc::ioctl(fd, libc::FIONBIO, &mut off) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a connect has begun.
pub(super) enum Started {
    Connected,
    InProgress,
    /// The Unix socket's backlog is full.
    Full,
    Refused(io::Error),
}

/// Opens a socket and starts to connect it. An error means that there was no descriptor.
pub(super) fn start_connect(address: &SockAddr) -> io::Result<(OwnedFd, Started)> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(libc::c_int::from(address.family()), kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if !address.is_unix() {
        set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &(1 as libc::c_int));
    }
    // SAFETY: the address outlives the call, and its length is its own.
    let result = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len()) };
    let started = if result == 0 {
        Started::Connected
    } else {
        match errno() {
            libc::EAGAIN => Started::Full,
            libc::EINPROGRESS | libc::EINTR => Started::InProgress,
            error => Started::Refused(io::Error::from_raw_os_error(error)),
        }
    };
    make_blocking(fd.as_raw_fd())?;
    Ok((fd, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_stays_small() {
        assert!(size_of::<Option<Socket>>() <= 48, "{}", size_of::<Option<Socket>>());
    }
}
