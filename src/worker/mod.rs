//! w
/// w
pub const WORD: &str = "worker";
/// m
pub fn main(_a: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
