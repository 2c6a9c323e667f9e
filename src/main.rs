//! Arguments in, exit code out.
use production_server::config::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut s = Settings::default();
    s.listen = vec![ListenAddress::Tcp("127.0.0.1:8080".parse().unwrap())];
    s.loops = 1;
    s.access_log.target = AccessLogTarget::Off;
    s.stats_interval = std::time::Duration::ZERO;
    s.backend = if a[1] == "uring" { BackendChoice::IoUring } else { BackendChoice::Epoll };
    s.app.command = Command::None;
    if a[2] == "respond" { s.app.respond = Some("ok".into()); } else { s.app.upstreams = vec![Upstream::Unix(a[2].clone().into())]; s.app.concurrency = 512; }
    std::process::exit(production_server::server::run(s) as i32);
}
