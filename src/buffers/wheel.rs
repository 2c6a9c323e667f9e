//! The timing wheel: one deadline for each index of a loop's connection array.
//!
//! Lazy: moving a deadline later, which happens with every request, only writes it down; the entry is looked at when
//! its old place in the wheel comes up, and put where it now belongs. So the cost is that of what falls due and not of
//! what is open. Never early, late by at most one tick plus the loop's turn.

use std::time::{Duration, Instant};

/// The grain of all deadlines.
pub const TICK: Duration = Duration::from_millis(10);
const TICK_NANOS: u64 = 10_000_000;
/// Places in the wheel: 82 s. What is due later is looked at once a round.
const SLOTS: u32 = 8192;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Timer {
    previous: u32,
    next: u32,
    /// When the entry is due, in ticks since the start.
    due: u32,
    /// At which tick the wheel will look at it; at most `due`.
    place: u32,
}

const IDLE: Timer = Timer { previous: NONE, next: NONE, due: 0, place: NONE };

/// Deadlines by index.
pub struct Wheel {
    start: Instant,
    timers: Vec<Timer>,
    heads: Box<[u32]>,
    occupied: Box<[u64]>,
    /// All ticks below this one were looked at.
    current: u32,
    /// No occupied place comes before this tick; what was taken out may leave it too early, never too late.
    earliest: u32,
    /// The turn's time, in nanoseconds since the start.
    now: u64,
    armed: usize,
}

impl Wheel {
    /// A wheel whose time starts at `start`, with room reserved for `capacity` timers.
    pub fn new(start: Instant, capacity: usize) -> Wheel {
        Wheel {
            start,
            timers: Vec::with_capacity(capacity),
            heads: vec![NONE; SLOTS as usize].into_boxed_slice(),
            occupied: vec![0; SLOTS as usize / 64].into_boxed_slice(),
            current: 0,
            earliest: NONE,
            now: 0,
            armed: 0,
        }
    }

    /// Begins a turn at `now`.
    pub fn turn(&mut self, now: Instant) {
        self.now = nanos(now.saturating_duration_since(self.start));
    }

    /// The turn's time, in nanoseconds since the wheel's start: for those who compare times more often than is cheap with `Instant`.
    pub fn now_nanos(&self) -> u64 {
        self.now
    }

    /// Sets the deadline of `index` to `wait` from the turn's time on, replacing the one it had.
    pub fn arm_after(&mut self, index: u32, wait: Duration) {
        self.arm_at(index, self.now + nanos(wait));
    }

    /// Sets the deadline of `index`, replacing the one it had.
    pub fn arm(&mut self, index: u32, deadline: Instant) {
        self.arm_at(index, nanos(deadline.saturating_duration_since(self.start)));
    }

    fn arm_at(&mut self, index: u32, deadline: u64) {
        if self.timers.len() <= index as usize {
            self.timers.resize(index as usize + 1, IDLE);
        }
        let due = ticks(deadline.div_ceil(TICK_NANOS)).max(self.current);
        let timer = &mut self.timers[index as usize];
        timer.due = due;
        if timer.place != NONE && timer.place <= due {
            return;
        }
        if timer.place != NONE {
            self.unlink(index);
        }
        self.link(index);
    }

    /// Takes the deadline of `index` away, if it has one.
    pub fn disarm(&mut self, index: u32) {
        if self.timers.get(index as usize).is_some_and(|timer| timer.place != NONE) {
            self.unlink(index);
        }
    }

    /// The next index whose deadline has passed at the turn's time; it has none afterwards.
    #[inline]
    pub fn expire(&mut self) -> Option<u32> {
        let now = ticks(self.now / TICK_NANOS);
        if now < self.earliest { None } else { self.expire_by(now) }
    }

    fn expire_by(&mut self, now: u32) -> Option<u32> {
        while self.current <= now {
            let slot = self.current % SLOTS;
            let index = self.heads[slot as usize];
            if index == NONE {
                let next = self.next_occupied();
                self.earliest = next.unwrap_or(NONE);
                self.current = next.map_or(now + 1, |tick| tick.min(now + 1)).max(self.current + 1);
                continue;
            }
            self.unlink(index);
            if self.timers[index as usize].due <= now {
                return Some(index);
            }
            self.link(index);
        }
        None
    }

    /// How long a loop may sleep from the turn's time on before it has to look: `None` while nothing is armed.
    pub fn sleep(&self) -> Option<Duration> {
        (self.armed > 0).then(|| Duration::from_nanos((u64::from(self.earliest) * TICK_NANOS).saturating_sub(self.now)))
    }

    /// How many deadlines are set.
    pub fn armed(&self) -> usize {
        self.armed
    }

    fn link(&mut self, index: u32) {
        let due = self.timers[index as usize].due;
        let place = due.clamp(self.current, self.current + SLOTS - 1);
        let slot = (place % SLOTS) as usize;
        let next = self.heads[slot];
        if next != NONE {
            self.timers[next as usize].previous = index;
        }
        self.timers[index as usize] = Timer { previous: NONE, next, due, place };
        self.heads[slot] = index;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.earliest = self.earliest.min(place);
        self.armed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let timer = self.timers[index as usize];
        let slot = (timer.place % SLOTS) as usize;
        match timer.previous {
            NONE => self.heads[slot] = timer.next,
            previous => self.timers[previous as usize].next = timer.next,
        }
        if timer.next != NONE {
            self.timers[timer.next as usize].previous = timer.previous;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
        self.timers[index as usize] = Timer { due: timer.due, ..IDLE };
        self.armed -= 1;
    }

    /// The first tick from `current` on whose place is occupied.
    fn next_occupied(&self) -> Option<u32> {
        if self.armed == 0 {
            return None;
        }
        let words = self.occupied.len() as u32;
        let slot = self.current % SLOTS;
        let first = self.occupied[(slot / 64) as usize] >> (slot % 64);
        if first != 0 {
            return Some(self.current + first.trailing_zeros());
        }
        (1..=words).find_map(|step| {
            let word = (slot / 64 + step) % words;
            let bits = self.occupied[word as usize];
            (bits != 0).then(|| {
                let found = word * 64 + bits.trailing_zeros();
                self.current + (found + SLOTS - slot) % SLOTS
            })
        })
    }
}

/// 584 years fit. In 64-bit arithmetic, for this runs several times a request.
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// 497 days fit.
fn ticks(ticks: u64) -> u32 {
    ticks.min(u64::from(u32::MAX - SLOTS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_deadline_costs_no_move_and_is_never_early() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start, 4);
        wheel.arm(0, start + Duration::from_millis(25));
        wheel.arm(0, start + Duration::from_secs(300));
        assert_eq!(wheel.sleep(), Some(Duration::from_millis(30)), "it is looked at where it was");
        wheel.turn(start + Duration::from_secs(299));
        assert_eq!(wheel.expire(), None);
        wheel.turn(start + Duration::from_secs(300));
        assert_eq!(wheel.expire(), Some(0));
        assert_eq!((wheel.armed(), wheel.sleep()), (0, None));
    }

    proptest! {
        #[test]
        fn every_deadline_fires_once_in_its_time(
            ops in prop::collection::vec((0u32..20, 0u64..200_000, 0u64..3_000, any::<bool>()), 1..200)
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut wheel = Wheel::new(start, 0);
            let mut model = std::collections::HashMap::new();
            for (index, delay, step, disarm) in ops {
                if disarm {
                    wheel.disarm(index);
                    model.remove(&index);
                } else {
                    let deadline = now + Duration::from_millis(delay);
                    if delay % 2 == 0 {
                        wheel.arm(index, deadline);
                    } else {
                        wheel.arm_after(index, Duration::from_millis(delay));
                    }
                    model.insert(index, deadline);
                }
                now += Duration::from_millis(step);
                wheel.turn(now);
                while let Some(index) = wheel.expire() {
                    let deadline = model.remove(&index);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                }
                for deadline in model.values() {
                    prop_assert!(*deadline + TICK > now, "a deadline was missed");
                }
                prop_assert_eq!(wheel.armed(), model.len());
                if let Some(next) = model.values().min() {
                    let sleep = wheel.sleep().unwrap();
                    prop_assert!(now + sleep < *next + TICK, "the loop would oversleep");
                }
            }
        }
    }
}
