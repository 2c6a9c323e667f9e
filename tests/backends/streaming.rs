//! Bytes in and out: order, bookkeeping, half-closes and failures of one half.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use production_server::backends::{BULK_BYTES, Backend, Event, How, Piece, Side, Size, Sock};
use production_server::buffers::block::{Budget, Pool, SMALL};
use socket2::SockRef;

use super::rig::{DEADLINE, Rig, echo_once, options_with_pool, pattern, read_pattern};

const EIGHT_MIB: usize = 8 << 20;

pub fn echo_over_tcp<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    for round in 0..100 {
        echo_once(&mut rig, &mut stream, sock, &pattern(round, 1 + round * 37));
    }
    rig.finish();
}

pub fn echo_over_unix<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.unix_pair();
    for round in 0..100 {
        echo_once(&mut rig, &mut stream, sock, &pattern(round, 1 + round * 37));
    }
    rig.finish();
}

/// All clients speak at once; each socket is armed again right at its receive, inside of the turn, and the rig checks
/// that no socket is served twice in one turn.
pub fn many_sockets_echo_in_turns<B: Backend>() {
    const CLIENTS: usize = 32;
    const BYTES: usize = 96 * 1024;
    let mut rig = Rig::<B>::new();
    let (_, address) = rig.listen_tcp();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let mut writer = stream.try_clone().unwrap();
                let writing = thread::spawn(move || {
                    writer.write_all(&pattern(0, BYTES)).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                read_pattern(&mut stream, BYTES);
                writing.join().unwrap();
            })
        })
        .collect();
    let mut ends = 0;
    while ends < CLIENTS {
        rig.wait(Duration::from_secs(1));
        while let Some(event) = rig.next() {
            match event {
                Event::Accept { sock, .. } => rig.recv(sock),
                Event::Receive { sock, block } => {
                    rig.recv(sock);
                    rig.backend.send(sock, block.into());
                }
                Event::End { sock } => {
                    ends += 1;
                    rig.backend.finish(sock);
                }
                Event::Full { .. } => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    // What is still queued leaves, and Full may be told, before silence is demanded.
    for client in clients {
        while !client.is_finished() {
            rig.turn(Duration::from_millis(5));
        }
        client.join().unwrap();
    }
    rig.turn(Duration::ZERO);
    rig.finish();
}

/// Queues the pattern as pieces of all kinds and odd sizes.
fn queue_mixed<B: Backend>(rig: &mut Rig<B>, sock: Sock, total: usize) {
    let stable: &'static [u8] = Vec::leak(pattern(0, 4096));
    rig.backend.send(sock, Piece::Static(stable));
    let mut queued = stable.len();
    for turn in 0.. {
        let count = [1, 700, 16 * 1024, 40_000, 3][turn % 5].min(total - queued);
        if count == 0 {
            break;
        }
        let bytes = pattern(queued, count);
        if turn % 2 == 0 {
            rig.backend.send(sock, Piece::shared(Arc::from(bytes)));
        } else {
            rig.send(sock, &bytes);
        }
        queued += count;
    }
    assert_eq!(rig.backend.unsent(sock), total);
}

pub fn gathered_sends_reach_a_slow_reader_in_order<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    SockRef::from(&stream).set_recv_buffer_size(64 * 1024).unwrap();
    assert_eq!((rig.backend.sent(sock), rig.backend.unsent(sock)), (0, 0));
    queue_mixed(&mut rig, sock, EIGHT_MIB);
    assert_eq!(rig.backend.sent(sock), 0, "nothing leaves before the end of the turn");
    rig.expect_full(sock);
    for _ in 0..10 {
        assert!(rig.turn(Duration::from_millis(1)).is_empty());
        assert_eq!(rig.backend.sent(sock) as usize + rig.backend.unsent(sock), EIGHT_MIB);
    }
    assert!(rig.backend.unsent(sock) > 0, "the kernel's buffers cannot hold all of it");
    assert!(rig.backend.sent(sock) > 0);
    let reader = thread::spawn(move || {
        let mut got = 0;
        while got < EIGHT_MIB {
            let mut buffer = vec![0; (1 + got % 30_000).min(EIGHT_MIB - got)];
            let count = crate::support::read(&mut stream, &mut buffer).unwrap();
            assert!(count > 0, "the stream ended at {got}");
            assert_eq!(buffer[..count], pattern(got, count));
            got += count;
        }
        stream
    });
    rig.expect_empty(sock);
    assert_eq!((rig.backend.sent(sock), rig.backend.unsent(sock)), (EIGHT_MIB as u64, 0));
    let mut stream = reader.join().unwrap();
    // Nobody asked for more, so that nothing more is told.
    rig.send(sock, b"small");
    rig.pump();
    stream.read_exact(&mut [0; 5]).unwrap();
    rig.expect_silence();
    assert_eq!(rig.backend.sent(sock), EIGHT_MIB as u64 + 5);
    rig.finish();
}

pub fn a_long_transfer_arrives_whole_in_large_blocks<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.unix_pair();
    let writer = thread::spawn(move || {
        stream.write_all(&pattern(0, EIGHT_MIB)).unwrap();
        stream
    });
    let mut got = 0;
    let mut largest = 0;
    while got < EIGHT_MIB {
        rig.recv_sized(sock, Size::Large);
        let block = rig.receive(sock);
        assert_eq!(block[..], pattern(got, block.len()));
        got += block.len();
        largest = largest.max(block.len());
    }
    assert!(largest > production_server::buffers::block::SMALL, "no receive was larger than a small block: {largest}");
    writer.join().unwrap();
    rig.finish();
}

pub fn large_receives_fall_back_to_small_blocks<B: Backend>() {
    let mut rig = Rig::<B>::with(options_with_pool(Pool::new(16, 0, Budget::new(1 << 20))));
    let (mut stream, sock) = rig.tcp_pair();
    stream.write_all(b"hello").unwrap();
    rig.recv_sized(sock, Size::Large);
    assert_eq!(rig.receive(sock)[..], b"hello"[..]);
    rig.finish();
}

/// Of many long transfers only a part moves in a turn, what the others may bring is set aside, and a short message is told in the next
/// turn all the same.
pub fn long_transfers_take_turns_and_who_wants_little_does_not_wait<B: Backend>() {
    const TRANSFERS: usize = 40;
    let mut rig = Rig::<B>::new();
    let mut peers: Vec<_> = (0..TRANSFERS).map(|_| rig.unix_pair()).collect();
    let (mut stream, small) = rig.unix_pair();
    rig.recv(small);
    for (peer, sock) in &mut peers {
        peer.write_all(&pattern(0, 4 * SMALL)).unwrap();
        rig.recv(*sock);
    }
    let received = |events: &[Event]| {
        let sock = |event: &Event| if let Event::Receive { sock, .. } = event { Some(*sock) } else { None };
        events.iter().filter_map(sock).collect::<Vec<_>>()
    };
    // That they are long is seen at their first blocks.
    let mut begun = 0;
    while begun < TRANSFERS {
        begun += received(&rig.turn(DEADLINE)).len();
    }
    peers.iter().for_each(|(_, sock)| rig.recv(*sock));
    let set_aside = rig.pool.budget().used();
    assert!(set_aside <= TRANSFERS * SMALL && set_aside > 0, "{set_aside} bytes are set aside");
    stream.write_all(b"little").unwrap();
    let mut told = Vec::new();
    while told.len() < TRANSFERS + 1 {
        let turn = received(&rig.turn(DEADLINE));
        assert!(turn.len() <= BULK_BYTES / SMALL + 2, "{} transfers in one turn", turn.len());
        told.extend(turn);
    }
    let place = told.iter().position(|sock| *sock == small);
    assert!(place <= Some(2 * (BULK_BYTES / SMALL + 2)), "a short message waits behind long transfers: {place:?}");
    assert_eq!(rig.pool.budget().used(), 0);
    rig.finish();
}

pub fn arming_twice_receives_once<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    rig.recv(sock);
    rig.recv(sock);
    rig.turn(Duration::ZERO);
    rig.recv(sock);
    stream.write_all(b"one").unwrap();
    assert_eq!(rig.receive(sock)[..], b"one"[..]);
    stream.write_all(b"two").unwrap();
    rig.expect_silence();
    rig.recv(sock);
    assert_eq!(rig.receive(sock)[..], b"two"[..]);
    rig.finish();
}

pub fn end_comes_right_behind_the_data<B: Backend>() {
    let mut rig = Rig::<B>::new();
    for armed_before in [true, false] {
        let (mut stream, sock) = rig.tcp_pair();
        if armed_before {
            rig.recv(sock);
            rig.turn(Duration::ZERO);
        }
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rig.expect_bytes(sock, b"last words");
        rig.recv(sock);
        rig.expect_end(sock);
        rig.recv(sock);
        rig.expect_silence();
    }
    rig.finish();
}

pub fn a_half_closed_peer_gets_its_answer<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    rig.expect_bytes(sock, b"question");
    rig.recv(sock);
    rig.expect_end(sock);
    rig.send(sock, &pattern(0, 1 << 20));
    rig.backend.finish(sock);
    let reader = thread::spawn(move || read_pattern(stream, 1 << 20));
    rig.expect_empty(sock);
    reader.join().unwrap();
    // Ended both ways, and still its owner's to close.
    rig.expect_silence();
    rig.close(sock, How::Flushed);
    rig.expect_close(sock);
    rig.finish();
}

pub fn finish_leaves_after_the_outbox<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.unix_pair();
    rig.send(sock, &pattern(0, EIGHT_MIB));
    rig.backend.finish(sock);
    rig.backend.finish(sock);
    let reading = stream.try_clone().unwrap();
    let reader = thread::spawn(move || read_pattern(reading, EIGHT_MIB));
    rig.expect_empty(sock);
    reader.join().unwrap();
    // The other half is untouched.
    stream.write_all(b"more").unwrap();
    rig.expect_bytes(sock, b"more");
    drop(stream);
    rig.recv(sock);
    rig.expect_end(sock);
    rig.finish();
}

/// A receive stops short at urgent data, though more has come already: that is received nevertheless, and the byte sent as urgent,
/// which is no part of the stream, is not.
pub fn urgent_data_hides_nothing<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    for round in 0..3 {
        rig.recv(sock);
        rig.expect_silence();
        stream.write_all(b"before").unwrap();
        SockRef::from(&stream).send_out_of_band(b"!").unwrap();
        stream.write_all(b"behind").unwrap();
        rig.expect_bytes(sock, b"beforebehind");
        // One that has nothing behind it, or nothing around it.
        stream.write_all(b"before").unwrap();
        SockRef::from(&stream).send_out_of_band(b"!").unwrap();
        rig.expect_bytes(sock, b"before");
        SockRef::from(&stream).send_out_of_band(b"!").unwrap();
        rig.recv(sock);
        rig.expect_silence();
        stream.write_all(b"after").unwrap();
        rig.expect_bytes(sock, b"after");
        echo_once(&mut rig, &mut stream, sock, &pattern(round, 1000));
    }
    stream.write_all(b"last").unwrap();
    SockRef::from(&stream).send_out_of_band(b"!").unwrap();
    drop(stream);
    rig.expect_bytes(sock, b"last");
    rig.recv(sock);
    rig.expect_end(sock);
    rig.finish();
}

pub fn an_idle_connection_sees_the_end_at_once<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (tcp, accepted) = rig.tcp_pair();
    let (unix, connected) = rig.unix_pair();
    rig.recv(accepted);
    rig.recv(connected);
    rig.expect_silence();
    drop(tcp);
    rig.expect_end(accepted);
    drop(unix);
    rig.expect_end(connected);
    rig.finish();
}

pub fn a_reset_fails_the_receive<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (stream, sock) = rig.tcp_pair();
    rig.recv(sock);
    rig.expect_silence();
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let error = rig.expect_fail(sock, Side::Receive);
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    rig.recv(sock);
    rig.expect_silence();
    rig.close(sock, How::Flushed);
    rig.expect_close(sock);
    rig.finish();
}

pub fn a_failed_send_leaves_an_early_answer_readable<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.unix_pair();
    stream.write_all(b"early").unwrap();
    drop(stream);
    rig.send(sock, b"a request that nobody reads");
    let error = rig.expect_fail(sock, Side::Send);
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    assert_eq!(rig.backend.sent(sock), 0, "nothing was delivered");
    rig.send(sock, b"more");
    assert_eq!(rig.backend.unsent(sock), 0, "a failed half takes nothing");
    rig.expect_bytes(sock, b"early");
    rig.recv(sock);
    rig.expect_end(sock);
    rig.finish();
}

/// What the peer has read was offered before, although the backend may not have told anybody yet.
pub fn what_may_have_left_counts_as_offered<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.unix_pair();
    for round in 0..3u64 {
        rig.send(sock, b"four");
        assert_eq!((rig.backend.offered(sock), rig.backend.sent(sock)), (4 * round, 4 * round));
        rig.wait(Duration::ZERO);
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(rig.backend.offered(sock), 4 * (round + 1));
        while rig.next().is_some() {}
        assert_eq!((rig.backend.offered(sock), rig.backend.sent(sock)), (4 * (round + 1), 4 * (round + 1)));
    }
    // More than the kernel takes at once: never more than there is, and never less than was taken.
    rig.send(sock, &pattern(0, EIGHT_MIB));
    let mut buffer = vec![0; 64 * 1024];
    let mut got = 0;
    while got < EIGHT_MIB {
        rig.wait(Duration::ZERO);
        let count = crate::support::read(&mut stream, &mut buffer).unwrap();
        assert_eq!(buffer[..count], pattern(got, count));
        got += count;
        let (offered, sent) = (rig.backend.offered(sock), rig.backend.sent(sock));
        assert!(offered >= sent && offered >= 12 + got as u64 && offered <= 12 + EIGHT_MIB as u64);
        while rig.next().is_some() {}
    }
    rig.close(sock, How::Now);
    rig.expect_close(sock);
    rig.finish();
}
