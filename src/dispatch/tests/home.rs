//! Whose turn it is among the waiters of several loops.

use super::*;

/// Queues on a loop, so many microseconds after a moment.
fn wait_on(dispatch: &Dispatch, loop_index: u16, number: u32, start: Instant, micros: u64) -> Ticket {
    let now = start + Duration::from_micros(micros);
    ticket(dispatch.acquire(waiter_of(loop_index, number), ask(now), now))
}

#[test]
fn a_permit_that_comes_back_prefers_its_own_loop_by_up_to_a_millisecond() {
    let (dispatch, _, now) = with_policy(Policy { queue_size: 8, ..policy(Balance::Lifo, 1) }, 1);
    let mut permit = take(&dispatch, 0, now);
    let line = [(1, 1, 0), (1, 2, 100), (0, 3, 1000), (0, 4, 1001), (1, 5, 1001), (2, 6, 5000)];
    for (loop_index, number, micros) in line {
        wait_on(&dispatch, loop_index, number, now, micros);
    }
    // The loop that gives back, and who gets it: 3 is just young enough to go before 1, and 4 is too young for that.
    for (home, expected) in [(0, 3), (0, 1), (0, 4), (1, 2), (7, 5), (0, 6)] {
        let grant = dispatch.release(permit, Outcome::Answered, now, home).expect("somebody waits");
        assert_eq!(grant.waiter.exchange.index, expected, "loop {home} gives back");
        permit = grant.permit;
        dispatch.check_invariants();
    }
    give_back(&dispatch, [permit], now);
}

#[test]
fn those_who_rejoin_go_before_the_own_loops_others() {
    let (dispatch, _, now) = with_policy(Policy { queue_size: 8, ..policy(Balance::Lifo, 1) }, 1);
    let mut permit = take(&dispatch, 0, now);
    wait_on(&dispatch, 0, 1, now, 0);
    for (loop_index, number, micros) in [(1, 2, 0), (0, 3, 900), (0, 4, 1100)] {
        let rejoin = Ask { front: true, ..ask(now + Duration::from_micros(micros)) };
        ticket(dispatch.acquire(waiter_of(loop_index, number), rejoin, now));
    }
    for expected in [3, 2, 4, 1] {
        let grant = dispatch.release(permit, Outcome::Answered, now, 0).expect("somebody waits");
        assert_eq!(grant.waiter.exchange.index, expected);
        permit = grant.permit;
    }
    give_back(&dispatch, [permit], now);
}

#[test]
fn what_comes_free_otherwise_goes_to_the_oldest_of_all_loops() {
    let (dispatch, ids, now) = with_policy(Policy { queue_size: 8, ..policy(Balance::Lifo, 2) }, 1);
    let busy = [0, 1].map(|number| take(&dispatch, number, now));
    for (loop_index, number) in [(1, 10), (0, 11), (2, 12), (0, 13)] {
        wait_on(&dispatch, loop_index, number, now, 0);
    }
    dispatch.unreachable(ids[0], now);
    busy.into_iter().for_each(|permit| assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none()));
    let mut granted = dispatch.ready(ids[0], now);
    assert_eq!(granted.iter().map(|grant| grant.waiter.exchange.index).collect::<Vec<_>>(), [10, 11]);
    dispatch.pause();
    granted.drain(..).for_each(|grant| assert!(dispatch.release(grant.permit, Outcome::Answered, now, 0).is_none()));
    dispatch.resume(now);
    let (granted, _) = dispatch.let_go(8);
    assert_eq!(granted.iter().map(|grant| grant.waiter.exchange.index).collect::<Vec<_>>(), [12, 13]);
    give_back(&dispatch, granted.into_iter().map(|grant| grant.permit), now);
}

/// Two loops with as many clients each, who ask again when they are answered: few grants cross (of strict order: every other one), and
/// yet all are served alike.
#[test]
fn two_loops_that_share_workers_hardly_ever_write_to_each_other() {
    const CLIENTS: u32 = 64;
    const ROUNDS: u32 = 20_000;
    let (dispatch, _, start) = with_policy(Policy { queue_size: 4096, ..policy(Balance::Lifo, 1) }, 2);
    let mut out: Vec<Grant> = Vec::new();
    for number in 0..CLIENTS {
        let waiter = waiter_of((number % 2) as u16, number);
        match dispatch.acquire(waiter, ask(start), start) {
            Acquire::Granted(permit) => out.push(Grant { waiter, permit }),
            Acquire::Queued(_) => (),
            other => panic!("{other:?}"),
        }
    }
    let (mut crossed, mut served, mut chance) = (0, [0_u32; CLIENTS as usize], 1_u64);
    for round in 0..ROUNDS {
        let now = start + Duration::from_micros(50) * round;
        // Either of the two may be done first, in no pattern that the order of the clients could fall in with.
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let Grant { waiter, permit } = out.remove((chance >> 63) as usize);
        served[waiter.exchange.index as usize] += 1;
        let next = dispatch.release(permit, Outcome::Answered, now, waiter.loop_index).expect("somebody waits");
        crossed += u32::from(next.waiter.loop_index != waiter.loop_index);
        out.push(next);
        assert!(matches!(dispatch.acquire(waiter, ask(now), now), Acquire::Queued(_)));
    }
    dispatch.check_invariants();
    assert!(crossed < ROUNDS / 10, "{crossed} of {ROUNDS} grants crossed");
    let (fewest, most) = (served.iter().min().expect("clients"), served.iter().max().expect("clients"));
    assert!(most - fewest <= most / 5, "one was served {most} times and another {fewest} times");
    out.into_iter().for_each(|grant| mem::forget(grant.permit));
}
