//! Failures in a row, and workers that may have fewer requests than others.

use super::*;

/// An upstream and another, both ready.
fn upstreams(concurrency: u32) -> (Dispatch, Vec<WorkerId>, Instant) {
    let now = Instant::now();
    let dispatch = Dispatch::new(policy(Balance::RoundRobin, concurrency), 8, now);
    let add = |_| {
        let id = dispatch.add(Target { supervised: false, ..at_nowhere("http://a") }, 1, None).unwrap();
        assert!(dispatch.ready(id, now).is_empty());
        id
    };
    let ids = (0..2).map(add).collect();
    (dispatch, ids, now)
}

/// One request that ends so, on that worker.
fn request(dispatch: &Dispatch, worker: WorkerId, outcome: Outcome, now: Instant) {
    let mut others = Vec::new();
    let permit = loop {
        let permit = take(dispatch, 1, now);
        if permit.worker() == worker {
            break permit;
        }
        others.push(permit);
    };
    assert!(dispatch.release(permit, outcome, now, 0).is_none());
    for permit in others {
        assert!(dispatch.release(permit, Outcome::Unused, now, 0).is_none());
    }
    dispatch.check_invariants();
}

#[test]
fn three_failures_in_a_row_are_told_and_a_success_between_them_begins_the_row_anew() {
    let (dispatch, ids, now) = upstreams(2);
    let bad = ids[0];
    for outcome in [Outcome::Failed, Outcome::Malformed, Outcome::Answered, Outcome::Lost, Outcome::Failed] {
        request(&dispatch, bad, outcome, now);
        assert_eq!(notices(&dispatch), []);
    }
    // These say nothing.
    for outcome in [Outcome::Broken, Outcome::Late, Outcome::Unused] {
        request(&dispatch, bad, outcome, now);
    }
    assert_eq!(notices(&dispatch), []);
    dispatch.suspect(bad);
    assert_eq!(notices(&dispatch), [Notice::Suspect(bad), Notice::Failing(bad)]);
    // Each connect that is found to fail is one, however often it was tried meanwhile.
    for round in 0..3 {
        let permits = [take(&dispatch, 1, now), take(&dispatch, 2, now), take(&dispatch, 3, now)];
        for permit in permits {
            let outcome = if permit.worker() == bad { Outcome::Unreachable } else { Outcome::Unused };
            drop(dispatch.release(permit, outcome, now, 0));
        }
        let failing = (round == 2).then_some(Notice::Failing(bad));
        let expected: Vec<Notice> = [Notice::Unreachable(bad)].into_iter().chain(failing).collect();
        assert_eq!(notices(&dispatch), expected);
        assert!(dispatch.ready(bad, now).is_empty());
    }
}

#[test]
fn workers_of_ours_do_not_fail_in_a_row() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 1);
    for _ in 0..5 {
        request(&dispatch, ids[0], Outcome::Failed, now);
    }
    assert_eq!(notices(&dispatch), []);
}

#[test]
fn on_trial_few_requests_are_given_each_answer_is_told_and_the_first_failure() {
    let (dispatch, ids, now) = upstreams(4);
    let (tried, other) = (ids[0], ids[1]);
    dispatch.drain(other, now);
    notices(&dispatch);
    assert!(dispatch.limit(tried, Some(1)).is_empty());
    let one = take(&dispatch, 1, now);
    let (_second, _third) = (wait(&dispatch, 2, now), wait(&dispatch, 3, now));
    assert_eq!(dispatch.snapshot().queue_depth, 2);
    let next = dispatch.release(one, Outcome::Answered, now, 0).expect("one at a time");
    assert_eq!(notices(&dispatch), [Notice::Recovers(tried)]);
    let more = dispatch.limit(tried, Some(2));
    assert_eq!(more.len(), 1, "who waits has the new slot");
    dispatch.check_invariants();
    let permits = more.into_iter().map(|grant| grant.permit).chain([next.permit]);
    for (index, permit) in permits.enumerate() {
        assert!(dispatch.release(permit, Outcome::Failed, now, 0).is_none());
        let failing = [Notice::Failing(tried)];
        assert_eq!(notices(&dispatch), failing, "{index}");
    }
    assert!(dispatch.limit(tried, None).is_empty());
    let permits: Vec<Permit> = (0..4).map(|number| take(&dispatch, number, now)).collect();
    give_back(&dispatch, permits, now);
    assert_eq!(notices(&dispatch), []);
}

#[test]
fn a_slot_can_be_kept_from_requests() {
    let (dispatch, ids, now) = with_ready(Balance::Lifo, 1, 1);
    let worker = ids[0];
    // It is idle.
    assert_eq!(dispatch.spare(worker), Some(true));
    let waits = wait(&dispatch, 1, now);
    dispatch.check_invariants();
    let granted = dispatch.unspare(worker);
    assert_eq!(granted.len(), 1, "who waits has it back");
    assert_eq!(dispatch.patience(waits, now + Duration::from_secs(9), now), Patience::Granted);
    // It is busy: its request goes on, and the next one waits.
    assert_eq!(dispatch.spare(worker), Some(false));
    let _ = wait(&dispatch, 2, now);
    assert_eq!(notices(&dispatch), []);
    for grant in granted {
        assert!(dispatch.release(grant.permit, Outcome::Answered, now, 0).is_none());
    }
    assert_eq!(notices(&dispatch), [Notice::Spared(worker)]);
    dispatch.check_invariants();
    for grant in dispatch.unspare(worker) {
        assert!(dispatch.release(grant.permit, Outcome::Answered, now, 0).is_none());
    }
    assert_eq!((notices(&dispatch), dispatch.snapshot().workers[0].in_flight), (Vec::new(), 0));
    assert_eq!(dispatch.spare(Key { index: 7, generation: 7 }), None);
}
