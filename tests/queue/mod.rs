//! Waiting, permits, retries, deaths, departures, limits, signals and stops: the built server between scripted clients and
//! scripted workers.
//!
//! Every body runs on every backend. Nothing waits for a time: conditions are looked at until [`DEADLINE`]. The one
//! exception is what must not happen, as a spinning loop, which is looked for during a second.

mod clocks;
mod deaths;
mod departures;
mod failing;
mod limits;
mod order;
mod retries;
mod signals;
mod stops;
mod waiting;
mod worker;

use crate::support::{
    Client, DEADLINE, PROGRAM, Process, Server, assert_gone, folder, on_every_backend, send_signal, until,
};
use worker::{Question, Worker, ok};
