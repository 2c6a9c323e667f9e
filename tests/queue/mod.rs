//! Waiting, permits, retries, departures, limits and stops: the built server between scripted clients and scripted workers.
//!
//! Every body runs on both backends. Nothing waits for a time: conditions are looked at until [`DEADLINE`]. The one
//! exception is what must not happen, as a spinning loop, which is looked for during a second.

mod clocks;
mod departures;
mod limits;
mod order;
mod retries;
pub mod rig;
mod stops;
mod waiting;

use rig::{Client, DEADLINE, PROGRAM, Process, Question, Server, Worker, folder, ok, send_signal, until};

/// Makes one test per backend of each body.
macro_rules! on_both_backends {
    ($($name:ident),* $(,)?) => {
        mod epoll {
            $(#[test] fn $name() { super::$name("epoll") })*
        }
        mod io_uring {
            $(#[test] fn $name() { super::$name("io_uring") })*
        }
    };
}
use on_both_backends;
