//! Cases that change or count what belongs to the whole process; each runs in one of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use production_server::backends::{Backend, Bell, Event, How, Side, Size, Sock};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::rig::{DEADLINE, Rig, echo_once, pattern, unix_listener};

/// Takes every descriptor that the process may still open.
fn exhaust() -> Vec<OwnedFd> {
    let null = File::open("/dev/null").unwrap();
    let mut taken: Vec<OwnedFd> = std::iter::from_fn(|| null.try_clone().ok()).map(OwnedFd::from).collect();
    taken.push(null.into());
    taken
}

/// User and system time that this process has used.
fn processor_time() -> Duration {
    // SAFETY: an all-zero rusage is a valid value, and the call writes to nothing else.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    let part = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    part(usage.ru_utime) + part(usage.ru_stime)
}

fn limit_descriptors(count: u64) {
    let limit = libc::rlimit { rlim_cur: count as libc::rlim_t, rlim_max: count as libc::rlim_t };
    // SAFETY: the structure lives for the duration of the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

/// Clients wait in the backlog while descriptors are short; nothing spins; old connections are served; new ones are
/// once there are descriptors again.
pub fn no_descriptors_left<B: Backend>() {
    limit_descriptors(128);
    let mut rig = Rig::<B>::new();
    let (_, address) = rig.listen_tcp();
    let mut old = TcpStream::connect(address).unwrap();
    old.set_read_timeout(Some(DEADLINE)).unwrap();
    let (old_sock, _) = rig.accept();
    let late: Vec<_> = (0..20).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let ballast = exhaust();
    for socket in &late {
        socket.connect(&address.into()).unwrap();
    }
    let (processor, start) = (processor_time(), Instant::now());
    let mut turns = 0;
    let mut accepted = 0;
    let mut told = 0;
    while start.elapsed() < Duration::from_millis(500) {
        let events = rig.turn(Duration::from_millis(100));
        accepted += events.iter().filter(|event| matches!(event, Event::Accept { .. })).count();
        told += events.iter().filter(|event| matches!(event, Event::Exhausted { .. })).count();
        let expected = |event: &Event| matches!(event, Event::Accept { .. } | Event::Exhausted { .. });
        assert!(events.iter().all(expected), "{events:?}");
        turns += 1;
    }
    let spent = processor_time() - processor;
    assert!(accepted < late.len(), "descriptors were not short");
    assert_eq!(told, 1, "a pause that goes on is told once");
    assert!(turns < 60, "{turns} turns in half a second");
    assert!(spent < Duration::from_millis(100), "{spent:?} of processor time for waiting");
    echo_once(&mut rig, &mut old, old_sock, b"still served");
    drop(ballast);
    while accepted < late.len() {
        rig.accept();
        accepted += 1;
    }
    rig.finish();
}

/// Who comes in until a turn brings somebody, who has the last place.
fn one_turn_of<B: Backend>(rig: &mut Rig<B>, listener: Sock) -> Vec<Sock> {
    let (mut let_in, deadline) = (Vec::new(), Instant::now() + DEADLINE);
    while let_in.is_empty() {
        assert!(Instant::now() < deadline, "nobody is let in");
        rig.wait(Duration::from_millis(100));
        while let Some(event) = rig.next() {
            if let Event::Accept { sock, .. } = event {
                rig.backend.pause(listener);
                let_in.push(sock);
            }
        }
    }
    let_in
}

/// Who waits for a place has no descriptor here, but for the few that were allowed; and has a turn, one after the other.
pub fn no_more_is_taken_ahead_than_was_said<B: Backend>() {
    const CLIENTS: usize = 100;
    let mut rig = Rig::<B>::new();
    let (listener, address) = rig.listen_tcp();
    for most in [None, Some(0), Some(3), Some(0), Some(1000), None, Some(1)] {
        rig.backend.pause(listener);
        rig.expect_silence();
        rig.backend.accept_ahead(most);
        let clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        let before = open_descriptors();
        let mut let_in = 0;
        while let_in < CLIENTS {
            rig.backend.resume(listener);
            for sock in one_turn_of(&mut rig, listener) {
                rig.close(sock, How::Now);
                rig.expect_close(sock);
                let_in += 1;
            }
            rig.expect_silence();
            let ahead = open_descriptors() - before;
            assert!(most.is_none() || ahead <= most.unwrap_or(0).clamp(1, 8), "{ahead} were taken ahead of {most:?}");
        }
        drop(clients);
    }
    rig.finish();
}

/// A request that came in reaches its worker, though no descriptor is left; and so does the next, once a connection has closed.
pub fn one_descriptor_is_spared_for_a_worker<B: Backend>() {
    limit_descriptors(128);
    let directory = TempDir::new().unwrap();
    let (worker, address) = unix_listener(&directory.path().join("worker.sock"));
    let mut rig = Rig::<B>::new();
    let (_client, sock) = rig.tcp_pair();
    rig.pump();
    let mut ballast = exhaust();
    for _ in 0..3 {
        let connected = rig.connect(&address).expect("the backlog has room");
        rig.until("connect", |event| match event {
            Event::Connect { sock } if sock == connected => Ok(()),
            other => Err(other),
        });
        assert!(rig.backend.connect(&address).is_err(), "there was one to spare");
        // The peer needs a descriptor of its own.
        drop(ballast.pop());
        let (peer, _) = worker.accept().unwrap();
        echo_once(&mut rig, &peer, connected, b"to a worker");
        rig.close(connected, How::Now);
        rig.expect_close(connected);
        ballast.push(peer.into());
    }
    drop(ballast);
    rig.close(sock, How::Now);
    rig.expect_close(sock);
    rig.finish();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/dev/fd").unwrap().count()
}

/// Everything is armed and half done when the backend goes away.
pub fn dropping_the_backend_frees_everything<B: Backend>() {
    let before = open_descriptors();
    let directory = TempDir::new().unwrap();
    for _ in 0..3 {
        let mut rig = Rig::<B>::new();
        let (_, address) = rig.listen_tcp();
        let (_unix_peer, connected) = rig.unix_pair();
        let mut idle = TcpStream::connect(address).unwrap();
        idle.set_read_timeout(Some(DEADLINE)).unwrap();
        let (idle_sock, _) = rig.accept();
        let stuck = TcpStream::connect(address).unwrap();
        let (stuck_sock, _) = rig.accept();
        rig.recv(connected);
        rig.recv(idle_sock);
        rig.send(stuck_sock, &pattern(0, 8 << 20));
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        full.listen(1).unwrap();
        let full_address = full.local_addr().unwrap();
        let queued: Vec<_> = (0..2).map(|_| TcpStream::connect(full_address.as_socket().unwrap()).unwrap()).collect();
        rig.connect(&full_address).unwrap();
        rig.turn(Duration::from_millis(10));
        // An accept that the kernel has brought, perhaps, and nobody has taken.
        let untaken = TcpStream::connect(address).unwrap();
        rig.backend.wait(Some(Duration::from_millis(10))).unwrap();
        let bell = rig.backend.bell();
        let pool = rig.pool.clone();
        drop(rig);
        drop(TcpListener::bind(address).expect("the port is free at once"));
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "the peer sees the end at once");
        assert_eq!(pool.free(Size::Small), pool.total(Size::Small), "a block was leaked");
        bell.ring();
        drop((stuck, queued, untaken, bell));
    }
    drop(unix_listener(&directory.path().join("last.sock")));
    assert_eq!(open_descriptors(), before, "descriptors were leaked");
}

/// With the default action for SIGPIPE, a single send without MSG_NOSIGNAL would end this process.
pub fn broken_pipes_raise_no_signal<B: Backend>() {
    // SAFETY: sets a default action; no handler of ours is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut rig = Rig::<B>::new();
    for gathered in [false, true] {
        let (mut unix, connected) = rig.unix_pair();
        unix.write_all(b"x").unwrap();
        drop(unix);
        let (tcp, accepted) = rig.tcp_pair();
        drop(tcp);
        for sock in [connected, accepted] {
            let mut failed = false;
            let deadline = Instant::now() + DEADLINE;
            while !failed {
                assert!(Instant::now() < deadline, "sends to a closed peer never fail");
                rig.send(sock, &pattern(0, 100));
                if gathered {
                    rig.send(sock, &pattern(100, 100));
                }
                failed = rig.turn(Duration::from_millis(2)).iter().any(
                    |event| matches!(event, Event::Fail { side: Side::Send, sock: failed, .. } if *failed == sock),
                );
            }
        }
    }
    rig.finish();
}
