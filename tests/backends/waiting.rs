//! Waits, bells, and what must wait: receives for a block, connections for an entry.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use production_server::backends::{Backend, Bell, Event, How, Options, Size};
use production_server::buffers::block::{Budget, Pool, Share};

use super::rig::{Rig, options, options_with_pool};

pub fn timeouts_are_kept<B: Backend>() {
    let mut rig = Rig::<B>::new();
    rig.listen_tcp();
    rig.turn(Duration::ZERO);
    let before = rig.backend.now();
    for timeout in [Duration::from_micros(300), Duration::from_millis(30)] {
        let start = Instant::now();
        assert!(rig.turn(timeout).is_empty());
        assert!(start.elapsed() >= timeout, "{timeout:?} was over after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert!(rig.backend.now() >= before + Duration::from_millis(30), "the time goes on with each wait");
    assert!(rig.backend.now() <= Instant::now());
    rig.finish();
}

fn hear<B: Backend>(rig: &mut Rig<B>) {
    rig.until("wake", |event| match event {
        Event::Wake => Ok(()),
        other => Err(other),
    });
}

pub fn the_bell_wakes_from_another_thread<B: Backend>() {
    let mut rig = Rig::<B>::new();
    for _ in 0..50 {
        let bell = rig.backend.bell();
        let ringer = thread::spawn(move || bell.ring());
        // Without a timeout: only the bell can end this wait.
        rig.backend.wait(None).unwrap();
        let events: Vec<_> = std::iter::from_fn(|| rig.next()).collect();
        assert!(matches!(events[..], [Event::Wake]), "{events:?}");
        ringer.join().unwrap();
    }
    let bell = rig.backend.bell();
    rig.finish();
    // A bell may outlive its backend.
    bell.ring();
}

pub fn a_ring_while_awake_is_not_lost<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let bell = rig.backend.bell();
    for _ in 0..100 {
        bell.ring();
        rig.backend.wait(None).unwrap();
        // Rung again after the wait and before its events are taken: at least the next wait tells.
        bell.ring();
        assert!(matches!(rig.next(), Some(Event::Wake)));
        while rig.next().is_some() {}
        rig.turn(Duration::from_millis(1));
    }
    rig.finish();
}

pub fn many_rings_are_merged<B: Backend>() {
    const RINGERS: usize = 4;
    const RINGS: usize = 2000;
    let mut rig = Rig::<B>::new();
    let rung = Arc::new(AtomicUsize::new(0));
    let ringers: Vec<_> = (0..RINGERS)
        .map(|_| {
            let (bell, rung) = (rig.backend.bell(), Arc::clone(&rung));
            thread::spawn(move || {
                for _ in 0..RINGS {
                    rung.fetch_add(1, Ordering::SeqCst);
                    bell.ring();
                }
            })
        })
        .collect();
    // A wake after the last ring proves that none was lost: what was rung before it is seen by then.
    let mut seen = 0;
    let mut wakes = 0;
    while seen < RINGERS * RINGS {
        hear(&mut rig);
        wakes += 1;
        seen = rung.load(Ordering::SeqCst);
    }
    assert!(wakes <= RINGERS * RINGS);
    for ringer in ringers {
        ringer.join().unwrap();
    }
    // Late rings may still tell once more; then it is silent.
    rig.turn(Duration::from_millis(1));
    rig.turn(Duration::from_millis(1));
    assert!(rig.turn(Duration::from_millis(10)).is_empty());
    rig.finish();
}

/// Clients get at most what the workers' share leaves; the others' receives wait for a block, silently.
pub fn a_starved_pool_parks_receives<B: Backend>() {
    const CLIENTS: usize = 8;
    let mut rig = Rig::<B>::with(options_with_pool(Pool::new(4, 0, Budget::new(1 << 20))));
    let pairs: Vec<_> = (0..CLIENTS).map(|_| rig.tcp_pair()).collect();
    let mut held: Vec<_> = std::iter::from_fn(|| rig.pool.take(Size::Small, Share::Client)).collect();
    assert_eq!(held.len(), 3);
    for (number, (stream, sock)) in pairs.iter().enumerate() {
        rig.recv(*sock);
        (&mut &*stream).write_all(&[number as u8; 100]).unwrap();
    }
    rig.expect_silence();
    assert!(pairs.iter().all(|(_, sock)| rig.backend.is_starved(*sock)), "it is not the peers who are silent");
    // One block serves all of them, one after the other.
    let block = held.pop();
    drop(block);
    let mut seen = Vec::new();
    while seen.len() < CLIENTS {
        let (sock, block) = rig.until("receive", |event| match event {
            Event::Receive { sock, block } => Ok((sock, block)),
            other => Err(other),
        });
        let number = pairs.iter().position(|(_, known)| *known == sock).unwrap();
        assert_eq!(block[..], [number as u8; 100]);
        assert!(!seen.contains(&number));
        seen.push(number);
        drop(block);
    }
    assert!(pairs.iter().all(|(_, sock)| !rig.backend.is_starved(*sock)));
    // Parked again, then closed: the parked receive goes with its socket.
    held.extend(rig.pool.take(Size::Small, Share::Client));
    rig.recv(pairs[0].1);
    (&mut &pairs[0].0).write_all(b"parked").unwrap();
    rig.expect_silence();
    rig.close(pairs[0].1, How::Now);
    rig.expect_close(pairs[0].1);
    held.clear();
    rig.expect_silence();
    rig.finish();
}

pub fn workers_are_served_while_clients_starve<B: Backend>() {
    let mut rig = Rig::<B>::with(options_with_pool(Pool::new(4, 0, Budget::new(1 << 20))));
    let (mut client, accepted) = rig.tcp_pair();
    let (mut worker, connected) = rig.unix_pair();
    let held: Vec<_> = std::iter::from_fn(|| rig.pool.take(Size::Small, Share::Client)).collect();
    rig.recv(accepted);
    client.write_all(b"client").unwrap();
    rig.expect_silence();
    for _ in 0..10 {
        worker.write_all(b"worker").unwrap();
        rig.expect_bytes(connected, b"worker");
    }
    rig.expect_silence();
    // With the last block gone, workers wait, too; and both go on.
    let last = rig.pool.take(Size::Small, Share::Worker).unwrap();
    rig.recv(connected);
    worker.write_all(b"again").unwrap();
    rig.expect_silence();
    drop(last);
    assert_eq!(rig.receive(connected)[..], b"again"[..]);
    drop(held);
    assert_eq!(rig.receive(accepted)[..], b"client"[..]);
    rig.finish();
}

pub fn a_full_table_keeps_connections_waiting<B: Backend>() {
    let mut rig = Rig::<B>::with(Options { max_sockets: 3, ..options() });
    let (_, address) = rig.listen_tcp();
    let mut clients: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut socks = vec![rig.accept().0, rig.accept().0];
    rig.expect_silence();
    assert!(rig.backend.connect(&address.into()).is_err(), "no entry is left");
    for _ in 0..2 {
        let sock = socks.remove(0);
        rig.close(sock, How::Now);
        rig.expect_close(sock);
        socks.push(rig.accept().0);
    }
    clients[3].write_all(b"last").unwrap();
    rig.expect_bytes(socks[1], b"last");
    rig.finish();
}

/// Waits that nothing ends early, though a connection waits at the listener.
fn expect_sleep<B: Backend>(rig: &mut Rig<B>) {
    let pause = Duration::from_millis(60);
    rig.expect_silence();
    let start = Instant::now();
    assert!(rig.turn(pause).is_empty());
    assert!(start.elapsed() >= pause, "the loop was woken after {:?}", start.elapsed());
}

/// Connections that may not be taken wake nobody; they are taken as soon as they may be.
pub fn connections_that_must_wait_let_the_loop_sleep<B: Backend>() {
    let mut rig = Rig::<B>::with(Options { max_sockets: 3, ..options() });
    let (listener, address) = rig.listen_tcp();
    rig.expect_silence();
    rig.backend.pause(listener);
    let clients: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    expect_sleep(&mut rig);
    rig.backend.resume(listener);
    let first = rig.accept().0;
    rig.accept();
    // Now the table is full.
    expect_sleep(&mut rig);
    rig.backend.pause(listener);
    rig.close(first, How::Now);
    rig.expect_close(first);
    expect_sleep(&mut rig);
    rig.backend.resume(listener);
    rig.accept();
    expect_sleep(&mut rig);
    // A listener that is closed in that state does not wake it either.
    rig.close(listener, How::Now);
    rig.expect_close(listener);
    expect_sleep(&mut rig);
    drop(clients);
    rig.finish();
}

/// A listener that another process, or another part of this one, holds as well is not heard of any more once it is closed.
pub fn a_closed_listener_that_lives_on_elsewhere_is_not_heard_of<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let shared = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listener = rig.listen(shared.try_clone().unwrap().into());
    let client = TcpStream::connect(shared.local_addr().unwrap()).unwrap();
    let (sock, _) = rig.accept();
    rig.close(listener, How::Now);
    rig.expect_close(listener);
    let late = TcpStream::connect(shared.local_addr().unwrap()).unwrap();
    expect_sleep(&mut rig);
    drop((client, late));
    rig.close(sock, How::Now);
    rig.expect_close(sock);
    rig.finish();
}
