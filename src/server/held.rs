//! Addresses that are in use for a moment longer: a process that was killed is gone before the kernel has taken its io_uring apart, and until
//! then the listeners that this knows of are open. Whoever is started in its place at once waits for that.

use std::io;
use std::time::{Duration, Instant};

/// How long a start waits for addresses, all together. The kernel needs a quarter of a second on a busy machine; whoever has made a mistake
/// wants to know.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits between two tries: who listens on a Unix socket is asked by a connect, and may be a server at work.
const PAUSE: Duration = Duration::from_millis(20);

/// How long addresses that are in use are waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience(Option<Instant>);

impl Patience {
    /// As long as a start may wait, from now on.
    pub fn of_a_start() -> Patience {
        Patience(Some(Instant::now() + PATIENCE))
    }

    /// None: who serves already has no time for it.
    pub fn none() -> Patience {
        Patience(None)
    }

    /// Opens something, again and again as long as its address is in use.
    ///
    /// # Errors
    /// The last one; any other at once.
    pub fn open<T>(self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.is_left() => {
                    std::thread::sleep(PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn is_left(self) -> bool {
        self.0.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is tried when that is what comes of it at first, and what comes in the end.
    fn tries(patience: Patience, error: io::ErrorKind, failures: usize) -> (usize, Result<(), io::ErrorKind>) {
        let mut tries = 0;
        let outcome = patience.open(|| {
            tries += 1;
            if tries <= failures { Err(error.into()) } else { Ok(()) }
        });
        (tries, outcome.map_err(|error| error.kind()))
    }

    #[test]
    fn only_who_starts_waits_and_only_for_an_address_in_use() {
        let (in_use, denied) = (io::ErrorKind::AddrInUse, io::ErrorKind::PermissionDenied);
        assert_eq!(tries(Patience::of_a_start(), in_use, 0), (1, Ok(())));
        assert_eq!(tries(Patience(Some(Instant::now() + Duration::from_secs(60))), in_use, 3), (4, Ok(())));
        assert_eq!(tries(Patience::of_a_start(), denied, 9), (1, Err(denied)));
        assert_eq!(tries(Patience::none(), in_use, 9), (1, Err(in_use)));
        assert_eq!(tries(Patience(Some(Instant::now())), in_use, 9), (1, Err(in_use)), "its time is over");
    }
}
