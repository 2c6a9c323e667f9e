//! Closing: each manner of it, from every state, and the silence after it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use production_server::backends::{ACCEPT_BATCH, Backend, Event, How, Options, Piece, Size};

use super::rig::{DEADLINE, Rig, options, pattern, read_pattern, unix_listener};

const EIGHT_MIB: usize = 8 << 20;

/// Closes a TCP and a Unix socket with a receive armed, while their peers are silent, and returns how the TCP peer ended.
fn close_while_armed<B: Backend>(how: How) -> std::io::Result<usize> {
    let mut rig = Rig::<B>::new();
    let (mut tcp, accepted) = rig.tcp_pair();
    let (mut unix, connected) = rig.unix_pair();
    for sock in [accepted, connected] {
        rig.recv(sock);
    }
    rig.expect_silence();
    for sock in [accepted, connected] {
        rig.close(sock, how);
        rig.close(sock, how);
        rig.expect_close(sock);
    }
    rig.expect_silence();
    assert_eq!(unix.read(&mut [0; 8]).unwrap(), 0, "the peer over Unix sees the end");
    let outcome = tcp.read(&mut [0; 8]);
    rig.finish();
    outcome
}

pub fn close_now_with_a_receive_armed<B: Backend>() {
    assert_eq!(close_while_armed::<B>(How::Now).unwrap(), 0);
}

/// An armed receive at which nothing has come says that all was read and no more is expected: no lingering, though the
/// peer stays.
pub fn close_flushed_with_a_receive_armed<B: Backend>() {
    assert_eq!(close_while_armed::<B>(How::Flushed).unwrap(), 0);
}

pub fn close_reset_with_a_receive_armed<B: Backend>() {
    assert_eq!(close_while_armed::<B>(How::Reset).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// The time that a peer is given begins at the close, however long the loop slept before.
pub fn the_time_for_a_close_counts_from_it<B: Backend>() {
    let given = Duration::from_millis(300);
    let mut rig = Rig::<B>::with(Options { stall: given, linger: given, ..options() });
    let (mut stream, sock) = rig.tcp_pair();
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        rig.turn(end.saturating_duration_since(Instant::now()));
    }
    rig.send(sock, b"late");
    rig.close(sock, How::Flushed);
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map(|_| bytes)
    });
    rig.expect_close(sock);
    assert_eq!(reader.join().unwrap().unwrap(), b"late");
    rig.finish();
}

/// What is opened before the Close was told does not take the closed socket's place.
pub fn an_index_is_used_again_only_after_close<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    let folder = tempfile::tempdir().unwrap();
    let (listener, address) = unix_listener(&folder.path().join("worker"));
    rig.recv(sock);
    stream.write_all(b"data").unwrap();
    rig.receive(sock);
    rig.close(sock, How::Now);
    let connected = rig.connect(&address).expect("the backlog has room");
    rig.expect_close(sock);
    rig.until("the connect", |event| match event {
        Event::Connect { sock } if sock == connected => Ok(()),
        other => Err(other),
    });
    drop(listener);
    rig.finish();
}

/// Two sockets are ready in the same turn; the first one's event closes both.
pub fn close_now_inside_of_a_turn_silences_the_socket<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut one, first) = rig.tcp_pair();
    let (mut two, second) = rig.tcp_pair();
    rig.recv(first);
    rig.recv(second);
    rig.expect_silence();
    one.write_all(b"data").unwrap();
    two.write_all(b"data").unwrap();
    let mut received = 0;
    let mut closed = 0;
    let deadline = Instant::now() + DEADLINE;
    while closed < 2 {
        assert!(Instant::now() < deadline);
        rig.wait(Duration::from_millis(50));
        while let Some(event) = rig.next() {
            match event {
                Event::Receive { .. } => {
                    received += 1;
                    rig.close(first, How::Now);
                    rig.close(second, How::Now);
                }
                Event::Close { .. } => closed += 1,
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    assert_eq!(received, 1);
    rig.finish();
}

pub fn reset_cuts_what_is_queued<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    rig.send(sock, &pattern(0, EIGHT_MIB));
    rig.expect_full(sock);
    rig.close(sock, How::Reset);
    rig.expect_close(sock);
    let mut got = Vec::new();
    assert_eq!(stream.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(got.len() < EIGHT_MIB);
    rig.finish();
}

pub fn flushed_delivers_everything<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (stream, sock) = rig.tcp_pair();
    let (unix, connected) = rig.unix_pair();
    for sock in [sock, connected] {
        rig.send(sock, &pattern(0, EIGHT_MIB));
        rig.close(sock, How::Flushed);
        rig.send(sock, b"not after close");
    }
    let readers =
        [thread::spawn(move || read_pattern(stream, EIGHT_MIB)), thread::spawn(move || read_pattern(unix, EIGHT_MIB))];
    rig.expect_close(sock);
    rig.expect_close(connected);
    for reader in readers {
        reader.join().unwrap();
    }
    rig.finish();
}

/// How many segments the socket has received so far, its peer's SYN among them.
#[cfg(target_os = "linux")]
fn segments_received(stream: &TcpStream) -> u32 {
    use std::os::fd::AsRawFd;
    /// Where `tcpi_segs_in` lies in `struct tcp_info` of linux/tcp.h (Linux 4.2 and later).
    const SEGMENTS_IN: usize = 140;
    let mut info = [0_u8; 256];
    let mut len = info.len() as libc::socklen_t;
    let place = info.as_mut_ptr().cast();
    // SAFETY: the place has as many bytes as the length says, and both outlive the call.
    let result =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut len) };
    assert!(result == 0 && len as usize >= SEGMENTS_IN + 4, "no TCP_INFO: {result}, {len} bytes");
    u32::from_ne_bytes(info[SEGMENTS_IN..][..4].try_into().unwrap())
}

/// The last bytes wait for the FIN and share its segment, whatever it is that sends it. They never wait without one: more
/// than a gathered send takes arrives as well.
#[cfg(target_os = "linux")]
pub fn the_last_bytes_share_the_segment_of_the_fin<B: Backend>() {
    use production_server::backends::Sock;
    let endings: [fn(&mut Rig<B>, Sock); 3] = [
        |rig, sock| {
            rig.recv(sock);
            rig.close(sock, How::Flushed);
        },
        |rig, sock| rig.close(sock, How::Flushed),
        |rig, sock| rig.backend.finish(sock),
    ];
    let mut rig = Rig::<B>::new();
    for (number, ending) in endings.iter().enumerate() {
        for pieces in [1, 2, 40] {
            let (mut stream, sock) = rig.tcp_pair();
            let before = segments_received(&stream);
            for _ in 0..pieces {
                rig.send(sock, b"piece");
            }
            ending(&mut rig, sock);
            let reader = thread::spawn(move || {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                (stream, got)
            });
            rig.pump_until("end read", |_| reader.is_finished());
            let (stream, got) = reader.join().unwrap();
            assert_eq!(got, b"piece".repeat(pieces));
            let segments = segments_received(&stream) - before;
            let gathered = pieces.div_ceil(production_server::buffers::outbox::GATHER) as u32;
            assert!(segments <= gathered, "ending {number}: {pieces} pieces and the end came in {segments} segments");
            drop(stream);
            rig.close(sock, How::Now);
            rig.expect_close(sock);
        }
    }
    rig.finish();
}

#[cfg(not(target_os = "linux"))]
pub use self::flushed_delivers_everything as the_last_bytes_share_the_segment_of_the_fin;

/// The peer sends 4 MiB that nobody asked for and only then reads: it must find the answer and the end, not a reset.
fn refuse_a_sender<B: Backend>(armed: bool) {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    stream.write_all(b"head").unwrap();
    rig.expect_bytes(sock, b"head");
    rig.send(sock, &pattern(0, 300));
    if armed {
        rig.recv(sock);
        rig.backend.finish(sock);
    }
    rig.close(sock, How::Flushed);
    // The answer is on its way before the peer goes on.
    rig.pump();
    let peer = thread::spawn(move || {
        stream.write_all(&vec![b'x'; 4 << 20]).unwrap();
        read_pattern(&mut stream, 300);
        stream
    });
    rig.pump_until("answer read", |_| peer.is_finished());
    drop(peer.join().unwrap());
    rig.expect_close(sock);
    rig.finish();
}

pub fn flushed_lingers_for_a_peer_that_still_sends<B: Backend>() {
    refuse_a_sender::<B>(false);
}

pub fn finish_and_flushed_linger_though_a_receive_is_armed<B: Backend>() {
    refuse_a_sender::<B>(true);
}

/// It came since the last look at a receive that is armed, and before the close.
pub fn input_that_came_unseen_resets_nothing<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (mut stream, sock) = rig.tcp_pair();
    rig.recv(sock);
    rig.expect_silence();
    stream.write_all(b"more").unwrap();
    rig.send(sock, &pattern(0, 300));
    rig.close(sock, How::Flushed);
    let peer = thread::spawn(move || read_pattern(stream, 300));
    rig.expect_close(sock);
    peer.join().unwrap();
    rig.finish();
}

fn short_linger() -> Options {
    Options { linger: Duration::from_millis(200), ..options() }
}

pub fn lingering_ends_when_its_time_is_over<B: Backend>() {
    let mut rig = Rig::<B>::with(short_linger());
    let (mut stream, sock) = rig.tcp_pair();
    rig.send(sock, b"answer");
    let start = Instant::now();
    rig.close(sock, How::Flushed);
    rig.pump();
    stream.read_exact(&mut [0; 6]).unwrap();
    // The peer has its answer and stays.
    rig.expect_close(sock);
    assert!(start.elapsed() >= Duration::from_millis(190), "it did not linger: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "it lingered for {:?}", start.elapsed());
    drop(stream);
    rig.finish();
}

pub fn flushed_to_a_peer_that_never_reads_ends<B: Backend>() {
    let mut rig = Rig::<B>::with(Options { stall: Duration::from_millis(200), ..options() });
    let (mut stream, sock) = rig.tcp_pair();
    rig.send(sock, &pattern(0, 2 * EIGHT_MIB));
    let start = Instant::now();
    rig.close(sock, How::Flushed);
    rig.expect_close(sock);
    assert!(start.elapsed() >= Duration::from_millis(190), "cut after {:?}", start.elapsed());
    // What was cut does not look whole.
    let mut got = Vec::new();
    assert_eq!(stream.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(got.len() < 2 * EIGHT_MIB);
    rig.finish();
}

/// The linger time is for a peer that has everything: one that pauses in the middle has the stall time.
pub fn a_reader_that_pauses_longer_than_the_linger_time_gets_all<B: Backend>() {
    let mut rig = Rig::<B>::with(Options { linger: Duration::from_millis(50), ..options() });
    let (tcp, accepted) = rig.tcp_pair();
    let (unix, connected) = rig.unix_pair();
    for sock in [accepted, connected] {
        rig.send(sock, &pattern(0, EIGHT_MIB));
        rig.close(sock, How::Flushed);
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        assert!(rig.turn(Duration::from_millis(20)).is_empty(), "nothing happens while nobody reads");
    }
    let readers =
        [thread::spawn(move || read_pattern(tcp, EIGHT_MIB)), thread::spawn(move || read_pattern(unix, EIGHT_MIB))];
    rig.expect_close(accepted);
    rig.expect_close(connected);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    rig.finish();
}

/// The stall time counts from the last progress, so that a slow reader does not lose the tail of its answer.
pub fn a_steady_slow_reader_outlives_the_stall_time<B: Backend>() {
    let stall = Duration::from_secs(1);
    let mut rig = Rig::<B>::with(Options { stall, linger: stall, ..options() });
    let (mut stream, sock) = rig.unix_pair();
    rig.send(sock, &pattern(0, EIGHT_MIB));
    rig.close(sock, How::Flushed);
    let start = Instant::now();
    let reader = thread::spawn(move || {
        let mut got = 0;
        let mut buffer = vec![0; EIGHT_MIB / 12];
        while got < EIGHT_MIB {
            let count = buffer.len().min(EIGHT_MIB - got);
            stream.read_exact(&mut buffer[..count]).unwrap();
            assert_eq!(buffer[..count], pattern(got, count));
            got += count;
            thread::sleep(Duration::from_millis(120));
        }
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    });
    rig.expect_close(sock);
    reader.join().unwrap();
    assert!(start.elapsed() > Duration::from_secs(1));
    rig.finish();
}

pub fn a_harsher_close_cuts_a_flushed_one_short<B: Backend>() {
    let mut rig = Rig::<B>::new();
    for harsher in [How::Now, How::Reset] {
        let (mut stream, sock) = rig.tcp_pair();
        rig.send(sock, &pattern(0, EIGHT_MIB));
        rig.close(sock, How::Flushed);
        rig.pump();
        rig.close(sock, How::Flushed);
        rig.close(sock, harsher);
        rig.expect_close(sock);
        let mut got = Vec::new();
        let outcome = stream.read_to_end(&mut got);
        assert!(got.len() < EIGHT_MIB, "the whole of it came");
        if harsher == How::Reset {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        // And a flushed one that lingers.
        let (stream, sock) = rig.tcp_pair();
        rig.close(sock, How::Flushed);
        rig.pump();
        rig.close(sock, harsher);
        rig.expect_close(sock);
        drop(stream);
    }
    rig.finish();
}

pub fn calls_on_dead_names_do_nothing<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (listener, address) = rig.listen_tcp();
    let first = TcpStream::connect(address).unwrap();
    let (dead, _) = rig.accept();
    rig.send(dead, b"x");
    rig.pump();
    rig.close(dead, How::Now);
    rig.expect_close(dead);
    drop(first);
    let mut second = TcpStream::connect(address).unwrap();
    second.set_read_timeout(Some(DEADLINE)).unwrap();
    let (heir, _) = rig.accept();
    assert_ne!(dead, heir);
    for name in [dead, production_server::backends::Sock::NONE] {
        rig.backend.recv(name, Size::Small);
        rig.backend.send(name, Piece::Static(b"to a dead name"));
        rig.backend.finish(name);
        rig.backend.pause(name);
        rig.backend.resume(name);
        rig.backend.close(name, How::Now);
        rig.backend.close(name, How::Reset);
        assert_eq!((rig.backend.unsent(name), rig.backend.sent(name)), (0, 0));
    }
    // Calls of the wrong kind do nothing either.
    rig.backend.pause(heir);
    rig.backend.recv(listener, Size::Small);
    rig.backend.send(listener, Piece::Static(b"to a listener"));
    rig.expect_silence();
    rig.send(heir, b"to the heir");
    rig.backend.finish(heir);
    rig.pump();
    let mut got = Vec::new();
    second.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"to the heir");
    second.shutdown(Shutdown::Both).unwrap();
    rig.finish();
}

/// More were accepted than a few turns bring up, when it was closed, and then there were too many.
pub fn a_pause_does_not_keep_a_listener_from_its_end<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (listener, address) = rig.listen_tcp();
    rig.expect_silence();
    let _peers: Vec<TcpStream> = (0..3 * ACCEPT_BATCH + 8).map(|_| TcpStream::connect(address).unwrap()).collect();
    rig.turn(DEADLINE);
    rig.turn(DEADLINE);
    rig.close(listener, How::Flushed);
    let mut ended = rig.turn(DEADLINE);
    rig.backend.pause(listener);
    let deadline = Instant::now() + DEADLINE;
    let is_its_end = |event: &Event| matches!(event, Event::Close { sock } if *sock == listener);
    while !ended.iter().any(is_its_end) {
        assert!(Instant::now() < deadline, "it never ends");
        ended = rig.turn(Duration::from_millis(100));
    }
}

pub fn a_closed_listener_refuses<B: Backend>() {
    let mut rig = Rig::<B>::new();
    let (listener, address) = rig.listen_tcp();
    rig.expect_silence();
    rig.close(listener, How::Now);
    rig.expect_close(listener);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(TcpListener::bind(address).unwrap());
    rig.finish();
}
