//! Turns by keys: who floods waits behind itself alone.

use super::*;

fn fair(queue_size: usize) -> Policy {
    Policy { queue_size, fair: true, ..policy(Balance::Lifo, 1) }
}

fn of(turn: u64, since: Instant) -> Ask {
    Ask { turn, ..ask(since) }
}

/// Has one wait, of that loop and with that key.
fn wait(dispatch: &Dispatch, loop_index: u16, number: u32, turn: u64, now: Instant) -> Ticket {
    ticket(dispatch.acquire(waiter_of(loop_index, number), of(turn, now), now))
}

/// The numbers of those who wait, as they are served one by one by the worker that is busy.
fn served(dispatch: &Dispatch, mut permit: Permit, now: Instant) -> Vec<u32> {
    let mut numbers = Vec::new();
    loop {
        match dispatch.release(permit, Outcome::Answered, now, 0) {
            Some(grant) => {
                numbers.push(grant.waiter.exchange.index);
                permit = grant.permit;
                dispatch.check_invariants();
            }
            None => return numbers,
        }
    }
}

#[test]
fn of_two_clients_the_one_that_floods_waits_behind_itself() {
    let (dispatch, _, now) = with_policy(fair(1000), 1);
    let busy = take(&dispatch, 0, now);
    for number in 1..=200 {
        let _ = wait(&dispatch, number as u16 % 2, number, 7, now);
    }
    // Much later, and of whatever loop.
    let later = now + 50 * HOME_ADVANTAGE;
    for (number, loop_index) in [(1001, 1), (1002, 0)] {
        let _ = wait(&dispatch, loop_index, number, 8, later);
    }
    let order = served(&dispatch, busy, later);
    assert_eq!(order[..6], [1, 1001, 2, 1002, 3, 4]);
    assert_eq!(order.len(), 202);
    assert!(order[4..].is_sorted(), "those of a client are served as they came");
}

#[test]
fn whoever_has_no_key_waits_as_if_alone() {
    let (dispatch, _, now) = with_policy(fair(100), 1);
    let busy = take(&dispatch, 0, now);
    for (number, turn) in [(1, 7), (2, 7), (3, 0), (4, 7), (5, 0), (6, 9)] {
        let _ = wait(&dispatch, 0, number, turn, now);
    }
    assert_eq!(served(&dispatch, busy, now), [1, 3, 5, 6, 2, 4]);
}

#[test]
fn one_that_leaves_costs_its_client_no_turn() {
    let (dispatch, _, now) = with_policy(fair(100), 1);
    let busy = take(&dispatch, 0, now);
    let tickets: Vec<Ticket> =
        [(1, 7), (2, 8), (3, 7), (4, 8), (5, 7)].map(|(number, turn)| wait(&dispatch, 0, number, turn, now)).into();
    // The first of its key, and one behind.
    assert!(dispatch.cancel(tickets[0]) && dispatch.cancel(tickets[3]));
    dispatch.check_invariants();
    assert!(!dispatch.cancel(tickets[0]));
    assert_eq!(served(&dispatch, busy, now), [3, 2, 5]);
}

#[test]
fn who_comes_back_to_the_line_stands_before_all_turns() {
    let (dispatch, _, now) = with_policy(fair(100), 1);
    let busy = take(&dispatch, 0, now);
    for (number, turn) in [(1, 7), (2, 7), (3, 8)] {
        let _ = wait(&dispatch, 0, number, turn, now);
    }
    let again = Ask { front: true, ..of(7, now) };
    let _ = ticket(dispatch.acquire(waiter(4), again, now));
    assert_eq!(served(&dispatch, busy, now), [4, 1, 3, 2]);
}

#[test]
fn one_client_never_has_the_whole_line() {
    let (dispatch, _, now) = with_policy(fair(9), 1);
    let busy = take(&dispatch, 0, now);
    let mut asked = 0;
    let mut wait = |turn| {
        asked += 1;
        assert_eq!(dispatch.queue_is_full(turn), {
            let answer = dispatch.acquire(waiter(asked), of(turn, now), now);
            matches!(answer, Acquire::Full)
        });
        dispatch.snapshot().queue_depth
    };
    let filled: Vec<usize> = (0..7).map(|_| wait(7)).collect();
    assert_eq!(filled, [1, 2, 3, 4, 5, 5, 5], "as many as are left to the others");
    assert_eq!([wait(8), wait(8), wait(8), wait(9), wait(10), wait(11)], [6, 7, 7, 8, 9, 9]);
    let _ = served(&dispatch, busy, now);
}

#[test]
fn who_waits_for_a_tunnel_holds_up_nobody_of_its_client() {
    let policy = Policy { max_tunnels: 1, concurrency: 2, ..fair(100) };
    let (dispatch, _, now) = with_policy(policy, 1);
    let tunnel = Ask { tunnel: true, ..of(7, now) };
    let (upgrade, other) = (grant(dispatch.acquire(waiter(1), tunnel, now)), take(&dispatch, 2, now));
    // Both slots are taken, but this one may be had by whoever wants no tunnel.
    let _ = (wait(&dispatch, 0, 3, 7, now), wait(&dispatch, 0, 4, 7, now));
    assert!(matches!(dispatch.acquire(waiter(5), tunnel, now), Acquire::NoTunnel));
    let next = dispatch.release(other, Outcome::Answered, now, 0).unwrap();
    assert_eq!(next.waiter, waiter(3));
    let last = dispatch.release(upgrade, Outcome::Tunnel, now, 0).unwrap();
    assert_eq!(last.waiter, waiter(4));
    for permit in [next.permit, last.permit] {
        assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
    }
}

#[test]
fn turns_begin_and_end_while_many_wait() {
    let (dispatch, _, now) = with_policy(Policy { fair: false, ..fair(4000) }, 1);
    let busy = take(&dispatch, 0, now);
    let mut number = 0;
    let mut wait_many = |keys: &[u64]| {
        for &key in keys {
            number += 1;
            let _ = wait(&dispatch, 0, number, key, now);
            dispatch.check_invariants();
        }
    };
    wait_many(&[7, 7, 8]);
    dispatch.set_policy(fair(4000));
    wait_many(&[7, 7, 8]);
    // More room, with keys that are known and free ones.
    dispatch.set_policy(fair(200_000));
    wait_many(&[7, 9]);
    // Those who have keys keep them.
    dispatch.set_policy(Policy { fair: false, ..fair(4000) });
    wait_many(&[0, 0]);
    assert_eq!(served(&dispatch, busy, now), [1, 2, 3, 4, 6, 8, 9, 10, 5, 7]);
    dispatch.set_policy(Policy { fair: false, ..fair(4000) });
    let busy = take(&dispatch, 0, now);
    let _ = (wait(&dispatch, 0, 1, 7, now), wait(&dispatch, 0, 2, 7, now), wait(&dispatch, 0, 3, 8, now));
    assert_eq!(served(&dispatch, busy, now), [1, 2, 3]);
}

/// Many keys that come and go: each is found again, whatever was freed before.
#[test]
fn thousands_of_clients_have_a_turn_each() {
    let (dispatch, _, now) = with_policy(fair(5000), 1);
    for round in 0..3_u64 {
        let busy = take(&dispatch, 0, now);
        for number in 0..4000_u32 {
            let turn = dispatch.key(&[&(number % 2000).to_be_bytes()[..], &round.to_be_bytes()].concat());
            let _ = wait(&dispatch, 0, number + 1, turn, now);
        }
        dispatch.check_invariants();
        let mut permit = busy;
        for number in 1..=4000 {
            let grant = dispatch.release(permit, Outcome::Answered, now, 0).unwrap();
            assert_eq!(grant.waiter.exchange.index, number);
            permit = grant.permit;
        }
        assert!(dispatch.release(permit, Outcome::Answered, now, 0).is_none());
        dispatch.check_invariants();
    }
}
