//! System calls that several parts make, of which libc tells no more than the number.

use std::os::fd::AsFd;

/// Bytes that were sent on a socket and that its peer has not acknowledged: what the kernel still holds of them, on a Unix socket
/// with its bookkeeping, and a FIN counts as one. 0 where that cannot be told.
#[cfg(target_os = "linux")]
pub(crate) fn unacknowledged(socket: impl AsFd) -> u64 {
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, by its other name, writes one int, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn unacknowledged(_socket: impl AsFd) -> u64 {
    0
}

/// Reads from a place of a file on what the kernel has in memory, into `room`: how many bytes, 0 at the file's end.
///
/// # Errors
/// `WouldBlock` where the first of them is not in memory, and where that cannot be told (preadv2(2), RWF_NOWAIT).
#[cfg(target_os = "linux")]
pub(crate) fn read_now(file: impl AsFd, at: u64, room: &mut [std::mem::MaybeUninit<u8>]) -> std::io::Result<usize> {
    use std::os::fd::AsRawFd;
    let place = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let at = libc::off_t::try_from(at).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    // SAFETY: the one vector is `room`, which is borrowed exclusively; the kernel writes at most its length to it.
    let read = unsafe { libc::preadv2(file.as_fd().as_raw_fd(), &raw const place, 1, at, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| std::io::Error::last_os_error())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_now(_: impl AsFd, _: u64, _: &mut [std::mem::MaybeUninit<u8>]) -> std::io::Result<usize> {
    Err(std::io::ErrorKind::WouldBlock.into())
}

/// How much nicer a thread is that gives way: with 10, one that does not has nine times its part of a processor (sched(7)).
#[cfg(target_os = "linux")]
pub const GIVES_WAY: i32 = 10;

/// The niceness of this thread, -20 to 19 (getpriority(2), which on Linux is about threads).
#[cfg(target_os = "linux")]
pub fn niceness() -> i32 {
    // SAFETY: it takes numbers. An error, which looks like -1, can only be of a thread that is not there.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Has this thread give way to the others of the process where both want a processor. Elsewhere than on Linux niceness is the process', and
/// nothing happens.
pub fn give_way() {
    #[cfg(target_os = "linux")]
    // SAFETY: it takes numbers. To be nicer than before is always allowed.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, (niceness() + GIVES_WAY).min(19));
    }
}
