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
const SLOTS: u64 = 8192;
/// No entry.
const NONE: u32 = u32::MAX;
/// In the place of the next entry: this one lies nowhere in the wheel.
const OUTSIDE: u32 = u32::MAX - 1;
/// No tick: ticks in 64 bits do not run out.
const NEVER: u64 = u64::MAX;
/// The farthest deadline, in ticks from where the wheel is: 497 days. What is farther is due then.
const FARTHEST: u64 = u32::MAX as u64;

#[derive(Clone, Copy)]
struct Timer {
    previous: u32,
    next: u32,
    /// When the entry is due: the low half of that tick, of which the wheel's own tells the rest.
    due: u32,
    /// When it is looked at, which is when it is due or before: the low half of that tick, which tells its place.
    look: u32,
}

const IDLE: Timer = Timer { previous: NONE, next: OUTSIDE, due: 0, look: 0 };

/// Entries that one search passes over, at most.
const LOOKS: usize = 4096;

/// What a search makes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// This is the one.
    Take,
    /// Not this one.
    Pass,
    /// Not this one, and its deadline is void.
    Disarm,
    /// Neither this one nor any that is due later.
    Stop,
}

/// Deadlines by index.
pub struct Wheel {
    start: Instant,
    timers: Vec<Timer>,
    heads: Box<[u32]>,
    occupied: Box<[u64]>,
    /// All ticks below this one were looked at.
    current: u64,
    /// No occupied place comes before this time, in nanoseconds since the start; what was taken out may leave it too early, never too
    /// late. [`NEVER`] while nothing is armed, as far as is known.
    looks_at: u64,
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
            looks_at: NEVER,
            now: 0,
            armed: 0,
        }
    }

    /// Begins a turn at `now`; the time since the wheel's start.
    pub fn turn(&mut self, now: Instant) -> u64 {
        let now = nanos(now.saturating_duration_since(self.start));
        self.turn_at(now);
        now
    }

    /// Begins a turn at so many nanoseconds since the wheel's start.
    #[inline]
    pub fn turn_at(&mut self, now: u64) {
        self.now = now;
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

    /// Sets the deadline of `index`, in nanoseconds since the wheel's start, replacing the one it had.
    #[inline]
    pub fn arm_at(&mut self, index: u32, deadline: u64) {
        let wait = self.wait(deadline);
        match self.timers.get_mut(index as usize) {
            // Put off, as nearly always: it is looked at in time where it lies.
            Some(timer) if timer.next != OUTSIDE && u64::from(timer.look.wrapping_sub(self.current as u32)) <= wait => {
                timer.due = (self.current + wait) as u32;
            }
            _ => self.arm_anew(index, deadline),
        }
    }

    /// Ticks from where the wheel is to a deadline.
    #[inline]
    fn wait(&self, deadline: u64) -> u64 {
        let tick = deadline.saturating_add(TICK_NANOS - 1) / TICK_NANOS;
        tick.saturating_sub(self.current).min(FARTHEST)
    }

    /// Puts an entry where it is looked at no later than it is due.
    #[inline(never)]
    fn arm_anew(&mut self, index: u32, deadline: u64) {
        if self.timers.len() <= index as usize {
            self.timers.resize(index as usize + 1, IDLE);
        }
        if self.armed == 0 {
            // With nothing to be looked at, there is no way to go.
            self.current = self.current.max(self.now / TICK_NANOS);
        }
        if self.timers[index as usize].next != OUTSIDE {
            self.unlink(index);
        }
        self.link(index, self.current + self.wait(deadline));
    }

    /// Takes the deadline of `index` away, if it has one.
    pub fn disarm(&mut self, index: u32) {
        if self.timers.get(index as usize).is_some_and(|timer| timer.next != OUTSIDE) {
            self.unlink(index);
        }
    }

    /// The next index whose deadline has passed at the turn's time; it has none afterwards.
    #[inline]
    pub fn expire(&mut self) -> Option<u32> {
        if self.now < self.looks_at { None } else { self.expire_by(self.now / TICK_NANOS) }
    }

    fn expire_by(&mut self, now: u64) -> Option<u32> {
        while self.current <= now {
            let slot = self.current % SLOTS;
            let index = self.heads[slot as usize];
            if index == NONE {
                let next = self.next_occupied();
                self.look_from(next.unwrap_or(NEVER));
                self.current = next.map_or(now + 1, |tick| tick.min(now + 1)).max(self.current + 1);
                continue;
            }
            self.unlink(index);
            let due = self.due(index);
            if due <= now {
                return Some(index);
            }
            self.link(index, due);
        }
        None
    }

    /// The entry that is due first among those that `look` takes. Entries are shown in the order in which they are due, with the time at
    /// which they are, in nanoseconds since the wheel's start, and it may pass over [`LOOKS`] of them at most; `look` may also say that one
    /// needs its deadline no more.
    pub fn first(&mut self, mut look: impl FnMut(u32, u64) -> Look) -> Option<u32> {
        let (mut tick, mut looks) = (self.current, 0);
        while looks < LOOKS && tick < self.current + SLOTS {
            let slot = (tick % SLOTS) as usize;
            let mut index = self.heads[slot];
            while index != NONE && looks < LOOKS {
                let next = self.timers[index as usize].next;
                let due = self.due(index);
                if due.min(self.current + SLOTS - 1) > tick {
                    // It was put off since it was put here.
                    self.unlink(index);
                    self.link(index, due);
                } else {
                    match look(index, due * TICK_NANOS) {
                        Look::Take => return Some(index),
                        Look::Stop => return None,
                        Look::Pass => looks += 1,
                        Look::Disarm => self.unlink(index),
                    }
                }
                index = next;
            }
            tick = self.occupied_from(tick + 1)?;
        }
        None
    }

    /// How long a loop may sleep from the turn's time on before it has to look: `None` while nothing is armed.
    pub fn sleep(&self) -> Option<Duration> {
        let until = self.looks_at();
        (until < NEVER).then(|| Duration::from_nanos(until.saturating_sub(self.now)))
    }

    /// When it has to be looked at next, in nanoseconds since its start; [`u64::MAX`] while nothing is armed.
    #[inline]
    pub fn looks_at(&self) -> u64 {
        self.looks_at
    }

    /// Nothing lies before that tick.
    fn look_from(&mut self, tick: u64) {
        self.looks_at = tick.saturating_mul(TICK_NANOS);
    }

    /// How many deadlines are set.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// The tick at which an entry is due that the wheel has not passed.
    fn due(&self, index: u32) -> u64 {
        self.current + u64::from(self.timers[index as usize].due.wrapping_sub(self.current as u32))
    }

    fn link(&mut self, index: u32, due: u64) {
        debug_assert!(due >= self.current, "a deadline lies behind the wheel");
        let tick = due.min(self.current + SLOTS - 1);
        let slot = (tick % SLOTS) as usize;
        let next = self.heads[slot];
        if next != NONE {
            self.timers[next as usize].previous = index;
        }
        self.timers[index as usize] = Timer { previous: NONE, next, due: due as u32, look: tick as u32 };
        self.heads[slot] = index;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.looks_at = self.looks_at.min(tick * TICK_NANOS);
        self.armed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let timer = self.timers[index as usize];
        let slot = timer.look as usize % SLOTS as usize;
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
        if self.armed == 0 {
            self.looks_at = NEVER;
        }
    }

    /// The first tick from `current` on whose place is occupied.
    fn next_occupied(&self) -> Option<u64> {
        self.occupied_from(self.current)
    }

    /// The first tick from `from` on, once around, whose place is occupied.
    fn occupied_from(&self, from: u64) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let words = self.occupied.len() as u64;
        let slot = from % SLOTS;
        let first = self.occupied[(slot / 64) as usize] >> (slot % 64);
        if first != 0 {
            return Some(from + u64::from(first.trailing_zeros()));
        }
        (1..=words).find_map(|step| {
            let word = (slot / 64 + step) % words;
            let bits = self.occupied[word as usize];
            (bits != 0).then(|| from + until(slot, word as u32 * 64 + bits.trailing_zeros()))
        })
    }
}

/// A time span in nanoseconds; 584 years fit. In 64-bit arithmetic, for this runs several times a request.
pub fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// How many ticks after `tick` that place of the wheel comes up.
fn until(tick: u64, place: u32) -> u64 {
    (u64::from(place) + SLOTS - tick % SLOTS) % SLOTS
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

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn deadlines_are_kept_after_years() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start, 1);
        for days in [496, 497, 498, 1000, 10_000] {
            let now = start + DAY * days;
            wheel.turn(now);
            assert_eq!(wheel.expire(), None, "after {days} days nothing is due");
            wheel.arm_after(0, Duration::from_secs(1));
            assert_eq!(wheel.sleep(), Some(Duration::from_secs(1)), "after {days} days");
            wheel.turn(now + Duration::from_millis(999));
            assert_eq!(wheel.expire(), None);
            wheel.turn(now + Duration::from_secs(1));
            assert_eq!((wheel.expire(), wheel.expire()), (Some(0), None), "after {days} days");
        }
    }

    /// An entry is looked at once a round until it is due, also across the tick at which the stored half of it wraps.
    #[test]
    fn a_far_deadline_is_not_early_and_not_lost() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start, 1);
        let mut now = start + TICK * (u32::MAX - 100);
        wheel.turn(now);
        assert_eq!(wheel.expire(), None);
        wheel.arm(0, now + DAY);
        let due = now + DAY;
        while now < due {
            assert_eq!(wheel.expire(), None, "{:?} early", due - now);
            now += wheel.sleep().expect("it is armed");
            wheel.turn(now);
        }
        assert_eq!((wheel.expire(), now), (Some(0), due));
        wheel.arm(0, now + DAY * 3000);
        wheel.turn(now + DAY * 400);
        assert_eq!(wheel.expire(), None, "a deadline beyond what the wheel can say is not early by much");
    }

    proptest! {
        #[test]
        fn every_deadline_fires_once_in_its_time(
            before in prop::sample::select(vec![Duration::ZERO, TICK * (u32::MAX - 1000), DAY * 700]),
            ops in prop::collection::vec((0u32..20, 0u64..200_000, 0u64..3_000, any::<bool>()), 1..200)
        ) {
            let start = Instant::now();
            let mut now = start + before;
            let mut wheel = Wheel::new(start, 0);
            wheel.turn(now);
            prop_assert_eq!(wheel.expire(), None);
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
