//! Hubs in the simulation: real loops serve clients that listen in every way, publishers, and an app that takes part, whose workers die and are rolled, beside
//! ordinary clients. Who listens gets each message once and in order, or is told of a gap that covers exactly what it lacks; at the end nothing is left.
//!
//! `SIMULATION_SEED`, `SIMULATION_SEEDS` and `SIMULATION_FIRST` mean what they mean for the other seeds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use production_server::access::Keys;
use production_server::apps::{App as Served, AppTable};
use production_server::backends::simulated::{Faults, Place, Random, Trace, World};
use production_server::config::{self, Route, Settings, route};
use production_server::dispatch::{AppId, Dispatch};
use production_server::hub::{self, Hub};
use production_server::metrics::Metrics;

use super::checks::Ledger;
use super::driver::{self, Kind};
use super::line::Line;

mod app;
mod frames;
mod heard;
mod listeners;
mod places;
mod publishers;
mod record;
mod visits;

pub use app::{App, Said};
use listeners::Listener;
use publishers::Publisher;
pub use record::{Counts, Record};

/// What publishers show, and its SHA-256.
const KEY: &str = "the key of a simulated publisher";
const KEY_HASH: &str = "1eb73be31fd04d80758b929f20700c9972f6952e47e7f8abe0ecf4bf60152806";
/// Seeds that each test run tries.
const SEEDS: u64 = 64;
/// Steps of 1000 in which somebody sweeps.
const SWEEPS: u32 = 10;

/// What of a run is about a hub.
#[derive(Clone, Debug)]
pub struct Plan {
    hub: config::Hub,
    topics: Vec<String>,
    listeners: usize,
    visits: visits::Manners,
    publishers: usize,
    posts: publishers::Manners,
}

impl Plan {
    /// A hub with or without an app; what the server is to have for it is put into its settings.
    pub fn draw(kind: Kind, (settings, faults): (&mut Settings, &mut Faults), random: &mut Random) -> Plan {
        let wild = kind == Kind::Wild;
        let mut milliseconds = |from: usize, to: usize| Duration::from_millis(random.between(from, to) as u64);
        let (stays, pause) = (milliseconds(50, 1500), milliseconds(0, 150));
        let mut hub = config::Hub {
            name: "chat".to_owned(),
            ping: milliseconds(500, 4000),
            pong: if wild { milliseconds(200, 1500) } else { Duration::from_secs(4) },
            poll: milliseconds(100, 2000),
            keys: Some(Arc::new(Keys::parse(&format!("simulated:{KEY_HASH}")).expect("a key"))),
            room: config::Room { topics_per_socket: 8, ..config::Hub::default().room },
            ..config::Hub::default()
        };
        hub.history.count = [0, random.between(3, 6), random.between(3, 20), 100][random.below(4)];
        hub.history.bytes = [1 << 20, 60_000][random.below(2)];
        hub.history.age =
            [Duration::from_secs(300), Duration::from_millis(random.between(100, 3000) as u64)][random.below(2)];
        if wild {
            hub.room.memory = [64 << 20, 300_000, 60_000][random.below(3)];
            hub.room.topics = [10_000, 4][random.below(2)];
            hub.room.topics_per_socket = [8, 4][random.below(2)];
        }
        hub.participant.app = random.chance(500).then(|| settings.app.name.clone());
        let longest = [100, 3000, 24_000][random.below(3)];
        hub.room.message = longest.max(2000) * 2;
        if longest > 100 {
            // Else a run would be about the network, and last as long.
            faults.capacity = faults.capacity.max(2 * longest);
            (faults.short_write, faults.short_receive) = (faults.short_write.min(100), faults.short_receive.min(100));
        }
        settings.hubs = vec![hub.clone()];
        settings.bounds.connections = 1024;
        let visits = visits::Manners {
            visits: random.between(1, 5),
            app: hub.participant.app.is_some(),
            longest: longest.min(hub.room.message - 100),
            rude: wild,
            deaf: if wild {
                Duration::from_millis(random.between(100, 8000) as u64)
            } else {
                Duration::from_millis(1500)
            },
            stays,
        };
        let posts = publishers::Manners { count: random.between(5, 40), longest, limit: hub.room.message, pause };
        let topics = ["a", "chat.1", "/lobby", "b"][..random.between(1, 4)].iter().map(|it| (*it).to_owned()).collect();
        Plan { hub, topics, listeners: random.between(2, 9), visits, publishers: random.between(1, 3), posts }
    }

    /// The table of a server that has this hub beside its app.
    pub fn table(settings: &Arc<Settings>, dispatch: &Arc<Dispatch>, metrics: &Metrics) -> AppTable {
        let app = Served::new(AppId::default(), settings.clone(), settings.app.clone(), dispatch.clone(), metrics);
        let to_hub = config::hub::ENDS.map(|end| {
            let path = Some(route::PathPattern::Exact(format!("/api/v1/{end}")));
            let matching = route::Matching { path, ..route::Matching::default() };
            Route { matching, to: route::Target::Hub(0), ..Route::all_to(0) }
        });
        let routes: Vec<Route> = to_hub.into_iter().chain([Route::all_to(0)]).collect();
        AppTable::new(settings.clone(), vec![app], &routes, metrics)
    }
}

/// Clients and publishers of a hub, and what is known of it.
pub struct Party {
    /// The app that takes part, for the workers.
    pub app: Option<Rc<RefCell<App>>>,
    pub record: Rc<RefCell<Record>>,
    listeners: Vec<Listener>,
    publishers: Vec<Publisher>,
    world: World,
    times: hub::Registry,
    hub: Arc<Hub>,
    age: Duration,
}

impl Party {
    pub fn new(
        line: &Line,
        ledger: &Rc<RefCell<Ledger>>,
        place: &Place,
        plan: &Plan,
        metrics: &Metrics,
        calm: bool,
    ) -> Party {
        let times = metrics.hubs().clone();
        let hub = times.all().pop().expect("the table has made it");
        let record = Rc::new(RefCell::new(Record::new(&hub, &plan.topics, calm)));
        let app = plan.hub.participant.app.is_some();
        let app = app.then(|| Rc::new(RefCell::new(App::new(line, ledger, &record, plan.posts.longest))));
        let known = publishers::Known::default();
        let listeners = (0..plan.listeners).map(|_| Listener::new(line, place, &record, &plan.visits)).collect();
        let publishers =
            (0..plan.publishers).map(|_| Publisher::new(line, place, &record, &known, &plan.posts)).collect();
        let (world, age) = ((**line).clone(), plan.hub.history.age);
        Party { app, record, listeners, publishers, world, times, hub, age }
    }

    pub fn len(&self) -> usize {
        self.listeners.len() + self.publishers.len()
    }

    pub fn step(&mut self, who: usize) {
        if self.world.chance(SWEEPS) {
            self.hub.sweep(self.times.since(self.world.now()));
            self.look();
        }
        match who.checked_sub(self.listeners.len()) {
            None => self.listeners[who].step(),
            Some(who) => self.publishers[who].step(),
        }
    }

    /// A loop has turned: what is in the hub now?
    pub fn look(&self) {
        self.record.borrow_mut().look();
    }

    pub fn deadline(&self) -> Option<Instant> {
        let listeners = self.listeners.iter().filter_map(Listener::deadline);
        listeners.chain(self.publishers.iter().filter_map(Publisher::deadline)).min()
    }

    /// Whether all has been said, and nobody is left but those who stay.
    pub fn is_done(&self) -> bool {
        self.listeners.iter().all(Listener::is_done) && self.publishers.iter().all(Publisher::is_done)
    }

    /// What somebody who stays has not got yet.
    pub fn lacks(&self) -> Option<String> {
        self.listeners.iter().find_map(Listener::lacks)
    }

    pub fn state(&self) -> Vec<String> {
        let listeners = self.listeners.iter().filter(|it| !it.is_done() || !it.is_gone()).map(Listener::state);
        listeners.chain(self.publishers.iter().filter(|it| !it.is_done()).map(Publisher::state)).collect()
    }

    /// The server ends.
    pub fn drains(&mut self) {
        self.record.borrow_mut().drains = true;
        self.listeners.iter_mut().for_each(Listener::rests);
    }

    pub fn is_gone(&self) -> bool {
        self.listeners.iter().all(Listener::is_gone)
    }

    /// Everybody has gone, and the loops are done.
    pub fn check_that_nothing_is_left(self, metrics: &Metrics) -> Counts {
        self.look();
        let record = self.record.borrow();
        record.check_end();
        if let Some(app) = self.app.filter(|_| record.calm) {
            app.borrow().check_end();
        }
        let left = |counts: &hub::Counts| counts.topics.iter().any(|topic| topic.subscribers > 0);
        let counts = self.hub.counts(None, usize::MAX);
        assert!(!left(&counts), "subscribers are left: {counts:?}");
        let total = metrics.total();
        let listening = [total.hub_sockets, total.hub_event_streams, total.hub_polls];
        assert_eq!(listening, [0; 3], "sockets, streams and polls are still counted");
        assert_eq!(self.hub.left(), 0, "somebody has still what the hub has given up");
        // All that is kept goes with its time, and topics that nobody uses after that.
        let now = self.times.since(self.world.now());
        for round in 1..=2 * (record.topics().len() as u32 + 2) {
            self.hub.sweep(now + (self.age + Duration::from_secs(1)) * round);
        }
        let counts = self.hub.counts(None, usize::MAX);
        assert_eq!((counts.all, self.hub.memory()), (0, 0), "topics or bytes are left: {counts:?}");
        record.counts
    }
}

/// Runs one seed; a failure says how to repeat it.
fn run(seed: u64, traced: bool) -> Option<Counts> {
    let trace = traced.then(|| Box::new(|line: &str| eprintln!("{line}")) as Trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| driver::run_hub(seed, trace)));
    if outcome.is_err() {
        eprintln!("to repeat this: SIMULATION_SEED={seed} cargo test --test suite simulation::hubs -- --nocapture");
    }
    outcome.ok()
}

#[test]
fn every_seed_keeps_the_rules_of_hubs() {
    if let Some(seed) = super::number("SIMULATION_SEED") {
        println!("{:?}", run(seed, true).expect("the seed keeps the rules"));
        return;
    }
    let first = super::number("SIMULATION_FIRST").unwrap_or(0);
    let count = super::number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let total = Mutex::new(Counts::default());
    let failures = super::run_each(first..first + count, |seed| {
        let counts = run(seed, false);
        counts.iter().for_each(|one| total.lock().unwrap().add(one));
        counts.is_some()
    });
    let total = total.into_inner().unwrap();
    println!("{total:#?}");
    assert!(failures.is_empty(), "seeds break the rules: {failures:?}");
    if count >= SEEDS {
        total.check_coverage();
    }
}

impl Counts {
    fn all(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("delivered", self.delivered),
            ("gaps", self.gaps),
            ("bare_gaps", self.bare_gaps),
            ("resumed", self.resumed),
            ("duplicates", self.duplicates),
            ("events", self.events),
            ("ended_by_drain", self.ended_by_drain),
            ("cut", self.cut),
        ])
    }

    fn add(&mut self, one: &Counts) {
        self.delivered += one.delivered;
        self.gaps += one.gaps;
        self.bare_gaps += one.bare_gaps;
        self.resumed += one.resumed;
        self.duplicates += one.duplicates;
        self.events += one.events;
        self.ended_by_drain += one.ended_by_drain;
        self.cut += one.cut;
        self.unseen += one.unseen;
    }

    /// The runs are what they are meant to be.
    fn check_coverage(&self) {
        let rare: Vec<_> = self.all().into_iter().filter(|(_, count)| *count < 20).collect();
        assert!(rare.is_empty(), "this happens too rarely: {rare:?}");
        assert!(self.unseen as usize * 50 < self.delivered, "nearly all is seen where it stands");
    }
}
