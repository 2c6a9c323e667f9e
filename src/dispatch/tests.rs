//! What the dispatch does, case by case.

mod fair;
mod home;
mod policy;
mod slots;
mod tunnels;

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;

/// A worker's place that nobody connects to.
pub(super) fn at_nowhere(label: &str) -> Target {
    let address = socket2::SockAddr::unix("/nonexistent").unwrap();
    Target { address, label: label.to_owned(), unix: true, supervised: true, number: 0, moves: Arc::default() }
}

/// The waiter of this number, on the first loop.
fn waiter(number: u32) -> Waiter {
    waiter_of(0, number)
}

/// The waiter of this number on a loop.
pub(super) fn waiter_of(loop_index: u16, number: u32) -> Waiter {
    Waiter { loop_index, exchange: Key { index: number, generation: 1 } }
}

fn policy(balance: Balance, concurrency: u32) -> Policy {
    let seconds = Duration::from_secs;
    Policy {
        balance,
        concurrency,
        queue_size: 3,
        queue_timeout: seconds(2),
        hold: seconds(10),
        max_tunnels: 2,
        failures: 3,
        fair: false,
    }
}

/// A dispatch with so many ready workers of one generation, at the moment of its making.
fn with_ready(balance: Balance, concurrency: u32, workers: usize) -> (Dispatch, Vec<WorkerId>, Instant) {
    with_policy(policy(balance, concurrency), workers)
}

fn with_policy(policy: Policy, workers: usize) -> (Dispatch, Vec<WorkerId>, Instant) {
    let now = Instant::now();
    let dispatch = Dispatch::new(policy, 8, now);
    let add = |_| {
        let id = dispatch.add(at_nowhere("web"), 1, None).unwrap();
        assert!(dispatch.ready(id, now).is_empty());
        id
    };
    let ids = (0..workers).map(add).collect();
    (dispatch, ids, now)
}

fn ask(since: Instant) -> Ask {
    Ask { since, exclude: None, front: false, tunnel: false, turn: 0 }
}

fn grant(answer: Acquire) -> Permit {
    match answer {
        Acquire::Granted(permit) => permit,
        other => panic!("{other:?}"),
    }
}

fn ticket(answer: Acquire) -> Ticket {
    match answer {
        Acquire::Queued(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

/// Takes a permit that must be there.
fn take(dispatch: &Dispatch, number: u32, now: Instant) -> Permit {
    grant(dispatch.acquire(waiter(number), ask(now), now))
}

/// Queues where no permit may be there.
fn wait(dispatch: &Dispatch, number: u32, now: Instant) -> Ticket {
    ticket(dispatch.acquire(waiter(number), ask(now), now))
}

/// Has the grants that no call can return put aside.
fn collect(dispatch: &Dispatch) -> Arc<Mutex<Vec<Grant>>> {
    let delivered = Arc::new(Mutex::new(Vec::new()));
    let mail = Arc::clone(&delivered);
    dispatch.on_grant(Box::new(move |grant| mail.lock().unwrap().push(grant)));
    delivered
}

/// Gives back all, where nobody waits.
fn give_back(dispatch: &Dispatch, permits: impl IntoIterator<Item = Permit>, now: Instant) {
    for permit in permits {
        assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
        dispatch.check_invariants();
    }
}

fn notices(dispatch: &Dispatch) -> Vec<Notice> {
    let mut notices = Vec::new();
    dispatch.notices(&mut notices);
    notices
}

#[test]
fn lifo_takes_the_one_freed_last() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 3);
    let [a, b, c] = [1, 2, 3].map(|number| take(&dispatch, number, now));
    let (first, second) = (b.worker(), c.worker());
    give_back(&dispatch, [a, c, b], now);
    let taken = [4, 5].map(|number| take(&dispatch, number, now));
    assert_eq!([taken[0].worker(), taken[1].worker()], [first, second]);
    give_back(&dispatch, taken, now);
}

#[test]
fn round_robin_takes_each_in_its_turn() {
    let (dispatch, ids, now) = with_ready(Balance::RoundRobin, 2, 3);
    for round in 0..3 {
        for id in &ids {
            let permit = take(&dispatch, round, now);
            assert_eq!(permit.worker(), *id);
            give_back(&dispatch, [permit], now);
        }
    }
    let permits: Vec<_> = (0..6).map(|number| take(&dispatch, number, now)).collect();
    let turns: Vec<_> = permits.iter().map(Permit::worker).collect();
    assert_eq!(turns, [&ids[..], &ids[..]].concat());
    give_back(&dispatch, permits, now);
}

#[test]
fn least_takes_the_one_that_has_rested_longest() {
    let (dispatch, ids, now) = with_ready(Balance::Least, 2, 3);
    let permits = [0, 1, 2, 3].map(|number| take(&dispatch, number, now));
    assert_eq!(permits.each_ref().map(Permit::worker), [ids[0], ids[1], ids[2], ids[0]]);
    let [a, b, c, d] = permits;
    give_back(&dispatch, [c, b], now);
    let taken = [4, 5].map(|number| take(&dispatch, number, now));
    assert_eq!(taken.each_ref().map(Permit::worker), [ids[2], ids[1]]);
    give_back(&dispatch, taken.into_iter().chain([a, d]), now);
}

#[test]
fn several_in_flight_go_where_fewest_are() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 3, 4);
    let mut permits: Vec<_> = (0..12).map(|number| take(&dispatch, number, now)).collect();
    for (count, permit) in permits.iter().enumerate() {
        let before = permits[..count].iter().filter(|other| other.worker() == permit.worker()).count();
        assert_eq!(before, count / 4, "the {count}th went to a worker that had {before}");
    }
    let queued = wait(&dispatch, 20, now);
    assert!(dispatch.cancel(queued));
    let emptied = permits[5].worker();
    let (freed, kept) = permits.drain(..).partition(|permit| permit.worker() == emptied);
    let (freed, kept): (Vec<_>, Vec<_>) = (freed, kept);
    assert_eq!(freed.len(), 3);
    give_back(&dispatch, freed, now);
    let permit = take(&dispatch, 21, now);
    assert_eq!(permit.worker(), emptied);
    give_back(&dispatch, kept.into_iter().chain([permit]), now);
}

#[test]
fn the_newest_generation_goes_first_even_if_busier() {
    let (dispatch, old, now) = with_ready(Balance::Lifo, 2, 2);
    let new = dispatch.add(at_nowhere("web"), 2, None).unwrap();
    assert!(dispatch.ready(new, now).is_empty());
    let permits = [1, 2, 3].map(|number| take(&dispatch, number, now));
    assert_eq!((permits[0].worker(), permits[1].worker()), (new, new));
    assert!(old.contains(&permits[2].worker()));
    give_back(&dispatch, permits, now);
    // A generation whose workers are all gone leaves its place to another.
    old.iter().for_each(|&id| dispatch.remove(id, now));
    let newest = dispatch.add(at_nowhere("web"), 3, None).unwrap();
    assert!(dispatch.ready(newest, now).is_empty());
    let permit = take(&dispatch, 4, now);
    assert_eq!(permit.worker(), newest);
    give_back(&dispatch, [permit], now);
}

#[test]
fn first_come_first_served_and_bounded() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    let mut permit = take(&dispatch, 0, now);
    assert!(!dispatch.queue_is_full(0));
    for number in 1..=3 {
        let _ = wait(&dispatch, number, now);
    }
    assert!(dispatch.queue_is_full(0));
    assert!(matches!(dispatch.acquire(waiter(4), ask(now), now), Acquire::Full));
    for number in 1..=3 {
        let grant = dispatch.release(permit, Outcome::Answered, now, 0).unwrap();
        assert_eq!(grant.waiter, waiter(number));
        permit = grant.permit;
        dispatch.check_invariants();
    }
    give_back(&dispatch, [permit], now);
    assert!(!dispatch.queue_is_full(0));
}

#[test]
fn a_cancelled_waiter_is_passed_over_and_its_ticket_is_dead() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    let permit = take(&dispatch, 0, now);
    let [_, middle, _] = [1, 2, 3].map(|number| wait(&dispatch, number, now));
    assert!(dispatch.cancel(middle));
    assert!(!dispatch.cancel(middle));
    let again = wait(&dispatch, 4, now);
    assert_ne!(again, middle, "a place that is used again has another name");
    let mut order = Vec::new();
    let mut grant = dispatch.release(permit, Outcome::Unused, now, 0);
    while let Some(Grant { waiter, permit }) = grant {
        order.push(waiter);
        grant = dispatch.release(permit, Outcome::Answered, now, 0);
    }
    assert_eq!(order, [waiter(1), waiter(3), waiter(4)]);
    assert!(!dispatch.cancel(again), "a granted one is in the mail");
}

#[test]
fn those_who_rejoin_stand_first_by_their_clocks_and_are_never_refused() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    let permit = take(&dispatch, 0, now);
    for number in 1..=3 {
        let _ = wait(&dispatch, number, now);
    }
    let second = Duration::from_secs(1);
    for (number, since) in [(4, now + second), (5, now), (6, now + 2 * second), (7, now + second)] {
        let _ = ticket(dispatch.acquire(
            waiter(number),
            Ask { since, exclude: None, front: true, tunnel: false, turn: 0 },
            now,
        ));
        dispatch.check_invariants();
    }
    let mut order = Vec::new();
    let mut grant = dispatch.release(permit, Outcome::Unused, now, 0);
    while let Some(Grant { waiter, permit }) = grant {
        order.push(waiter.exchange.index);
        grant = dispatch.release(permit, Outcome::Answered, now, 0);
    }
    assert_eq!(order, [5, 4, 7, 6, 1, 2, 3]);
}

#[test]
fn an_excluded_worker_is_passed_over_while_there_is_another() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 2);
    let not_second = Ask { since: now, exclude: Some(ids[1]), front: false, tunnel: false, turn: 0 };
    let permit = grant(dispatch.acquire(waiter(0), not_second, now));
    assert_eq!(permit.worker(), ids[0], "the excluded one was next in turn");
    // The other one is busy: it waits for that, and does not hold up one behind it who is not so choosy.
    let choosy = ticket(dispatch.acquire(waiter(1), not_second, now));
    let other = take(&dispatch, 2, now);
    let _ = wait(&dispatch, 3, now);
    let handed = dispatch.release(other, Outcome::Answered, now, 0).unwrap();
    assert_eq!((handed.waiter, handed.permit.worker()), (waiter(3), ids[1]));
    give_back(&dispatch, [handed.permit], now);
    let handed = dispatch.release(permit, Outcome::Answered, now, 0).unwrap();
    assert_eq!((handed.waiter, handed.permit.worker()), (waiter(1), ids[0]));
    assert!(!dispatch.cancel(choosy));
    // With the other one gone, it takes what there is.
    dispatch.died(ids[0], now);
    let last = grant(dispatch.acquire(waiter(4), not_second, now));
    assert_eq!(last.worker(), ids[1]);
    give_back(&dispatch, [handed.permit, last], now);
}

#[test]
fn waiters_take_the_worker_they_had_excluded_when_it_is_the_last() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 3, 2);
    let delivered = collect(&dispatch);
    let busy: Vec<_> = (0..6).map(|number| take(&dispatch, number, now)).collect();
    let (on_last, on_other): (Vec<_>, Vec<_>) = busy.into_iter().partition(|permit| permit.worker() == ids[1]);
    give_back(&dispatch, on_last, now);
    for number in 10..13 {
        let _ = ticket(dispatch.acquire(
            waiter(number),
            Ask { since: now, exclude: Some(ids[1]), front: false, tunnel: false, turn: 0 },
            now,
        ));
    }
    dispatch.check_invariants();
    let mut permits = on_other.into_iter();
    let first = dispatch.release(permits.next().unwrap(), Outcome::Unreachable, now, 0).unwrap();
    assert_eq!((first.waiter, first.permit.worker()), (waiter(10), ids[1]));
    let rest = mem::take(&mut *delivered.lock().unwrap());
    assert_eq!(rest.iter().map(|grant| grant.waiter).collect::<Vec<_>>(), [waiter(11), waiter(12)]);
    dispatch.check_invariants();
    let back = rest.into_iter().map(|grant| grant.permit).chain([first.permit]).chain(permits);
    give_back(&dispatch, back, now);
    assert_eq!(notices(&dispatch), [Notice::Unreachable(ids[0])]);
}

#[test]
fn a_worker_that_becomes_ready_drains_the_queue() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 2, 0);
    let id = dispatch.add(at_nowhere("web"), 1, None).unwrap();
    for number in 0..3 {
        let _ = wait(&dispatch, number, now);
    }
    let grants = dispatch.ready(id, now);
    assert_eq!(grants.iter().map(|grant| grant.waiter).collect::<Vec<_>>(), [waiter(0), waiter(1)]);
    dispatch.check_invariants();
    let mut grants = grants.into_iter();
    let last = dispatch.release(grants.next().unwrap().permit, Outcome::Answered, now, 0).unwrap();
    assert_eq!(last.waiter, waiter(2));
    give_back(&dispatch, grants.map(|grant| grant.permit).chain([last.permit]), now);
}

#[test]
fn an_unreachable_worker_gets_nothing_until_it_is_ready_again() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 2, 1);
    let [a, b] = [0, 1].map(|number| take(&dispatch, number, now));
    let _ = wait(&dispatch, 2, now);
    assert!(dispatch.release(a, Outcome::Unreachable, now, 0).is_none());
    assert!(dispatch.release(b, Outcome::Unreachable, now, 0).is_none());
    assert_eq!(notices(&dispatch), [Notice::Unreachable(ids[0])], "once, though two came back");
    assert_eq!(notices(&dispatch), []);
    dispatch.check_invariants();
    let grants = dispatch.ready(ids[0], now);
    assert_eq!(grants.len(), 1);
    give_back(&dispatch, grants.into_iter().map(|grant| grant.permit), now);
}

#[test]
fn a_dead_worker_says_when_its_last_request_has_come_back() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 1);
    let permit = take(&dispatch, 0, now);
    dispatch.died(ids[0], now);
    assert_eq!(notices(&dispatch), []);
    assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
    assert_eq!(notices(&dispatch), [Notice::Drained(ids[0])]);
    assert_eq!(dispatch.snapshot().workers[0].served, 1, "it counts until it is removed");
    dispatch.check_invariants();
}

#[test]
fn a_draining_worker_says_once_that_it_is_empty() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 2, 2);
    dispatch.drain(ids[0], now);
    assert_eq!(notices(&dispatch), [Notice::Drained(ids[0])]);
    let [a, b] = [0, 1].map(|number| take(&dispatch, number, now));
    dispatch.drain(ids[1], now);
    assert!(matches!(dispatch.acquire(waiter(2), ask(now), now), Acquire::Queued(_)));
    assert!(dispatch.release(a, Outcome::Answered, now, 0).is_none(), "the slot of a draining worker is not handed on");
    assert_eq!(notices(&dispatch), []);
    assert!(dispatch.release(b, Outcome::Tunnel, now, 0).is_none());
    assert_eq!(notices(&dispatch), [], "a tunnel is open");
    assert_eq!(dispatch.snapshot().workers[1].tunnels, 1);
    dispatch.tunnel_ended(ids[1]);
    assert_eq!(notices(&dispatch), [Notice::Drained(ids[1])]);
    assert!(dispatch.ready(ids[1], now).is_empty(), "a drain is not undone");
    dispatch.check_invariants();
}

#[test]
fn tunnels_free_the_slot_and_are_counted() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 1);
    for _ in 0..2 {
        let permit = take(&dispatch, 0, now);
        assert!(dispatch.release(permit, Outcome::Tunnel, now, 0).is_none());
    }
    assert_eq!(dispatch.snapshot().workers[0].tunnels, 2);
    dispatch.tunnel_ended(ids[0]);
    assert_eq!(dispatch.snapshot().workers[0].tunnels, 1);
    dispatch.tunnel_ended(ids[0]);
    dispatch.tunnel_ended(ids[0]);
    assert_eq!(dispatch.snapshot().workers[0].tunnels, 0);
}

#[test]
fn the_request_limit_is_a_threshold_said_once() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 0);
    let id = dispatch.add(at_nowhere("web"), 1, Some(3)).unwrap();
    assert!(dispatch.ready(id, now).is_empty());
    let mut told = Vec::new();
    let outcomes = [Outcome::Answered, Outcome::Unused, Outcome::Broken, Outcome::Tunnel, Outcome::Answered];
    for outcome in outcomes {
        let permit = take(&dispatch, 0, now);
        assert!(dispatch.release(permit, outcome, now, 0).is_none());
        told.push(notices(&dispatch));
    }
    let expected = [vec![], vec![], vec![], vec![Notice::Threshold(id)], vec![]];
    assert_eq!(told, expected, "and it serves on");
    let worker = &dispatch.snapshot().workers[0];
    assert_eq!((worker.served, worker.broken, worker.tunnels), (4, 1, 1));
}

#[test]
fn another_request_limit_holds_for_a_worker_that_has_served() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 0);
    let id = dispatch.add(at_nowhere("web"), 1, None).unwrap();
    assert!(dispatch.ready(id, now).is_empty());
    let serve = || {
        let permit = take(&dispatch, 0, now);
        give_back(&dispatch, [permit], now);
        notices(&dispatch)
    };
    assert_eq!((serve(), serve()), (vec![], vec![]));
    dispatch.limit_requests(id, 3);
    assert_eq!(notices(&dispatch), []);
    assert_eq!(serve(), [Notice::Threshold(id)]);
    dispatch.limit_requests(id, 0);
    assert_eq!(serve(), []);
    dispatch.limit_requests(id, 2);
    assert_eq!(notices(&dispatch), [Notice::Threshold(id)], "it has had more");
    assert_eq!(serve(), [], "said once");
}

#[test]
fn a_removed_worker_is_forgotten_once_its_permits_are_back() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 2, 1);
    let [a, b] = [0, 1].map(|number| take(&dispatch, number, now));
    assert_eq!(dispatch.is_alive(ids[0]), Some(true));
    dispatch.died(ids[0], now);
    assert_eq!(dispatch.is_alive(ids[0]), Some(false));
    dispatch.suspect(ids[0]);
    dispatch.remove(ids[0], now);
    assert!(dispatch.target(ids[0]).is_some());
    give_back(&dispatch, [a], now);
    assert_eq!(dispatch.snapshot().workers.len(), 1);
    give_back(&dispatch, [b], now);
    assert!(dispatch.target(ids[0]).is_none());
    assert_eq!(dispatch.is_alive(ids[0]), Some(false));
    assert_eq!(notices(&dispatch), [], "its notices are gone with it");
    let next = dispatch.add(at_nowhere("web"), 1, None).unwrap();
    assert_eq!(next.index, ids[0].index);
    assert_ne!(next, ids[0]);
    assert!(dispatch.ready(ids[0], now).is_empty());
    assert!(matches!(dispatch.acquire(waiter(2), ask(now), now), Acquire::Queued(_)));
    dispatch.check_invariants();
}

#[test]
fn whose_process_is_not_ours_is_not_known_to_live() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 0);
    let id = dispatch.add(Target { supervised: false, ..at_nowhere("upstream") }, 1, None).unwrap();
    assert!(dispatch.ready(id, now).is_empty());
    assert_eq!(dispatch.is_alive(id), None);
    assert_eq!(dispatch.target(id).unwrap().label, "upstream");
}

#[test]
fn the_table_is_bounded() {
    let now = Instant::now();
    let dispatch = Dispatch::new(policy(Balance::Lifo, 1), 2, now);
    let ids = [1, 2].map(|number| dispatch.add(at_nowhere("web"), number, None).unwrap());
    assert_eq!(dispatch.add(at_nowhere("web"), 3, None), None);
    dispatch.remove(ids[0], now);
    assert!(dispatch.add(at_nowhere("web"), 3, None).is_some());
}

/// Asks with all the time in the world.
fn patience(dispatch: &Dispatch, ticket: Ticket, now: Instant) -> Patience {
    dispatch.patience(ticket, now + Duration::from_secs(1_000_000), now)
}

#[test]
fn the_clocks_start_when_workers_come_and_go() {
    let (dispatch, _, start) = with_ready(Balance::Lifo, 1, 0);
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let id = dispatch.add(at_nowhere("web"), 1, None).unwrap();
    let first = wait(&dispatch, 0, start);
    // The hold runs out at 10, but a worker that came now would have the queue's clock run out 2 s from now.
    assert_eq!(patience(&dispatch, first, at(1)), Patience::Until(at(3)));
    assert_eq!(patience(&dispatch, first, at(9)), Patience::Until(at(10)));
    assert_eq!(patience(&dispatch, first, at(10)), Patience::HoldExpired);
    assert!(!dispatch.cancel(first));

    let second = wait(&dispatch, 1, at(10));
    let [granted] = <[Grant; 1]>::try_from(dispatch.ready(id, at(15))).unwrap();
    assert_eq!(patience(&dispatch, second, at(15)), Patience::Granted);
    let third = wait(&dispatch, 2, at(12));
    assert_eq!(patience(&dispatch, third, at(16)), Patience::Until(at(17)), "2 s from when a worker came");
    let fourth = wait(&dispatch, 3, at(16));
    assert_eq!(patience(&dispatch, third, at(17)), Patience::QueueTimeout);
    dispatch.died(id, at(17));
    assert_eq!(patience(&dispatch, fourth, at(26)), Patience::Until(at(27)), "10 s from when the last one went");
    assert_eq!(patience(&dispatch, fourth, at(27)), Patience::HoldExpired);
    give_back(&dispatch, [granted.permit], at(27));
    assert_eq!(dispatch.snapshot().queue_depth, 0);
}

/// A worker that comes and goes each second, and never has room: neither clock ever runs out.
#[test]
fn a_wait_ends_although_the_workers_flap() {
    let (dispatch, ids, start) = with_ready(Balance::Lifo, 1, 1);
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let permit = take(&dispatch, 9, start);
    let [first, second] = [0, 1].map(|number| wait(&dispatch, number, start));
    let by = at(30);
    for second in 1..30 {
        match second % 2 {
            0 => drop(dispatch.ready(ids[0], at(second))),
            _ => dispatch.unreachable(ids[0], at(second)),
        }
        match dispatch.patience(first, by, at(second)) {
            Patience::Until(again) => assert!(again > at(second) && again <= by),
            other => panic!("{other:?} after {second} s"),
        }
    }
    assert_eq!(dispatch.patience(first, by, at(30)), Patience::HoldExpired);
    assert!(dispatch.ready(ids[0], at(30)).is_empty());
    assert_eq!(dispatch.patience(second, by, at(30)), Patience::QueueTimeout);
    give_back(&dispatch, [permit], at(30));
    assert_eq!(dispatch.snapshot().queue_depth, 0);
}

#[test]
fn endless_patience_is_sayable() {
    let now = Instant::now();
    let endless = Policy { queue_timeout: Duration::MAX, hold: Duration::MAX, ..policy(Balance::Lifo, 1) };
    let dispatch = Dispatch::new(endless, 1, now);
    let waiting = wait(&dispatch, 0, now);
    assert!(matches!(patience(&dispatch, waiting, now), Patience::Until(again) if again > now));
}

#[test]
fn an_app_that_failed_refuses_until_it_is_tried_again() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 0);
    let waiting = [0, 1].map(|number| wait(&dispatch, number, now));
    assert_eq!(dispatch.fail(), [waiter(0), waiter(1)]);
    assert_eq!(waiting.map(|ticket| dispatch.cancel(ticket)), [false, false]);
    assert!(matches!(dispatch.acquire(waiter(2), ask(now), now), Acquire::Failed));
    let rejoin = Ask { front: true, ..ask(now) };
    assert!(matches!(dispatch.acquire(waiter(2), rejoin, now), Acquire::Failed));
    assert!(dispatch.snapshot().failed);
    dispatch.recover();
    let _ = wait(&dispatch, 3, now);
    dispatch.check_invariants();
}

#[test]
fn the_bell_rings_for_the_first_notice_and_not_again_until_all_are_taken() {
    let (dispatch, ids, _) = with_ready(Balance::Lifo, 1, 2);
    let rings = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&rings);
    dispatch.on_notice(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    for id in [ids[1], ids[0], ids[1]] {
        dispatch.suspect(id);
    }
    assert_eq!(rings.load(Ordering::Relaxed), 1);
    assert_eq!(notices(&dispatch), [Notice::Suspect(ids[0]), Notice::Suspect(ids[1])]);
    dispatch.suspect(ids[0]);
    assert_eq!(rings.load(Ordering::Relaxed), 2);
}

// Only debug builds panic for these two; production counts the one and aborts for the other.
#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "was dropped, not released")]
fn a_dropped_permit_is_noticed() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    drop(take(&dispatch, 0, now));
}

#[test]
fn a_permit_lost_in_a_panic_is_counted() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    let before = Dispatch::lost_permits();
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _permit = take(&dispatch, 0, now);
        panic!("while holding it");
    }));
    assert!(lost.is_err() && Dispatch::lost_permits() > before);
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "a permit came back that was not out")]
fn a_permit_of_another_dispatch_is_noticed() {
    let (one, _, now) = with_ready(Balance::Lifo, 1, 1);
    let (other, _, _) = with_ready(Balance::Lifo, 1, 1);
    let mine = take(&one, 0, now);
    let yours = take(&other, 0, now);
    give_back(&other, [yours], now);
    let _ = other.release(mine, Outcome::Answered, now, 0);
}

#[cfg(debug_assertions)]
mod planted_bugs {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::planted::plant;

    /// One worker, requests that queue, cancels and a drain: does anything look wrong?
    fn looks_wrong(bug: Option<Bug>) -> bool {
        let seen = catch_unwind(AssertUnwindSafe(|| {
            let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 2);
            plant(bug);
            let mut out: Vec<_> = (0..2).map(|number| take(&dispatch, number, now)).collect();
            // At each release at least two wait, so that a wrong order can show.
            let mut waiting = vec![(200, wait(&dispatch, 200, now))];
            for number in 2..40 {
                waiting.push((number, wait(&dispatch, number, now)));
                if number % 2 == 0 {
                    waiting.push((100 + number, wait(&dispatch, 100 + number, now)));
                    let (_, ticket) = waiting.remove(0);
                    assert!(dispatch.cancel(ticket));
                }
                let grant = dispatch.release(out.remove(0), Outcome::Answered, now, 0);
                let grant = grant.expect("someone waits, and gets it");
                out.push(grant.permit);
                let (first, _) = waiting.remove(0);
                assert_eq!(grant.waiter, waiter(first));
                dispatch.check_invariants();
            }
            waiting.drain(..).for_each(|(_, ticket)| assert!(dispatch.cancel(ticket)));
            give_back(&dispatch, out, now);
            dispatch.drain(ids[1], now);
            let permit = take(&dispatch, 99, now);
            assert_eq!(permit.worker(), ids[0]);
            give_back(&dispatch, [permit], now);
        }));
        plant(None);
        seen.is_err()
    }

    #[test]
    fn each_shows_and_nothing_shows_without_one() {
        assert!(!looks_wrong(None));
        for bug in [Bug::LostGrant, Bug::DoubleRelease, Bug::ForgottenCancel, Bug::QueueJump, Bug::StaleWorker] {
            assert!(looks_wrong(Some(bug)), "{bug:?} goes unseen");
        }
    }
}

#[test]
fn a_pause_holds_all_back_and_its_end_lets_them_go_by_and_by() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 2);
    let busy = take(&dispatch, 0, now);
    dispatch.pause();
    let tickets: Vec<Ticket> = (1..=3).map(|number| wait(&dispatch, number, now)).collect();
    assert!(dispatch.release(busy, Outcome::Answered, now, 0).is_none(), "a free worker rests");
    let late = now + Duration::from_secs(3600);
    assert!(matches!(patience(&dispatch, tickets[0], late), Patience::Until(_)), "no clock runs");
    assert_eq!(dispatch.resume(late), 3);
    assert!(matches!(patience(&dispatch, tickets[2], late), Patience::Until(_)), "the queue's clock begins anew");
    let (mut let_go, more) = dispatch.let_go(1);
    assert_eq!((let_go.len(), more), (1, true));
    wait(&dispatch, 4, late);
    let (second, more) = dispatch.let_go(3);
    assert_eq!((second.len(), more), (1, false), "no worker has room for more");
    dispatch.check_invariants();
    let_go.extend(second);
    let mut order = Vec::new();
    while let Some(grant) = let_go.pop() {
        order.push(grant.waiter.exchange.index);
        let_go.extend(dispatch.release(grant.permit, Outcome::Answered, late, 0));
    }
    assert_eq!(order, [2, 3, 4, 1], "each permit is handed on as always");
}

#[test]
fn who_is_let_go_gets_whose_turn_it_is() {
    let (dispatch, _, now) = with_ready(Balance::Least, 2, 2);
    let new = dispatch.add(at_nowhere("web"), 2, None).unwrap();
    dispatch.ready(new, now);
    dispatch.pause();
    for number in 1..=3 {
        wait(&dispatch, number, now);
    }
    dispatch.resume(now);
    let (mut let_go, more) = dispatch.let_go(2);
    assert!(more && let_go.iter().all(|grant| grant.permit.worker() == new), "newest first");
    let_go.extend(dispatch.let_go(2).0);
    let next = take(&dispatch, 4, now);
    assert_ne!(next.worker(), let_go[2].permit.worker(), "the others in turn");
    give_back(&dispatch, let_go.into_iter().map(|grant| grant.permit).chain([next]), now);
}

#[test]
fn a_pause_without_waiters_ends_at_once() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    dispatch.pause();
    assert!(dispatch.snapshot().paused);
    assert_eq!(dispatch.resume(now), 0);
    let permit = take(&dispatch, 0, now);
    assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
    assert!(!dispatch.snapshot().paused);
}

#[test]
fn a_worker_is_stuck_only_if_it_answered_nothing_meanwhile() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 2);
    let (first, second) = (take(&dispatch, 0, now), take(&dispatch, 1, now));
    let (answering, silent) = (first.worker(), second.worker());
    let later = now + Duration::from_secs(1);
    assert!(dispatch.release(first, Outcome::Answered, later, 0).is_none());
    assert!(dispatch.release(second, Outcome::Broken, later, 0).is_none());
    dispatch.stuck(answering, now, later);
    dispatch.stuck(silent, now, later);
    assert_eq!(notices(&dispatch), [Notice::Stuck(silent)]);
    // Before the supervisor has heard of it: the next request goes to the other one, and the one after that waits.
    let next = take(&dispatch, 2, later);
    assert_eq!(next.worker(), answering);
    wait(&dispatch, 3, later);
    let handed_on = dispatch.release(next, Outcome::Answered, later, 0).expect("somebody waits");
    assert_eq!(handed_on.permit.worker(), answering);
    assert!(dispatch.release(handed_on.permit, Outcome::Unused, later, 0).is_none());
    assert_eq!(dispatch.snapshot().worker(silent).unwrap().standing, Standing::Draining);
    let answered = |id| dispatch.snapshot().worker(id).unwrap().answered_at;
    assert_eq!((answered(answering), answered(silent)), (Some(later), None));
}

#[test]
fn a_worker_that_was_heard_from_meanwhile_is_not_stuck() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 2);
    let at = |millis: u64| now + Duration::from_millis(millis);
    let permits = [0, 1].map(|number| take(&dispatch, number, now));
    let [streaming, silent] = permits.each_ref().map(Permit::worker);
    let moves = [streaming, silent].map(|id| dispatch.target(id).unwrap().moves.clone());
    moves[1].note(at(10));
    moves[0].note(at(10));
    moves[0].note(at(900));
    for id in [streaming, silent] {
        dispatch.stuck(id, at(20), at(1000));
    }
    assert_eq!(notices(&dispatch), [Notice::Stuck(silent)]);
    dispatch.stuck(streaming, at(900), at(2000));
    assert_eq!(notices(&dispatch), [Notice::Stuck(streaming)], "nothing came since");
    assert!(ids.iter().all(|&id| dispatch.snapshot().worker(id).unwrap().standing == Standing::Draining));
    permits.into_iter().for_each(|permit| assert!(dispatch.release(permit, Outcome::Broken, now, 0).is_none()));
}

#[test]
fn moves_are_noted_coarsely_and_never_before_they_come() {
    let epoch = Instant::now();
    let at = |millis: u64| epoch + Duration::from_millis(millis);
    let moves = Moves::new(epoch);
    assert!(!moves.since(epoch), "it has not been heard from");
    moves.note(epoch);
    assert!(
        moves.since(epoch.checked_sub(Duration::from_secs(1)).unwrap_or(epoch)),
        "whatever was before the epoch is past"
    );
    moves.note(at(50));
    assert!(!moves.since(at(10)), "within the grain of what was noted last");
    moves.note(at(101));
    assert!(moves.since(at(100)) && !moves.since(at(101)));
    moves.note(at(60));
    assert!(moves.since(at(100)), "a loop that is behind takes nothing back");
}

#[test]
fn a_lost_connection_takes_a_worker_out_only_if_nothing_else_was_in_flight() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 3, 1);
    let standing = || dispatch.snapshot().worker(ids[0]).unwrap().standing;
    let [a, b, c] = [0, 1, 2].map(|number| take(&dispatch, number, now));
    wait(&dispatch, 3, now);
    let d = dispatch.release(a, Outcome::Lost, now, 0).unwrap().permit;
    assert_eq!(standing(), Standing::Ready, "the others may fare better");
    for permit in [b, c] {
        assert!(dispatch.release(permit, Outcome::Lost, now, 0).is_none());
    }
    assert_eq!((standing(), notices(&dispatch)), (Standing::Ready, vec![]));
    assert!(dispatch.release(d, Outcome::Lost, now, 0).is_none());
    assert_eq!((standing(), notices(&dispatch)), (Standing::Unreachable, vec![Notice::Unreachable(ids[0])]));
    let snapshot = dispatch.snapshot();
    assert_eq!((snapshot.workers[0].served, snapshot.workers[0].broken), (4, 4));
    wait(&dispatch, 4, now);
    let back = dispatch.ready(ids[0], now);
    give_back(&dispatch, back.into_iter().map(|grant| grant.permit), now);
}

#[test]
fn a_lost_connection_to_what_is_not_ours_says_nothing_about_it() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 0);
    let id = dispatch.add(Target { supervised: false, ..at_nowhere("upstream") }, 1, None).unwrap();
    assert!(dispatch.ready(id, now).is_empty());
    let permit = take(&dispatch, 0, now);
    wait(&dispatch, 1, now);
    let next = dispatch.release(permit, Outcome::Lost, now, 0).expect("it serves on");
    assert_eq!((next.waiter, notices(&dispatch)), (waiter(1), vec![]));
    give_back(&dispatch, [next.permit], now);
}
