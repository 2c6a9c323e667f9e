//! The control socket: real connections to a [`ControlServer`] in a poll loop like the supervisor's, with a handler that writes down
//! what it is asked. The command line's words are run as processes against it.
//!
//! [`ControlServer`]: production_server::control::ControlServer

mod cli;
mod events;
mod limits;
mod rig;
mod whole;
mod wire;
