//! Readiness through mio: epoll on Linux, kqueue on macOS and the BSDs.
use super::*;
/// x
pub struct Readiness;
/// x
#[derive(Clone)]
pub struct RBell;
impl Bell for RBell { fn ring(&self) {} }
impl Backend for Readiness {
    type Bell = RBell;
    fn new(_: Options) -> io::Result<Self> { todo!() }
    fn bell(&self) -> RBell { todo!() }
    fn now(&self) -> Instant { todo!() }
    fn listen(&mut self, _: OwnedFd) -> io::Result<Sock> { todo!() }
    fn pause(&mut self, _: Sock) { todo!() }
    fn resume(&mut self, _: Sock) { todo!() }
    fn connect(&mut self, _: &SockAddr) -> io::Result<Option<Sock>> { todo!() }
    fn recv(&mut self, _: Sock, _: Size) { todo!() }
    fn send(&mut self, _: Sock, _: Piece) { todo!() }
    fn unsent(&self, _: Sock) -> usize { todo!() }
    fn sent(&self, _: Sock) -> u64 { todo!() }
    fn finish(&mut self, _: Sock) { todo!() }
    fn close(&mut self, _: Sock, _: How) { todo!() }
    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> { todo!() }
    fn next(&mut self) -> Option<Event> { todo!() }
    fn live(&self) -> usize { todo!() }
}
