//! What a permit costs: uncontended, and handed on through the queue.
//!
//! `cargo bench --bench dispatch`

use std::sync::Arc;
use std::time::{Duration, Instant};

use production_server::buffers::slots::Key;
use production_server::dispatch::{Acquire, Ask, Balance, Dispatch, Outcome, Permit, Policy, Target, Waiter};

fn main() {
    divan::main();
}

const WAITER: Waiter = Waiter { loop_index: 0, exchange: Key { index: 1, generation: 1 } };

/// A dispatch with so many ready workers.
fn dispatch(balance: Balance, concurrency: u32, workers: u32, now: Instant) -> Dispatch {
    let second = Duration::from_secs(1);
    let policy = Policy {
        balance,
        concurrency,
        queue_size: 8192,
        queue_timeout: second,
        hold: second,
        max_tunnels: 1,
        failures: 3,
        fair: false,
    };
    let dispatch = Dispatch::new(policy, workers as usize, now);
    for number in 0..workers {
        let address = socket2::SockAddr::unix("/nonexistent").expect("a short path is an address");
        let target =
            Target { address, label: String::new(), unix: true, supervised: true, number, moves: Arc::default() };
        let id = dispatch.add(target, 1, None).expect("the table has room");
        assert!(dispatch.ready(id, now).is_empty());
    }
    dispatch
}

fn ask(since: Instant) -> Ask {
    Ask { since, exclude: None, front: false, tunnel: false, turn: 0 }
}

fn take(dispatch: &Dispatch, now: Instant) -> Permit {
    match dispatch.acquire(WAITER, ask(now), now) {
        Acquire::Granted(permit) => permit,
        other => panic!("no worker is free: {other:?}"),
    }
}

/// One permit taken and given back, with half of all slots taken.
fn take_and_give_back(bencher: divan::Bencher, balance: Balance, concurrency: u32, workers: u32) {
    let now = Instant::now();
    let dispatch = dispatch(balance, concurrency, workers, now);
    let taken: Vec<_> = (0..workers * concurrency / 2).map(|_| take(&dispatch, now)).collect();
    bencher.bench_local(|| {
        let permit = take(&dispatch, now);
        assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
    });
    for permit in taken {
        assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
    }
}

#[divan::bench(args = [1, 8, 256])]
fn lifo_one_at_a_time(bencher: divan::Bencher, workers: u32) {
    take_and_give_back(bencher, Balance::Lifo, 1, workers);
}

#[divan::bench(args = [1, 8, 256])]
fn lifo_sixteen_at_a_time(bencher: divan::Bencher, workers: u32) {
    take_and_give_back(bencher, Balance::Lifo, 16, workers);
}

#[divan::bench(args = [8, 256])]
fn round_robin(bencher: divan::Bencher, workers: u32) {
    take_and_give_back(bencher, Balance::RoundRobin, 16, workers);
}

#[divan::bench(args = [8, 256])]
fn least(bencher: divan::Bencher, workers: u32) {
    take_and_give_back(bencher, Balance::Least, 16, workers);
}

/// A request queues, and the slot that comes free is handed to the one who waits longest of so many.
#[divan::bench(args = [1, 64, 4096])]
fn queue_and_hand_on(bencher: divan::Bencher, waiting: u32) {
    let now = Instant::now();
    let dispatch = dispatch(Balance::Lifo, 1, 1, now);
    let mut permit = Some(take(&dispatch, now));
    let queue = || match dispatch.acquire(WAITER, ask(now), now) {
        Acquire::Queued(_) => (),
        other => panic!("nothing is free: {other:?}"),
    };
    (1..waiting).for_each(|_| queue());
    bencher.bench_local(|| {
        queue();
        let back = permit.take().expect("it is always handed on");
        permit = dispatch.release(back, Outcome::Answered, now, 0).map(|grant| grant.permit);
    });
    while let Some(back) = permit.take() {
        permit = dispatch.release(back, Outcome::Answered, now, 0).map(|grant| grant.permit);
    }
}

/// Two loops with so many waiters each: a request queues, and the slot that comes free goes to one of the loop that gives it back.
#[divan::bench(args = [1, 64, 2048])]
fn queue_and_hand_on_at_home(bencher: divan::Bencher, waiting: u32) {
    let now = Instant::now();
    let dispatch = dispatch(Balance::Lifo, 1, 2, now);
    let of = |loop_index| Waiter { loop_index, ..WAITER };
    let mut permits = [0, 1].map(|_| Some(take(&dispatch, now)));
    let queue = |home| match dispatch.acquire(of(home), ask(now), now) {
        Acquire::Queued(_) => (),
        other => panic!("nothing is free: {other:?}"),
    };
    (0..waiting).for_each(|_| [0, 1].into_iter().for_each(queue));
    let mut home = 0;
    bencher.bench_local(|| {
        home = 1 - home;
        let back = permits[usize::from(home)].take().expect("it is always handed on");
        let grant = dispatch.release(back, Outcome::Answered, now, home).expect("somebody waits");
        assert!(grant.waiter.loop_index == home, "it stays at home");
        permits[usize::from(home)] = Some(grant.permit);
        queue(home);
    });
    for permit in &mut permits {
        while let Some(back) = permit.take() {
            *permit = dispatch.release(back, Outcome::Answered, now, 0).map(|grant| grant.permit);
        }
    }
}

/// An upgrade, with as many tunnels through each worker.
#[divan::bench(args = [1, 8, 256])]
fn upgrade(bencher: divan::Bencher, workers: u32) {
    let now = Instant::now();
    let dispatch = dispatch(Balance::Lifo, 16, workers, now);
    bencher.bench_local(|| match dispatch.acquire(WAITER, Ask { tunnel: true, ..ask(now) }, now) {
        Acquire::Granted(permit) => assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none()),
        other => panic!("no worker is free: {other:?}"),
    });
}

/// A request queues and leaves again.
#[divan::bench]
fn queue_and_cancel(bencher: divan::Bencher) {
    let now = Instant::now();
    let dispatch = dispatch(Balance::Lifo, 1, 1, now);
    let permit = take(&dispatch, now);
    bencher.bench_local(|| match dispatch.acquire(WAITER, ask(now), now) {
        Acquire::Queued(ticket) => assert!(dispatch.cancel(ticket)),
        other => panic!("nothing is free: {other:?}"),
    });
    assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
}
