//! What those who watch the server get: documents for the desk of the loops, and metrics that are pushed.
//!
//! Both are made in the supervisor's turn from one look at what it knows and at what the loops have counted. So a scrape costs a loop no
//! more than a request with an answer of that length, and nothing is shared beside counters that are shared anyway. Texts leave for the
//! network and for files on a thread of their own, whose line is bounded: what finds no place in it is dropped.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Supervisor;
use super::heartbeat::turning;
use crate::config::{self, CloudWatch};
use crate::control::status::Status;
use crate::exporter::{LoopTime, Sample, health, push, text, united};
use crate::log::{Level, Log, open_to_append};
use crate::mailbox::Message;
use crate::mailbox::desk::{Desk, Document, Question, Reply};
use crate::metrics::Metrics;

/// How long a loop may take to show that it turns.
const BEAT_PATIENCE: Duration = Duration::from_secs(1);
/// Over how much time at least the share is told that a loop is busy.
const BUSY_WINDOW: Duration = Duration::from_secs(5);
/// Texts that may wait to be sent away.
const MOST_PUSHES: usize = 4;

/// See the module.
pub(super) struct Monitor {
    desk: Desk,
    /// Questions that wait for the loops' beats, each with its number.
    waiting: Vec<(Question, u64, Instant)>,
    loops: Vec<Busy>,
    statsd: Option<Push>,
    cloudwatch: Option<Push>,
    /// When the server started, in seconds since 1970, as the clock said when that was asked.
    started: f64,
    /// Whether metrics are pushed: not while a server before or behind this one does it.
    pushing: bool,
}

/// What is remembered of a loop's CPU time: as of the last look, and as of one that is old enough.
#[derive(Clone, Copy, Default)]
struct Busy {
    newer: Option<(Instant, Duration)>,
    older: Option<(Instant, Duration)>,
}

/// One way that metrics are pushed.
struct Push {
    interval: Duration,
    next: Instant,
    before: push::Before,
    /// Who takes texts away; `None`: they go to stdout.
    carrier: Option<Carrier>,
}

/// A thread that takes texts away.
struct Carrier {
    line: SyncSender<Vec<String>>,
    /// Says that the thread has ended, by ending itself.
    ended: Receiver<()>,
}

/// What is pushed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Where it is time.
    Due,
    All,
    /// Nothing, but it counts as pushed.
    Unsent,
}

impl Monitor {
    /// Opens what is to be pushed to. What cannot be is said, and left out. The server has been there since `started`.
    pub fn new(desk: Desk, settings: &config::Metrics, loops: usize, log: &Log, started: Instant) -> Monitor {
        let now = Instant::now();
        let opened = |what: &str, carrier: io::Result<Option<Carrier>>, interval: Duration| match carrier {
            Ok(carrier) => Some(Push { interval, next: now + interval, before: push::Before::default(), carrier }),
            Err(error) => {
                log.event(Level::Error, format_args!("metrics cannot be pushed to {what}: {error}"), &[]);
                None
            }
        };
        let statsd = settings.statsd.and_then(|address| {
            opened(&address.to_string(), datagrams(address).map(Some), settings.statsd_form.interval)
        });
        let cloudwatch = settings.cloudwatch.as_ref().and_then(|target| match target {
            CloudWatch::Stdout => opened("stdout", Ok(None), settings.cloudwatch_interval),
            CloudWatch::File(path) => {
                opened(&path.display().to_string(), appended(path).map(Some), settings.cloudwatch_interval)
            }
        });
        let loops = vec![Busy::default(); loops];
        let started = since_1970().as_secs_f64() - now.saturating_duration_since(started).as_secs_f64();
        Monitor { desk, waiting: Vec::new(), loops, statsd, cloudwatch, started, pushing: true }
    }

    /// When it is to be looked at, whatever happens.
    pub fn due(&self) -> Option<Instant> {
        let beats = self.waiting.iter().map(|(_, _, since)| *since + BEAT_PATIENCE);
        beats.chain(self.next_push()).min()
    }

    fn next_push(&self) -> Option<Instant> {
        let pushes = [&self.statsd, &self.cloudwatch].into_iter().flatten().filter(|_| self.pushing);
        pushes.map(|push| push.next).min()
    }

    /// The questions whose beats have all come, or have had their time, with who has turned.
    fn beaten(&mut self, metrics: &Metrics, now: Instant) -> Vec<(Question, Vec<bool>)> {
        let mut answered = Vec::new();
        self.waiting.retain(|(question, beat, since)| {
            let turning = turning(metrics, *beat);
            let over = turning.iter().all(|turns| *turns) || now >= *since + BEAT_PATIENCE;
            if over {
                answered.push((*question, turning));
            }
            !over
        });
        answered
    }

    /// How busy the loops are.
    fn loop_times(&mut self, metrics: &Metrics, started: Instant, now: Instant) -> Vec<Option<LoopTime>> {
        let looks = metrics.loops().zip(&mut self.loops).map(|(counters, busy)| {
            let used = cpu_time(counters.clock.load(Ordering::Relaxed))?;
            Some(LoopTime { used, busy: busy.look(used, started, now) })
        });
        looks.collect()
    }
}

impl Busy {
    /// Notes the CPU time as of now; which share of the time since an earlier look it is.
    fn look(&mut self, used: Duration, started: Instant, now: Instant) -> f64 {
        let newer = *self.newer.get_or_insert((started, Duration::ZERO));
        if now.saturating_duration_since(newer.0) >= BUSY_WINDOW {
            self.older = self.newer.replace((now, used));
        }
        let (since, before) = self.older.or(self.newer).unwrap_or(newer);
        let over = now.saturating_duration_since(since);
        if over.is_zero() { 0.0 } else { (used.saturating_sub(before).as_secs_f64() / over.as_secs_f64()).min(1.0) }
    }
}

/// The CPU time of the thread with that clock.
fn cpu_time(clock: i64) -> Option<Duration> {
    if clock == 0 {
        return None;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes to the struct that it is given, and refuses a clock whose thread is gone.
    let outcome = unsafe { libc::clock_gettime(clock as libc::clockid_t, &mut time) };
    (outcome == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

impl Supervisor {
    /// Answers what the loops have asked for, and pushes what is due.
    pub(super) fn serve_monitors(&mut self, now: Instant) {
        let Some(observed) = &mut self.observed else { return };
        let monitor = &mut observed.monitor;
        let mut questions = Vec::new();
        for question in monitor.desk.questions() {
            match question.document {
                Document::Live { .. } | Document::Health { .. } => {
                    monitor.waiting.push((question, observed.heartbeat.ask(&self.context.postboxes), now));
                }
                Document::Metrics { .. } | Document::Ready { .. } => questions.push((question, Vec::new())),
            }
        }
        questions.extend(monitor.beaten(&observed.about.metrics, now));
        let pushes = monitor.next_push().is_some_and(|next| next <= now);
        if !questions.is_empty() || pushes {
            self.look(now, |supervisor, sample, millis| {
                supervisor.answer_questions(&questions, sample);
                if pushes {
                    supervisor.push(sample, millis, Which::Due, now);
                }
            });
        }
    }

    /// Pushes what has come since the last time, and then nothing more: another server goes on from here.
    pub(super) fn finish_pushes(&mut self, now: Instant) {
        self.look(now, |supervisor, sample, millis| supervisor.push(sample, millis, Which::All, now));
        self.hold_pushes(true);
    }

    /// Pushes what has come since the last time, waits until that has left, or has had its time, and then pushes nothing more: this
    /// server ends. Where another pushes it does so from where the account of this one ends.
    pub(super) fn end_pushes(&mut self, patience: Duration) {
        if self.observed.as_ref().is_some_and(|observed| observed.monitor.pushing) {
            self.finish_pushes(Instant::now());
        }
        let Some(monitor) = self.observed.as_mut().map(|observed| &mut observed.monitor) else { return };
        let end = Instant::now() + patience;
        for push in [monitor.statsd.take(), monitor.cloudwatch.take()].into_iter().flatten() {
            push.carrier.into_iter().for_each(|carrier| carrier.finish(end));
        }
    }

    /// Whether another server pushes in the place of this one.
    pub(super) fn hold_pushes(&mut self, held: bool) {
        self.observed.iter_mut().for_each(|observed| observed.monitor.pushing = !held);
    }

    /// Pushes what comes from now on: what was counted until now, the server before this one has pushed.
    pub(super) fn begin_pushes(&mut self, now: Instant) {
        self.hold_pushes(false);
        self.look(now, |supervisor, sample, millis| supervisor.push(sample, millis, Which::Unsent, now));
    }

    /// One look at all that is known, and what is told of it; with the time in milliseconds since 1970.
    fn look(&mut self, now: Instant, tell: impl FnOnce(&mut Supervisor, &Sample<'_>, u64)) {
        let Some(observed) = &mut self.observed else { return };
        let (about, started) = (&observed.about, observed.monitor.started);
        let metrics = about.metrics.clone();
        let loops = observed.monitor.loop_times(&metrics, about.started, now);
        let status = united(self.status_document(now));
        let unix = since_1970();
        let sample = Sample {
            status: &status,
            metrics: &metrics,
            loops,
            started,
            bungate: self.context.settings().telling.metrics.bungate,
        };
        tell(self, &sample, unix.as_millis() as u64);
    }

    fn answer_questions(&self, questions: &[(Question, Vec<bool>)], sample: &Sample<'_>) {
        let leaving = self.stop.is_some();
        // Scrapers that ask in the same turn share one text.
        let (mut classic, mut open) = (None, None);
        for (question, turning) in questions {
            let plain = |(status, text): (u16, String)| (status, "text/plain; charset=utf-8", text.into_bytes().into());
            let (status, content_type, body) = match question.document {
                Document::Metrics { open: true } => {
                    let body = open.get_or_insert_with(|| text::open(sample).into_bytes().into());
                    (200, text::OPEN_TYPE, std::sync::Arc::clone(body))
                }
                Document::Metrics { open: false } => {
                    let body = classic.get_or_insert_with(|| text::classic(sample).into_bytes().into());
                    (200, text::CLASSIC_TYPE, std::sync::Arc::clone(body))
                }
                Document::Live { verbose } => plain(health::tell(&health::live(turning), verbose)),
                Document::Ready { verbose } => plain(health::tell(&health::ready(sample, leaving), verbose)),
                Document::Health { verbose } => {
                    let checks = [health::live(turning), health::ready(sample, leaving)].concat();
                    plain(health::tell(&checks, verbose))
                }
            };
            let reply = Reply { exchange: question.exchange, status, content_type, lines: String::new(), body };
            self.context.postboxes.post(question.loop_index, Message::Document(reply));
        }
    }

    fn push(&mut self, sample: &Sample<'_>, millis: u64, which: Which, now: Instant) {
        let Some(monitor) = self.observed.as_mut().map(|observed| &mut observed.monitor) else { return };
        let (all, log) = (self.context.settings(), &self.context.log);
        let settings = &all.telling.metrics;
        let wanted = |push: &&mut Push| which != Which::Due || push.next <= now;
        if let Some(push) = monitor.statsd.as_mut().filter(wanted) {
            let datagrams = push::statsd(sample, &settings.statsd_form, &mut push.before);
            push.send(datagrams, which, log, now);
        }
        if let Some(push) = monitor.cloudwatch.as_mut().filter(wanted) {
            let lines = push::cloudwatch(sample, &settings.namespace, millis, &mut push.before);
            push.send(vec![lines], which, log, now);
        }
    }

    /// The status document for those who ask for it as it is now.
    pub(super) fn fresh_status(&mut self, now: Instant) -> Status {
        self.status_document(now)
    }
}

impl Push {
    fn send(&mut self, texts: Vec<String>, which: Which, log: &Log, now: Instant) {
        self.next = now + self.interval;
        match &self.carrier {
            _ if which == Which::Unsent => {}
            None => texts.into_iter().for_each(|text| log.print(text)),
            Some(carrier) => {
                if carrier.line.try_send(texts).is_err() {
                    log.seldom(Level::Warn, "metrics were not pushed: those before them are not sent yet", &[]);
                }
            }
        }
    }
}

impl Carrier {
    /// Has it end when it has taken all away that waits, and waits for that until then.
    fn finish(self, end: Instant) {
        drop(self.line);
        // Nothing is ever said there: either way there is nothing left to wait for.
        let _ = self.ended.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A thread that sends texts as datagrams. What nobody takes is lost, as is the way of UDP.
fn datagrams(address: SocketAddr) -> io::Result<Carrier> {
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local)?;
    socket.connect(address)?;
    carrier("statsd", move |text| {
        // A refusal is told for the datagram before: this one is sent again at once.
        if socket.send(text.as_bytes()).is_err() {
            let _ = socket.send(text.as_bytes());
        }
    })
}

/// A thread that appends texts to a file, which is opened for each: somebody may have moved it away.
fn appended(path: &Path) -> io::Result<Carrier> {
    let path = path.to_path_buf();
    let open = move || open_to_append(&path);
    open()?;
    carrier("cloudwatch", move |text| {
        // There is nobody to be told: the next interval tries again.
        let _ = open().and_then(|mut file| file.write_all(text.as_bytes()));
    })
}

fn carrier(name: &str, carry: impl Fn(&str) + Send + 'static) -> io::Result<Carrier> {
    let (line, receiver) = sync_channel::<Vec<String>>(MOST_PUSHES);
    let (ends, ended) = channel();
    std::thread::Builder::new().name(format!("push {name}")).spawn(move || {
        for texts in receiver {
            texts.iter().for_each(|text| carry(text));
        }
        drop(ends);
    })?;
    Ok(Carrier { line, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_last_has_left_when_its_carrier_has_ended() {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        let carrier = datagrams(listener.local_addr().unwrap()).unwrap();
        carrier.line.try_send(vec!["a:1|c".to_owned(), "b:2|c".to_owned()]).unwrap();
        carrier.finish(Instant::now() + Duration::from_secs(30));
        listener.set_nonblocking(true).unwrap();
        let mut buffer = [0; 16];
        let mut next = || listener.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap();
        assert_eq!((next(), next()), (b"a:1|c".to_vec(), b"b:2|c".to_vec()));
    }

    #[test]
    fn a_loop_is_as_busy_as_its_cpu_time_says() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut busy = Busy::default();
        let mut look = |used: u64, when| busy.look(Duration::from_secs(used), start, at(when));
        assert_eq!(look(0, 0), 0.0, "nothing is known yet");
        assert_eq!(look(1, 4), 0.25);
        assert_eq!(look(5, 10), 0.5, "since the start");
        assert_eq!(look(6, 12), 0.5, "still since the start");
        assert_eq!(look(15, 20), 1.0, "since ten seconds ago");
        assert_eq!(look(15, 30), 0.0);
    }
}
