//! Arguments in, exit code out.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use production_server::config::{self, Environment, Inputs, Invocation};
use production_server::handover::Channel;
use production_server::{check, conformance, control, hash_password, init, server, supervisor, worker};

fn main() -> ExitCode {
    supervisor::signals::hold();
    let inputs = Inputs { arguments: std::env::args_os().collect(), environment: Environment::of_process() };
    let invocation = config::read(inputs.arguments.clone(), &inputs.environment);
    if !matches!(invocation, Ok(Invocation::Run(_))) {
        supervisor::signals::release();
    }
    match invocation {
        Ok(Invocation::Run(loaded)) => ExitCode::from(server::run(*loaded, inputs, Channel::of_this_process())),
        Ok(Invocation::Check(loaded)) => ExitCode::from(check::run(&loaded, server::become_user)),
        Ok(Invocation::Show(loaded, show)) => print(loaded.show(show).as_bytes()),
        Ok(Invocation::Schema) => print(config::schema().as_bytes()),
        Ok(Invocation::Text(text)) => print(&text),
        Ok(Invocation::Init) => ExitCode::from(init::run(std::path::Path::new("."))),
        Ok(Invocation::Steer(steering)) => ExitCode::from(control::client::run(&steering)),
        Ok(Invocation::Worker(arguments)) => worker::main(arguments.into_iter()),
        Ok(Invocation::Conformance(wanted)) => conformance::main(wanted),
        Ok(Invocation::HashPassword(wanted)) => hash_password::main(&wanted),
        Ok(Invocation::Exec(arguments)) => supervisor::exec::main(arguments.into_iter()),
        Ok(Invocation::Guard(arguments)) => supervisor::guard::main(arguments.into_iter()),
        Ok(Invocation::Print(text)) => printed(text.print()),
        Err(refusal) => {
            if let Some(predecessor) = Channel::of_this_process() {
                predecessor.fail(&refusal.line);
            }
            // There is no other place to say it.
            let _ = writeln!(std::io::stderr(), "{}", refusal.line);
            ExitCode::from(refusal.exit_code)
        }
    }
}

fn print(text: &[u8]) -> ExitCode {
    printed(std::io::stdout().write_all(text))
}

/// What comes of a text for stdout: a reader that has gone (`--help | head`) is no error, and whatever else keeps it from its reader is one.
fn printed(written: io::Result<()>) -> ExitCode {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "error: cannot write to stdout: {error}");
            ExitCode::from(server::exit::SYSTEM)
        }
        _ => ExitCode::SUCCESS,
    }
}
