//! Peers that are behind: what waits for them lies on the heap and costs little more than its bytes, and who fills their outboxes is
//! told what there is to know.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use production_server::backends::{
    Backend, Event, FILES_A_TURN, HIGH_MARK, Handed, How, Options, Piece, Side, Size, Sock,
};
use production_server::buffers::block::{Block, Pool, Scratch, Share};
use socket2::{Domain, SockRef, Socket, Type};

use super::rig::{DEADLINE, Rig, options, pattern, read_pattern};

const EIGHT_MIB: usize = 8 << 20;

/// A TCP pair of which the peer's end takes about that many bytes that it does not read, now and later, and ours a megabyte.
fn narrow_pair<B: Backend>(rig: &mut Rig<B>, takes: usize) -> (TcpStream, Sock) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.set_send_buffer_size(1 << 20).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    rig.listen(listener.into());
    let peer = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    peer.set_recv_buffer_size(takes).unwrap();
    peer.connect(&address).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    (peer.into(), rig.accept().0)
}

/// The bytes in a block of the pool.
fn lent(pool: &Pool, size: Size, bytes: &[u8]) -> Block {
    let mut block = pool.take(size, Share::Worker).expect("a block is free");
    let (place, room) = block.spare();
    assert!(bytes.len() <= room);
    // SAFETY: the bytes lie within the room, and elsewhere now.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        block.filled(bytes.len());
    }
    block
}

fn blocks_out<B: Backend>(rig: &Rig<B>) -> usize {
    rig.pool.out(Size::Small) + rig.pool.out(Size::Large)
}

pub fn full_is_told_once_and_what_waits_lies_on_the_heap<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (tcp, accepted) = narrow_pair(&mut rig, 64 * 1024);
    let (unix, connected) = rig.unix_pair();
    full_over(&mut rig, tcp, accepted);
    full_over(&mut rig, unix, connected);
    rig.finish();
}

fn full_over<B: Backend>(rig: &mut Rig<B>, mut peer: impl Read + Send + 'static, sock: Sock) {
    let mut scratch = Scratch::new(rig.pool.clone());
    let mut total = 0;
    for round in 0..2 {
        let end = total + EIGHT_MIB + 200_000;
        rig.send(sock, &pattern(total, EIGHT_MIB));
        let mut queued = total + EIGHT_MIB;
        for count in [100_000, 10_000, 1] {
            let size = if count > 50_000 { Size::Large } else { Size::Small };
            let block = lent(&rig.pool, size, &pattern(queued, count));
            rig.backend.send(sock, block.into());
            queued += count;
        }
        let head = scratch.write(500, |out| out.put(&pattern(queued, 500)));
        rig.backend.send(sock, head.into());
        queued += 500;
        assert!(blocks_out(rig) >= 4, "they lie in blocks until they were tried");
        let mut census = rig.pool.census();
        rig.backend.count_blocks(&mut census);
        assert_eq!(census.missing(), 0, "every block is in the outbox");
        rig.expect_full(sock);
        drop(scratch);
        assert_eq!(blocks_out(rig), 0, "round {round}: a block waits for a peer");
        // What is queued while the peer is behind does not wait in a block either, and nothing is told again.
        scratch = Scratch::new(rig.pool.clone());
        while queued < end {
            let count = (end - queued).min(15_000);
            let block = lent(&rig.pool, Size::Small, &pattern(queued, count));
            rig.backend.send(sock, block.into());
            queued += count;
            assert_eq!(blocks_out(rig), 0, "round {round}: a block waits for a peer");
            rig.expect_silence();
        }
        assert!(rig.pool.budget().used() >= rig.backend.unsent(sock), "what waits is not charged");
        let reader = thread::spawn(move || {
            let mut got = vec![0; end - total];
            peer.read_exact(&mut got).unwrap();
            assert!(got == pattern(total, end - total), "other bytes came");
            peer
        });
        rig.expect_empty(sock);
        peer = reader.join().unwrap();
        assert_eq!((rig.pool.budget().used(), rig.backend.unsent(sock)), (0, 0));
        total = end;
    }
    rig.close(sock, How::Now);
    rig.expect_close(sock);
}

/// Ten thousand tiny events for one that does not read: no allocation of its own for each, and none moves while it is being sent.
pub fn tiny_pieces_for_a_peer_that_is_behind_cost_little<B: Backend>() {
    const EVENTS: usize = 10_000;
    const BYTES: usize = 23;
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    let mut scratch = Scratch::new(rig.pool.clone());
    let mut send_event = |rig: &mut Rig<B>, event: usize| {
        let start = EIGHT_MIB + event * BYTES;
        let piece = scratch.write(BYTES, |out| out.put(&pattern(start, BYTES)));
        rig.backend.send(sock, piece.into());
        if event.is_multiple_of(100) {
            rig.pump();
        }
    };
    rig.send(sock, &pattern(0, EIGHT_MIB));
    rig.expect_full(sock);
    let before = rig.pool.budget().used();
    for event in 0..EVENTS {
        send_event(&mut rig, event);
    }
    let used = rig.pool.budget().used() - before;
    assert!(used < EVENTS * BYTES * 5 / 4, "{used} bytes charged for {}", EVENTS * BYTES);
    // From now on they are queued behind sends that are under way.
    let reader = thread::spawn(move || read_pattern(&mut stream, EIGHT_MIB + 2 * EVENTS * BYTES));
    for event in EVENTS..2 * EVENTS {
        send_event(&mut rig, event);
    }
    rig.expect_empty(sock);
    rig.close(sock, How::Flushed);
    rig.expect_close(sock);
    reader.join().unwrap();
    drop(scratch);
    rig.finish();
}

/// One Drain for each time that room was asked for: in the next turn when nothing waits, else with the next progress, though the
/// kernel may take all at once.
pub fn room_is_told_when_it_was_asked_for<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    for _ in 0..3 {
        rig.await_room(sock);
        rig.await_room(sock);
        rig.expect_drain(sock);
        rig.send(sock, &pattern(0, HIGH_MARK));
        rig.await_room(sock);
        rig.expect_drain(sock);
        let mut reading = stream.try_clone().unwrap();
        let reader = thread::spawn(move || reading.read_exact(&mut vec![0; HIGH_MARK]).unwrap());
        rig.expect_empty(sock);
        reader.join().unwrap();
        rig.expect_silence();
    }
    // While a peer takes nothing there is no room to be told of; once it takes more there is.
    rig.send(sock, &pattern(0, EIGHT_MIB));
    rig.expect_full(sock);
    rig.await_room(sock);
    rig.expect_silence();
    let before = rig.backend.unsent(sock);
    let reader = thread::spawn(move || {
        stream.read_exact(&mut vec![0; EIGHT_MIB]).unwrap();
        stream
    });
    rig.expect_drain(sock);
    assert!(rig.backend.unsent(sock) < before);
    rig.expect_empty(sock);
    drop(reader.join().unwrap());
    // A close answers nothing any more.
    rig.await_room(sock);
    rig.close(sock, How::Now);
    rig.expect_close(sock);
    rig.await_room(sock);
    rig.finish();
}

/// What is queued before the connect has ended waits as well, and is told of like anything else.
pub fn what_waits_for_a_connect_lies_on_the_heap<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let queued: Vec<_> = (0..2).map(|_| TcpStream::connect(address.as_socket().unwrap()).unwrap()).collect();
    let sock = rig.connect(&address).unwrap();
    for start in [0, 1000] {
        let block = lent(&rig.pool, Size::Small, &pattern(start, 1000));
        rig.backend.send(sock, block.into());
        assert_eq!(blocks_out(&rig), 0, "a block waits for a connect");
        rig.expect_silence();
    }
    rig.await_room(sock);
    rig.expect_silence();
    // With room in the backlog the handshake succeeds when it is tried again.
    for _ in &queued {
        full.accept().unwrap();
    }
    rig.until("connect", |event| match event {
        Event::Connect { sock: connected } if connected == sock => Ok(()),
        other => Err(other),
    });
    rig.expect_drain(sock);
    let (peer, _) = full.accept().unwrap();
    rig.close(sock, How::Flushed);
    let reader = thread::spawn(move || read_pattern(TcpStream::from(peer), 2000));
    rig.expect_close(sock);
    reader.join().unwrap();
    drop(queued);
    rig.finish();
}

/// The kernel has taken long ago what the peer acknowledges only now.
pub fn what_a_peer_has_read_is_acknowledged<B: Backend>() {
    const TOTAL: usize = 256 * 1024;
    if cfg!(not(target_os = "linux")) {
        // There what was sent counts.
        return;
    }
    let mut rig = Rig::<B>::new();
    let (tcp, accepted) = narrow_pair(&mut rig, 4096);
    let (unix, connected) = rig.unix_pair();
    acknowledged_by(&mut rig, tcp, accepted, TOTAL);
    acknowledged_by(&mut rig, unix, connected, TOTAL / 2);
    assert_eq!(rig.backend.taken(), TOTAL as u64, "those that we connected do not count");
    rig.finish();
}

fn acknowledged_by<B: Backend>(rig: &mut Rig<B>, mut peer: impl Read, sock: Sock, total: usize) {
    assert_eq!(rig.backend.acknowledged(sock), 0);
    rig.send(sock, &pattern(0, total));
    rig.expect_empty(sock);
    let mut before = rig.backend.acknowledged(sock);
    assert!(before < total as u64 / 4, "{before} acknowledged by one that has read nothing");
    let mut got = 0;
    while got < total {
        // All that has come, so that the window opens.
        let mut buffer = vec![0; total];
        let count = crate::support::read(&mut peer, &mut buffer).unwrap();
        got += count;
        let now = rig.backend.acknowledged(sock);
        assert!(now >= before && now <= total as u64, "{now} after {before}");
        before = now;
    }
    rig.pump_until("all acknowledged", |rig| rig.backend.acknowledged(sock) == total as u64);
    rig.close(sock, How::Now);
    rig.expect_close(sock);
    assert_eq!(rig.backend.acknowledged(sock), 0, "a dead name");
}

/// A reader may be so slow that the kernel takes nothing more for longer than the stall time: what counts is that it reads.
pub fn a_close_waits_for_a_peer_that_acknowledges<B: Backend>() {
    const STALL: Duration = Duration::from_millis(200);
    const TOTAL: usize = 4 << 20;
    if cfg!(not(target_os = "linux")) {
        return;
    }
    let mut rig = Rig::<B>::with(Options { stall: STALL, ..options() });
    let (mut stream, sock) = narrow_pair(&mut rig, 64 * 1024);
    stream.set_nonblocking(true).unwrap();
    rig.send(sock, &pattern(0, TOTAL));
    rig.close(sock, How::Flushed);
    let mut buffer = vec![0; 64 * 1024];
    let (mut got, mut ended, mut was_slow) = (0, false, false);
    let (mut sent, mut since) = (0, Instant::now());
    let deadline = Instant::now() + DEADLINE;
    // Reader and backend take turns on one thread, so that each look of the backend comes after a read that opens the window,
    // however long this process is kept from running.
    while !ended {
        assert!(Instant::now() < deadline, "{got} bytes came in time");
        match crate::support::read(&mut stream, &mut buffer) {
            Ok(count) => {
                assert_eq!(buffer[..count], pattern(got, count));
                got += count;
                ended = count == 0;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "cut after {got} bytes"),
        }
        let events = rig.turn(if was_slow { Duration::ZERO } else { STALL / 2 });
        assert!(events.is_empty(), "after {got} bytes, slow {was_slow}, since {:?}: {events:?}", since.elapsed());
        if rig.backend.sent(sock) != sent {
            (sent, since) = (rig.backend.sent(sock), Instant::now());
        }
        was_slow |= since.elapsed() > 2 * STALL;
    }
    assert!(was_slow && got == TOTAL, "the kernel took something all the time, or the end is missing");
    drop(stream);
    rig.expect_close(sock);
    rig.finish();
}

/// What left for clients is counted, whichever of them it was for, and though they are gone.
pub fn what_accepted_sockets_took_is_counted<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut unix, connected) = rig.unix_pair();
    for round in 1..=3 {
        let (mut stream, sock) = rig.tcp_pair();
        rig.send(sock, &pattern(0, 1000));
        rig.backend.send(connected, Piece::Static(b"to a worker"));
        rig.pump();
        stream.read_exact(&mut [0; 1000]).unwrap();
        unix.read_exact(&mut [0; 11]).unwrap();
        stream.write_all(b"x").unwrap();
        rig.expect_bytes(sock, b"x");
        rig.close(sock, How::Now);
        rig.expect_close(sock);
        assert_eq!(rig.backend.taken(), 1000 * round);
    }
    rig.finish();
}

/// A file that the kernel has in memory, for it was just written.
fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Sends from a file: how many bytes have left. Drain follows where less was sent than was asked for.
fn send_file<B: Backend>(rig: &mut Rig<B>, sock: Sock, file: &File, at: u64, count: u64) -> u64 {
    match rig.send_file(sock, file, at, count) {
        Handed::Sent(sent) => sent,
        other => panic!("{other:?}: Linux has it in memory, and tells so from 6.5 on"),
    }
}

pub fn a_file_leaves_from_where_it_lies<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    let bytes = pattern(0, EIGHT_MIB);
    let (file, all) = (file(&bytes), EIGHT_MIB as u64);
    // What is queued leaves first, and nobody reads: then there is no more room, which is told, and told again when there is.
    rig.send(sock, b"head");
    let mut at = send_file(&mut rig, sock, &file, 0, all);
    if at == 0 {
        rig.expect_drain(sock);
    }
    assert_eq!(rig.backend.unsent(sock), 0);
    loop {
        match send_file(&mut rig, sock, &file, at, all - at) {
            0 => break,
            sent => at += sent,
        }
        rig.pump();
    }
    assert!(0 < at && at < all, "the kernel takes no file as a whole");
    assert_eq!(rig.backend.sent(sock), 4 + at);
    let reader = thread::spawn(move || {
        let mut read = vec![0; 4 + EIGHT_MIB];
        stream.read_exact(&mut read).unwrap();
        (stream, read)
    });
    rig.expect_drain(sock);
    while at < all {
        match send_file(&mut rig, sock, &file, at, all - at) {
            0 => rig.expect_drain(sock),
            sent => at += sent,
        }
    }
    assert_eq!(rig.send_file(sock, &file, all, 1), Handed::Unable, "there is nothing");
    let (stream, read) = reader.join().unwrap();
    assert!(read.starts_with(b"head") && read[4..] == bytes);
    drop(stream);
    rig.forget_room(sock);
    rig.finish();
}

pub fn files_take_turns<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let pairs: Vec<_> = (0..8).map(|_| rig.tcp_pair()).collect();
    let file = file(&[7; 64 * 1024]);
    let all = pairs.iter().cycle().take(64);
    let sent: u64 = all.map(|(_, sock)| send_file(&mut rig, *sock, &file, 0, 64 * 1024)).sum();
    assert_eq!(sent, FILES_A_TURN, "no more leaves in a turn");
    for (_, sock) in &pairs {
        rig.expect_drain(*sock);
    }
    assert!(send_file(&mut rig, pairs[0].1, &file, 0, 64 * 1024) > 0);
    pairs.iter().for_each(|(_, sock)| rig.forget_room(*sock));
    rig.finish();
}

pub fn a_file_for_nobody_fails<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (stream, sock) = rig.tcp_pair();
    let file = file(&[7; 4096]);
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let deadline = Instant::now() + DEADLINE;
    while send_file(&mut rig, sock, &file, 0, 4096) > 0 {
        assert!(Instant::now() < deadline, "it is never told");
    }
    rig.expect_fail(sock, Side::Send);
    rig.finish();
}
