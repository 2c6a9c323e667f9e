//! A panic on a loop's thread costs the connection that it was about, and nothing else, wherever in the turn it happens.
//!
//! The loop runs over a simulated network. What panics is what others give it: the writer of `/status`, and the bell of the
//! dispatch.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use production_server::apps::AppTable;
use production_server::backends::simulated::{End, Entered, Faults, Place, Service, Simulated, World};
use production_server::backends::{Backend, Event, Handed, How, Options, Piece, Size, Sock};
use production_server::buffers::block::{Budget, Census, Pool};
use production_server::config::{ListenAddress, Settings};
use production_server::dispatch::{Balance, Dispatch, Policy, Target, WorkerId};
use production_server::event_loop::Shared;
use production_server::log::Log;
use production_server::mailbox::{Message, Postboxes, mailbox};
use production_server::metrics::Metrics;
use production_server::reactor::{ListenerSetup, Reactor, Setup};
use socket2::SockAddr;

/// Turns after which everything that can happen has happened.
const TURNS: usize = 50;

/// The simulated network with clients on this machine, for the inside is told to nobody else.
pub(crate) struct Local(Simulated, Option<Box<dyn FnOnce()>>);

impl Local {
    /// Has that done between the next turn's events and its mail.
    pub(crate) fn behind_the_events(&mut self, act: impl FnOnce() + 'static) {
        self.1 = Some(Box::new(act));
    }
}

impl Backend for Local {
    type Bell = <Simulated as Backend>::Bell;

    fn new(options: Options) -> io::Result<Local> {
        Ok(Local(Simulated::new(options)?, None))
    }
    fn next(&mut self) -> Option<Event> {
        let mut event = self.0.next();
        if event.is_none()
            && let Some(act) = self.1.take()
        {
            act();
        }
        if let Some(Event::Accept { peer, .. }) = &mut event {
            peer.ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        }
        event
    }
    fn bell(&self) -> Self::Bell {
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
    fn await_room(&mut self, sock: Sock) {
        self.0.await_room(sock);
    }
    fn acknowledged(&self, sock: Sock) -> u64 {
        self.0.acknowledged(sock)
    }
    fn is_starved(&self, sock: Sock) -> bool {
        self.0.is_starved(sock)
    }
    fn taken(&self) -> u64 {
        self.0.taken()
    }
    fn count_blocks(&self, census: &mut Census) {
        self.0.count_blocks(census);
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
    fn live(&self) -> usize {
        self.0.live()
    }
}

pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) reactor: Reactor<Local>,
    dispatch: Arc<Dispatch>,
    pub(crate) postboxes: Postboxes,
    pub(crate) metrics: Metrics,
    pub(crate) shared: Arc<Shared>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) place: Place,
    _entered: Entered,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(|_| ())
    }

    /// With settings that the test changes.
    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Rig {
        let world = World::with_faults(1, Faults::NONE);
        // Time passes as the test says, and not because nothing happens.
        world.drive();
        let entered = world.enter();
        let mut settings = Settings::for_test();
        settings.stores.spool_bytes = 0;
        settings.app.timeouts.abandon = Duration::from_secs(60);
        change(&mut settings);
        let policy = Policy {
            balance: Balance::Lifo,
            concurrency: 1,
            queue_size: 8,
            queue_timeout: Duration::from_secs(60),
            hold: Duration::from_secs(60),
            max_tunnels: 8,
            failures: 3,
            fair: false,
        };
        let dispatch = Arc::new(Dispatch::new(policy, 8, world.now()));
        let (postbox, mailbox) = mailbox(|| {});
        let postboxes = Postboxes::new(vec![postbox]);
        let metrics = Metrics::new(1);
        let settings = Arc::new(settings);
        let table = Arc::new(AppTable::of_one(settings.clone(), Arc::clone(&dispatch), &metrics));
        let shared = Arc::new(Shared {
            settings,
            postboxes: postboxes.clone(),
            log: Log::disabled(),
            admission: Default::default(),
            scarcity: Default::default(),
            desk: Default::default(),
            helpers: Default::default(),
            spools: Default::default(),
            status: Box::new(|| panic!("the writer of the status panics")),
        });
        let budget = Budget::new(1 << 20);
        let pool = Pool::new(64, 8, budget.clone());
        let options = Options {
            max_sockets: 64,
            pool: pool.clone(),
            stall: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            accept_retry: Duration::from_millis(100),
        };
        let place = Place::Tcp(([127, 0, 0, 1], 80).into());
        let setup = Setup {
            index: 0,
            table,
            listeners: vec![ListenerSetup {
                asked: ListenAddress::Tcp(([127, 0, 0, 1], 80).into()),
                id: 0,
                descriptor: world.listener(place.clone()).unwrap(),
                port: 80,
                tls: None,
                front: Default::default(),
                admin: false,
            }],
            mailbox,
            metrics: metrics.clone(),
            access: shared.log.access_log(),
            pool,
            max_sockets: 64,
            first_id: 1,
            held: false,
            shared: shared.clone(),
        };
        let reactor = Reactor::new(Local::new(options).unwrap(), setup).unwrap();
        Rig { world, reactor, dispatch, postboxes, metrics, shared, budget, place, _entered: entered }
    }

    /// Has the loop take over settings that the test changes.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings::clone(&self.shared.settings);
        change(&mut settings);
        let table = AppTable::of_one(Arc::new(settings), self.dispatch.clone(), &self.metrics);
        self.postboxes.post(0, Message::Configure(Arc::new(table)));
        self.turns();
    }

    pub(crate) fn turns(&mut self) {
        for _ in 0..TURNS {
            self.world.advance(Duration::from_millis(1));
            self.reactor.turn().unwrap();
        }
    }

    pub(crate) fn client(&mut self, bytes: &str) -> End {
        let end = self.world.connect(&self.place).unwrap();
        self.turns();
        if !bytes.is_empty() {
            assert_eq!(self.world.write(end, bytes.as_bytes()).unwrap(), bytes.len());
        }
        self.turns();
        end
    }

    pub(crate) fn answer(&self, end: End) -> String {
        let mut bytes = Vec::new();
        while matches!(self.world.read(end, &mut bytes, 4096), Ok(1..)) {}
        String::from_utf8(bytes).unwrap()
    }

    fn panics(&self) -> u64 {
        self.metrics.total().panics
    }

    /// The loop goes on serving, and has nothing left of what panicked.
    fn expect_health(&mut self, clients: usize) {
        let other = self.client("GET /server HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(self.answer(other).ends_with("\r\n\r\nok"));
        self.world.close(other);
        self.turns();
        let (left, exchanges, _, _) = self.reactor.holdings();
        assert_eq!((left, exchanges), (clients, 0));
    }

    /// A worker whose connections nobody reads.
    fn worker(&self) -> WorkerId {
        self.worker_at("/simulated/worker.sock").0
    }

    /// One at that path, whose connections the test accepts.
    pub(crate) fn worker_at(&self, path: &str) -> (WorkerId, Service) {
        let path = PathBuf::from(path);
        let service = self.world.serve(&path, 8);
        let address = SockAddr::unix(&path).unwrap();
        let (label, moves) = ("web:1".into(), Arc::default());
        let target = Target { address, label, unix: true, supervised: true, number: 1, moves };
        let id = self.dispatch.add(target, 1, None).unwrap();
        assert!(self.dispatch.ready(id, self.world.now()).is_empty());
        (id, service)
    }
}

const STATUS: &str = "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn in_an_event() {
    let mut rig = Rig::new();
    let idle = rig.client("");
    let end = rig.client(STATUS);
    assert_eq!((rig.panics(), rig.answer(end).as_str(), rig.world.other_is_open(end)), (1, "", false));
    assert!(rig.world.other_is_open(idle));
    rig.expect_health(1);
}

/// The word that the app failed ends the request that waits, and the one behind it panics.
#[test]
fn in_the_mail() {
    let mut rig = Rig::new();
    let behind = format!("GET /app HTTP/1.1\r\nHost: a\r\n\r\n{STATUS}");
    let ends = [rig.client(&behind), rig.client(&behind), rig.client("GET /app HTTP/1.1\r\nHost: a\r\n\r\n")];
    assert_eq!(rig.dispatch.snapshot().queue_depth, 3);
    for waiter in rig.dispatch.fail() {
        rig.postboxes.post(waiter.loop_index, Message::AppFailed(waiter.exchange));
    }
    rig.turns();
    assert_eq!(rig.panics(), 2, "each message for itself");
    assert!(rig.answer(ends[2]).starts_with("HTTP/1.1 503 "));
    assert_eq!(ends.map(|end| rig.world.other_is_open(end)), [false, false, true]);
    // An app that has failed says so at /server.
    rig.dispatch.recover();
    rig.expect_health(1);
}

/// The stop's deadline cuts requests; the bell for what the supervisor is to know panics.
#[test]
fn in_a_cut() {
    let mut rig = Rig::new();
    let rung = Arc::new(AtomicBool::new(false));
    let ring = Arc::clone(&rung);
    rig.dispatch.on_notice(Box::new(move || {
        ring.store(true, Ordering::SeqCst);
        panic!("the bell panics");
    }));
    let worker = rig.worker();
    let running = rig.client("GET /app HTTP/1.1\r\nHost: a\r\n\r\n");
    let waiting = rig.client("GET /app HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((rig.dispatch.snapshot().queue_depth, rig.dispatch.snapshot().workers[0].in_flight), (1, 1));
    rig.dispatch.drain(worker, rig.world.now());
    rig.postboxes.post(0, Message::Drain { deadline: rig.world.now() + Duration::from_millis(20) });
    rig.turns();
    assert!(rung.load(Ordering::SeqCst), "the test does what it says");
    assert_eq!(rig.panics(), 1);
    assert!(!rig.world.other_is_open(running) && !rig.world.other_is_open(waiting));
    assert!(rig.reactor.is_done());
    rig.reactor.run().unwrap();
    assert_eq!(rig.dispatch.snapshot().workers[0].in_flight, 0);
}
