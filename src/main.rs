//! Arguments in, exit code out.

use std::io::Write;
use std::process::ExitCode;

use production_server::config::{self, Environment, Invocation};
use production_server::{check, conformance, control, server, supervisor, worker};

fn main() -> ExitCode {
    match config::read(std::env::args_os(), &Environment::of_process()) {
        Ok(Invocation::Run(settings)) => ExitCode::from(server::run(*settings)),
        Ok(Invocation::Check(loaded)) => ExitCode::from(check::run(&loaded)),
        Ok(Invocation::Steer(steering)) => ExitCode::from(control::client::run(&steering)),
        Ok(Invocation::Worker(arguments)) => worker::main(arguments.into_iter()),
        Ok(Invocation::Conformance(wanted)) => conformance::main(wanted),
        Ok(Invocation::Exec(arguments)) => supervisor::exec::main(arguments.into_iter()),
        Ok(Invocation::Guard(arguments)) => supervisor::guard::main(arguments.into_iter()),
        Ok(Invocation::Print(text)) => {
            // A reader that has gone (`--help | head`) is no error.
            let _ = text.print();
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            // There is no other place to say it.
            let _ = writeln!(std::io::stderr(), "{}", refusal.line);
            ExitCode::from(refusal.exit_code)
        }
    }
}
