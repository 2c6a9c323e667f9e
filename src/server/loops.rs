//! The event loops' threads: all of them start or none does, and none ends unnoticed.
//!
//! Each thread opens its own backend, says how that went, and waits for the word that all others are ready, too. However it
//! ends later on, by its own will, with an error or in a panic, it reports to the supervisor.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::apps::{App, AppTable};
use crate::backends::{Backend, Bell, Options};
use crate::buffers::block::{Budget, Pool};
use crate::config::{Pin, Settings};
use crate::event_loop::{ADMIN_PLACES, Shared};
use crate::log::{Level, Log};
use crate::mailbox::{Mailbox, Message, Postboxes, mailbox};
use crate::metrics::Metrics;
use crate::reactor::{ListenerSetup, Reactor, Setup};
use crate::supervisor::wake::LoopExit;
use crate::tls;

use super::site::is_alone;
use super::{ACCEPT_RETRY, LINGER, Listening, StartError, exit, refused};

/// Small blocks of a loop's pool: 18 MiB, of which only what is in use at once is ever touched. With the large ones of two loops
/// they are what a crowd may make resident beside `--buffer-bytes`.
const SMALL_BLOCKS: usize = 1024;
/// Listeners of a loop that a new configuration may bring.
pub(super) const LATER_LISTENERS: usize = 1024;
/// Connections of a loop to workers of apps that a new configuration may bring. Room for them is reserved and not touched.
pub(super) const LATER_LINKS: usize = 64 * 1024;
/// Large blocks of a loop's pool: 8 MiB.
const LARGE_BLOCKS: usize = 64;

/// Rings a loop's backend, once it has one.
type Ringer = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

/// The way to each loop. A loop's bell exists only once its backend does, on its own thread; mail posted before is found
/// before the first sleep.
pub(super) fn post(loops: usize) -> (Postboxes, Vec<(Mailbox<Message>, Ringer)>) {
    let bells: Vec<Ringer> = (0..loops).map(|_| Arc::default()).collect();
    let (boxes, mailboxes): (_, Vec<_>) = bells
        .iter()
        .map(|bell| {
            let bell = bell.clone();
            mailbox(move || {
                if let Some(ring) = bell.get() {
                    ring();
                }
            })
        })
        .unzip();
    (Postboxes::new(boxes), mailboxes.into_iter().zip(bells).collect())
}

/// What the loops' threads are made of.
pub(super) struct LoopSet {
    pub shared: Arc<Shared>,
    pub table: Arc<AppTable>,
    pub metrics: Metrics,
    /// Those of each loop.
    pub listeners: Vec<Vec<ListenerSetup>>,
    /// Whether they accept nobody before they are told to.
    pub held: bool,
    pub mailboxes: Vec<(Mailbox<Message>, Ringer)>,
    /// Tells the supervisor that a loop has ended.
    pub loop_exit: LoopExit,
}

/// A loop's thread, and how it ended.
pub(super) type Thread = JoinHandle<io::Result<()>>;

impl LoopSet {
    /// Starts the threads and waits until every loop is open. When one is not, none runs, and none is left.
    pub fn spawn<B: Backend + 'static>(self) -> Result<Vec<Thread>, StartError> {
        let (reporter, reports) = mpsc::channel();
        let (mut threads, mut gates) = (Vec::new(), Vec::new());
        let loops = self.mailboxes.len();
        let outcome = self.spawn_all::<B>(&mut threads, &mut gates, reporter).and_then(|()| await_all(&reports, loops));
        if let Err(error) = outcome {
            // Those who wait for the others see that nobody will tell them to go.
            drop(gates);
            threads.into_iter().for_each(|thread| drop(thread.join()));
            return Err(error);
        }
        for gate in gates {
            // A thread that has gone meanwhile has said so.
            let _ = gate.send(());
        }
        Ok(threads)
    }

    fn spawn_all<B: Backend + 'static>(
        self,
        threads: &mut Vec<Thread>,
        gates: &mut Vec<Sender<()>>,
        reporter: Sender<io::Result<()>>,
    ) -> Result<(), StartError> {
        let cannot = |error: io::Error| cannot_start(&error);
        let settings = self.shared.settings.clone();
        let budget = Budget::new(settings.stores.buffer_bytes);
        let pinned = settings.loops.pin == Pin::On || (settings.loops.pin == Pin::Auto && is_alone(&self.table.apps));
        let cores = if pinned { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
        for (index, ((mailbox, bell), listeners)) in self.mailboxes.into_iter().zip(self.listeners).enumerate() {
            let (shared, table) = (self.shared.clone(), self.table.clone());
            let (metrics, budget) = (self.metrics.clone(), budget.clone());
            let core = if cores.is_empty() { None } else { Some(cores[index % cores.len()]) };
            let leaving = Leaving { index, log: self.shared.log.clone(), loop_exit: self.loop_exit.clone() };
            let (gate, go) = mpsc::channel();
            let report = reporter.clone();
            let body = move || {
                if let Some(core) = core {
                    // Before its memory is there, which is best near that core.
                    core_affinity::set_for_current(core);
                }
                let setup = Setup {
                    index: index as u16,
                    access: shared.log.access_log(),
                    max_sockets: socket_room(&table, listeners.len()) + LATER_LINKS + LATER_LISTENERS,
                    listeners,
                    table,
                    mailbox,
                    metrics,
                    pool: Pool::new(SMALL_BLOCKS, LARGE_BLOCKS, budget),
                    first_id: random(),
                    held: self.held,
                    shared,
                };
                run_loop::<B>(setup, &bell, &leaving, report, &go)
            };
            threads.push(std::thread::Builder::new().name(format!("loop-{index}")).spawn(body).map_err(cannot)?);
            gates.push(gate);
        }
        Ok(())
    }
}

/// The listeners of each loop.
pub(super) fn share_out(listeners: &[Listening], settings: &Settings) -> Result<Vec<Vec<ListenerSetup>>, StartError> {
    let loops = settings.loops.count;
    let of_loop = |index| -> io::Result<Vec<ListenerSetup>> {
        let setups =
            listeners.iter().map(|listening| listening.of_loop(index, loops, &Arc::new(listening.front(settings))));
        let all: io::Result<Vec<_>> = setups.collect();
        all.map(|all| all.into_iter().flatten().collect())
    };
    (0..loops).map(of_loop).collect::<io::Result<_>>().map_err(|error| cannot_start(&error))
}

/// Waits for the report of each loop: one for each that still holds a sender.
fn await_all(reports: &Receiver<io::Result<()>>, loops: usize) -> Result<(), StartError> {
    for _ in 0..loops {
        match reports.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(cannot_start(&error)),
            Err(_) => {
                let message =
                    "an event loop panicked while it was opened; the lines before this one say where".to_owned();
                return Err(StartError { message, code: exit::SOFTWARE });
            }
        }
    }
    Ok(())
}

fn cannot_start(error: &io::Error) -> StartError {
    refused(format!("cannot start an event loop: {error}"), error, exit::SYSTEM)
}

/// What a loop's thread does.
fn run_loop<B: Backend>(
    setup: Setup,
    bell: &Ringer,
    leaving: &Leaving,
    report: Sender<io::Result<()>>,
    go: &Receiver<()>,
) -> io::Result<()> {
    let mut reactor = match open::<B>(setup, bell) {
        Ok(reactor) => reactor,
        Err(error) => {
            // Main is told, or has heard enough of another.
            let _ = report.send(Err(error));
            return Ok(());
        }
    };
    let told = report.send(Ok(()));
    drop(report);
    if told.is_err() || go.recv().is_err() {
        return Ok(());
    }
    let outcome = reactor.run();
    if let Err(error) = &outcome {
        leaving.tell("an event loop failed", error);
    }
    outcome
}

/// Opens a loop on its own thread.
fn open<B: Backend>(setup: Setup, bell: &Ringer) -> io::Result<Reactor<B>> {
    if setup.listeners.iter().any(|listener| listener.tls.is_some()) {
        tls::seed();
    }
    let options = options(&setup.shared.settings, setup.max_sockets, setup.pool.clone());
    let backend = B::new(options)?;
    let ring = backend.bell();
    // Set once, here.
    let _ = bell.set(Box::new(move || ring.ring()));
    Reactor::new(backend, setup)
}

/// What a backend of this server is to know.
pub(super) fn options(settings: &Settings, max_sockets: usize, pool: Pool) -> Options {
    Options { max_sockets, pool, stall: settings.timeouts.write, linger: LINGER, accept_retry: ACCEPT_RETRY }
}

/// Lives as long as a loop's thread and speaks when that ends.
struct Leaving {
    index: usize,
    log: Log,
    loop_exit: LoopExit,
}

impl Leaving {
    fn tell(&self, message: &str, error: &dyn std::fmt::Display) {
        self.log.event(Level::Error, message, &[("loop", &self.index), ("error", error)]);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell("an event loop failed", &"its thread panicked");
        }
        self.loop_exit.report();
    }
}

/// How the loops ended that were told to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// Those that ended with an error or a panic, and have said so.
    pub failed: usize,
    /// Those that did not end, and are left behind.
    pub left: usize,
}

/// Waits for the loops, which were told to stop at once. One that does not end within the grace is left behind: the process ends
/// without it.
pub(super) fn join(threads: Vec<Thread>, grace: Duration) -> Ends {
    let end = Instant::now() + grace;
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut ends = Ends::default();
    for thread in threads {
        match thread.is_finished() {
            true => ends.failed += usize::from(!matches!(thread.join(), Ok(Ok(())))),
            false => ends.left += 1,
        }
    }
    ends
}

/// Entries of a loop's table: all connections, which one loop might get, those to workers, and listeners.
pub(super) fn socket_room(table: &AppTable, listeners: usize) -> usize {
    let most = table.settings.bounds.connections;
    let of_app = |app: &App| {
        // Idle ones to other workers may stand open while all clients' requests are with one.
        let idle = (app.settings.sharing.concurrency as usize).min(most).saturating_add(2);
        workers_of(&app.settings).saturating_mul(idle)
    };
    let to_workers = table.apps.iter().map(of_app).fold(most, usize::saturating_add);
    most + ADMIN_PLACES + to_workers + listeners + 2 * crate::backends::ACCEPT_BATCH
}

/// Workers of an app that connections may be kept open to at once. Each upstream is one, at whichever of its addresses.
fn workers_of(app: &crate::config::App) -> usize {
    match (app.instead.upstreams.len(), app.is_answered_by_loops()) {
        (0, true) => 0,
        (0, false) => crate::supervisor::unit::most_workers(app),
        (upstreams, _) => upstreams,
    }
}

/// A number to start request ids from, so that those of two loops or two servers do not meet.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests;
