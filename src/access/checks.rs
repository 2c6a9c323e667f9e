//! Passwords that are being checked, and those that were right a short while ago. Shared by all loops, in bounded memory.
//!
//! A try is known by a keyed hash of it and of where it comes from, with a key that the process has for itself: what lies here is of no use to
//! anybody else, and nobody elsewhere can guess fast at what is remembered. Only successes are remembered: passwords at random would fill any
//! memory of failures.
//!
//! Each check is taken from the allowance of wrong ones of where it comes from before it begins, and given back unless it was wrong: so tries that
//! come all at once are no more than those that come one after the other. Where nothing is left, but may be when those under way are done, a try
//! is held until then.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::hmac;

use super::Try;

/// How long a right password is remembered, in nanoseconds.
const REMEMBERED: u64 = 300 * 1_000_000_000;
/// Right passwords that are remembered at once, at most.
const MOST: usize = 4096;

type Tag = [u8; 32];

/// Who waits for what comes of a try: whatever names them.
type Waiting<W> = HashMap<Tag, Vec<W>>;

/// What comes of asking about a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is to be checked, and then [`Checks::done`] says so.
    Check,
    /// Who asks is told: it is being checked already, or is held.
    Wait,
    /// Too many from there were wrong; in so many nanoseconds there may be another.
    Refused(u64),
}

/// What those are told who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// To ask again: the try was right, or one that was held may have its turn.
    Again,
    /// It was wrong.
    Wrong,
    /// Nobody could check it.
    Unknown,
}

/// Checks of one place that are under way.
struct UnderWay<W> {
    count: usize,
    /// Whose tries are held until some of them are done.
    held: VecDeque<W>,
}

/// All tries of a server. `W` names who waits.
pub struct Checks<W> {
    key: hmac::Key,
    state: Mutex<State<W>>,
}

struct State<W> {
    /// Until when each is remembered.
    right: HashMap<Tag, u64>,
    waiting: Waiting<W>,
    /// By where they come from.
    under_way: HashMap<u64, UnderWay<W>>,
}

impl<W> Default for Checks<W> {
    fn default() -> Checks<W> {
        // The standard library has 128 bits of them from the kernel; those of the cryptography cost up to a tenth of a second when they are
        // asked for first, which a server without passwords should not pay.
        let (random, mut secret) = (RandomState::new(), [0; 32]);
        let words = secret.chunks_exact_mut(8).enumerate();
        words.for_each(|(at, word)| word.copy_from_slice(&random.hash_one(at).to_le_bytes()));
        let state = State { right: HashMap::new(), waiting: HashMap::new(), under_way: HashMap::new() };
        Checks { key: hmac::Key::new(hmac::HMAC_SHA256, &secret), state: Mutex::new(state) }
    }
}

impl<W> Checks<W> {
    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many right passwords are remembered.
    pub fn remembered(&self) -> usize {
        self.lock().right.len()
    }

    fn tag(&self, attempt: &Try, from: u64) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&from.to_le_bytes());
        for part in attempt.parts() {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    /// Whether it was right a short while before that time, in nanoseconds, and came from the same place.
    pub fn knows(&self, attempt: &Try, from: u64, now: u64) -> bool {
        let tag = self.tag(attempt, from);
        self.lock().right.get(&tag).is_some_and(|until| *until > now)
    }

    /// Somebody has to know whether a try is right that comes from there. `take` takes one from the allowance of wrong tries of that place, or says
    /// in how many nanoseconds there is one; it is asked only about a try that would have to be checked.
    pub fn ask(&self, attempt: &Try, from: u64, who: W, take: impl FnOnce() -> Option<u64>) -> Asked {
        let tag = self.tag(attempt, from);
        let mut state = self.lock();
        let State { waiting, under_way, .. } = &mut *state;
        let place = match waiting.entry(tag) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(who);
                return Asked::Wait;
            }
            Entry::Vacant(place) => place,
        };
        match (take(), under_way.get_mut(&from)) {
            (None, _) => {
                place.insert(vec![who]);
                under_way.entry(from).or_insert_with(|| UnderWay { count: 0, held: VecDeque::new() }).count += 1;
                Asked::Check
            }
            (Some(_), Some(others)) => {
                others.held.push_back(who);
                Asked::Wait
            }
            (Some(wait), None) => Asked::Refused(wait),
        }
    }

    /// A try was checked, or could not be: who is to be told what. `give_back` gives back what was taken for it.
    pub fn done(
        &self,
        attempt: &Try,
        from: u64,
        right: Option<bool>,
        now: u64,
        give_back: impl FnOnce(),
    ) -> Vec<(W, Checked)> {
        let tag = self.tag(attempt, from);
        let mut state = self.lock();
        if right == Some(true) {
            state.remember(tag, now);
        }
        // Under the lock: whoever is held asks when it has been given back, and not just before.
        if right != Some(false) {
            give_back();
        }
        let said = match right {
            Some(true) => Checked::Again,
            Some(false) => Checked::Wrong,
            None => Checked::Unknown,
        };
        let waiting = state.waiting.remove(&tag).unwrap_or_default();
        let mut told: Vec<(W, Checked)> = waiting.into_iter().map(|who| (who, said)).collect();
        if let Entry::Occupied(mut others) = state.under_way.entry(from) {
            let UnderWay { count, held } = others.get_mut();
            *count -= 1;
            // There is room for one more, or nobody left who would tell the others.
            let room = if *count == 0 { held.len() } else { usize::from(right != Some(false)).min(held.len()) };
            told.extend(held.drain(..room).map(|who| (who, Checked::Again)));
            if *count == 0 {
                others.remove();
            }
        }
        told
    }
}

impl<W> State<W> {
    fn remember(&mut self, tag: Tag, now: u64) {
        if self.right.len() >= MOST {
            self.right.retain(|_, until| *until > now);
        }
        if self.right.len() >= MOST
            && let Some(some) = self.right.keys().next().copied()
        {
            self.right.remove(&some);
        }
        self.right.insert(tag, now.saturating_add(REMEMBERED));
    }
}
