//! Passwords that are being checked, and those that were right a short while ago. Shared by all loops, in bounded memory.
//!
//! A try is known by a keyed hash of it, with a key that the process has for itself: what lies here is of no use to anybody else. Only
//! successes are remembered: passwords at random would fill any memory of failures.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

/// All tries of a server. `W` names who waits.
pub struct Checks<W> {
    key: hmac::Key,
    state: Mutex<State<W>>,
}

struct State<W> {
    /// Until when each is remembered.
    right: HashMap<Tag, u64>,
    waiting: Waiting<W>,
}

impl<W> Default for Checks<W> {
    fn default() -> Checks<W> {
        // The standard library has 128 bits of them from the kernel; those of the cryptography cost up to a tenth of a second when they are
        // asked for first, which a server without passwords should not pay.
        let (random, mut secret) = (RandomState::new(), [0; 32]);
        let words = secret.chunks_exact_mut(8).enumerate();
        words.for_each(|(at, word)| word.copy_from_slice(&random.hash_one(at).to_le_bytes()));
        let state = State { right: HashMap::new(), waiting: HashMap::new() };
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

    fn tag(&self, attempt: &Try) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in attempt.parts() {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    /// Whether it was right a short while before that time, in nanoseconds.
    pub fn knows(&self, attempt: &Try, now: u64) -> bool {
        let tag = self.tag(attempt);
        self.lock().right.get(&tag).is_some_and(|until| *until > now)
    }

    /// Somebody has to know whether a try is right. `false`: it is being checked already, and who asks is told, too. Else it is to be checked,
    /// and then [`Checks::done`] says so.
    pub fn ask(&self, attempt: &Try, who: W) -> bool {
        let tag = self.tag(attempt);
        match self.lock().waiting.entry(tag) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(who);
                false
            }
            Entry::Vacant(place) => {
                place.insert(vec![who]);
                true
            }
        }
    }

    /// A try was checked, or could not be: who is to be told.
    pub fn done(&self, attempt: &Try, right: bool, now: u64) -> Vec<W> {
        let tag = self.tag(attempt);
        let mut state = self.lock();
        if right {
            if state.right.len() >= MOST {
                state.right.retain(|_, until| *until > now);
            }
            if state.right.len() >= MOST
                && let Some(some) = state.right.keys().next().copied()
            {
                state.right.remove(&some);
            }
            state.right.insert(tag, now.saturating_add(REMEMBERED));
        }
        state.waiting.remove(&tag).unwrap_or_default()
    }
}
