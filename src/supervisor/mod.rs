//! stub
use std::sync::Arc;
pub mod run_directory { pub struct RunDirectory; #[derive(Debug)] pub struct E; impl std::fmt::Display for E { fn fmt(&self, _: &mut std::fmt::Formatter) -> std::fmt::Result { Ok(()) } } impl E { pub fn exit_code(&self) -> u8 { 73 } }
 impl RunDirectory { pub fn open(_: &std::path::Path) -> Result<RunDirectory, E> { Ok(RunDirectory) } } }
pub struct Hooks { pub loops_done: Box<dyn Fn() -> bool>, pub statistics: Box<dyn Fn() -> String>, pub descriptor_limit: u64 }
pub struct Ended; impl Ended { pub fn exit_code(&self) -> u8 { 0 } }
pub fn run(shared: &Arc<crate::connection::Shared>, _: run_directory::RunDirectory, hooks: Hooks) -> std::io::Result<Ended> {
  for (i, up) in shared.settings.app.upstreams.iter().enumerate() {
    if let crate::config::Upstream::Unix(p) = up {
      let t = crate::dispatch::Target { address: socket2::SockAddr::unix(p)?, label: format!("up{i}"), unix: true, supervised: false, number: i as u32 };
      let id = shared.dispatch.add(t, 1, None).unwrap();
      shared.dispatch.ready(id, std::time::Instant::now());
    }
  }
  let mut s = signal_hook::iterator::Signals::new([15, 2])?;
  for _ in s.forever() { break }
  shared.postboxes.broadcast(|| crate::mailbox::Message::Drain { deadline: std::time::Instant::now() + shared.settings.shutdown });
  while !(hooks.loops_done)() { std::thread::sleep(std::time::Duration::from_millis(10)); }
  Ok(Ended)
}
