//! The dispatch under every interleaving of its calls, by loom. Together with those of `mailbox.rs` these models run by
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --lib --target-dir target/loom loom_
//! ```
//!
//! Loom's threads switch at each lock and each atomic, at most `PREEMPTIONS` times against a thread's will; that finds what
//! few switches can bring about, and ends within seconds.

use loom::thread;

use super::*;

const PREEMPTIONS: usize = 5;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

fn waiter(loop_index: u16, number: u32) -> Waiter {
    Waiter { loop_index, exchange: Key { index: number, generation: 1 } }
}

fn at_nowhere() -> Target {
    let address = socket2::SockAddr::unix("/nonexistent").expect("a short path is an address");
    Target { address, label: "web".to_owned(), unix: true, supervised: true, number: 0, moves: Arc::default() }
}

/// A dispatch with one worker that is starting.
fn with_worker(concurrency: u32, now: Instant) -> (Arc<Dispatch>, WorkerId) {
    let policy = Policy {
        balance: Balance::Lifo,
        concurrency,
        queue_size: 4,
        queue_timeout: Duration::from_secs(1),
        hold: Duration::from_secs(1),
        max_tunnels: 1,
        failures: 3,
        fair: false,
    };
    let dispatch = Dispatch::new(policy, 2, now);
    let worker = dispatch.add(at_nowhere(), 1, None).expect("the table has room");
    (Arc::new(dispatch), worker)
}

fn ask(since: Instant) -> Ask {
    Ask { since, exclude: None, front: false, tunnel: false, turn: 0 }
}

/// Grants on their way to their loops.
#[derive(Clone)]
struct Mail(Arc<Mutex<Vec<Grant>>>);

impl Mail {
    fn new() -> Mail {
        Mail(Arc::new(Mutex::new(Vec::new())))
    }

    fn post(&self, grants: impl IntoIterator<Item = Grant>) {
        let mut letters = self.0.lock().expect("no thread panics");
        grants.into_iter().for_each(|grant| letters.push(grant));
    }

    /// Releases what is in the mail, and what that brings. Who got it, in turn.
    fn answer_all(&self, dispatch: &Dispatch, now: Instant) -> Vec<Waiter> {
        let mut answered = Vec::new();
        loop {
            let letter = self.0.lock().expect("no thread panics").pop();
            let Some(grant) = letter else { return answered };
            answered.push(grant.waiter);
            self.post(dispatch.release(grant.permit, Outcome::Answered, now, grant.waiter.loop_index));
        }
    }
}

/// At the end nobody waits, no permit is out, and the worker can be had.
fn all_is_quiet(dispatch: &Dispatch, now: Instant) {
    dispatch.check_invariants();
    let snapshot = dispatch.snapshot();
    assert_eq!(snapshot.queue_depth, 0, "a waiter was forgotten");
    assert!(snapshot.workers.iter().all(|worker| worker.in_flight == 0), "a permit was lost");
    match dispatch.acquire(waiter(9, 9), ask(now), now) {
        Acquire::Granted(permit) => assert!(dispatch.release(permit, Outcome::Unused, now, 0).is_none()),
        other => panic!("the idle worker is out of reach: {other:?}"),
    }
}

/// One request of a loop that may lose its patience at once: what became of it is in the answer and in the mail.
/// True if its grant must be in the mail.
fn one_request(dispatch: &Dispatch, mail: &Mail, who: Waiter, patient: bool, now: Instant) -> bool {
    let answer = dispatch.acquire(who, ask(now), now);
    // Between any two calls of any loops the rules hold: a later call must not be what saves a forgotten waiter.
    dispatch.check_invariants();
    match answer {
        Acquire::Granted(permit) => {
            mail.post(dispatch.release(permit, Outcome::Answered, now, who.loop_index));
            false
        }
        Acquire::Queued(ticket) => patient || !dispatch.cancel(ticket),
        other => panic!("{other:?}"),
    }
}

#[test]
fn loom_two_loops_share_one_worker() {
    check(|| {
        let now = Instant::now();
        let (dispatch, worker) = with_worker(1, now);
        assert!(dispatch.ready(worker, now).is_empty());
        let mail = Mail::new();
        let start = |loop_index: u16| {
            let (dispatch, mail) = (Arc::clone(&dispatch), mail.clone());
            thread::spawn(move || {
                // The first of each loop waits for its grant, the second leaves if it cannot have one at once.
                let first = one_request(&dispatch, &mail, waiter(loop_index, 1), true, now);
                let second = one_request(&dispatch, &mail, waiter(loop_index, 2), false, now);
                (first, second)
            })
        };
        let loops = [start(0), start(1)];
        let mut expected = Vec::new();
        for (loop_index, running) in (0..).zip(loops) {
            let (first, second) = running.join().expect("no thread panics");
            expected.extend(first.then_some(waiter(loop_index, 1)));
            expected.extend(second.then_some(waiter(loop_index, 2)));
        }
        let mut answered = mail.answer_all(&dispatch, now);
        answered.sort_by_key(|waiter| (waiter.loop_index, waiter.exchange.index));
        assert_eq!(answered, expected, "each is granted once, and only those who waited");
        all_is_quiet(&dispatch, now);
    });
}

#[test]
fn loom_cancel_races_with_the_grant() {
    check(|| {
        let now = Instant::now();
        let (dispatch, worker) = with_worker(1, now);
        assert!(dispatch.ready(worker, now).is_empty());
        let Acquire::Granted(permit) = dispatch.acquire(waiter(0, 1), ask(now), now) else { panic!("it is free") };
        let Acquire::Queued(first) = dispatch.acquire(waiter(1, 1), ask(now), now) else { panic!("it is taken") };
        let Acquire::Queued(second) = dispatch.acquire(waiter(1, 2), ask(now), now) else { panic!("it is taken") };
        let mail = Mail::new();
        let (releasing, outbox) = (Arc::clone(&dispatch), mail.clone());
        let releaser = thread::spawn(move || outbox.post(releasing.release(permit, Outcome::Answered, now, 0)));
        let (timing, late) = (Arc::clone(&dispatch), now + Duration::from_secs(5));
        let timer = thread::spawn(move || timing.patience(second, late + Duration::from_secs(60), late));
        let cancelled = dispatch.cancel(first);
        releaser.join().expect("no thread panics");
        let timed_out = timer.join().expect("no thread panics") == Patience::QueueTimeout;
        let expected = [(cancelled, waiter(1, 1)), (timed_out, waiter(1, 2))];
        let expected: Vec<_> = expected.into_iter().filter(|(left, _)| !left).map(|(_, waiter)| waiter).collect();
        assert_eq!(mail.answer_all(&dispatch, now), expected, "left or granted, never both and never neither");
        all_is_quiet(&dispatch, now);
    });
}

#[test]
fn loom_a_worker_comes_while_requests_ask() {
    check(|| {
        let now = Instant::now();
        let (dispatch, worker) = with_worker(2, now);
        let mail = Mail::new();
        let start = |loop_index: u16| {
            let (dispatch, mail) = (Arc::clone(&dispatch), mail.clone());
            thread::spawn(move || one_request(&dispatch, &mail, waiter(loop_index, 1), true, now))
        };
        let loops = [start(0), start(1)];
        mail.post(dispatch.ready(worker, now));
        let waited = loops.map(|running| running.join().expect("no thread panics"));
        let mut answered = mail.answer_all(&dispatch, now);
        answered.sort_by_key(|waiter| waiter.loop_index);
        let expected: Vec<_> =
            (0..).zip(waited).filter(|(_, waited)| *waited).map(|(index, _)| waiter(index, 1)).collect();
        assert_eq!(answered, expected);
        all_is_quiet(&dispatch, now);
    });
}

#[test]
fn loom_a_worker_goes_while_requests_come_back() {
    check(|| {
        let now = Instant::now();
        let (dispatch, worker) = with_worker(1, now);
        let spare = dispatch.add(at_nowhere(), 1, None).expect("the table has room");
        assert!(dispatch.ready(worker, now).is_empty());
        assert!(dispatch.ready(spare, now).is_empty());
        let mail = Mail::new();
        let outbox = mail.clone();
        dispatch.on_grant(Box::new(move |grant| outbox.post([grant])));
        let take = |number| match dispatch.acquire(waiter(0, number), ask(now), now) {
            Acquire::Granted(permit) => permit,
            other => panic!("{other:?}"),
        };
        let permits = [take(1), take(2)];
        // It would rather not have the spare one, which may soon be the last.
        let choosy = Ask { exclude: Some(spare), ..ask(now) };
        let Acquire::Queued(_) = dispatch.acquire(waiter(1, 1), choosy, now) else { panic!("both are taken") };
        let loops = permits.map(|permit| {
            let (dispatch, mail) = (Arc::clone(&dispatch), mail.clone());
            thread::spawn(move || mail.post(dispatch.release(permit, Outcome::Answered, now, 0)))
        });
        dispatch.died(worker, now);
        dispatch.remove(worker, now);
        loops.into_iter().for_each(|running| running.join().expect("no thread panics"));
        assert_eq!(mail.answer_all(&dispatch, now), [waiter(1, 1)], "it is granted once");
        assert!(dispatch.target(worker).is_none(), "the dead one is forgotten with its last permit");
        all_is_quiet(&dispatch, now);
    });
}

#[test]
fn loom_a_tunnel_ends_while_another_is_asked_for() {
    check(|| {
        let now = Instant::now();
        let (dispatch, full) = with_worker(1, now);
        let busy = dispatch.add(at_nowhere(), 1, None).expect("the table has room");
        let mail = Mail::new();
        let outbox = mail.clone();
        dispatch.on_grant(Box::new(move |grant| outbox.post([grant])));
        let take = |number| match dispatch.acquire(waiter(0, number), ask(now), now) {
            Acquire::Granted(permit) => permit,
            other => panic!("{other:?}"),
        };
        assert!(dispatch.ready(full, now).is_empty());
        assert!(dispatch.release(take(1), Outcome::Tunnel, now, 0).is_none());
        let tunnel = take(2);
        assert!(dispatch.ready(busy, now).is_empty());
        let permit = take(3);
        assert!(dispatch.release(tunnel, Outcome::Answered, now, 0).is_none());
        // The one worker is idle and full, the other busy and has room, until it becomes a tunnel.
        let (asking, letters) = (Arc::clone(&dispatch), mail.clone());
        let asker = thread::spawn(move || {
            let answer = asking.acquire(waiter(1, 1), Ask { tunnel: true, ..ask(now) }, now);
            asking.check_invariants();
            match answer {
                Acquire::Granted(permit) => letters.post(asking.release(permit, Outcome::Answered, now, 1)),
                Acquire::Queued(_) => return true,
                Acquire::NoTunnel => (),
                other => panic!("{other:?}"),
            }
            false
        });
        let (ending, letters) = (Arc::clone(&dispatch), mail.clone());
        let other = thread::spawn(move || letters.post(ending.release(permit, Outcome::Tunnel, now, 0)));
        dispatch.tunnel_ended(full);
        dispatch.check_invariants();
        other.join().expect("no thread panics");
        let waited = asker.join().expect("no thread panics");
        let expected: Vec<_> = waited.then_some(waiter(1, 1)).into_iter().collect();
        assert_eq!(mail.answer_all(&dispatch, now), expected, "whoever waits gets the room that the tunnel left");
        all_is_quiet(&dispatch, now);
    });
}
