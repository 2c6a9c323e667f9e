//! The supervisor.

pub mod exec;
pub mod guard;
pub mod inspect;
pub mod output;
pub mod policy;
pub mod probe;
pub mod run_directory;
pub mod signals;
pub mod wake;
