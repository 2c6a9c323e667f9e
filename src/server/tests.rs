//! Listening: both families on one port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use super::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Listens on these addresses with one port that is free at the moment.
fn listening(addresses: &[IpAddr]) -> (Vec<Listening>, u16) {
    for _ in 0..20 {
        let free = TcpListener::bind((addresses[0], 0)).unwrap().local_addr().unwrap().port();
        let listen: Vec<ListenAddress> =
            addresses.iter().map(|ip| ListenAddress::Tcp(SocketAddr::new(*ip, free))).collect();
        let mut settings = Settings::for_test();
        settings.listening.at = listen;
        match open_listeners(&settings, &mut Inherited::default()) {
            Ok(listeners) => return (listeners, free),
            // Another test may have been given that port meanwhile; but not each time.
            Err(error) => assert!(error.message.contains("in use"), "{}", error.message),
        }
    }
    panic!("no port can be listened on in {addresses:?} at once");
}

/// Which of the listeners a client that connects there meets.
fn met(listeners: &[Listening], client: SocketAddr) -> Option<usize> {
    let _client = TcpStream::connect(client).ok()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        for (index, listening) in listeners.iter().enumerate() {
            let listener =
                TcpListener::from(listening.of_loop(0, 1, &Default::default()).unwrap().remove(0).descriptor);
            if listener.accept().is_ok() {
                return Some(index);
            }
        }
        assert!(Instant::now() < deadline, "the connection to {client} is accepted by nobody");
    }
}

#[test]
fn both_families_may_have_one_port() {
    if let Err(error) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        return eprintln!("skipped: this machine has no IPv6: {error}");
    }
    for (addresses, v4, v6) in [
        (&[V4, V6][..], Some(0), Some(1)),
        (&[V6, V4], Some(1), Some(0)),
        (&[V6, IpAddr::V4(Ipv4Addr::LOCALHOST)], Some(1), Some(0)),
        (&[V4], Some(0), None),
        // Alone it takes both.
        #[cfg(target_os = "linux")]
        (&[V6], Some(0), Some(0)),
    ] {
        let (listeners, port) = listening(addresses);
        assert_eq!(met(&listeners, SocketAddr::from((Ipv4Addr::LOCALHOST, port))), v4, "{addresses:?}");
        assert_eq!(met(&listeners, SocketAddr::from((Ipv6Addr::LOCALHOST, port))), v6, "{addresses:?}");
    }
}

/// Whatever the number of loops is: no socket is without a loop, and no loop without a socket.
#[test]
fn inherited_sockets_are_shared_out() {
    use std::os::unix::fs::MetadataExt;
    let sockets: Vec<TcpListener> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let inode = |socket: OwnedFd| std::fs::File::from(socket).metadata().unwrap().ino();
    let all: Vec<u64> = sockets.iter().map(|socket| inode(socket.try_clone().unwrap().into())).collect();
    let asked = ListenAddress::Tcp(SocketAddr::new(V4, 0));
    let listening = Listening {
        id: 0,
        asked: asked.clone(),
        address: asked,
        sockets: sockets.into_iter().map(OwnedFd::from).collect(),
        file: None,
        tls: None,
        admin: false,
    };
    for loops in 1..9 {
        let of_loop = |index| listening.of_loop(index, loops, &Default::default()).unwrap();
        let shared: Vec<Vec<u64>> =
            (0..loops).map(|index| of_loop(index).into_iter().map(|setup| inode(setup.descriptor)).collect()).collect();
        assert!(shared.iter().all(|own| !own.is_empty()), "{loops} loops: {shared:?}");
        assert!(all.iter().all(|socket| shared.iter().flatten().any(|own| own == socket)), "{loops} loops: {shared:?}");
        let most = shared.iter().map(Vec::len).max().unwrap();
        assert_eq!(most, 5usize.div_ceil(loops), "{loops} loops: {shared:?}");
    }
}

/// Clients try to connect all the while, as those of a server that starts again do: whoever gets in is there to be accepted.
/// (A client may also be in and not know it, when its time was over before it looked: so it is asked who, and not how many.) A door
/// that is open for some microseconds is found in one of some hundred rounds.
#[test]
#[cfg(target_os = "linux")]
fn nobody_gets_in_before_there_is_who_accepts() {
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    // An address that no other test listens on, and from which no client comes: whoever gets in there is this listener's.
    let host = Ipv4Addr::new(127, 0, 77, 1);
    let (mut rounds, mut clients_in) = (0, 0);
    for round in 0..1000 {
        let address = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
        let (stop, tries) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut settings = Settings::for_test();
        settings.loops.count = 2;
        std::thread::scope(|scope| {
            let ask = || {
                let mut connected = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    connected.extend(TcpStream::connect_timeout(&address, Duration::from_millis(3)));
                    tries.fetch_add(1, Ordering::Relaxed);
                }
                connected
            };
            let clients: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
            while tries.load(Ordering::Relaxed) < 10 {
                std::thread::yield_now();
            }
            let listening = listen(&settings, &ListenAddress::Tcp(address), round % 2 == 1, Patience::none());
            stop.store(true, Ordering::Relaxed);
            let connected: Vec<TcpStream> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
            // A test that listens on all addresses may have been given that port meanwhile.
            let Ok(listening) = listening else { return };
            let listeners = (0..2).flat_map(|index| listening.of_loop(index, 2, &Default::default()).unwrap());
            let listeners: Vec<TcpListener> = listeners.map(|setup| setup.descriptor.into()).collect();
            let mut missed: HashSet<SocketAddr> = connected.iter().map(|one| one.local_addr().unwrap()).collect();
            (rounds, clients_in) = (rounds + 1, clients_in + connected.len());
            // A client is in a moment before its last packet has made it one to be accepted.
            let deadline = Instant::now() + Duration::from_secs(10);
            while !missed.is_empty() {
                let accept = |listener: &TcpListener| listener.accept().ok();
                for (_, peer) in listeners.iter().flat_map(|listener| std::iter::from_fn(move || accept(listener))) {
                    missed.remove(&peer);
                }
                assert!(Instant::now() < deadline, "round {round}: {missed:?} are in, and nobody accepts them");
            }
        });
    }
    assert!(rounds > 900 && clients_in > 0, "{rounds} listeners, {clients_in} clients got in");
}
