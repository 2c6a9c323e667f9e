//! Hot reload: changed files reach the workers, unless it is the workers who change them.
//!
//! A worker that writes into a watched directory when it starts (a cache, a compiled template) is rolled for it, and its successor
//! writes again. Nobody can tell that from a developer who saves all the time, so such changes are not ignored: they are held back
//! for a while, and said.

use std::time::{Duration, Instant};

use super::Supervisor;
use crate::config::HotReload;
use crate::log::Level;

/// So many rolls in a row during which files have changed again are no accident.
const IN_A_ROW: u32 = 5;
/// How long a change is held back then.
const HELD_BACK: Duration = Duration::from_secs(10);

/// Rolls that seem to cause the next.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// Rolls in a row during which files have changed.
    count: u32,
    /// The last of them.
    roll: Option<u64>,
    /// When a change that is held back reaches the workers.
    at: Option<Instant>,
}

impl Echoes {
    pub fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Files have changed while that roll was under way, or none. Whether that is to be held back.
    fn heard(&mut self, roll: Option<u64>, now: Instant) -> bool {
        match roll {
            None => self.count = 0,
            Some(_) if roll == self.roll => return false,
            Some(_) => self.count += 1,
        }
        self.roll = roll;
        let held_back = self.count >= IN_A_ROW;
        self.at = held_back.then(|| now + HELD_BACK);
        held_back
    }

    /// Whether the time of what was held back has come.
    fn is_over(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

impl Supervisor {
    /// Changed files reach the workers.
    pub(super) fn look_at_files(&mut self, now: Instant) {
        let Some(watcher) = self.watcher.as_ref().filter(|_| self.stop.is_none()) else {
            self.echoes = Echoes::default();
            return;
        };
        if let Some(trouble) = watcher.take_trouble() {
            self.crew.log.event(Level::Warn, trouble, &[]);
        }
        if self.echoes.is_over(now) {
            // What has changed until now goes along.
            watcher.take_changes();
            self.load_again(now);
            return;
        }
        if self.echoes.due().is_some() {
            return;
        }
        let Some(changes) = watcher.take_changes() else { return };
        let changed = changes.to_string();
        self.crew.tell(Level::Info, "files-changed", "files have changed", &[("changed", &changed)]);
        let roll = self.fleet.roll().map(|roll| roll.id);
        if self.crew.settings.app.hot_reload == HotReload::Process && self.echoes.heard(roll, now) {
            let message = "files change during every rolling restart, perhaps by the workers themselves; the next one waits \
                           (--watch can name what is to be watched)";
            let wait = format!("{} s", HELD_BACK.as_secs());
            self.crew.log.event(Level::Warn, message, &[("changed", &changed), ("wait", &wait)]);
            return;
        }
        self.load_again(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_each_of_many_rolls_is_held_back_and_one_between_them_is_not() {
        let (mut echoes, now) = (Echoes::default(), Instant::now());
        for roll in 1..5 {
            assert!(!echoes.heard(Some(roll), now) && !echoes.heard(Some(roll), now), "once for each roll");
        }
        assert!(echoes.heard(Some(5), now));
        assert_eq!(echoes.due(), Some(now + HELD_BACK));
        assert!(!echoes.is_over(now) && echoes.is_over(now + HELD_BACK) && echoes.due().is_none());
        assert!(!echoes.heard(Some(5), now), "the roll under way has been counted");
        assert!(echoes.heard(Some(6), now + HELD_BACK), "it goes on as it was");
        assert!(echoes.is_over(now + HELD_BACK * 2));
        assert!(!echoes.heard(None, now) && !echoes.heard(Some(7), now), "a quiet moment ends it");
    }
}
