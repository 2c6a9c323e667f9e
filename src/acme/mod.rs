//! Certificates that come and renew by themselves (ACME, RFC 8555).
//!
//! | file | what |
//! |---|---|
//! | `planner` | when a certificate is ordered, and the brakes: sans-IO, with the time as an argument |
//! | `client` | the protocol, above a transport |
//! | `key` | the key of an account, and what it signs |
//! | `https` | the transport |
//! | `store` | what is kept on disk |
//! | `keeper` | the one thread that has all of them |
//!
//! Answers to challenges, and certificates as listeners show them, are in `tls/authority.rs`.

mod client;
mod https;
mod keeper;
mod key;
pub mod planner;
mod store;

pub use https::document;
pub use keeper::{Keeper, begin, hold, report, retire};
