//! Loops that cannot be opened, that end unasked, that do not end.

use std::os::fd::OwnedFd;

use socket2::SockAddr;

use super::*;
use crate::apps::AppTable;
use crate::backends::{Event, Handed, How, Piece, Size, Sock};
use crate::config::{BackendChoice, Command};
use crate::dispatch::Dispatch;
use crate::server::serve;
use crate::supervisor::{self, RunDirectory, Supervisor, unit};

/// What is wrong with the backend of the loop of number 1; the others are fine, and nothing ever happens on them.
const OPENS_WITH_ERROR: u8 = 0;
const OPENS_WITH_PANIC: u8 = 1;
const WAITS_WITH_ERROR: u8 = 2;
const WAITS_WITH_PANIC: u8 = 3;

struct Broken<const FAULT: u8> {
    now: Instant,
    bell: Doorbell,
}

#[derive(Clone)]
struct Doorbell(std::thread::Thread);

impl Bell for Doorbell {
    fn ring(&self) {
        self.0.unpark();
    }
}

fn is_broken() -> bool {
    std::thread::current().name() == Some("loop-1")
}

impl<const FAULT: u8> Backend for Broken<FAULT> {
    type Bell = Doorbell;

    fn new(_options: Options) -> io::Result<Broken<FAULT>> {
        match FAULT {
            OPENS_WITH_ERROR if is_broken() => return Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            OPENS_WITH_PANIC if is_broken() => panic!("this backend does not open"),
            _ => {}
        }
        Ok(Broken { now: Instant::now(), bell: Doorbell(std::thread::current()) })
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match FAULT {
            WAITS_WITH_ERROR if is_broken() => return Err(io::Error::from_raw_os_error(libc::EBADF)),
            WAITS_WITH_PANIC if is_broken() => panic!("this backend does not wait"),
            _ => {}
        }
        std::thread::park_timeout(timeout.unwrap_or(Duration::MAX));
        self.now = Instant::now();
        Ok(())
    }

    fn bell(&self) -> Doorbell {
        self.bell.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn listen(&mut self, _listener: OwnedFd) -> io::Result<Sock> {
        Ok(Sock { index: 0, generation: 1 })
    }

    fn connect(&mut self, _address: &SockAddr) -> io::Result<Option<Sock>> {
        Ok(None)
    }

    fn unsent(&self, _sock: Sock) -> usize {
        0
    }

    fn is_behind(&self, _sock: Sock) -> bool {
        false
    }

    fn sent(&self, _sock: Sock) -> u64 {
        0
    }

    fn acknowledged(&self, _sock: Sock) -> u64 {
        0
    }

    fn taken(&self) -> u64 {
        0
    }

    fn is_starved(&self, _sock: Sock) -> bool {
        false
    }

    fn next(&mut self) -> Option<Event> {
        None
    }

    fn live(&self) -> usize {
        0
    }

    fn set_stall(&mut self, _stall: Duration) {}
    fn pause(&mut self, _listener: Sock) {}
    fn resume(&mut self, _listener: Sock) {}
    fn recv(&mut self, _sock: Sock, _size: Size) {}
    fn send(&mut self, _sock: Sock, _piece: Piece) {}

    fn send_file(&mut self, _: Sock, _: &std::fs::File, _: u64, _: u64) -> Handed {
        Handed::Unable
    }
    fn await_room(&mut self, _sock: Sock) {}
    fn count_blocks(&self, _census: &mut crate::buffers::block::Census) {}
    fn finish(&mut self, _sock: Sock) {}
    fn close(&mut self, _sock: Sock, _how: How) {}
}

/// A server of three loops over such a backend, run to its end; how that was, and what the log says.
fn run<const FAULT: u8>() -> (Result<u8, StartError>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::for_test();
    settings.loops.count = 3;
    settings.process.run_dir = folder.path().join("run");
    settings.app.instead.respond = Some("hello".to_owned());
    settings.app.program.command = Command::None;
    let settings = Arc::new(settings);
    let (log, captured) = Log::captured().unwrap();
    let told = log.clone();
    let dispatch =
        Arc::new(Dispatch::new(unit::policy(&settings.app), unit::table_size(&settings.app), Instant::now()));
    let (postboxes, mailboxes) = post(settings.loops.count);
    let supervisor = Supervisor::start_with(
        settings.clone(),
        dispatch.clone(),
        postboxes.clone(),
        log.clone(),
        RunDirectory::open(&settings.process.run_dir).unwrap(),
        supervisor::Options { signals: false, ..Default::default() },
    )
    .unwrap();
    let loop_exit = supervisor.loop_exit();
    let metrics = Metrics::new(settings.loops.count);
    let table = Arc::new(AppTable::of_one(settings.clone(), dispatch, &metrics));
    let shared = Arc::new(Shared {
        settings,
        postboxes,
        log,
        admission: Default::default(),
        scarcity: Default::default(),
        desk: Default::default(),
        helpers: Default::default(),
        spools: Default::default(),
        status: Box::new(String::new),
    });
    let listeners = crate::server::open_listeners(&shared.settings, &mut Default::default()).unwrap();
    let listeners = share_out(&listeners, &shared.settings).unwrap();
    let loops = LoopSet { shared, table, metrics, listeners, held: false, mailboxes, loop_exit };
    let outcome = serve::<Broken<FAULT>>(loops, BackendChoice::Epoll, supervisor, None, || None);
    told.flush(Duration::from_secs(10));
    (outcome, captured.text())
}

#[test]
fn a_loop_that_ends_unasked_stops_the_server() {
    for (outcome, log) in [run::<WAITS_WITH_ERROR>(), run::<WAITS_WITH_PANIC>()] {
        assert_eq!(outcome.unwrap(), exit::SOFTWARE, "{log}");
        assert!(log.contains("an event loop has ended although nobody asked it to"), "{log}");
        assert!(log.contains("an event loop failed"), "{log}");
        assert!(!log.contains("left behind"), "the others stopped: {log}");
    }
}

#[test]
fn a_server_of_which_one_loop_cannot_be_opened_does_not_start() {
    let (outcome, log) = run::<OPENS_WITH_ERROR>();
    let error = outcome.unwrap_err();
    assert_eq!(error.code, exit::SYSTEM);
    assert!(error.message.starts_with("cannot start an event loop: ") && error.message.contains("memory"), "{error:?}");
    assert!(!log.contains("listening"), "{log}");
    let (outcome, log) = run::<OPENS_WITH_PANIC>();
    let error = outcome.unwrap_err();
    assert_eq!(error.code, exit::SOFTWARE);
    assert!(error.message.starts_with("an event loop panicked"), "{error:?}");
    assert!(!error.message.contains('\n') && !log.contains("listening"), "{log}");
}

#[test]
fn a_loop_that_does_not_end_is_left_behind() {
    let (release, stuck) = std::sync::mpsc::channel::<()>();
    let threads = vec![
        std::thread::spawn(|| Ok(())),
        std::thread::spawn(|| Err(io::Error::other("broken"))),
        std::thread::spawn(|| panic!("a panic that belongs to this test")),
        std::thread::spawn(move || {
            // Ends with the test.
            let _ = stuck.recv();
            Ok(())
        }),
    ];
    let wait = Instant::now() + Duration::from_secs(10);
    while threads[..3].iter().any(|thread| !thread.is_finished()) && Instant::now() < wait {
        std::thread::yield_now();
    }
    assert_eq!(join(threads, Duration::from_millis(50)), Ends { failed: 2, left: 1 });
    drop(release);
}

#[test]
fn who_takes_nothing_of_an_answer_has_the_write_timeout() {
    let mut settings = Settings::for_test();
    settings.timeouts.write = Duration::from_secs(77);
    let options = options(&settings, 16, Pool::new(1, 1, Budget::new(0)));
    assert_eq!((options.stall, options.linger), (Duration::from_secs(77), LINGER));
}
