//! Two apps in one loop, over a simulated network: their workers have the same names in their dispatches, and nothing of one app ever
//! meets the other; and a configuration that changes between two turns leaves what runs with the one that it began with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use production_server::apps::{App, AppTable};
use production_server::backends::Backend;
use production_server::backends::Options;
use production_server::backends::simulated::{End, Entered, Faults, Place, Service, Simulated, World};
use production_server::buffers::block::{Budget, Pool};
use production_server::config::route::{HostPattern, Matching, Route};
use production_server::config::{ListenAddress, Settings};
use production_server::dispatch::{AppId, Balance, Dispatch, Policy, Target, WorkerId};
use production_server::event_loop::Shared;
use production_server::log::Log;
use production_server::mailbox::{Message, Postboxes, mailbox};
use production_server::metrics::Metrics;
use production_server::reactor::{ListenerSetup, Reactor, Setup};
use socket2::SockAddr;

/// Turns after which everything that can happen has happened.
const TURNS: usize = 20;
/// Of the second app.
const REQUEST: &str = "GET /app HTTP/1.1\r\nHost: app1\r\n\r\n";
const APPS: [AppId; 2] = [AppId(0), AppId(1)];

/// A loop with two apps: the first one's listener has port 81, the second one's 82.
struct Rig {
    world: World,
    reactor: Reactor<Simulated>,
    postboxes: Postboxes,
    settings: Arc<Settings>,
    dispatches: [Arc<Dispatch>; 2],
    metrics: Metrics,
    _entered: Entered,
}

fn asked(port: u16) -> ListenAddress {
    ListenAddress::Tcp(([127, 0, 0, 1], port).into())
}

fn place(app: AppId) -> Place {
    Place::Tcp(([127, 0, 0, 1], 81 + app.0).into())
}

fn dispatch(world: &World) -> Arc<Dispatch> {
    let long = Duration::from_secs(60);
    let policy = Policy {
        balance: Balance::Lifo,
        concurrency: 1,
        queue_size: 8,
        queue_timeout: long,
        hold: long,
        max_tunnels: 8,
        failures: 3,
        fair: false,
    };
    Arc::new(Dispatch::new(policy, 8, world.now()))
}

/// The app of that id, named after it.
fn app(id: AppId, settings: &Arc<Settings>, dispatch: &Arc<Dispatch>, metrics: &Metrics) -> App {
    let own = production_server::config::App { name: format!("app{}", id.0), ..settings.app.clone() };
    App::new(id, settings.clone(), own, dispatch.clone(), metrics)
}

/// Each app has a host of its own: `app0` and `app1`.
fn table(settings: Arc<Settings>, apps: Vec<App>, metrics: &Metrics) -> Arc<AppTable> {
    let route = |(index, app): (usize, &App)| {
        let host = Some(HostPattern::Exact(format!("app{}", app.id.0)));
        Route { matching: Matching { host, ..Matching::default() }, ..Route::all_to(index) }
    };
    let routes: Vec<Route> = apps.iter().enumerate().map(route).collect();
    Arc::new(AppTable::new(settings, apps, &routes, metrics))
}

impl Rig {
    fn new() -> Rig {
        let world = World::with_faults(1, Faults::NONE);
        world.drive();
        let entered = world.enter();
        let settings = Arc::new(Settings::for_test());
        let dispatches = [dispatch(&world), dispatch(&world)];
        let (postbox, mailbox) = mailbox(|| {});
        let postboxes = Postboxes::new(vec![postbox]);
        let apps = dispatches.iter().zip(APPS);
        let metrics = Metrics::new(1);
        let apps = apps.map(|(it, id)| app(id, &settings, it, &metrics)).collect();
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            postboxes: postboxes.clone(),
            log: Log::disabled(),
            admission: Default::default(),
            scarcity: Default::default(),
            desk: Default::default(),
            helpers: Default::default(),
            spools: Default::default(),
            status: Box::new(String::new),
        });
        let pool = Pool::new(64, 8, Budget::new(1 << 20));
        let options = Options {
            max_sockets: 64,
            pool: pool.clone(),
            stall: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            accept_retry: Duration::from_millis(100),
        };
        let listener = |app: AppId| {
            let descriptor = world.listener(place(app)).unwrap();
            let front = Default::default();
            ListenerSetup {
                id: u32::from(app.0),
                asked: asked(81 + app.0),
                descriptor,
                port: 81 + app.0,
                tls: None,
                admin: false,
                front,
            }
        };
        let setup = Setup {
            index: 0,
            held: false,
            table: table(settings.clone(), apps, &metrics),
            listeners: APPS.map(listener).into(),
            mailbox,
            metrics: metrics.clone(),
            access: shared.log.access_log(),
            pool,
            max_sockets: 64,
            first_id: 1,
            shared,
        };
        let reactor = Reactor::new(Simulated::new(options).unwrap(), setup).unwrap();
        Rig { world, reactor, postboxes, settings, dispatches, metrics, _entered: entered }
    }

    fn turns(&mut self) {
        for _ in 0..TURNS {
            self.world.advance(Duration::from_millis(1));
            self.reactor.turn().unwrap();
        }
    }

    /// A request to an app.
    fn ask(&mut self, app: AppId) -> End {
        let end = self.world.connect(&place(app)).unwrap();
        self.turns();
        self.write(end, &REQUEST.replace("app1", &format!("app{}", app.0)));
        end
    }

    fn write(&mut self, end: End, bytes: &str) {
        assert_eq!(self.world.write(end, bytes.as_bytes()).unwrap(), bytes.len());
        self.turns();
    }

    fn read(&self, end: End) -> String {
        let mut bytes = Vec::new();
        while matches!(self.world.read(end, &mut bytes, 4096), Ok(1..)) {}
        String::from_utf8(bytes).unwrap()
    }

    /// Answers the request that came to a worker's connection, and keeps that.
    fn answer(&mut self, end: End, text: &str) {
        assert!(self.read(end).starts_with("GET /app "), "a request came");
        self.write(end, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
    }

    /// The first worker of an app, ready.
    fn worker(&self, app: AppId) -> (WorkerId, Service) {
        let path = PathBuf::from(format!("/simulated/{}.sock", app.0));
        let service = self.world.serve(&path, 8);
        let (label, moves) = (format!("app{}:1", app.0), Arc::default());
        let address = SockAddr::unix(&path).unwrap();
        let target = Target { address, label, unix: true, supervised: true, number: 1, moves };
        let dispatch = &self.dispatches[app.0 as usize];
        let id = dispatch.add(target, 1, None).unwrap();
        for grant in dispatch.ready(id, self.world.now()) {
            self.postboxes.grant(grant);
        }
        (id, service)
    }

    fn configure(&mut self, settings: &Arc<Settings>, apps: &[AppId]) {
        let apps = apps.iter().map(|id| app(*id, settings, &self.dispatches[id.0 as usize], &self.metrics)).collect();
        self.postboxes.post(0, Message::Configure(table(settings.clone(), apps, &self.metrics)));
        self.turns();
    }

    /// Whether the loop still knows an app: it then has its dispatch, as this test does.
    fn knows(&self, app: AppId) -> bool {
        Arc::strong_count(&self.dispatches[app.0 as usize]) > 1
    }
}

#[test]
fn workers_of_two_apps_with_the_same_name_never_mix() {
    let mut rig = Rig::new();
    let workers = APPS.map(|app| rig.worker(app));
    assert_eq!(workers[0].0, workers[1].0, "each is the first of its dispatch");
    let mut connections = Vec::new();
    for (app, (_, service)) in APPS.into_iter().zip(workers) {
        let client = rig.ask(app);
        let connection = rig.world.accept(service).expect("its own app's worker is connected to");
        rig.answer(connection, &format!("app {}", app.0));
        assert!(rig.read(client).ends_with(&format!("app {}", app.0)));
        connections.push(connection);
    }
    // Again, over the connections that were kept.
    for app in [APPS[1], APPS[0], APPS[1]] {
        let client = rig.ask(app);
        rig.answer(connections[app.0 as usize], "again");
        assert!(rig.read(client).ends_with("again"));
    }
    // The death of one is none of the other's.
    rig.dispatches[0].died(workers[0].0, rig.world.now());
    rig.postboxes.post(0, Message::Died(APPS[0], workers[0].0));
    rig.turns();
    assert_eq!([0, 1].map(|at| rig.world.other_is_open(connections[at])), [false, true]);
    let client = rig.ask(APPS[1]);
    rig.answer(connections[1], "still here");
    assert!(rig.read(client).ends_with("still here"));
    // Nor is its retirement.
    rig.postboxes.post(0, Message::Retire(APPS[0], workers[0].0));
    rig.turns();
    assert!(rig.world.other_is_open(connections[1]));
}

#[test]
fn each_app_has_its_own_counts_and_keeps_them_when_the_configuration_changes() {
    let mut rig = Rig::new();
    let services = APPS.map(|app| rig.worker(app).1);
    let settings = rig.settings.clone();
    let mut connections = Vec::new();
    for (app, service) in APPS.into_iter().zip(services) {
        let client = rig.ask(app);
        connections.push(rig.world.accept(service).unwrap());
        rig.answer(connections[app.0 as usize], "first");
        rig.read(client);
    }
    // While the table is another one, and the app in it another value of the same name.
    rig.configure(&settings, &APPS);
    let client = rig.ask(APPS[1]);
    rig.answer(connections[1], "second");
    rig.read(client);
    let answered = ["app0", "app1"].map(|name| {
        let app = rig.metrics.app(name);
        let answered = rig.metrics.statuses(rig.metrics.series(Some(app), &format!("{name}/*")));
        let waited = rig.metrics.waited(app).count();
        (answered.into_iter().collect(), rig.metrics.of_app(app, |app| app.worker_connections.value()), waited)
    });
    assert_eq!(answered, [(vec![(200, 1)], 1, 1), (vec![(200, 2)], 1, 2)]);
}

/// A kept connection ends under a request, and whether its worker died decides what is done: the other app's worker of that name
/// did, and it is no word about this one.
#[test]
fn the_death_of_another_apps_worker_is_no_verdict() {
    let mut rig = Rig::new();
    let (id, service) = rig.worker(APPS[1]);
    let client = rig.ask(APPS[1]);
    let connection = rig.world.accept(service).unwrap();
    rig.answer(connection, "kept");
    rig.read(client);
    rig.write(client, REQUEST);
    rig.read(connection);
    rig.world.close(connection);
    rig.reactor.turn().unwrap();
    rig.reactor.turn().unwrap();
    rig.postboxes.post(0, Message::Died(APPS[0], id));
    for _ in 0..5 {
        rig.turns();
    }
    let again = rig.world.accept(service).expect("it is sent again");
    rig.answer(again, "alive");
    assert!(rig.read(client).ends_with("alive"));
}

#[test]
fn what_runs_keeps_the_configuration_that_it_began_with() {
    let mut rig = Rig::new();
    let services = APPS.map(|app| rig.worker(app).1);
    let mut changed = Settings::clone(&rig.settings);
    changed.app.instead.respond = Some("from the loop".to_owned());
    changed.app.timeouts.read = Duration::from_millis(1);
    let changed = Arc::new(changed);
    let running = rig.ask(APPS[0]);
    let connection = rig.world.accept(services[0]).unwrap();
    rig.configure(&changed, &APPS);
    let next = rig.ask(APPS[0]);
    assert!(rig.read(next).ends_with("from the loop"), "what begins now has the new one");
    rig.turns();
    rig.answer(connection, "late");
    assert!(rig.read(running).ends_with("late"), "what ran has the old one's patience");
    // Its connection was kept, and the next one asks for the old configuration again.
    let before = rig.settings.clone();
    rig.configure(&before, &APPS);
    let client = rig.ask(APPS[0]);
    rig.answer(connection, "kept");
    assert!(rig.read(client).ends_with("kept"));
}

#[test]
fn a_removed_app_lives_until_its_last_exchange_and_an_added_one_serves() {
    let mut rig = Rig::new();
    let settings = rig.settings.clone();
    let (_, service) = rig.worker(APPS[0]);
    let kept = rig.ask(APPS[0]);
    let running = rig.ask(APPS[0]);
    let connection = rig.world.accept(service).unwrap();
    rig.configure(&settings, &APPS[1..]);
    assert_eq!(rig.dispatches[0].snapshot().queue_depth, 1);
    let refused = rig.ask(APPS[0]);
    assert!(rig.read(refused).starts_with("HTTP/1.1 404 "), "nothing new goes to it");
    for client in [kept, running] {
        assert!(rig.knows(APPS[0]) && rig.world.other_is_open(connection));
        rig.answer(connection, "to the end");
        assert!(rig.read(client).ends_with("to the end"), "who waited for it is served");
    }
    rig.turns();
    assert!(!rig.world.other_is_open(connection), "its kept connections close");
    assert!(!rig.knows(APPS[0]), "and it is forgotten");
    // A word about one of its workers is no word any more.
    let (id, service) = rig.worker(APPS[1]);
    rig.postboxes.post(0, Message::Died(APPS[0], id));
    let client = rig.ask(APPS[1]);
    let connection = rig.world.accept(service).unwrap();
    rig.answer(connection, "the other");
    assert!(rig.read(client).ends_with("the other"));
    rig.configure(&settings, &APPS);
    rig.world.stop(service);
    assert!(rig.knows(APPS[0]), "it may come again");
}

/// A grant may be on its way to an exchange whose client leaves, and whose app is removed: it goes back all the same.
#[test]
fn a_grant_that_finds_nobody_goes_back_to_its_app() {
    let mut rig = Rig::new();
    let settings = rig.settings.clone();
    let client = rig.ask(APPS[1]);
    assert_eq!(rig.dispatches[1].snapshot().queue_depth, 1);
    let path = PathBuf::from("/simulated/late.sock");
    rig.world.serve(&path, 8);
    let (address, moves) = (SockAddr::unix(&path).unwrap(), Arc::default());
    let target = Target { address, label: "late".into(), unix: true, supervised: true, number: 1, moves };
    let id = rig.dispatches[1].add(target, 1, None).unwrap();
    let grants = rig.dispatches[1].ready(id, rig.world.now());
    assert_eq!(grants.len(), 1);
    rig.world.close(client);
    rig.configure(&settings, &APPS[..1]);
    assert!(rig.knows(APPS[1]), "its mail is still to come");
    grants.into_iter().for_each(|grant| rig.postboxes.grant(grant));
    rig.turns();
    assert_eq!(rig.dispatches[1].snapshot().workers[0].in_flight, 0);
    assert!(!rig.knows(APPS[1]));
}

/// Who has come in by a listener stays, and is told of as before, when it goes and another takes its place.
#[test]
fn listeners_come_and_go_between_two_turns() {
    let mut rig = Rig::new();
    let (_, service) = rig.worker(APPS[0]);
    let before = rig.reactor.holdings().2;
    let place = |port: u16| Place::Tcp(([127, 0, 0, 1], port).into());
    let open = |rig: &mut Rig, port: u16| {
        let descriptor = rig.world.listener(place(port)).unwrap();
        let (id, front) = (u32::from(port), Default::default());
        let setup = ListenerSetup { id, asked: asked(port), descriptor, port, tls: None, admin: false, front };
        rig.postboxes.post(0, Message::Listen(vec![setup]));
        rig.turns();
    };
    let close = |rig: &mut Rig, port: u16| {
        rig.postboxes.post(0, Message::CloseListener(u32::from(port)));
        rig.turns();
        assert!(rig.world.connect(&place(port)).is_err(), "nobody listens there any more");
    };
    let request = REQUEST.replace("app1", "app0");
    let mut connection = None;
    // Each request is told the port of its own client's listener.
    let mut ask = |rig: &mut Rig, client: End, port: u16| {
        rig.write(client, &request);
        let connection = *connection.get_or_insert_with(|| rig.world.accept(service).expect("a worker is asked"));
        let came = rig.read(connection);
        assert!(came.contains(&format!("\r\nX-Forwarded-Port: {port}\r\n")), "{port}: {came}");
        rig.write(connection, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert!(rig.read(client).ends_with("ok"));
    };
    open(&mut rig, 90);
    let first = rig.world.connect(&place(90)).unwrap();
    rig.turns();
    ask(&mut rig, first, 90);
    close(&mut rig, 90);
    ask(&mut rig, first, 90);
    open(&mut rig, 91);
    let second = rig.world.connect(&place(91)).unwrap();
    rig.turns();
    ask(&mut rig, second, 91);
    ask(&mut rig, first, 90);
    close(&mut rig, 91);
    rig.world.close(first);
    rig.turns();
    // The place of the first is free now, that of the second is not.
    open(&mut rig, 92);
    ask(&mut rig, second, 91);
    let third = rig.world.connect(&place(92)).unwrap();
    rig.turns();
    ask(&mut rig, third, 92);
    close(&mut rig, 92);
    for client in [second, third] {
        rig.world.close(client);
    }
    for _ in 0..5 {
        rig.turns();
    }
    // One connection to the worker is kept.
    assert_eq!(rig.reactor.holdings().2, before + 1);
}
