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

/// Whether the kernel has all of those bytes of a file in memory, so that whoever sends them waits for no disk. False where it does not tell: before
/// Linux 6.5, where the program neither owns the file nor may write it, and where pages are larger than 4 KiB (cachestat(2)). Pages that are still being read
/// count for it; they come in their order, so that the last byte tells of them.
#[cfg(target_os = "linux")]
pub(crate) fn is_in_memory(file: impl AsFd, at: u64, count: u64) -> bool {
    use std::os::fd::AsRawFd;
    /// Its number, the same on all machines, of which not every libc knows.
    const CACHESTAT: libc::c_long = 451;
    const PAGE: u64 = 4096;
    let Some(last) = count.checked_sub(1).and_then(|more| at.checked_add(more)) else { return false };
    let range = [at, count];
    // In memory, dirty, being written, evicted, evicted lately.
    let mut pages = [0_u64; 5];
    // SAFETY: it reads a struct of two 64-bit numbers and writes one of five, and both outlive the call.
    let told = unsafe {
        libc::syscall(CACHESTAT, file.as_fd().as_raw_fd(), range.as_ptr(), pages.as_mut_ptr(), 0 as libc::c_uint)
    };
    let is_there = told == 0 && pages[0] > last / PAGE - at / PAGE;
    is_there && matches!(read_now(file, last, &mut [std::mem::MaybeUninit::uninit()]), Ok(1))
}

/// Sends bytes of a file from where the kernel has them: how many, and 0 at the file's end (sendfile(2)). It waits where the socket does. Nothing tells it
/// not to raise SIGPIPE, which a program of Rust ignores from its start.
#[cfg(target_os = "linux")]
pub(crate) fn send_file(socket: impl AsFd, file: impl AsFd, at: u64, count: u64) -> std::io::Result<u64> {
    let mut at = libc::off_t::try_from(at).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Ok(nix::sys::sendfile::sendfile(socket, file, Some(&mut at), count)? as u64)
}

/// Nobody knows what is in memory there, and nothing is sent so.
#[cfg(not(target_os = "linux"))]
pub(crate) fn send_file(_: impl AsFd, _: impl AsFd, _: u64, _: u64) -> std::io::Result<u64> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_in_memory(_: impl AsFd, _: u64, _: u64) -> bool {
    false
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
