//! Requests for a tunnel: which worker each gets, who waits for one, and who is refused.

use super::*;

const BALANCES: [Balance; 3] = [Balance::Lifo, Balance::RoundRobin, Balance::Least];

fn upgrade(since: Instant) -> Ask {
    Ask { tunnel: true, ..ask(since) }
}

/// Ready workers of so much concurrency, with so many tunnels at most.
fn workers(balance: Balance, concurrency: u32, count: usize, max_tunnels: u32) -> (Dispatch, Vec<WorkerId>, Instant) {
    with_policy(Policy { queue_size: 5000, max_tunnels, ..policy(balance, concurrency) }, count)
}

fn take_tunnel(dispatch: &Dispatch, number: u32, now: Instant) -> Permit {
    grant(dispatch.acquire(waiter(number), upgrade(now), now))
}

fn wait_for_tunnel(dispatch: &Dispatch, number: u32, now: Instant) -> Ticket {
    ticket(dispatch.acquire(waiter(number), upgrade(now), now))
}

/// The permit becomes a tunnel, and nobody gets its slot.
fn open(dispatch: &Dispatch, permit: Permit, now: Instant) {
    assert!(dispatch.release(permit, Outcome::Tunnel, now, 0).is_none());
    dispatch.check_invariants();
}

/// Opens a tunnel through a worker, by asking until it is that one's turn.
fn open_through(dispatch: &Dispatch, worker: WorkerId, now: Instant) {
    let mut others = Vec::new();
    loop {
        let permit = take(dispatch, 0, now);
        if permit.worker() == worker {
            open(dispatch, permit, now);
            return give_back(dispatch, others, now);
        }
        others.push(permit);
    }
}

#[test]
fn thousands_at_once_spread_evenly_before_any_is_answered() {
    for balance in BALANCES {
        let (dispatch, ids, now) = workers(balance, 1000, 4, u32::MAX);
        let busy: Vec<_> = (0..400).map(|number| take(&dispatch, number, now)).collect();
        let (idle, busy): (Vec<_>, Vec<_>) = busy.into_iter().partition(|permit| ids[..2].contains(&permit.worker()));
        give_back(&dispatch, idle, now);
        let permits: Vec<_> = (0..2000).map(|number| take_tunnel(&dispatch, number, now)).collect();
        for id in &ids {
            let share = permits.iter().filter(|permit| permit.worker() == *id).count();
            assert_eq!(share, 500, "{balance:?}");
        }
        permits.into_iter().for_each(|permit| assert!(dispatch.release(permit, Outcome::Tunnel, now, 0).is_none()));
        assert!(dispatch.snapshot().workers.iter().all(|worker| worker.tunnels == 500));
        give_back(&dispatch, busy, now);
    }
}

#[test]
fn the_fewest_tunnels_count_and_not_the_fewest_requests() {
    for balance in BALANCES {
        let (dispatch, ids, now) = workers(balance, 4, 2, u32::MAX);
        open_through(&dispatch, ids[0], now);
        open_through(&dispatch, ids[0], now);
        dispatch.drain(ids[0], now);
        let busy = [0, 1].map(|number| take(&dispatch, number, now));
        let third = dispatch.add(at_nowhere("web"), 1, None).expect("the table has room");
        assert!(dispatch.ready(third, now).is_empty());
        open_through(&dispatch, third, now);
        let permit = take_tunnel(&dispatch, 2, now);
        assert_eq!(permit.worker(), ids[1], "{balance:?}: it has two requests and no tunnel");
        give_back(&dispatch, busy.into_iter().chain([permit]), now);
    }
}

#[test]
fn among_as_many_tunnels_it_is_whose_turn_it_is() {
    for balance in BALANCES {
        let (dispatch, _, now) = workers(balance, 2, 3, u32::MAX);
        let warm = take(&dispatch, 0, now);
        give_back(&dispatch, [warm], now);
        let next = take(&dispatch, 1, now);
        let turn = next.worker();
        assert!(dispatch.release(next, Outcome::Unused, now, 0).is_none());
        if balance == Balance::Lifo {
            assert_eq!(take_and_say(&dispatch, now), turn);
        } else {
            assert_ne!(take_and_say(&dispatch, now), turn, "{balance:?}: it has just had its turn");
        }
    }
}

fn take_and_say(dispatch: &Dispatch, now: Instant) -> WorkerId {
    let permit = take_tunnel(dispatch, 2, now);
    let worker = permit.worker();
    give_back(dispatch, [permit], now);
    worker
}

#[test]
fn a_full_worker_is_not_chosen_while_another_has_room_even_an_older_one() {
    let (dispatch, old, now) = workers(Balance::Lifo, 4, 1, 2);
    let new = dispatch.add(at_nowhere("web"), 2, None).expect("the table has room");
    assert!(dispatch.ready(new, now).is_empty());
    let permits: Vec<_> = (0..4).map(|number| take_tunnel(&dispatch, number, now)).collect();
    let turns: Vec<_> = permits.iter().map(Permit::worker).collect();
    assert_eq!(turns, [new, new, old[0], old[0]]);
    assert!(matches!(dispatch.acquire(waiter(4), upgrade(now), now), Acquire::NoTunnel));
    let plain = take(&dispatch, 5, now);
    assert_eq!(plain.worker(), new, "other requests do not care");
    give_back(&dispatch, permits.into_iter().chain([plain]), now);
}

#[test]
fn all_full_is_refused_at_once_and_nobody_ready_is_waited_for() {
    let (dispatch, _, now) = workers(Balance::Lifo, 1, 0, 1);
    let id = dispatch.add(at_nowhere("web"), 1, None).expect("the table has room");
    wait_for_tunnel(&dispatch, 0, now);
    let first = dispatch.ready(id, now).remove(0);
    assert!(matches!(dispatch.acquire(waiter(1), upgrade(now), now), Acquire::NoTunnel), "one is on its way");
    let rejoin = Ask { front: true, ..upgrade(now) };
    assert!(matches!(dispatch.acquire(waiter(1), rejoin, now), Acquire::NoTunnel));
    open(&dispatch, first.permit, now);
    assert!(matches!(dispatch.acquire(waiter(1), upgrade(now), now), Acquire::NoTunnel));
    dispatch.pause();
    let held = wait_for_tunnel(&dispatch, 1, now);
    assert!(dispatch.cancel(held), "a pause holds all back");
    dispatch.resume(now);
    dispatch.tunnel_ended(id);
    let again = take_tunnel(&dispatch, 1, now);
    give_back(&dispatch, [again], now);
    let none = workers(Balance::Lifo, 1, 1, 0);
    assert!(matches!(none.0.acquire(waiter(1), upgrade(now), now), Acquire::NoTunnel));
}

#[test]
fn a_crowd_that_waits_for_tunnels_holds_nobody_up() {
    let (dispatch, ids, now) = workers(Balance::Lifo, 1, 2, 1);
    open_through(&dispatch, ids[0], now);
    let busy = take_tunnel(&dispatch, 0, now);
    assert_eq!(busy.worker(), ids[1]);
    assert!(dispatch.release(busy, Outcome::Answered, now, 0).is_none());
    let [one, other] = [1, 2].map(|number| take(&dispatch, number, now));
    let (full, open_to) = if one.worker() == ids[0] { (one, other) } else { (other, one) };
    for number in 10..4010 {
        wait_for_tunnel(&dispatch, number, now);
    }
    wait(&dispatch, 5000, now);
    let plain = dispatch.release(full, Outcome::Answered, now, 0).expect("somebody waits whom it suits");
    assert_eq!(plain.waiter, waiter(5000), "a worker full of tunnels passes over the crowd");
    wait(&dispatch, 5001, now);
    let first = dispatch.release(open_to, Outcome::Answered, now, 0).expect("all wait whom it suits");
    assert_eq!(first.waiter, waiter(10), "the oldest goes first where there is room");
    let plain = [plain.permit, first.permit].map(|permit| dispatch.release(permit, Outcome::Tunnel, now, 0));
    let [Some(last), None] = plain else { panic!("{plain:?}") };
    assert_eq!(last.waiter, waiter(5001));
    give_back(&dispatch, [last.permit], now);
}

#[test]
fn who_waits_gets_the_room_that_a_tunnel_leaves() {
    let (dispatch, ids, now) = workers(Balance::Lifo, 2, 2, 1);
    let delivered = collect(&dispatch);
    ids.iter().for_each(|&id| open_through(&dispatch, id, now));
    dispatch.tunnel_ended(ids[1]);
    let busy: Vec<_> = (0..4).map(|number| take(&dispatch, number, now)).collect();
    let (of_full, of_other): (Vec<_>, Vec<_>) = busy.into_iter().partition(|permit| permit.worker() == ids[0]);
    let queued = [4, 5].map(|number| wait_for_tunnel(&dispatch, number, now));
    give_back(&dispatch, of_full, now);
    dispatch.tunnel_ended(ids[0]);
    let granted: Vec<_> = mem::take(&mut *delivered.lock().expect("no thread panics"));
    let got: Vec<_> = granted.iter().map(|grant| (grant.waiter, grant.permit.worker())).collect();
    assert_eq!(got, [(waiter(4), ids[0])], "one room, one tunnel, though there are two slots");
    dispatch.check_invariants();
    // Its request ends in no tunnel: the next one gets the room.
    let mut granted = granted.into_iter();
    let next = dispatch.release(granted.next().expect("one").permit, Outcome::Answered, now, 0).expect("one waits");
    assert_eq!((next.waiter, next.permit.worker()), (waiter(5), ids[0]));
    assert_eq!(queued.map(|ticket| dispatch.cancel(ticket)), [false, false]);
    give_back(&dispatch, of_other.into_iter().chain([next.permit]), now);
}

#[test]
fn patience_ends_though_the_only_chance_is_gone() {
    let (dispatch, _, now) = workers(Balance::Lifo, 1, 1, 1);
    let busy = take(&dispatch, 0, now);
    let queued = wait_for_tunnel(&dispatch, 1, now);
    assert!(dispatch.release(busy, Outcome::Unused, now, 3).is_some_and(|grant| {
        open(&dispatch, grant.permit, now);
        grant.waiter == waiter(1)
    }));
    assert!(!dispatch.cancel(queued));
    dispatch.tunnel_ended(dispatch.snapshot().workers[0].id);
    let busy = take(&dispatch, 2, now);
    let queued = wait_for_tunnel(&dispatch, 3, now);
    open(&dispatch, grant_of_unasked_tunnel(&dispatch, busy, now), now);
    assert!(matches!(patience(&dispatch, queued, now), Patience::Until(_)));
    assert_eq!(patience(&dispatch, queued, now + Duration::from_secs(2)), Patience::QueueTimeout);
}

/// A request that did not ask for a tunnel becomes one, which takes the last room; whoever waits gets nothing of the slot.
fn grant_of_unasked_tunnel(dispatch: &Dispatch, busy: Permit, now: Instant) -> Permit {
    assert!(dispatch.release(busy, Outcome::Tunnel, now, 0).is_none());
    take(dispatch, 4, now)
}

#[test]
fn a_worker_that_drains_is_done_when_its_last_tunnel_has_ended() {
    let (dispatch, ids, now) = workers(Balance::Lifo, 2, 1, u32::MAX);
    open_through(&dispatch, ids[0], now);
    open_through(&dispatch, ids[0], now);
    let busy = take(&dispatch, 1, now);
    dispatch.drain(ids[0], now);
    give_back(&dispatch, [busy], now);
    assert_eq!(notices(&dispatch), [], "two tunnels are open");
    dispatch.tunnel_ended(ids[0]);
    assert_eq!(notices(&dispatch), []);
    dispatch.tunnel_ended(ids[0]);
    assert_eq!(notices(&dispatch), [Notice::Drained(ids[0])]);
    // Tunnels through what is not ours are not waited for.
    let other = dispatch.add(Target { supervised: false, ..at_nowhere("upstream") }, 1, None).expect("there is room");
    assert!(dispatch.ready(other, now).is_empty());
    open_through(&dispatch, other, now);
    dispatch.drain(other, now);
    assert_eq!(notices(&dispatch), [Notice::Drained(other)]);
}

#[test]
fn an_excluded_worker_gets_no_tunnel_while_another_is_eligible() {
    let (dispatch, ids, now) = workers(Balance::Lifo, 1, 2, 1);
    let not_first = Ask { exclude: Some(ids[0]), ..upgrade(now) };
    let permit = grant(dispatch.acquire(waiter(0), not_first, now));
    assert_eq!(permit.worker(), ids[1]);
    assert!(matches!(dispatch.acquire(waiter(1), not_first, now), Acquire::NoTunnel), "the other one is full");
    assert!(dispatch.release(permit, Outcome::Unused, now, 0).is_none());
    dispatch.died(ids[1], now);
    let last = grant(dispatch.acquire(waiter(1), not_first, now));
    assert_eq!(last.worker(), ids[0]);
    give_back(&dispatch, [last], now);
}

#[test]
fn who_is_let_go_after_a_pause_is_spread_too() {
    let (dispatch, ids, now) = workers(Balance::Lifo, 50, 2, 25);
    dispatch.pause();
    for number in 0..60 {
        wait_for_tunnel(&dispatch, number, now);
    }
    wait(&dispatch, 100, now);
    assert_eq!(dispatch.resume(now), 61);
    let (granted, more) = dispatch.let_go(40);
    assert!(more);
    for id in ids {
        assert_eq!(granted.iter().filter(|grant| grant.permit.worker() == id).count(), 20);
    }
    let (rest, more) = dispatch.let_go(40);
    assert!(!more && rest.len() == 11, "ten who find room, and one who wants no tunnel");
    assert_eq!(rest.last().map(|grant| grant.waiter), Some(waiter(100)));
    dispatch.check_invariants();
    for grant in granted.into_iter().chain(rest) {
        assert!(dispatch.release(grant.permit, Outcome::Tunnel, now, 0).is_none());
    }
    assert_eq!(dispatch.snapshot().queue_depth, 10, "they wait for tunnels to end");
}
