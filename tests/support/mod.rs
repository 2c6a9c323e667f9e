//! What the end-to-end tests are made of: the built server in a process of its own, a raw client, and a recording worker.
//!
//! Rules:
//! - Nothing here knows more of HTTP than it takes to cut a stream into messages, and none of it is the server's code.
//! - Every wait has a deadline ([`DEADLINE`]); every port and socket is the kernel's choice or lies in a folder of the test's own.
//! - All ends with the test, also when it panics: the server is killed when its handle is dropped. A server that caught a panic or
//!   failed an assertion fails the test that used it.

mod client;
mod clogged;
pub mod exposition;
mod process;
mod server;
pub mod tls;
pub mod websocket;
mod worker;

use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use client::{Answer, Client, Ending, fields};
pub use clogged::Clogged;
pub use process::{Process, assert_gone, send_signal};
pub use server::Server;
pub use worker::{Incoming, Worker};

/// The built binary.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_production_server");
/// No wait of a test is longer; it ends a test that would hang.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The interpreter behind `python3`, which may be a script that looks for it each time, for longer than the interpreter takes to start.
pub fn python() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// A folder of the test's own, short enough for the path of a socket.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("test").tempdir().unwrap()
}

/// Reads as [`std::io::Read::read`] does, and again when a signal comes: one ends a read from a socket with a timeout (signal(7)), and some
/// tests wait for children in this process.
pub fn read(mut stream: impl std::io::Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many descriptors this process, and each server that it starts, may have: the soft limit is raised to the hard one.
pub fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct that it is given, and setrlimit only reads it.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    assert!(raised, "{}", std::io::Error::last_os_error());
    usize::try_from(limit.rlim_cur).unwrap()
}

/// Bytes as a test's message shows them.
pub fn text(bytes: &[u8]) -> String {
    let mut text = bytes.escape_ascii().to_string();
    if text.len() > 2000 {
        text.truncate(2000);
        text.push('…');
    }
    text
}

/// A body that shows where bytes are lost, doubled or swapped.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8 ^ (index >> 12) as u8).collect()
}

/// Instantiates tests for every backend that is compiled; each takes the backend's name.
macro_rules! on_every_backend {
    ($($case:ident $(,)?)*) => {
        #[cfg(backend_readiness)]
        mod epoll {
            $(
                #[test]
                fn $case() {
                    super::$case("epoll");
                }
            )*
        }
        #[cfg(backend_io_uring)]
        mod io_uring {
            $(
                #[test]
                fn $case() {
                    super::$case("io_uring");
                }
            )*
        }
    };
}
pub(crate) use on_every_backend;

/// The same through TLS, of which the tests know nothing.
macro_rules! through_tls {
    ($($case:ident $(,)?)*) => {
        #[cfg(backend_readiness)]
        mod epoll_tls {
            $(
                #[test]
                fn $case() {
                    super::$case("epoll+tls");
                }
            )*
        }
        #[cfg(backend_io_uring)]
        mod io_uring_tls {
            $(
                #[test]
                fn $case() {
                    super::$case("io_uring+tls");
                }
            )*
        }
    };
}
pub(crate) use through_tls;

/// Both.
macro_rules! on_every_backend_and_tls {
    ($($case:ident $(,)?)*) => {
        crate::support::on_every_backend! { $($case)* }
        crate::support::through_tls! { $($case)* }
    };
}
pub(crate) use on_every_backend_and_tls;
