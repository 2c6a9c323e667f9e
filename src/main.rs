//! Arguments in, exit code out.

use std::process::ExitCode;

use production_server::{supervisor, worker};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(supervisor::exec::WORD) => supervisor::exec::main(arguments),
        Some(supervisor::guard::WORD) => supervisor::guard::main(arguments),
        Some(worker::WORD) => worker::main(arguments),
        _ => temp(),
    }
}
use production_server::config::*;
fn temp() -> ExitCode {
    let a: Vec<String> = std::env::args().collect();
    let mut s = Settings::default();
    s.listen = vec![ListenAddress::Tcp("127.0.0.1:8080".parse().unwrap())];
    s.loops = a.get(3).map_or(1, |n| n.parse().unwrap());
    s.access_log.target = AccessLogTarget::Off;
    s.run_dir = "/tmp/psrun".into();
    s.stats_interval = std::time::Duration::ZERO;
    s.backend = if a[1] == "uring" { BackendChoice::IoUring } else { BackendChoice::Epoll };
    if a[2] == "respond" {
        s.app.command = Command::None;
        s.app.respond = Some("ok".into());
    } else if a[2] == "workers" {
        s.app.workers = 2;
        s.app.recycle.requests = 1000;
    } else {
        s.app.command = Command::None;
        s.app.upstreams = vec![Upstream::Unix(a[2].clone().into())];
        s.app.concurrency = 512;
    }
    ExitCode::from(production_server::server::run(s))
}
