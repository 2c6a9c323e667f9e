//! Certificates that come and renew by themselves (ACME, RFC 8555).
//!
//! | file | what |
//! |---|---|
//! | `planner` | when a certificate is ordered, and the brakes: sans-IO, with the time as an argument |

pub mod planner;
