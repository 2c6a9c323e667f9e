//! The planner before a clock that is moved by hand, and before authorities of all kinds for a hundred thousand years.

use std::collections::VecDeque;

use super::*;

const T0: i64 = 1_800_000_000;

fn days(from: i64, to: i64) -> Span {
    Span { not_before: T0 + from * DAY, not_after: T0 + to * DAY }
}

#[test]
fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
    let mut planner = Planner::new(Brakes::default(), Some(days(0, 90)));
    planner.suggests_nothing(T0 + 59 * DAY, Some(DAY));
    assert_eq!(planner.next(T0 + 59 * DAY), Step::Wait(T0 + 60 * DAY));
    assert_eq!(planner.next(T0 + 60 * DAY), Step::Order(Reason::Third));
    assert_eq!(planner.next(T0 + 86 * DAY), Step::Order(Reason::Late));
    assert_eq!(planner.next(T0 + 200 * DAY), Step::Order(Reason::Emergency));
    assert_eq!(Planner::new(Brakes::default(), None).next(T0), Step::Order(Reason::Missing));
}

#[test]
fn a_window_moves_the_renewal_until_a_twentieth_of_the_life_is_left() {
    let mut planner = Planner::new(Brakes::default(), Some(days(0, 100)));
    assert_eq!(planner.next(T0), Step::PollAri);
    planner.suggested(T0, (T0 + 10 * DAY, T0 + 20 * DAY), Some(DAY), u32::MAX / 2 + 1);
    assert_eq!(planner.outlook(T0), (Reason::Suggested, T0 + 15 * DAY));
    planner.suggested(T0, (T0 + 10 * DAY, T0 + 20 * DAY), Some(DAY), 0);
    assert_eq!(planner.outlook(T0), (Reason::Suggested, T0 + 15 * DAY), "the same window, the same choice");
    assert_eq!(planner.next(T0), Step::Wait(T0 + DAY));
    assert_eq!(planner.next(T0 + DAY), Step::PollAri);
    assert_eq!(planner.next(T0 + 15 * DAY), Step::Order(Reason::Suggested));
    planner.suggested(T0, (T0 + 97 * DAY, T0 + 99 * DAY), None, 0);
    assert_eq!(planner.outlook(T0), (Reason::Late, T0 + 95 * DAY));
    planner.suggested(T0, (T0 + 20 * DAY, T0 + 10 * DAY), None, 0);
    assert_eq!(planner.outlook(T0), (Reason::Third, T0 + 66 * DAY + 16 * HOUR), "a window that ends before it begins");
}

#[test]
fn failures_climb_the_ladder_and_a_success_leaves_it() {
    let mut planner = Planner::new(Brakes::default(), None);
    let mut now = T0;
    for minutes in LADDER {
        assert_eq!(planner.next(now), Step::Order(Reason::Missing));
        planner.begin(now);
        planner.failed(now, None);
        assert_eq!(planner.next(now), Step::Wait(now + minutes * MINUTE));
        now += minutes * MINUTE;
    }
    now += PATIENCE;
    planner.begin(now);
    planner.failed(now, None);
    assert_eq!(planner.next(now), Step::Wait(now + DAY), "for a month there was no success");
    planner.failed(now, Some(3 * DAY));
    assert_eq!(planner.next(now), Step::Wait(now + 3 * DAY), "the authority has said so");
    assert!(planner.obtained(now, Span { not_before: now, not_after: now + 90 * DAY }));
    assert_eq!(planner.brakes().failures, 0);
}

#[test]
fn a_restart_tries_again_soon_and_not_at_once() {
    let mut planner = Planner::new(Brakes::default(), None);
    for _ in 0..20 {
        planner.begin(T0);
    }
    assert_eq!(planner.next(T0), Step::Wait(T0 + 2 * HOUR), "one that was never heard of again");
    let text = serde_json::to_string(planner.brakes()).unwrap();
    let mut again = Planner::new(serde_json::from_str(&text).unwrap(), None);
    assert_eq!(again.next(T0), Step::Wait(T0 + AFTER_RESTART));
}

#[test]
fn a_certificate_that_ends_earlier_does_not_replace_one() {
    let mut planner = Planner::new(Brakes::default(), Some(days(0, 90)));
    planner.begin(T0 + 80 * DAY);
    assert!(!planner.obtained(T0 + 80 * DAY, days(80, 86)));
    assert_eq!(planner.next(T0 + 80 * DAY), Step::Wait(T0 + 80 * DAY + MINUTE), "it counts as a failure");
    assert!(planner.obtained(T0 + 80 * DAY, days(80, 90)));
}

#[test]
fn a_clock_that_was_wrong_does_not_stop_it_for_ever() {
    let mut planner = Planner::new(Brakes::default(), None);
    let wrong = T0 + 10_000 * DAY;
    planner.begin(wrong);
    assert!(planner.order_begins(wrong) && planner.order_begins(wrong) && !planner.order_begins(wrong));
    planner.failed(wrong, Some(DAY));
    assert_eq!(planner.next(T0), Step::Wait(T0 + LONGEST_WAIT));
    assert_eq!(planner.next(T0 + LONGEST_WAIT), Step::Order(Reason::Missing));
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: u64) -> i64 {
        (self.next() % most) as i64
    }

    fn happens(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// How an authority behaves, in percent.
#[derive(Debug)]
struct Authority {
    fails_before: u64,
    fails_validation: u64,
    fails_order: u64,
    /// Certificates of odd spans: backdated, ended, of no life at all.
    odd: u64,
    suggests: u64,
    /// Windows that are over, far, or end before they begin.
    odd_windows: u64,
    crashes: u64,
    life: i64,
}

/// What the brakes promise, counted without the planner.
#[derive(Default)]
struct Witness {
    orders: VecDeque<i64>,
    failed: VecDeque<i64>,
    held: Option<Span>,
    dark: i64,
}

fn note(times: &mut VecDeque<i64>, now: i64, period: i64, most: usize, what: &str) {
    times.push_back(now);
    while times.front().is_some_and(|time| *time <= now - period) {
        times.pop_front();
    }
    assert!(times.len() <= most, "{what}: {times:?}");
}

fn attempt(planner: &mut Planner, now: i64, authority: &Authority, random: &mut Random, witness: &mut Witness) {
    planner.begin(now);
    if random.happens(authority.fails_before) {
        return planner.failed(now, random.happens(10).then(|| random.below(100_000)));
    }
    for _ in 0..1 + random.below(3) {
        if !planner.validation_begins(now) {
            return planner.failed(now, None);
        }
        if random.happens(authority.fails_validation) {
            note(&mut witness.failed, now, HOUR, FAILURES_AN_HOUR, "validations that failed");
            return if random.happens(50) {
                planner.failed(now, None)
            };
        }
        planner.validation_succeeded();
    }
    if !planner.order_begins(now) {
        return planner.failed(now, None);
    }
    note(&mut witness.orders, now, DAY, ORDERS_A_DAY, "orders");
    if random.happens(authority.fails_order) {
        return planner.failed(now, None);
    }
    let span = match random.happens(authority.odd) {
        true => Span {
            not_before: now - random.below(400 * DAY as u64),
            not_after: now + random.below(60 * DAY as u64) - 30 * DAY,
        },
        false => Span { not_before: now - HOUR, not_after: now + authority.life },
    };
    let took = planner.obtained(now, span);
    let before = witness.held.map_or(i64::MIN, |held| held.not_after);
    assert_eq!(took, span.not_after >= before, "{span:?} beside {:?}", witness.held);
    if took {
        witness.held = Some(span);
    }
}

fn live(authority: &Authority, years: i64, random: &mut Random) -> Witness {
    let mut witness = Witness::default();
    let mut planner = Planner::new(Brakes::default(), None);
    let mut now = T0;
    while now < T0 + years * 365 * DAY {
        match planner.next(now) {
            Step::Order(_) => attempt(&mut planner, now, authority, random, &mut witness),
            Step::PollAri if random.happens(authority.suggests) => {
                let start = match random.happens(authority.odd_windows) {
                    true => now + random.below(200 * DAY as u64) - 150 * DAY,
                    false => witness.held.map_or(now, |held| held.left(3)),
                };
                let length = authority.life / 20;
                let window = (start, start + random.below(length as u64) - random.below(length as u64 / 4));
                planner.suggested(now, window, Some(DAY), random.next() as u32);
            }
            Step::PollAri if authority.suggests > 0 => planner.suggests_nothing(now, Some(DAY)),
            Step::PollAri => planner.never_suggests(),
            Step::Wait(until) => {
                assert!(until > now, "it waits for what is over");
                witness.dark += (until - witness.held.map_or(now, |held| held.not_after.max(now))).max(0);
                now = until + random.below(3);
            }
        }
        if random.happens(authority.crashes) {
            let text = serde_json::to_string(planner.brakes()).unwrap();
            planner = Planner::new(serde_json::from_str(&text).unwrap(), witness.held);
        }
    }
    witness
}

#[test]
fn brakes_hold_for_a_hundred_thousand_years_of_all_authorities() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut years = 0;
    while years < 100_000 {
        // Those that are asked daily, or fail daily, take the most turns, and are the fewer for it.
        let (asks, hostile) = (random.happens(5), random.happens(2));
        let most = if hostile { 101 } else { 25 };
        let mut percent = || if random.happens(40) { 0 } else { random.next() % most };
        let authority = Authority {
            fails_before: percent(),
            fails_validation: percent(),
            fails_order: percent(),
            odd: if hostile { percent() } else { percent() / 5 },
            suggests: if asks { 50 + percent() / 2 } else { 0 },
            odd_windows: percent(),
            crashes: percent() / 50,
            life: 6 * DAY + random.below(100 * DAY as u64),
        };
        live(&authority, 25, &mut random);
        years += 25;
    }
}

#[test]
fn with_an_authority_that_mostly_works_no_certificate_ever_ends() {
    let mut random = Random(7);
    for life in [6 * DAY, 45 * DAY, 90 * DAY] {
        let authority = Authority {
            fails_before: 20,
            fails_validation: 20,
            fails_order: 5,
            odd: 0,
            suggests: 90,
            odd_windows: 0,
            crashes: 1,
            life,
        };
        let witness = live(&authority, 300, &mut random);
        // The first order may fail, too; nothing after it leaves clients without a certificate.
        assert!(witness.dark < DAY, "{life}: {} seconds without a certificate", witness.dark);
    }
}
