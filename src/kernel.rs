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
