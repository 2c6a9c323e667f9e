//! How limits count, at times that the tests name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn policy(count: u64, burst: u64) -> Policy {
    Policy { burst, ..Policy::new("test", Rate { count, per: Duration::from_secs(60) }) }
}

/// How many of a key's requests pass that come at each of these times.
fn passes(limit: &Limit, key: u64, policy: &Policy, times: impl Iterator<Item = u64>) -> usize {
    times.filter(|now| limit.take(key, policy, *now) == Verdict::Pass).count()
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let (limit, policy) = (Limit::default(), policy(300, 10));
    assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(SECOND, 50)), 10);
    assert_eq!(limit.take(1, &policy, SECOND), Verdict::Refuse(SECOND / 5));
    assert_eq!((limit.refuses(1, &policy, SECOND), limit.refuses(2, &policy, SECOND)), (Some(SECOND / 5), None));
    // One each 200 ms, whoever else is refused meanwhile.
    assert_eq!(passes(&limit, 1, &policy, (1..=600_000).map(|at| SECOND + at * 100_000)), 300);
    assert_eq!(limit.take(2, &policy, SECOND), Verdict::Pass, "another key has its own allowance");
    // After a rest the whole burst is there again, and no more.
    assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(1000 * SECOND, 50)), 10);
}

#[test]
fn what_is_given_back_may_be_taken_again() {
    let (limit, policy) = (Limit::default(), policy(6, 2));
    assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(SECOND, 3)), 2);
    limit.give_back(1, &policy);
    assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(SECOND, 3)), 1);
    // Nothing is had of what nobody remembers, and nobody has more than a burst.
    (0..5).for_each(|_| limit.give_back(2, &policy));
    assert_eq!(passes(&limit, 2, &policy, std::iter::repeat_n(SECOND, 3)), 2);
    (0..5).for_each(|_| limit.give_back(1, &policy));
    assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(SECOND, 3)), 2);
    // Whatever was known of it at other times.
    for round in 1..9 {
        let now = round * 100 * SECOND;
        assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(now, 3)), 2);
        limit.give_back(1, &policy);
        assert_eq!(passes(&limit, 1, &policy, std::iter::repeat_n(now, 3)), 1, "{round}");
    }
}

#[test]
fn who_waits_is_served_in_turn_and_who_would_wait_too_long_is_refused() {
    let limit = Limit::default();
    let policy = Policy { delay: Duration::from_millis(500), ..policy(300, 2) };
    let verdicts: Vec<Verdict> = (0..5).map(|_| limit.take(1, &policy, SECOND)).collect();
    let step = SECOND / 5;
    let refused = Verdict::Refuse(3 * step);
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Pass, Verdict::Wait(step), Verdict::Wait(2 * step), refused]);
    assert_eq!(limit.take(1, &policy, SECOND + step), Verdict::Wait(2 * step), "a refusal has cost nothing");
}

/// An honest client among a million addresses that each come once or twice in a minute, and one that floods at fifty times its rate.
#[test]
fn a_million_addresses_change_nothing_for_the_others() {
    let (limit, policy) = (Limit::default(), policy(300, 300));
    let memory = |limit: &Limit| {
        let entries: usize = limit.shards.iter().map(|shard| lock(shard).len() * WAYS).sum();
        entries * size_of::<Entry>()
    };
    let (mut refused, mut flooded) = (0, 0);
    let minutes = 4;
    let step = 60 * SECOND / 15_000;
    let mut crowd = 0_u64;
    for at in 0..15_000 * minutes {
        let now = SECOND + at * step;
        // 250 a second of the flood, against 5.
        flooded += u64::from(limit.take(limit.key(b"flood"), &policy, now) == Verdict::Pass);
        // A hundred honest ones, each exactly at its rate.
        if at % 50 == 0 {
            for honest in 0..100_u64 {
                let key = limit.key(&honest.to_le_bytes());
                refused += u64::from(limit.take(key, &policy, now) != Verdict::Pass);
            }
        }
        for _ in 0..20 {
            crowd += 1;
            limit.take(limit.key(&[(crowd % 1_000_000).to_le_bytes(), [1; 8]].concat()), &policy, now);
        }
    }
    assert!(crowd >= 1_000_000);
    assert_eq!(memory(&limit), ENTRIES * 16, "the memory is what it was");
    assert_eq!(refused, 0, "an honest client was refused");
    let allowed = 300 + 300 * minutes;
    assert!(flooded.abs_diff(allowed) * 100 <= allowed, "{flooded} of the flood passed where {allowed} may");
}

#[test]
fn whoever_floods_is_not_forgotten_where_a_row_is_full() {
    let (limit, policy) = (Limit::default(), policy(60, 60));
    let key = |number: u64| number << 32 | 7;
    for _ in 0..1000 {
        limit.take(key(0), &policy, SECOND);
    }
    // All of the same row, which has four places.
    for other in 1..10_000 {
        assert_eq!(limit.take(key(other), &policy, SECOND), Verdict::Pass);
    }
    assert!(matches!(limit.take(key(0), &policy, SECOND), Verdict::Refuse(_)));
    assert_eq!(limit.forgotten.load(Ordering::Relaxed), 10_000 - WAYS as u64);
}

#[test]
fn another_policy_holds_at_once_and_forgets_nobody() {
    let limit = Limit::default();
    let strict = policy(1, 1);
    assert_eq!(limit.take(1, &strict, SECOND), Verdict::Pass);
    assert_eq!(limit.take(1, &strict, SECOND), Verdict::Refuse(60 * SECOND));
    // A minute was taken from it: of the new allowance that is all, and it comes back at the new rate.
    let loose = policy(600, 10);
    assert_eq!(limit.take(1, &loose, SECOND), Verdict::Refuse(SECOND / 10));
    assert_eq!(limit.take(1, &loose, SECOND + SECOND / 10), Verdict::Pass);
    assert_eq!(limit.take(1, &loose, SECOND + SECOND / 10), Verdict::Refuse(SECOND / 10));
}

#[test]
fn limits_are_known_by_their_names_as_long_as_they_are_used() {
    let registry = Registry::default();
    let first = registry.get("a");
    assert_eq!(first.take(1, &policy(1, 1), 0), Verdict::Pass);
    assert!(Arc::ptr_eq(&first, &registry.get("a")) && !Arc::ptr_eq(&first, &registry.get("b")));
    assert_eq!(registry.all().len(), 1, "nobody has kept the other");
    drop(first);
    assert_eq!(registry.get("a").take(1, &policy(1, 1), 0), Verdict::Pass, "it was forgotten");
}

#[test]
fn addresses_are_counted_by_their_networks() {
    let of = |text: &str| network(Some(text.parse().unwrap()), 32, 64);
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_ne!(of("::"), network(None, 32, 64));
    let wide = |text: &str| network(Some(text.parse().unwrap()), 24, 48);
    assert_eq!(wide("10.0.0.1"), wide("10.0.0.255"));
    assert_ne!(wide("10.0.0.1"), wide("10.0.1.1"));
    assert_eq!(wide("2001:db8:0:1::1"), wide("2001:db8::1"));
}

#[test]
fn the_busiest_are_told_in_fixed_memory() {
    let mut busiest = Busiest::default();
    for at in 0..100_000_u64 {
        busiest.count(0, || "flood".to_owned());
        if at % 10 == 0 {
            busiest.count(1 + at, || format!("{at}"));
        }
    }
    let shown = busiest.shown();
    assert_eq!((shown[0].key.as_str(), shown[0].count, shown.len()), ("flood", 100_000, 16));
    busiest.count(7, || "x".repeat(1000));
    assert!(busiest.shown().iter().all(|busy| busy.key.len() <= 64));
}

#[test]
fn clients_are_told_when_to_come_back() {
    assert_eq!(retry_after(1, 0), 1);
    assert_eq!(retry_after(10 * SECOND, 0), 10);
    for random in 0..4096 {
        assert!((100..=110).contains(&retry_after(100 * SECOND, random)));
    }
    assert!((0..4096).any(|random| retry_after(100 * SECOND, random) > 105));
    assert_eq!(policy(300, 300).field(), "\"test\";q=300;w=60");
    assert_eq!(policy(300, 1).field(), "\"test\";q=1;w=1");
}

#[test]
fn connections_are_counted_exactly() {
    let crowd = Crowd::default();
    let (one, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
    assert!(crowd.enter(one, 2) && crowd.enter(one, 2) && !crowd.enter(one, 2) && crowd.enter(other, 2));
    crowd.leave(one);
    assert!(crowd.enter(one, 2) && !crowd.enter(one, 2));
    for address in [one, one, other] {
        crowd.leave(address);
    }
    assert!(crowd.is_empty());
}

#[test]
fn a_route_has_as_many_requests_under_way_as_it_may() {
    let registry = Registry::default();
    let flight = registry.flight("/report");
    let seats = [flight.take(2), flight.take(2)];
    assert!(seats.iter().all(Option::is_some) && flight.take(2).is_none());
    let again = registry.flight("/report");
    drop(flight);
    assert_eq!((again.count(), registry.flight("/other").count()), (2, 0), "a reload forgets nobody");
    drop(seats);
    assert_eq!(again.count(), 0);
}

/// What is said of that limit.
fn kept(registry: &Registry, name: &str, now: Instant) -> serde_json::Value {
    serde_json::to_value(registry.keep(now).find(|kept| kept.name == name).unwrap()).unwrap()
}

#[test]
fn what_was_used_is_used_at_the_next_server() {
    let (old, new) = (Registry::default(), Registry::default());
    let [before, after] = [&old, &new].map(|registry| registry.get("a"));
    let policy = policy(60, 3);
    let start = Instant::now();
    let at = |registry: &Registry, seconds: u64| registry.nanos(start + Duration::from_secs(seconds));
    // The clocks of both count from different times.
    let ask = |registry: &Registry, limit: &Limit, who: &[u8], seconds| {
        limit.take(limit.key(who), &policy, at(registry, seconds))
    };
    for _ in 0..3 {
        assert_eq!(ask(&old, &before, b"greedy", 100), Verdict::Pass);
    }
    assert_eq!(ask(&old, &before, b"modest", 100), Verdict::Pass);
    assert_eq!(ask(&old, &before, b"gone", 1), Verdict::Pass);
    let told = kept(&old, "a", start + Duration::from_secs(100));
    assert_eq!(
        told["entries"].as_str().unwrap().len(),
        44,
        "two of sixteen bytes, and nothing of whom there is nothing to say"
    );
    new.restore(told.clone(), start + Duration::from_secs(1000)).unwrap();
    assert_eq!(ask(&new, &after, b"greedy", 1000), Verdict::Refuse(SECOND));
    assert_eq!(
        [(); 3].map(|()| ask(&new, &after, b"modest", 1000)),
        [Verdict::Pass, Verdict::Pass, Verdict::Refuse(SECOND)]
    );
    assert_eq!(ask(&new, &after, b"greedy", 1001), Verdict::Pass, "its time has come");
    // Told again, it takes nothing back of what was used here.
    new.restore(told, start + Duration::from_secs(1001)).unwrap();
    assert_eq!(ask(&new, &after, b"greedy", 1001), Verdict::Refuse(SECOND));
    // A third one learns of it by the second.
    let third = Registry::default();
    let last = third.get("a");
    third.restore(kept(&new, "a", start + Duration::from_secs(1001)), start).unwrap();
    assert_eq!(ask(&third, &last, b"greedy", 0), Verdict::Refuse(SECOND));
}

#[test]
fn what_is_told_of_a_limit_has_a_bound_and_is_not_believed() {
    let (old, new, now) = (Registry::default(), Registry::default(), Instant::now());
    let [full, limit] = [&old, &new].map(|registry| registry.get("a"));
    let policy = policy(1, 1);
    for number in 0..12 * ENTRIES as u64 {
        full.take(full.key(&number.to_le_bytes()), &policy, old.nanos(now));
    }
    let told = kept(&old, "a", now);
    assert!(told.to_string().len() < 2 << 20);
    let with = |name: &str, value: serde_json::Value| {
        let mut told = told.clone();
        told[name] = value;
        told
    };
    let entries = told["entries"].as_str().unwrap();
    let secret = |limit: &Limit| limit.key(b"who");
    let before = secret(&limit);
    for wrong in [
        serde_json::json!(null),
        serde_json::json!({ "name": "a" }),
        with("form", 2.into()),
        with("secret", serde_json::json!([1])),
        with("entries", 7.into()),
        with("entries", "no base64".into()),
        with("entries", "AAAA".into()),
        with("entries", STANDARD.encode(vec![7; (ENTRIES + 1) * 16]).into()),
    ] {
        assert!(new.restore(wrong.clone(), now).is_err(), "{wrong:.200}");
        assert_eq!((secret(&limit), limit.left(1, &policy, 0)), (before, (1, 0)), "nothing has changed");
    }
    // Nobody is called so here.
    new.restore(with("name", "b".into()), now).unwrap();
    assert_eq!(secret(&limit), before);
    // A time that cannot be is no longer than the limit has it.
    let never = STANDARD.encode([7_u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat());
    new.restore(with("entries", never.into()), now).unwrap();
    assert_eq!(limit.take(7, &policy, SECOND), Verdict::Refuse(60 * SECOND));
    assert_eq!(limit.take(7, &policy, 61 * SECOND), Verdict::Pass);
    assert_eq!(entries.len(), (ENTRIES * 16).div_ceil(3) * 4, "all places are taken");
}
