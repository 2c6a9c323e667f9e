//! io_uring as on the oldest kernel that the backend runs on, as a backend of its own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use production_server::backends::io_uring::{IoUring, IoUringBell};
use production_server::backends::{Backend, Event, Handed, How, Options, Piece, Size, Sock};
use production_server::buffers::block::Census;
use socket2::SockAddr;

/// [`IoUring::on_oldest_kernel`]; everything else is the backend's own.
pub struct OldestIoUring(IoUring);

impl Backend for OldestIoUring {
    type Bell = IoUringBell;

    fn new(options: Options) -> io::Result<OldestIoUring> {
        IoUring::on_oldest_kernel(options).map(OldestIoUring)
    }

    fn bell(&self) -> IoUringBell {
        self.0.bell()
    }

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn listen(&mut self, listener: OwnedFd) -> io::Result<Sock> {
        self.0.listen(listener)
    }

    fn set_stall(&mut self, stall: Duration) {
        self.0.set_stall(stall);
    }

    fn pause(&mut self, listener: Sock) {
        self.0.pause(listener);
    }

    fn resume(&mut self, listener: Sock) {
        self.0.resume(listener);
    }

    fn accept_ahead(&mut self, most: Option<usize>) {
        self.0.accept_ahead(most);
    }

    fn connect(&mut self, address: &SockAddr) -> io::Result<Option<Sock>> {
        self.0.connect(address)
    }

    fn recv(&mut self, sock: Sock, size: Size) {
        self.0.recv(sock, size);
    }

    fn send(&mut self, sock: Sock, piece: Piece) {
        self.0.send(sock, piece);
    }

    fn send_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        self.0.send_file(sock, file, at, count)
    }

    fn unsent(&self, sock: Sock) -> usize {
        self.0.unsent(sock)
    }

    fn is_behind(&self, sock: Sock) -> bool {
        self.0.is_behind(sock)
    }

    fn sent(&self, sock: Sock) -> u64 {
        self.0.sent(sock)
    }

    fn offered(&self, sock: Sock) -> u64 {
        self.0.offered(sock)
    }

    fn acknowledged(&self, sock: Sock) -> u64 {
        self.0.acknowledged(sock)
    }

    fn taken(&self) -> u64 {
        self.0.taken()
    }

    fn await_room(&mut self, sock: Sock) {
        self.0.await_room(sock);
    }

    fn is_starved(&self, sock: Sock) -> bool {
        self.0.is_starved(sock)
    }

    fn finish(&mut self, sock: Sock) {
        self.0.finish(sock);
    }

    fn close(&mut self, sock: Sock, how: How) {
        self.0.close(sock, how);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.wait(timeout)
    }

    fn next(&mut self) -> Option<Event> {
        self.0.next()
    }

    fn live(&self) -> usize {
        self.0.live()
    }

    fn count_blocks(&self, census: &mut Census) {
        self.0.count_blocks(census);
    }
}
