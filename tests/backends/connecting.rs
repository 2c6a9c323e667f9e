//! Connecting and accepting.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use production_server::backends::{Backend, Event, How, Peer, Side};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use super::rig::{DEADLINE, Rig, echo_once, unix_listener};

pub fn connect_over_unix<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.unix_pair();
    echo_once(&mut rig, &mut stream, sock, b"hello");
    rig.finish();
}

pub fn connect_over_tcp<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let sock = rig.connect(&listener.local_addr().unwrap().into()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    expect_connect(&mut rig, sock);
    echo_once(&mut rig, &mut stream, sock, b"hello");
    rig.finish();
}

fn expect_connect<B: Backend>(rig: &mut Rig<B>, sock: production_server::backends::Sock) {
    rig.until("connect", |event| match event {
        Event::Connect { sock: connected } if connected == sock => Ok(()),
        other => Err(other),
    });
}

pub fn sends_queued_before_connect_leave<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let directory = TempDir::new().unwrap();
    let (unix, unix_address) = unix_listener(&directory.path().join("worker.sock"));
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let over_unix = rig.connect(&unix_address).unwrap();
    let over_tcp = rig.connect(&tcp.local_addr().unwrap().into()).unwrap();
    for sock in [over_unix, over_tcp] {
        rig.send(sock, b"early ");
        rig.send(sock, b"bird");
        rig.recv(sock);
        rig.backend.finish(sock);
    }
    expect_connect(&mut rig, over_unix);
    expect_connect(&mut rig, over_tcp);
    rig.pump();
    let mut got = String::new();
    unix.accept().unwrap().0.read_to_string(&mut got).unwrap();
    let mut stream = tcp.accept().unwrap().0;
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "early birdearly bird");
    assert_eq!((rig.backend.sent(over_unix), rig.backend.sent(over_tcp)), (10, 10));
    // The receives that were armed before the connects serve now.
    stream.write_all(b"worm").unwrap();
    assert_eq!(rig.receive(over_tcp)[..], b"worm"[..]);
    rig.expect_end(over_unix);
    rig.finish();
}

pub fn refused_connects_fail<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let directory = TempDir::new().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(unix_listener(&stale));
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let cases = [
        (SockAddr::from(closed), libc::ECONNREFUSED),
        (SockAddr::unix(&stale).unwrap(), libc::ECONNREFUSED),
        (SockAddr::unix(directory.path().join("nothing.sock")).unwrap(), libc::ENOENT),
    ];
    for (address, expected) in cases {
        let sock = rig.connect(&address).unwrap();
        rig.send(sock, b"never delivered");
        rig.recv(sock);
        let error = rig.expect_fail(sock, Side::Connect);
        assert_eq!(error.raw_os_error(), Some(expected));
        assert_eq!(rig.backend.sent(sock), 0);
        rig.expect_silence();
        rig.close(sock, How::Flushed);
        rig.expect_close(sock);
    }
    rig.finish();
}

pub fn a_full_unix_backlog_is_no_refusal<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let directory = TempDir::new().unwrap();
    let address = SockAddr::unix(directory.path().join("full.sock")).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    let mut connected = Vec::new();
    while let Some(sock) = rig.connect(&address) {
        connected.push(sock);
        assert!(connected.len() < 100, "the backlog never gets full");
    }
    assert!(!connected.is_empty());
    let alive = rig.backend.live();
    assert!(rig.connect(&address).is_none());
    assert_eq!(rig.backend.live(), alive, "a full backlog leaves nothing behind");
    for sock in connected.iter() {
        expect_connect(&mut rig, *sock);
        listener.accept().unwrap();
    }
    let sock = rig.connect(&address).expect("the backlog has room again");
    expect_connect(&mut rig, sock);
    rig.finish();
}

/// The listener's queue is full, so that the SYN of a further connection goes unanswered.
pub fn close_while_connecting<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let queued: Vec<_> = (0..2).map(|_| TcpStream::connect(address.as_socket().unwrap()).unwrap()).collect();
    for how in [How::Now, How::Flushed, How::Reset] {
        let sock = rig.connect(&address).unwrap();
        rig.expect_silence();
        rig.close(sock, how);
        rig.expect_close(sock);
        // Closed in the very turn in which it was asked for.
        let sock = rig.connect(&address).unwrap();
        rig.send(sock, b"never delivered");
        rig.recv(sock);
        rig.close(sock, How::Now);
        rig.expect_close(sock);
    }
    drop(queued);
    rig.finish();
}

pub fn peers_are_named<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("front.sock");
    let both = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    both.set_only_v6(false).unwrap();
    both.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    both.listen(8).unwrap();
    let port = both.local_addr().unwrap().as_socket().unwrap().port();
    rig.listen(both.into());
    rig.listen(unix_listener(&path).0.into());
    for target in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
        let client = TcpStream::connect(target).unwrap();
        let (sock, peer) = rig.accept();
        let local = client.local_addr().unwrap();
        assert_eq!(peer, Peer { ip: local.ip(), port: local.port(), unix: false });
        rig.close(sock, How::Now);
        rig.expect_close(sock);
    }
    let client = UnixStream::connect(&path).unwrap();
    assert_eq!(rig.accept().1, Peer::UNIX);
    drop(client);
    rig.finish();
}

/// The rig checks that no turn brings more than a batch from one listener. All connections wait in the listeners' queues,
/// of which std makes 128 places.
pub fn accepts_come_in_batches<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (_, one) = rig.listen_tcp();
    let (_, two) = rig.listen_tcp();
    let clients: Vec<_> =
        (0..160).map(|turn| TcpStream::connect(if turn < 100 { one } else { two }).unwrap()).collect();
    for _ in &clients {
        rig.accept();
    }
    rig.finish();
    drop(clients);
}

pub fn pause_and_resume<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (listener, address) = rig.listen_tcp();
    for round in 0..3 {
        rig.backend.pause(listener);
        rig.backend.pause(listener);
        rig.expect_silence();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(b"in time").unwrap();
        rig.expect_silence();
        rig.backend.resume(listener);
        if round == 1 {
            rig.backend.resume(listener);
        }
        let (sock, _) = rig.accept();
        rig.expect_bytes(sock, b"in time");
    }
    // Paused and resumed within one turn.
    rig.backend.pause(listener);
    rig.backend.resume(listener);
    let client = TcpStream::connect(address).unwrap();
    rig.accept();
    rig.turn(Duration::ZERO);
    drop(client);
    rig.finish();
}
