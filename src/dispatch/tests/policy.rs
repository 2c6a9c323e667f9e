//! Rules that change while requests run and wait.

use super::*;

#[test]
fn another_queue_limit_and_other_times_hold_for_those_who_wait() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 1, 1);
    let permit = take(&dispatch, 0, now);
    let tickets: Vec<Ticket> = (1..4).map(|number| wait(&dispatch, number, now)).collect();
    assert!(matches!(dispatch.acquire(waiter(9), ask(now), now), Acquire::Full));
    let seconds = Duration::from_secs;
    // More may wait than memory was made for.
    let more = Policy { queue_size: 5000, queue_timeout: seconds(5), ..policy(Balance::Lifo, 1) };
    dispatch.set_policy(more);
    let many: Vec<Ticket> = (10..3000).map(|number| wait(&dispatch, number, now)).collect();
    dispatch.check_invariants();
    let far = now + seconds(60);
    assert_eq!(dispatch.patience(tickets[0], far, now + seconds(3)), Patience::Until(now + seconds(5)));
    // Fewer: who waits already goes on.
    dispatch.set_policy(Policy { queue_size: 2, queue_timeout: seconds(1), ..policy(Balance::Lifo, 1) });
    assert!(matches!(dispatch.acquire(waiter(9), ask(now), now), Acquire::Full));
    assert!(many.into_iter().all(|ticket| dispatch.cancel(ticket)));
    assert_eq!(dispatch.patience(tickets[0], far, now + seconds(3)), Patience::QueueTimeout);
    let granted = dispatch.release(permit, Outcome::Answered, now, 0).expect("the next waits");
    assert_eq!(granted.waiter, waiter(2));
    assert!(dispatch.cancel(tickets[2]));
    give_back(&dispatch, [granted.permit], now);
}

#[test]
fn another_hold_and_another_number_of_tunnels_hold_at_once() {
    let (dispatch, _, now) = with_ready(Balance::Lifo, 2, 0);
    let seconds = Duration::from_secs;
    let held = wait(&dispatch, 1, now);
    dispatch.set_policy(Policy { hold: seconds(1), ..policy(Balance::Lifo, 2) });
    assert_eq!(dispatch.patience(held, now + seconds(60), now + seconds(2)), Patience::HoldExpired);
    let (dispatch, _, now) = with_ready(Balance::Lifo, 2, 1);
    assert!(dispatch.release(take(&dispatch, 0, now), Outcome::Tunnel, now, 0).is_none());
    let tunnel = || dispatch.acquire(waiter(1), Ask { tunnel: true, ..ask(now) }, now);
    dispatch.set_policy(Policy { max_tunnels: 1, ..policy(Balance::Lifo, 2) });
    let refused = tunnel();
    assert!(!matches!(refused, Acquire::Granted(_)), "{refused:?}");
    if let Acquire::Queued(ticket) = refused {
        assert!(dispatch.cancel(ticket));
    }
    dispatch.set_policy(Policy { max_tunnels: 2, ..policy(Balance::Lifo, 2) });
    match tunnel() {
        Acquire::Granted(permit) => give_back(&dispatch, [permit], now),
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_concurrency_is_that_of_the_next_generation() {
    let (dispatch, old, now) = with_ready(Balance::Lifo, 2, 1);
    let held = [take(&dispatch, 0, now), take(&dispatch, 1, now)];
    dispatch.set_policy(policy(Balance::Lifo, 4));
    let ticket = wait(&dispatch, 2, now);
    assert!(dispatch.cancel(ticket), "the old worker has as many as it may");
    let again = dispatch.add(at_nowhere("old"), 1, None).unwrap();
    assert!(dispatch.ready(again, now).is_empty());
    let other = [take(&dispatch, 3, now), take(&dispatch, 4, now)];
    assert!(dispatch.cancel(wait(&dispatch, 5, now)), "so has another one of its generation");
    let new = dispatch.add(at_nowhere("new"), 2, None).unwrap();
    assert!(dispatch.ready(new, now).is_empty());
    let theirs: Vec<Permit> = (6..10).map(|number| take(&dispatch, number, now)).collect();
    assert!(theirs.iter().all(|permit| permit.worker() == new));
    assert!(dispatch.cancel(wait(&dispatch, 11, now)));
    dispatch.check_invariants();
    give_back(&dispatch, held.into_iter().chain(other).chain(theirs), now);
    // A place of the old generation is used again by one with more requests at once.
    [old[0], again, new].into_iter().for_each(|id| dispatch.remove(id, now));
    let newest = dispatch.add_of(at_nowhere("newest"), 3, None, 3).unwrap();
    assert!(dispatch.ready(newest, now).is_empty());
    let theirs: Vec<Permit> = (0..3).map(|number| take(&dispatch, number, now)).collect();
    assert!(dispatch.cancel(wait(&dispatch, 4, now)));
    give_back(&dispatch, theirs, now);
}

#[test]
fn another_balance_holds_at_once_whatever_is_in_flight() {
    let balances = [Balance::Lifo, Balance::RoundRobin, Balance::Least];
    for (from, to) in balances.into_iter().flat_map(|from| balances.map(|to| (from, to))) {
        let (dispatch, ids, now) = with_ready(from, 3, 3);
        // One, two and none in flight, and the third is full for a moment.
        let mut held: Vec<Permit> = (0..6).map(|number| take(&dispatch, number, now)).collect();
        held.drain(..3).for_each(|permit| drop(dispatch.release(permit, Outcome::Answered, now, 0)));
        dispatch.set_policy(policy(to, 3));
        dispatch.check_invariants();
        let loads = || {
            let snapshot = dispatch.snapshot();
            ids.iter().map(|id| snapshot.worker(*id).unwrap().in_flight).collect::<Vec<_>>()
        };
        let before = loads();
        let next = take(&dispatch, 9, now);
        let chosen = ids.iter().position(|id| *id == next.worker()).unwrap();
        if to != Balance::RoundRobin {
            assert_eq!(before[chosen], *before.iter().min().unwrap(), "{from:?} to {to:?}: {before:?}");
        }
        held.push(next);
        held.extend((10..15).map(|number| take(&dispatch, number, now)));
        assert_eq!(loads(), [3, 3, 3], "{from:?} to {to:?}");
        dispatch.check_invariants();
        give_back(&dispatch, held, now);
    }
}
