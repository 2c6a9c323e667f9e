//! The server from end to end: real connections, a recording worker behind it, every case on every backend.

mod answers;
mod bodies;
mod fields;
mod front;
mod inside;
mod messages;
mod refusals;
mod routes;
mod streaming;
mod upgrades;
