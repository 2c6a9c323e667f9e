//! What the conformance suite cannot see.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::*;
use crate::buffers::block::Budget;

/// One peer that never reads, and many whose connections are closed and gone: nothing of them is kept.
#[test]
fn closes_that_are_over_leave_nothing_behind() {
    let pool = Pool::new(16, 1, Budget::new(64 << 20));
    let hour = Duration::from_secs(3600);
    let options = Options {
        max_sockets: 16,
        pool: pool.clone(),
        stall: hour,
        linger: hour,
        accept_retry: Duration::from_millis(1),
    };
    let mut backend = Readiness::new(options).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    backend.listen(listener.into()).unwrap();
    let connect = |backend: &mut Readiness| {
        let stream = TcpStream::connect(address).unwrap();
        loop {
            backend.wait(Some(Duration::from_secs(10))).unwrap();
            while let Some(event) = backend.next() {
                if let Event::Accept { sock, .. } = event {
                    return (stream, sock);
                }
            }
        }
    };
    let (_stuck, sock) = connect(&mut backend);
    backend.send(sock, pool.heap(&vec![0; 16 << 20]).into());
    backend.close(sock, How::Flushed);
    for _ in 0..200 {
        let (mut stream, sock) = connect(&mut backend);
        // It is seen that nothing is to be read, so the close does not linger.
        backend.recv(sock, Size::Small);
        backend.wait(Some(Duration::ZERO)).unwrap();
        while backend.next().is_some() {}
        backend.send(sock, pool.heap(b"bye").into());
        backend.close(sock, How::Flushed);
        backend.wait(Some(Duration::ZERO)).unwrap();
        while backend.next().is_some() {}
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"bye");
    }
    assert_eq!(backend.live(), 2, "the listener and the one that is stuck");
    assert!(backend.stalling.len() <= 16, "{} closes are remembered", backend.stalling.len());
}
