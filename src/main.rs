//! Arguments in, exit code out.

use std::process::ExitCode;

use production_server::{supervisor, worker};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(supervisor::exec::WORD) => supervisor::exec::main(arguments),
        Some(supervisor::guard::WORD) => supervisor::guard::main(arguments),
        Some(worker::WORD) => worker::main(arguments),
        _ => ExitCode::SUCCESS,
    }
}
