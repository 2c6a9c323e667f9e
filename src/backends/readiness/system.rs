//! The system calls of the readiness backend, each in one safe function. None of them but the wait blocks, and none raises SIGPIPE.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use mio::{Interest, Poll, Token};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::backends::{Peer, Sock};
use crate::buffers::block::Block;

/// Flags of every send: where the platform has no MSG_NOSIGNAL, SO_NOSIGPIPE is set on the socket.
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: libc::c_int = 0;
/// Added to the last send before a FIN: the bytes wait for it and leave in the same segment, which spares both ends a
/// packet (tcp(7), send(2)). Elsewhere they leave at once.
#[cfg(target_os = "linux")]
const BEFORE_FIN: libc::c_int = libc::MSG_MORE;
#[cfg(not(target_os = "linux"))]
const BEFORE_FIN: libc::c_int = 0;

/// Takes one connection, non-blocking and closed on exec, with the address of its other end.
pub(super) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Peer)> {
    // SAFETY: accept fills the storage with an address of the length that it writes, or fails.
    let (accepted, address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let descriptor = accept_raw(listener, storage.cast(), len);
            if descriptor < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(descriptor)) }
        })?
    };
    // The options fail only on a connection that is gone again.
    prepare(&accepted).map_err(|_| io::Error::from_raw_os_error(libc::ECONNABORTED))?;
    let peer = address.as_socket().map_or(Peer::UNIX, |socket| Peer {
        ip: socket.ip().to_canonical(),
        port: socket.port(),
        unix: false,
    });
    if cfg!(not(target_os = "linux")) && !peer.unix {
        // Linux inherits it from the listener.
        let outcome = SockRef::from(&accepted).set_tcp_nodelay(true);
        outcome.map_err(|_| io::Error::from_raw_os_error(libc::ECONNABORTED))?;
    }
    Ok((accepted, peer))
}

#[cfg(not(target_vendor = "apple"))]
fn accept_raw(listener: BorrowedFd<'_>, address: *mut libc::sockaddr, len: *mut libc::socklen_t) -> libc::c_int {
    // SAFETY: both pointers come from `SockAddr::try_init`, which keeps them valid for this call.
    unsafe { libc::accept4(listener.as_raw_fd(), address, len, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) }
}

#[cfg(target_vendor = "apple")]
fn accept_raw(listener: BorrowedFd<'_>, address: *mut libc::sockaddr, len: *mut libc::socklen_t) -> libc::c_int {
    // SAFETY: both pointers come from `SockAddr::try_init`, which keeps them valid for this call.
    unsafe { libc::accept(listener.as_raw_fd(), address, len) }
}

/// What accept4 and socket types do not do everywhere.
#[cfg(not(target_vendor = "apple"))]
fn prepare(_socket: &OwnedFd) -> io::Result<()> {
    Ok(())
}

#[cfg(target_vendor = "apple")]
fn prepare(socket: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(true)?;
    socket.set_cloexec(true)?;
    socket.set_nosigpipe(true)
}

/// How a connect began.
pub(super) enum Connecting {
    /// It is done.
    Connected(OwnedFd),
    /// The answer comes as writability.
    Started(OwnedFd),
    /// The Unix socket's backlog is full.
    Full,
    /// The other side refused at once.
    Refused(OwnedFd, io::Error),
}

/// Opens a socket and starts to connect it. An error says that there is no descriptor or no memory for one.
pub(super) fn connect(address: &SockAddr) -> io::Result<Connecting> {
    let socket = new_socket(address.domain())?;
    if !address.is_unix() {
        socket.set_tcp_nodelay(true)?;
    }
    let outcome = socket.connect(address);
    let socket = OwnedFd::from(socket);
    Ok(match outcome {
        Ok(()) => Connecting::Connected(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Connecting::Started(socket),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Connecting::Full,
        Err(error) => Connecting::Refused(socket, error),
    })
}

#[cfg(not(target_vendor = "apple"))]
fn new_socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), None)
}

#[cfg(target_vendor = "apple")]
fn new_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// recv(2) past the C library, whose wrapper is a cancellation point: with threads that costs it twice as many instructions
/// as the call itself.
///
/// # Safety
/// `place` must be good for `room` bytes.
#[cfg(target_os = "linux")]
#[inline]
unsafe fn recv_raw(descriptor: libc::c_int, place: *mut u8, room: usize) -> isize {
    let nobody = std::ptr::null::<libc::sockaddr>();
    // SAFETY: the caller vouches for the memory; the address is not asked for.
    unsafe { libc::syscall(libc::SYS_recvfrom, descriptor, place, room, 0, nobody, nobody) as isize }
}

#[cfg(not(target_os = "linux"))]
#[inline]
unsafe fn recv_raw(descriptor: libc::c_int, place: *mut u8, room: usize) -> isize {
    // SAFETY: the caller vouches for the memory.
    unsafe { libc::recv(descriptor, place.cast(), room, 0) }
}

/// send(2) past the C library, as [`recv_raw`].
///
/// # Safety
/// `place` must be good for `len` bytes.
#[cfg(target_os = "linux")]
#[inline]
unsafe fn send_raw(descriptor: libc::c_int, place: *const u8, len: usize, flags: libc::c_int) -> isize {
    let nobody = std::ptr::null::<libc::sockaddr>();
    // SAFETY: the caller vouches for the memory; a connected socket needs no address.
    unsafe { libc::syscall(libc::SYS_sendto, descriptor, place, len, flags, nobody, 0) as isize }
}

#[cfg(not(target_os = "linux"))]
#[inline]
unsafe fn send_raw(descriptor: libc::c_int, place: *const u8, len: usize, flags: libc::c_int) -> isize {
    // SAFETY: the caller vouches for the memory.
    unsafe { libc::send(descriptor, place.cast(), len, flags) }
}

/// One recv(2) into the spare memory of `block`. Returns how many bytes came and whether they filled it.
#[inline]
pub(super) fn recv(socket: BorrowedFd<'_>, block: &mut Block) -> io::Result<(usize, bool)> {
    let (place, room) = block.spare();
    loop {
        // SAFETY: `spare` gives memory of `room` bytes that nobody else reads or writes while the block is ours alone.
        let count = unsafe { recv_raw(socket.as_raw_fd(), place, room) };
        if count >= 0 {
            let count = count as usize;
            // SAFETY: the kernel has written these bytes.
            unsafe { block.filled(count) };
            return Ok((count, count == room));
        }
        interrupted_or()?;
    }
}

/// One recv(2) whose bytes are discarded.
pub(super) fn discard(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut discarded = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    loop {
        // SAFETY: the array lives for the duration of the call and is never read.
        let count = unsafe { libc::recv(socket.as_raw_fd(), discarded.as_mut_ptr().cast(), discarded.len(), 0) };
        if count >= 0 {
            return Ok(count as usize);
        }
        interrupted_or()?;
    }
}

/// Sends one run of bytes. `last`: a half-close or a close follows at once when all of it was taken.
#[inline]
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], last: bool) -> io::Result<usize> {
    let flags = if last { SEND_FLAGS | BEFORE_FIN } else { SEND_FLAGS };
    loop {
        // SAFETY: pointer and length are those of a living slice.
        let count = unsafe { send_raw(socket.as_raw_fd(), bytes.as_ptr(), bytes.len(), flags) };
        if count >= 0 {
            return Ok(count as usize);
        }
        interrupted_or()?;
    }
}

/// Sends several runs of bytes as one; `last` as in [`send`].
#[inline]
pub(super) fn send_gathered(socket: BorrowedFd<'_>, vectors: &[IoSlice<'_>], last: bool) -> io::Result<usize> {
    let flags = if last { SEND_FLAGS | BEFORE_FIN } else { SEND_FLAGS };
    // SAFETY: an all-zero msghdr is a valid one without address, vectors and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An IoSlice has the layout of an iovec, and sendmsg does not write through it.
    message.msg_iov = vectors.as_ptr().cast_mut().cast();
    message.msg_iovlen = vectors.len() as _;
    loop {
        // SAFETY: the message points to vectors that live for the duration of the call.
        let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
        if count >= 0 {
            return Ok(count as usize);
        }
        interrupted_or()?;
    }
}

/// Half-closes. That the peer is gone already is no failure of ours.
pub(super) fn shut_write(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Write);
}

/// Closes with an RST on TCP; where the kernel refuses the option the close is an ordinary one.
pub(super) fn reset(socket: OwnedFd) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// How a connect that was started has ended.
pub(super) fn connect_outcome(socket: BorrowedFd<'_>) -> io::Result<()> {
    match SockRef::from(&socket).take_error() {
        Ok(None) => Ok(()),
        Ok(Some(error)) | Err(error) => Err(error),
    }
}

/// Makes a listener non-blocking and, on TCP, gives it TCP_NODELAY, which accepted sockets inherit on Linux.
pub(super) fn prepare_listener(listener: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_nonblocking(true)?;
    if !socket.local_addr()?.is_unix() {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(())
}

const _: () = assert!(usize::BITS == 64, "a token holds index and generation");

/// The token of a socket.
#[inline]
pub(super) fn token(sock: Sock) -> Token {
    Token(sock.index as usize | (sock.generation as usize) << 32)
}

/// The socket of a token.
#[inline]
pub(super) fn sock_of(token: Token) -> Sock {
    Sock { index: token.0 as u32, generation: (token.0 >> 32) as u32 }
}

/// What to tell of a connection: input, urgent data where that is told apart, and room for output if wanted.
pub(super) fn interest(writes: bool) -> Interest {
    #[cfg(target_os = "linux")]
    let reads = Interest::READABLE | Interest::PRIORITY;
    #[cfg(not(target_os = "linux"))]
    let reads = Interest::READABLE;
    if writes { reads | Interest::WRITABLE } else { reads }
}

#[cfg(target_os = "linux")]
pub(super) use epoll::{Readied, Told};
#[cfg(not(target_os = "linux"))]
pub(super) use others::{Readied, Told};

/// Waiting past mio and the C library, whose wrapper is a cancellation point as that of recv(2).
#[cfg(target_os = "linux")]
mod epoll {
    use super::*;

    /// What the last wait has brought.
    pub struct Told {
        events: Box<[libc::epoll_event]>,
        count: usize,
    }

    /// What the kernel says of one socket.
    #[derive(Clone, Copy)]
    pub struct Readied(libc::epoll_event);

    impl Told {
        /// Nothing yet; a wait brings so much at most.
        pub fn new(most: usize) -> Told {
            Told { events: vec![libc::epoll_event { events: 0, u64: 0 }; most].into(), count: 0 }
        }

        /// Waits for something to be told, at most for `timeout`, which is rounded up to milliseconds.
        #[inline]
        pub fn wait(&mut self, poll: &mut Poll, timeout: Option<Duration>) -> io::Result<()> {
            let millis = |time: Duration| {
                time.as_secs().saturating_mul(1000).saturating_add(u64::from(time.subsec_nanos().div_ceil(1_000_000)))
            };
            let timeout = timeout.map_or(-1, |time| libc::c_int::try_from(millis(time)).unwrap_or(libc::c_int::MAX));
            let (events, most) = (self.events.as_mut_ptr(), self.events.len() as libc::c_int);
            let (mask, size) = (std::ptr::null::<libc::sigset_t>(), 8usize);
            // SAFETY: the kernel writes `most` events at most, for which there is room; the mask is left as it is.
            let count =
                unsafe { libc::syscall(libc::SYS_epoll_pwait, poll.as_raw_fd(), events, most, timeout, mask, size) };
            self.count = count.max(0) as usize;
            if count < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        }

        /// How much it was.
        #[inline]
        pub fn len(&self) -> usize {
            self.count
        }

        /// That part of it.
        #[inline]
        pub fn at(&self, index: usize) -> Readied {
            Readied(self.events[index])
        }
    }

    impl Readied {
        /// The name that it was registered with.
        #[inline]
        pub fn token(self) -> Token {
            Token(self.0.u64 as usize)
        }

        #[inline]
        fn has(self, bits: libc::c_int) -> bool {
            self.0.events & bits as u32 != 0
        }

        /// Whether there is something to read.
        #[inline]
        pub fn is_readable(self) -> bool {
            self.has(libc::EPOLLIN | libc::EPOLLPRI)
        }

        /// Whether the peer sends no more, or something has failed.
        #[inline]
        pub fn is_over(self) -> bool {
            self.has(libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP)
        }

        /// Whether urgent data has come: a receive stops short at its mark.
        #[inline]
        pub fn is_urgent(self) -> bool {
            self.has(libc::EPOLLPRI)
        }

        /// Whether there is room for output.
        #[inline]
        pub fn is_writable(self) -> bool {
            self.has(libc::EPOLLOUT)
        }
    }
}

/// Waiting through mio.
#[cfg(not(target_os = "linux"))]
mod others {
    use super::*;

    /// What the last wait has brought.
    pub struct Told {
        events: mio::Events,
        told: Vec<Readied>,
    }

    /// What the kernel says of one socket.
    #[derive(Clone, Copy)]
    pub struct Readied {
        token: Token,
        readable: bool,
        over: bool,
        writable: bool,
    }

    impl Told {
        /// Nothing yet; a wait brings so much at most.
        pub fn new(most: usize) -> Told {
            Told { events: mio::Events::with_capacity(most), told: Vec::with_capacity(most) }
        }

        /// Waits for something to be told, at most for `timeout`.
        pub fn wait(&mut self, poll: &mut Poll, timeout: Option<Duration>) -> io::Result<()> {
            self.told.clear();
            poll.poll(&mut self.events, timeout)?;
            self.told.extend(self.events.iter().map(|event| Readied {
                token: event.token(),
                readable: event.is_readable(),
                over: event.is_read_closed() || event.is_error(),
                writable: event.is_writable() || event.is_write_closed(),
            }));
            Ok(())
        }

        /// How much it was.
        pub fn len(&self) -> usize {
            self.told.len()
        }

        /// That part of it.
        pub fn at(&self, index: usize) -> Readied {
            self.told[index]
        }
    }

    impl Readied {
        /// The name that it was registered with.
        pub fn token(self) -> Token {
            self.token
        }

        /// Whether there is something to read.
        pub fn is_readable(self) -> bool {
            self.readable
        }

        /// Whether the peer sends no more, or something has failed.
        pub fn is_over(self) -> bool {
            self.over
        }

        /// Whether urgent data has come, which is not told apart.
        pub fn is_urgent(self) -> bool {
            false
        }

        /// Whether there is room for output, or nobody to take it.
        pub fn is_writable(self) -> bool {
            self.writable
        }
    }
}

/// Whether a receive that came short has left nothing behind. On Linux what it may stop at was announced before.
#[cfg(target_os = "linux")]
pub(super) fn short_is_all(_socket: &Option<OwnedFd>) -> bool {
    true
}

#[cfg(not(target_os = "linux"))]
pub(super) fn short_is_all(socket: &Option<OwnedFd>) -> bool {
    unread_input(socket) == Some(0)
}

/// Whether received bytes lie in the kernel that nobody has read.
pub(super) fn has_unread_input(socket: &Option<OwnedFd>) -> bool {
    unread_input(socket).is_some_and(|bytes| bytes > 0)
}

fn unread_input(socket: &Option<OwnedFd>) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which outlives the call.
    let result = unsafe { libc::ioctl(borrow(socket).as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    (result == 0).then_some(bytes)
}

/// Whether every wait tells of a listener as long as it has connections, and not only when one comes.
pub(super) const TELLS_AGAIN: bool = cfg!(target_os = "linux");

/// Has the poll tell of a listener's connections. mio would ask for edges.
#[cfg(target_os = "linux")]
pub(super) fn watch_listener(poll: &Poll, listener: RawFd, token: Token) -> io::Result<()> {
    control(poll, libc::EPOLL_CTL_ADD, listener, token, libc::EPOLLIN)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn watch_listener(poll: &Poll, listener: RawFd, token: Token) -> io::Result<()> {
    poll.registry().register(&mut mio::unix::SourceFd(&listener), token, mio::Interest::READABLE)
}

/// Stops, or goes on, to tell of a listener. Where only edges are told there is nothing to stop.
#[cfg(target_os = "linux")]
pub(super) fn suspend_listener(poll: &Poll, listener: RawFd, token: Token, suspend: bool) {
    // It is registered, and changing that takes no memory.
    let _ = control(poll, libc::EPOLL_CTL_MOD, listener, token, if suspend { libc::EPOLLET } else { libc::EPOLLIN });
}

#[cfg(not(target_os = "linux"))]
pub(super) fn suspend_listener(_poll: &Poll, _listener: RawFd, _token: Token, _suspend: bool) {}

/// Ends the watch of a listener.
pub(super) fn unwatch_listener(poll: &Poll, listener: RawFd) {
    let _ = poll.registry().deregister(&mut mio::unix::SourceFd(&listener));
}

/// epoll_ctl(2), with the token as mio's events carry it.
#[cfg(target_os = "linux")]
fn control(
    poll: &Poll,
    operation: libc::c_int,
    descriptor: RawFd,
    token: Token,
    events: libc::c_int,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events: events as u32, u64: token.0 as u64 };
    // SAFETY: the event outlives the call.
    let result = unsafe { libc::epoll_ctl(poll.as_raw_fd(), operation, descriptor, &raw mut event) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether an accept failed for the sake of one connection that died in the queue, so that the next may be taken at once
/// (accept(2) on Linux lists these). Anything else would fail again at once.
pub(super) fn is_lost_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::ENOPROTOOPT
                | libc::EPERM
                | libc::EPROTO
                | libc::ETIMEDOUT
        )
    )
}

fn interrupted_or() -> io::Result<()> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Lends the descriptor of a socket that is known to be open.
pub(super) fn borrow(descriptor: &Option<OwnedFd>) -> BorrowedFd<'_> {
    descriptor.as_ref().expect("a living socket has its descriptor").as_fd()
}
