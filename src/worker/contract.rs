//! The worker's side of the contract, for workers in this binary: what they find in their environment.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use crate::supervisor::exec::LISTEN_DESCRIPTOR;

/// The listening socket that this process inherited as descriptor 3, if it was given one (sd_listen_fds(3)). To be called
/// once, before the process opens descriptors of its own.
///
/// # Errors
/// When there should be one and descriptor 3 is no listening Unix socket.
pub fn listener() -> io::Result<Option<UnixListener>> {
    let says = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if !says("LISTEN_PID", &std::process::id().to_string()) || !says("LISTEN_FDS", "1") {
        return Ok(None);
    }
    // SAFETY: fcntl with these commands takes and returns plain numbers, and fails for a descriptor that is not open.
    if unsafe { libc::fcntl(LISTEN_DESCRIPTOR, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::other("descriptor 3 is not open, and LISTEN_FDS says that it is"));
    }
    // SAFETY: it is open, and by the protocol this process's to own: nobody else here has it, and what the process opens
    // itself is numbered behind it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(LISTEN_DESCRIPTOR) };
    #[cfg(target_os = "linux")]
    if !socket2::SockRef::from(&descriptor).is_listener()? {
        return Err(io::Error::other("descriptor 3 is no listening socket"));
    }
    let listener = UnixListener::from(descriptor);
    listener.local_addr()?;
    Ok(Some(listener))
}

/// Tells the server, if it listens (`NOTIFY_SOCKET`, sd_notify(3)): `READY=1`, `STOPPING=1`. What cannot be told is no reason
/// to fail.
pub fn tell(text: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| socket.send_to(text.as_bytes(), path));
    drop(told);
}

/// Says `WATCHDOG=1` as often as the server asks for, if it does (sd_watchdog_enabled(3)).
#[derive(Debug)]
pub struct Heartbeat {
    /// Half the server's period, as sd_watchdog_enabled(3) advises.
    every: Option<Duration>,
    next: Instant,
}

impl Heartbeat {
    /// As the environment says: `WATCHDOG_USEC`, unless `WATCHDOG_PID` is another process.
    pub fn from_environment() -> Heartbeat {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|id| id == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|&period| ours && period > 0);
        Heartbeat { every: period.map(|period| Duration::from_micros(period) / 2), next: Instant::now() }
    }

    /// Says it if it is due, and how long the process may sleep until it is to be said again; `None`: for ever.
    pub fn beat(&mut self, now: Instant) -> Option<Duration> {
        let every = self.every?;
        if now >= self.next {
            tell("WATCHDOG=1");
            self.next = now + every;
        }
        Some(self.next - now)
    }
}
