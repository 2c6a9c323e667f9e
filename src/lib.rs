//! production_server: one binary in front of any app.
//!
//! The map, from the top down; each layer uses those below it and none above:
//!
//! ```text
//! main → server, check, init, hash_password → supervisor, control → fleet
//!           └──→ reactor → event_loop, connection, exchange → mailbox → apps → dispatch
//!                               └──→ http, tls, websocket    bytes in, bytes out: no descriptor, no clock, no thread
//!                               └──→ backends → buffers
//! acme, key_sets: under server and supervisor, above control and tls
//! helpers: threads for what would block a loop; uses nothing
//! spool: files in which bytes wait, under mailbox, event_loop and exchange
//! socket_file, proc, systemd, handover: beside server, supervisor and control
//! limits, access: under config, metrics and event_loop; no clock
//! hub: beside dispatch, over http and buffers; no clock
//! bus: under server and supervisor, above hub and mailbox
//! config, metrics, log: usable by all, use none of them
//! ```
//!
//! ARCHITECTURE.md has the road of a request and the states of a connection; `tests/tidy.rs` guards the layers.

pub mod access;
pub mod acme;
pub mod apps;
pub mod backends;
pub mod buffers;
pub mod bus;
pub mod check;
pub mod compress;
pub mod config;
pub mod conformance;
pub mod connection;
pub mod control;
mod day;
pub mod dispatch;
pub mod event_loop;
mod exchange;
pub mod exporter;
pub mod files;
pub mod fleet;
pub mod handover;
pub mod hash_password;
pub mod helpers;
pub mod http;
pub mod hub;
pub mod init;
pub(crate) mod kernel;
pub mod key_sets;
pub mod limits;
pub mod listener;
pub mod log;
pub mod mailbox;
pub mod metrics;
pub mod planted;
pub mod proc;
pub mod reactor;
pub mod server;
pub mod socket_file;
pub mod spool;
pub mod supervisor;
pub mod systemd;
pub mod tls;
pub mod websocket;
pub mod worker;
