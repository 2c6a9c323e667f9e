//! The driver: one seed is one run of real loops over the simulated network, with scripted clients and workers and a scripted
//! supervisor, moved one at a time in the order that the seed gives.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use production_server::apps::AppTable;
use production_server::backends::simulated::{Entered, Faults, Place, Random, Simulated, Trace, World};
use production_server::backends::{Backend, Bell, Options, Size};
use production_server::buffers::block::{Budget, Pool};
use production_server::config::{self, ListenAddress, Settings};
use production_server::dispatch::{Balance, Dispatch, Policy};
use production_server::event_loop::Shared;
use production_server::log::Log;
use production_server::mailbox::{Mailbox, Message, Postboxes, mailbox};
use production_server::metrics::Metrics;
use production_server::reactor::{ListenerSetup, Reactor, Setup};

use super::checks::{Ledger, Rules};
use super::clients::{Client, Manners};
use super::crowd::{self, Crowd};
use super::hubs;
use super::line::Line;
use super::standstill::Standstill;
use super::supervisor::{Supervisor, passed_over};
use super::workers::Temper;

/// Rounds after which a run is taken for one that goes in circles.
const MOST_ROUNDS: usize = 30_000;
/// Simulated time after which a client that still waits is taken for one that waits forever.
const MOST_TIME: Duration = Duration::from_secs(240);

/// Runs of 1000 that have a crowd.
const CROWDS: u32 = 400;

/// What kind of run a seed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything may go wrong.
    Wild,
    /// Nothing goes wrong but what no client may notice: every request gets its worker's answer.
    Calm,
    /// Calm, with one worker and one request at a time: first come, first served.
    Orderly,
}

/// What a run consists of, drawn from its seed.
pub struct Plan {
    /// What kind of run it is.
    pub kind: Kind,
    /// How the workers behave.
    pub temper: Temper,
    /// How many there are at a time.
    pub workers: usize,
    /// What the loops are told.
    pub settings: Settings,
    /// How many loops there are.
    pub loops: usize,
    clients: usize,
    crowd: Option<crowd::Plan>,
    hub: Option<hubs::Plan>,
    faults: Faults,
    small_blocks: usize,
    large_blocks: usize,
    /// The clients speak TLS.
    secure: bool,
}

impl Plan {
    fn draw(seed: u64) -> Plan {
        let mut random = Random::new(seed ^ 0x5eed);
        let kind = match random.below(8) {
            0 | 1 => Kind::Calm,
            2 => Kind::Orderly,
            _ => Kind::Wild,
        };
        let mut faults = Faults::draw(&mut random);
        if kind != Kind::Wild {
            faults = Faults { reset: 0, refuse: 0, backlog_full: 0, descriptors: 0, ..faults };
        }
        if kind == Kind::Orderly {
            faults = Faults { starve: 0, accept: 0, small_batch: 0, ..faults };
        }
        let temper = Temper { strays: faults.short_receive == 0, ..temper(kind, &mut random) };
        let (small_blocks, large_blocks) = match kind {
            Kind::Wild => (random.between(8, 40), random.between(0, 3)),
            Kind::Calm | Kind::Orderly => (64, 4),
        };
        let mut plan = Plan {
            kind,
            temper,
            workers: if kind == Kind::Orderly { 1 } else { random.between(1, 4) },
            settings: settings(kind, &mut random),
            loops: random.between(1, 2),
            // More of them than of workers in most runs, so that there is a queue.
            clients: random.between(1, 12).max(random.between(1, 12)),
            crowd: None,
            hub: None,
            faults,
            small_blocks,
            large_blocks,
            secure: false,
        };
        if random.chance(CROWDS) {
            plan.join_crowd(&mut random);
        }
        if kind != Kind::Wild {
            plan.temper.backlog = plan.settings.app.sharing.concurrency as usize;
        }
        if plan.crowd.is_none() && seed % 4 == 3 {
            // Behind a balancer that names the client of each connection.
            let front = &mut plan.settings.listening.front;
            front.proxies.add("0.0.0.0/0, unix").unwrap();
            front.header_timeout = plan.settings.timeouts.header;
        } else {
            // Release builds have no cipher that is cheap enough.
            plan.secure = cfg!(debug_assertions) && seed % 3 == 1;
        }
        plan
    }

    /// A run with a hub, beside a few ordinary clients.
    fn with_hub(seed: u64) -> Plan {
        let mut random = Random::new(seed ^ 0x4eed);
        // What it does besides is that of another seed.
        let mut plan = Plan::draw(seed.wrapping_mul(7) + 1_000_000);
        if plan.kind == Kind::Orderly {
            plan.kind = Kind::Calm;
        }
        plan.crowd = None;
        plan.settings.listening.front = Settings::for_test().listening.front;
        (plan.small_blocks, plan.large_blocks) = (64, 4);
        (plan.loops, plan.clients) = (random.between(1, 3), random.below(4));
        plan.hub = Some(hubs::Plan::draw(plan.kind, (&mut plan.settings, &mut plan.faults), &mut random));
        plan
    }

    /// Puts a crowd beside the ordinary clients.
    fn join_crowd(&mut self, random: &mut Random) {
        let crowd = crowd::Plan::draw(self.kind, random);
        crowd.adjust(&mut self.settings, &mut self.faults, random);
        (self.small_blocks, self.large_blocks) = (random.between(8, 24), random.below(3));
        self.clients = self.clients.min(6);
        if let Some(most) = crowd.crowded_doors(self.kind) {
            self.settings.bounds.connections = most + self.clients;
            self.loops = 1;
        }
        self.crowd = Some(crowd);
    }
}

fn temper(kind: Kind, random: &mut Random) -> Temper {
    let thinks = Duration::from_millis(random.below(40) as u64);
    let good = Temper { thinks, body: 2000, long_body: 40_000, ..Temper::default() };
    if kind != Kind::Wild {
        return good;
    }
    let mut of = |rare: u32, frequent: u32| [0, rare, rare, frequent][random.below(4)];
    Temper {
        declines: of(30, 200),
        drops: of(60, 250),
        dies: of(10, 60),
        lies: of(30, 150),
        hangs: of(5, 40),
        hurries: of(50, 300),
        closes_idle: of(100, 600),
        ..good
    }
}

fn settings(kind: Kind, random: &mut Random) -> Settings {
    let mut settings = Settings::for_test();
    (settings.timeouts.idle, settings.timeouts.write) = (Duration::from_secs(6), Duration::from_secs(5));
    let app = &mut settings.app;
    app.sharing.balance = [config::Balance::Lifo, config::Balance::RoundRobin, config::Balance::Least][random.below(3)];
    app.sharing.concurrency = if kind == Kind::Orderly || random.chance(600) { 1 } else { random.between(2, 4) as u32 };
    app.buffers.request = [1 << 20, 20_000, 1000][random.below(3)];
    app.sharing.keepalive = kind == Kind::Orderly || random.chance(850);
    app.queue.size = 64;
    app.queue.timeout = Duration::from_secs(60);
    app.timeouts.request = Duration::from_secs(60);
    app.timeouts.read = Duration::from_secs(20);
    app.timeouts.connect = Duration::from_secs(2);
    if kind == Kind::Wild {
        app.timeouts.read = Duration::from_millis(random.between(200, 3000) as u64);
        app.timeouts.request = Duration::from_millis(random.between(1000, 8000) as u64);
        app.timeouts.abandon = Duration::from_millis(random.between(100, 2000) as u64);
        app.timeouts.connect = Duration::from_millis(200);
        app.queue.timeout = Duration::from_millis(random.between(100, 2000) as u64);
        app.queue.hold = Duration::from_millis(random.between(100, 3000) as u64);
        app.queue.size = [64, 3, 0][random.below(3)];
        app.buffers.response = [1 << 24, 10_000][random.below(2)];
        app.answering.serve_half_closed = random.chance(300);
        settings.bounds.connections = [1024, 8][random.below(2)];
        settings.stores.buffer_bytes = [1 << 24, 200_000][random.below(2)];
    }
    settings
}

/// One loop, and what is kept of it for the checks.
struct Loop {
    reactor: Reactor<Simulated>,
    pool: Pool,
}

/// A run in progress.
pub struct Run {
    seed: u64,
    /// What it consists of.
    pub plan: Plan,
    world: World,
    ledger: Rc<RefCell<Ledger>>,
    loops: Vec<Loop>,
    clients: Vec<Client>,
    crowd: Crowd,
    hub: Option<hubs::Party>,
    line: Line,
    standstill: Standstill,
    supervisor: Supervisor,
    dispatch: Arc<Dispatch>,
    postboxes: Postboxes,
    shared: Arc<Shared>,
    metrics: Metrics,
    budget: Arc<Budget>,
    started: Instant,
    /// What the seed's clients saw, for the test of the tests.
    pub rounds: usize,
    _entered: Entered,
}

/// What a run amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests that were planned.
    pub requests: usize,
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that reached a worker twice.
    pub retried: usize,
    /// Workers that ended.
    pub deaths: usize,
    /// Rolling restarts that ended.
    pub rolls: usize,
    /// Rounds that it took.
    pub rounds: usize,
    /// Requests whose time was taken.
    pub timed: u64,
    /// Runs with a crowd, and with peers of each kind.
    pub crowds: usize,
    /// See there.
    pub kinds: [usize; crowd::KINDS.len()],
    /// Runs in which answers were paused for memory.
    pub paused: usize,
    /// Runs whose clients spoke TLS.
    pub secure: usize,
    /// The most bytes that were charged beyond a budget.
    pub overdraft: usize,
    /// How long an ordinary request waited for its answer beside a crowd although nothing was wrong, at most.
    pub longest_wait: Duration,
}

/// Runs one seed to its end; panics where a rule is broken.
pub fn run(seed: u64, trace: Option<Trace>) -> Summary {
    let mut run = Run::new(seed, Plan::draw(seed), trace);
    run.serve();
    run.settle();
    run.stop();
    let (requests, answered) = run.ledger.borrow().counts();
    let retried = run.ledger.borrow().retried();
    let deaths = run.supervisor.deaths;
    let rolls = run.supervisor.rolls();
    let rounds = run.rounds;
    let timed = run.metrics.latencies().count();
    let crowds = usize::from(run.plan.crowd.is_some());
    let kinds = run.plan.crowd.as_ref().map_or([0; crowd::KINDS.len()], crowd::Plan::kinds);
    let paused = usize::from(run.metrics.total().paused_for_memory > 0);
    let secure = usize::from(run.plan.secure);
    let overdraft = run.standstill.overdraft;
    let beside = run.plan.kind != Kind::Wild && crowds > 0;
    let longest_wait = if beside { run.ledger.borrow().longest_wait } else { Duration::ZERO };
    run.check_that_nothing_is_left();
    Summary {
        requests,
        answered,
        retried,
        deaths,
        rolls,
        rounds,
        timed,
        crowds,
        kinds,
        paused,
        secure,
        overdraft,
        longest_wait,
    }
}

/// Runs one seed with a hub to its end; panics where a rule is broken.
pub fn run_hub(seed: u64, trace: Option<Trace>) -> hubs::Counts {
    let mut run = Run::new(seed, Plan::with_hub(seed), trace);
    run.serve();
    run.catch_up();
    run.settle();
    run.stop();
    let hub = run.hub.take();
    let metrics = run.metrics.clone();
    run.check_that_nothing_is_left();
    hub.map_or_else(Default::default, |hub| hub.check_that_nothing_is_left(&metrics))
}

impl Run {
    fn new(seed: u64, plan: Plan, trace: Option<Trace>) -> Run {
        let world = World::with_faults(seed, plan.faults.clone());
        if let Some(trace) = trace {
            world.trace_to(trace);
        }
        world.drive();
        let entered = world.enter();
        let settings = Arc::new(plan.settings.clone());
        let started = world.now();
        let dispatch = Arc::new(Dispatch::new(policy(&settings), 40, started));
        let bells: Vec<Arc<OnceLock<<Simulated as Backend>::Bell>>> = (0..plan.loops).map(|_| Arc::default()).collect();
        let (boxes, mailboxes): (Vec<_>, Vec<_>) = bells.iter().map(ringing).unzip();
        let postboxes = Postboxes::new(boxes);
        let deliver = postboxes.clone();
        dispatch.on_grant(Box::new(move |grant| deliver.grant(grant)));
        let metrics = Metrics::new(plan.loops);
        let table = if plan.hub.is_some() { hubs::Plan::table } else { of_one };
        let table = Arc::new(table(&settings, &dispatch, &metrics));
        let shared = Arc::new(Shared {
            settings,
            postboxes: postboxes.clone(),
            log: Log::disabled(),
            admission: Default::default(),
            scarcity: Default::default(),
            desk: Default::default(),
            helpers: Default::default(),
            spools: Default::default(),
            status: Box::new(String::new),
        });
        let ledger = Rc::new(RefCell::new(Ledger::new(rules(&plan, started))));
        let place = Place::Tcp(([10, 0, 0, 1], 80).into());
        let budget = Budget::new(plan.settings.stores.buffer_bytes);
        let parts = mailboxes.into_iter().zip(bells).enumerate();
        let loops = parts
            .map(|(index, (mailbox, bell))| {
                open_loop(&world, &plan, (index as u16, mailbox, bell), (&shared, &table), &metrics, &budget, &place)
            })
            .collect();
        let proxied = !plan.settings.listening.front.proxies.is_empty();
        let manners = Manners { rude: plan.kind == Kind::Wild, long_body: 40_000, proxied };
        let line = Line::new(&world, plan.secure);
        let clients = (0..plan.clients).map(|_| Client::new(&line, &ledger, &place, manners)).collect();
        let crowd = Crowd::new(&line, &ledger, &place, plan.crowd.as_ref());
        let party = |hub| hubs::Party::new(&line, &ledger, &place, hub, &metrics, plan.kind != Kind::Wild);
        let hub = plan.hub.as_ref().map(party);
        let app = hub.as_ref().and_then(|hub| hub.app.clone());
        let supervisor = Supervisor::new(&world, &ledger, &plan, &dispatch, &postboxes, app);
        Run {
            seed,
            plan,
            world,
            ledger,
            loops,
            clients,
            crowd,
            hub,
            line,
            standstill: Standstill::default(),
            supervisor,
            dispatch,
            postboxes,
            shared,
            metrics,
            budget,
            started,
            rounds: 0,
            _entered: entered,
        }
    }

    /// Until every client is done.
    fn serve(&mut self) {
        let is_done = |hub: &hubs::Party| hub.is_done();
        while self.clients.iter().any(|client| !client.is_done())
            || !self.crowd.is_done()
            || !self.hub.as_ref().is_none_or(is_done)
        {
            self.round();
            let waiting = || self.waiting();
            assert!(self.world.now() < self.started + MOST_TIME, "clients wait forever: {:#?}", waiting());
            assert!(self.rounds < MOST_ROUNDS, "the run goes in circles: {:#?}", waiting());
        }
    }

    /// Until those who listen and stay have all that was published.
    fn catch_up(&mut self) {
        let deadline = self.world.now() + MOST_TIME;
        while let Some(lacks) = self.hub.as_ref().and_then(hubs::Party::lacks) {
            let is_time = self.world.now() < deadline && self.rounds < MOST_ROUNDS;
            assert!(is_time, "{lacks}: {:#?}", self.waiting());
            self.round();
        }
    }

    /// Until as many workers serve as are wanted: what was done to the fleet has come to its end. Where workers die of what they are
    /// asked there is nothing to wait for but requests, and these have ended.
    fn settle(&mut self) {
        self.supervisor.calm_down();
        self.world.touch();
        let deadline = self.world.now() + MOST_TIME;
        while !self.supervisor.is_settled() {
            self.round();
            assert!(self.world.now() < deadline && self.rounds < MOST_ROUNDS, "the workers do not come to rest");
        }
    }

    /// A graceful stop, then the end of everything.
    fn stop(&mut self) {
        self.supervisor.rest();
        self.hub.iter_mut().for_each(hubs::Party::drains);
        let deadline = self.world.now() + Duration::from_secs(5);
        self.postboxes.broadcast(|| Message::Drain { deadline });
        self.world.touch();
        // Requests whose clients have left may keep their workers busy until they are abandoned.
        let abandoned = deadline + self.plan.settings.app.timeouts.abandon + Duration::from_secs(1);
        let is_gone = |hub: &hubs::Party| hub.is_gone();
        while self.loops.iter().any(|it| !it.reactor.is_done() || it.reactor.holdings().1 > 0)
            || !self.hub.as_ref().is_none_or(is_gone)
        {
            self.round();
            let holdings: Vec<_> = self.loops.iter().map(|it| it.reactor.holdings()).collect();
            assert!(self.world.now() <= abandoned && self.rounds < MOST_ROUNDS, "a stop does not end: {holdings:?}");
        }
        self.postboxes.broadcast(|| Message::StopNow);
        self.world.touch();
        while self.loops.iter().any(|it| it.reactor.holdings().2 > 0) {
            self.round();
            let holdings: Vec<_> = self.loops.iter().map(|it| it.reactor.holdings()).collect();
            assert!(self.rounds < MOST_ROUNDS, "sockets stay open after the stop: {holdings:?}");
        }
    }

    /// For messages: who still waits.
    fn waiting(&self) -> Vec<String> {
        let clients = self.clients.iter().filter(|client| !client.is_done()).map(Client::state);
        let hub = self.hub.iter().flat_map(hubs::Party::state);
        clients.chain(self.crowd.state()).chain(hub).collect()
    }

    /// Everybody moves at least once, in a random order; then time, if nobody had anything to do.
    fn round(&mut self) {
        self.rounds += 1;
        let before = self.world.activity();
        let of_hub = self.hub.as_ref().map_or(0, hubs::Party::len);
        let parties = self.loops.len() + self.clients.len() + 1 + usize::from(self.plan.crowd.is_some()) + of_hub;
        // With a crowd a turn takes long, and the order of moves is less than what it is about.
        if self.plan.crowd.is_none() || self.world.chance(200) {
            for _ in 0..parties {
                self.move_one(self.world.below(parties));
            }
        }
        (0..parties).for_each(|party| self.move_one(party));
        self.line.flush();
        assert_eq!(self.metrics.total().panics, 0, "a loop has caught a panic");
        if self.world.activity() != before {
            return;
        }
        self.check_standstill();
        let now = self.world.now();
        let hub = self.hub.as_ref().and_then(hubs::Party::deadline);
        let others = [self.supervisor.deadline(), self.crowd.deadline(), hub];
        let scripts = self.clients.iter().map(Client::deadline).chain(others);
        let next = scripts.flatten().filter(|at| *at > now).min();
        self.world.note(format_args!("nobody moves at {:?}", now - self.started));
        let holdings: Vec<_> = self.loops.iter().map(|it| it.reactor.holdings()).collect();
        let waiting = || self.waiting();
        // What ended last may have ended by its deadline alone, and nobody moved for it.
        let over = self.loops.iter().all(|it| it.reactor.is_done() && it.reactor.holdings().1 == 0);
        let goes_on = self.world.advance_to_next(next) || over;
        assert!(
            goes_on,
            "nothing is to come, and loops hold {holdings:?}, clients {:#?}, workers {}",
            waiting(),
            self.supervisor.describe()
        );
    }

    /// Nobody moves before time does.
    fn check_standstill(&mut self) {
        let now = self.world.now();
        self.ledger.borrow_mut().stands_still(now);
        let (mut queued, mut paused) = (0, 0);
        for it in &self.loops {
            Standstill::check(&it.pool, &it.reactor);
            let (in_queue, for_memory) = it.reactor.waiting();
            (queued, paused) = (queued + in_queue, paused + for_memory);
        }
        self.standstill.check_budget(&self.budget, paused, now);
        // Everybody's bytes have been thought of, so that nobody may be refused for those of others.
        let overdrawn = self.plan.kind != Kind::Wild && self.standstill.overdraft > 0;
        assert!(!overdrawn, "{} bytes are charged beyond the budget", self.standstill.overdraft);
        let depth = self.dispatch.snapshot().queue_depth;
        assert_eq!(depth, queued, "the queue's places are not those of the requests that wait");
    }

    fn move_one(&mut self, party: usize) {
        let loops = self.loops.len();
        if party < loops {
            // A request that would rather not have one worker may pass over it, which happens in wild runs only.
            let before = (self.plan.kind != Kind::Wild).then(|| self.dispatch.snapshot());
            if let Err(error) = self.loops[party].reactor.turn() {
                panic!("a loop has failed: {error}");
            }
            // In debug builds the loop has done so itself.
            if !cfg!(debug_assertions) {
                self.dispatch.check_invariants();
            }
            let (_, paused) = self.loops[party].reactor.waiting();
            assert!(
                paused == 0 || self.shared.scarcity.is_known(),
                "{paused} answers are forgotten that wait for memory"
            );
            let concurrency = self.plan.settings.app.sharing.concurrency;
            let wrong = before.is_some_and(|before| passed_over(&before, &self.dispatch.snapshot(), concurrency));
            assert!(!wrong, "an older generation was given a request that a newer one could have had");
            if let Some(hub) = &self.hub {
                hub.look();
                #[cfg(debug_assertions)]
                self.loops[party].reactor.check_hubs();
            }
        } else if party < loops + self.clients.len() {
            self.clients[party - loops].step();
        } else if let (Some(hub), 1..) = (&mut self.hub, party - loops - self.clients.len()) {
            hub.step(party - loops - self.clients.len() - 1);
        } else if party > loops + self.clients.len() {
            self.crowd.step();
        } else {
            let before = self.world.activity();
            self.supervisor.step();
            if self.world.activity() != before {
                self.dispatch.check_invariants();
            }
        }
    }

    fn check_that_nothing_is_left(self) {
        for it in &self.loops {
            assert_eq!(it.reactor.holdings(), (0, 0, 0, 0), "clients, exchanges, sockets, deadlines are left");
        }
        let snapshot = self.dispatch.snapshot();
        assert_eq!(snapshot.queue_depth, 0, "someone is left in the queue");
        for worker in &snapshot.workers {
            assert_eq!((worker.in_flight, worker.tunnels), (0, 0), "permits are left on {worker:?}");
        }
        let totals = self.metrics.total();
        assert_eq!(totals.active_connections, 0, "connections are still counted");
        let latencies = self.metrics.latencies();
        assert!(latencies.count() <= totals.requests, "the time of a request was taken twice: {totals:?}");
        let (longest, whole) = (latencies.quantile(1.0).unwrap_or_default(), self.world.now() - self.started);
        assert!(longest <= whole * 17 / 16 + Duration::from_micros(2), "a request took {longest:?} of {whole:?}");
        let pools: Vec<Pool> = self.loops.iter().map(|it| it.pool.clone()).collect();
        for mut it in self.loops {
            assert_eq!(it.reactor.backend().queued(), 0, "pieces are left in outboxes");
        }
        for pool in &pools {
            for size in [Size::Small, Size::Large] {
                assert_eq!(pool.free(size), pool.total(size), "blocks are left in use");
            }
        }
        assert_eq!(self.budget.used(), 0, "bytes are still charged to the budget");
        self.supervisor.end();
        assert!(self.world.quiescent(), "seed {}: {} connections are left", self.seed, self.world.live());
    }
}

fn of_one(settings: &Arc<Settings>, dispatch: &Arc<Dispatch>, metrics: &Metrics) -> AppTable {
    AppTable::of_one(settings.clone(), dispatch.clone(), metrics)
}

/// A mailbox that rings a loop's bell, which is there only later.
fn ringing(
    bell: &Arc<OnceLock<<Simulated as Backend>::Bell>>,
) -> (production_server::mailbox::Postbox<Message>, Mailbox<Message>) {
    let bell = Arc::clone(bell);
    mailbox(move || {
        if let Some(bell) = bell.get() {
            bell.ring();
        }
    })
}

type Ways = (u16, Mailbox<Message>, Arc<OnceLock<<Simulated as Backend>::Bell>>);

fn open_loop(
    world: &World,
    plan: &Plan,
    (index, mailbox, bell): Ways,
    (shared, table): (&Arc<Shared>, &Arc<AppTable>),
    metrics: &Metrics,
    budget: &Arc<Budget>,
    place: &Place,
) -> Loop {
    let pool = Pool::new(plan.small_blocks, plan.large_blocks, Arc::clone(budget));
    let max_sockets = 200 + 2 * plan.crowd.as_ref().map_or(0, crowd::Plan::len);
    let options = Options {
        max_sockets,
        pool: pool.clone(),
        stall: shared.settings.timeouts.write,
        linger: Duration::from_secs(2),
        accept_retry: Duration::from_millis(100),
    };
    let backend = Simulated::new(options).unwrap();
    bell.set(backend.bell()).unwrap_or_else(|_| panic!("a loop has one bell"));
    let setup = Setup {
        index,
        shared: Arc::clone(shared),
        table: Arc::clone(table),
        listeners: vec![ListenerSetup {
            asked: ListenAddress::Tcp(([127, 0, 0, 1], 80).into()),
            id: 0,
            descriptor: world.listener(place.clone()).unwrap(),
            port: 80,
            tls: policy_of_tls(plan.secure),
            front: Arc::new(shared.settings.listening.front.clone()),
            admin: false,
        }],
        mailbox,
        metrics: metrics.clone(),
        access: shared.log.access_log(),
        pool: pool.clone(),
        max_sockets,
        first_id: u64::from(index) << 32,
        held: false,
    };
    Loop { reactor: Reactor::new(backend, setup).unwrap(), pool }
}

#[cfg(debug_assertions)]
fn policy_of_tls(secure: bool) -> Option<Arc<production_server::tls::Policy>> {
    secure.then(|| Arc::new(production_server::tls::Policy::stand_in()))
}

#[cfg(not(debug_assertions))]
fn policy_of_tls(_secure: bool) -> Option<Arc<production_server::tls::Policy>> {
    None
}

fn policy(settings: &Settings) -> Policy {
    let app = &settings.app;
    Policy {
        balance: match app.sharing.balance {
            config::Balance::Lifo => Balance::Lifo,
            config::Balance::RoundRobin => Balance::RoundRobin,
            config::Balance::Least => Balance::Least,
        },
        concurrency: app.sharing.concurrency,
        queue_size: app.queue.size,
        queue_timeout: app.queue.timeout,
        hold: app.queue.hold,
        max_tunnels: 1000,
        failures: 3,
        fair: false,
    }
}

fn rules(plan: &Plan, started: Instant) -> Rules {
    let app = &plan.settings.app;
    Rules {
        started,
        calm: plan.kind != Kind::Wild,
        orderly: plan.kind == Kind::Orderly,
        way: plan.faults.delay,
        read: app.timeouts.read,
        request: app.timeouts.request,
        queue: app.queue.timeout,
    }
}

/// Where the worker of that number listens.
pub fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/simulated/web.G1.{number}.sock"))
}
