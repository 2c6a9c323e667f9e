//! Waking the supervisor from another thread, and the poll(2) that it sleeps in.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Wakes the supervisor. Any number of wakes before it looks are one.
#[derive(Clone, Debug)]
pub struct Waker(Arc<UnixStream>);

impl Waker {
    /// Wakes whenever that signal arrives.
    ///
    /// # Errors
    /// When the signal cannot be handled (`sigaction(2)`).
    pub fn on_signal(&self, signal: libc::c_int) -> io::Result<()> {
        let waker = self.clone();
        // SAFETY: the handler writes one byte to a non-blocking socket, which is async-signal-safe, and the handle it
        // uses lives in the handler itself.
        unsafe { signal_hook::low_level::register(signal, move || waker.wake()) }?;
        Ok(())
    }

    /// Makes the supervisor's next or current sleep end at once.
    pub fn wake(&self) {
        // A full pipe already holds a wake; a closed one has nobody to be woken.
        (&*self.0).write_all(&[1]).ok();
    }
}

/// With this the thread of an event loop says that it ends, however it ends.
#[derive(Clone, Debug)]
pub struct LoopExit {
    reported: Arc<AtomicBool>,
    waker: Waker,
}

impl LoopExit {
    pub(super) fn new(waker: &Waker) -> LoopExit {
        LoopExit { reported: Arc::default(), waker: waker.clone() }
    }

    /// Tells the supervisor, for which a loop that ends before it was told to is a failure.
    pub fn report(&self) {
        self.reported.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn was_reported(&self) -> bool {
        self.reported.load(Ordering::Acquire)
    }
}

/// The sleeping end.
#[derive(Debug)]
pub struct Sleeper(UnixStream);

/// A pair of both.
///
/// # Errors
/// When no socket pair can be made.
pub fn pair() -> io::Result<(Waker, Sleeper)> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    Ok((Waker(Arc::new(write)), Sleeper(read)))
}

impl Sleeper {
    /// The descriptor to be polled for reading.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes all wakes.
    pub fn clear(&mut self) {
        let mut buffer = [0; 64];
        while matches!(self.0.read(&mut buffer), Ok(count) if count == buffer.len()) {}
    }
}

/// Sleeps until one of the descriptors is ready or the timeout is over. Rounds the timeout up, so that a timer is due
/// after the sleep. An interrupted sleep is a sleep that ended.
///
/// # Errors
/// When poll(2) fails for another reason, which is a fault of ours.
pub fn poll(descriptors: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let millis = match timeout {
        None => -1,
        Some(timeout) => i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
    };
    // SAFETY: pointer and length are those of one slice, which outlives the call.
    let found = unsafe { libc::poll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, millis) };
    if found >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// The descriptors that have something to be read, or to be noticed, as [`poll`] has found.
#[derive(Debug, Default)]
pub struct Ready(Vec<RawFd>);

impl Ready {
    /// Those of these entries.
    pub fn of(entries: &[libc::pollfd]) -> Ready {
        let mut ready: Vec<RawFd> = entries.iter().filter(|entry| entry.revents != 0).map(|entry| entry.fd).collect();
        ready.sort_unstable();
        Ready(ready)
    }

    /// Whether a descriptor is among them.
    pub fn has(&self, descriptor: RawFd) -> bool {
        self.0.binary_search(&descriptor).is_ok()
    }
}

/// An entry for [`poll`] that waits for `events`.
pub fn entry(descriptor: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd: descriptor, events, revents: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wakes_are_one() {
        let (waker, mut sleeper) = pair().unwrap();
        for _ in 0..100_000 {
            waker.wake();
        }
        let mut entries = [entry(sleeper.descriptor(), libc::POLLIN)];
        poll(&mut entries, None).unwrap();
        assert_eq!(entries[0].revents, libc::POLLIN);
        sleeper.clear();
        poll(&mut entries, Some(Duration::ZERO)).unwrap();
        assert_eq!(entries[0].revents, 0);
    }

    #[test]
    fn who_is_ready_is_known_by_its_descriptor() {
        let (loud, sleeper) = pair().unwrap();
        let (_silent, other) = pair().unwrap();
        loud.wake();
        let mut entries = [other.descriptor(), sleeper.descriptor()].map(|descriptor| entry(descriptor, libc::POLLIN));
        poll(&mut entries, None).unwrap();
        let ready = Ready::of(&entries);
        assert!(ready.has(sleeper.descriptor()) && !ready.has(other.descriptor()));
        assert!(!Ready::default().has(sleeper.descriptor()));
    }
}
