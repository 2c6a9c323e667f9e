//! How often changed files may have the workers replaced, decided without a file or a clock.
//!
//! The first change after a quiet time counts at once. What changes while its roll is under way, or within [`REST`] after the
//! roll has ended, is gathered and makes one more: so an app that writes into the tree that is watched does not keep the server
//! starting workers. When one file does that [`SUSPICIOUS`] times in a row it is named, and from then on the rest is [`LONG_REST`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Changes;

/// Between the end of a roll and the next one that changed files cause; and between two reload signals.
pub const REST: Duration = Duration::from_secs(2);
/// The same, once a file is suspected to be written by the app itself.
pub const LONG_REST: Duration = Duration::from_secs(10);
/// Rolls in a row with one file among their causes, each caused before the last one's rest was over, that make it suspected.
pub const SUSPICIOUS: usize = 3;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct ReloadLimiter {
    held: Option<Changes>,
    /// Some of what is held changed before the rest was over.
    follows: bool,
    /// The roll under way that changes have caused.
    roll: Option<u64>,
    rest_until: Option<Instant>,
    /// Reloads in a row, and the files that were among the causes of each.
    in_a_row: usize,
    suspects: Vec<PathBuf>,
}

impl ReloadLimiter {
    /// Files have changed.
    pub(in crate::supervisor) fn note(&mut self, changes: Changes, now: Instant) {
        self.follows |= self.is_held_back(now);
        self.held.get_or_insert_default().merge(changes);
    }

    /// The last roll that has ended has this number; whoever caused it.
    pub(in crate::supervisor) fn ended(&mut self, last: Option<u64>, now: Instant) {
        if self.roll.is_some_and(|roll| last.is_some_and(|last| last >= roll)) {
            self.roll = None;
            self.rest(now);
        }
    }

    /// What is to reach the workers now. [`ReloadLimiter::began`] follows.
    pub(in crate::supervisor) fn next(&mut self, now: Instant) -> Option<Changes> {
        if self.is_held_back(now) {
            return None;
        }
        let changes = self.held.take()?;
        self.rest_until = None;
        if std::mem::take(&mut self.follows) {
            self.suspects.retain(|suspect| changes.paths.contains(suspect));
        } else {
            self.suspects.clear();
        }
        if self.suspects.is_empty() {
            self.in_a_row = 0;
            self.suspects.clone_from(&changes.paths);
        }
        self.in_a_row += 1;
        Some(changes)
    }

    /// The changes are on their way: by that roll, or by a signal, which is done at once.
    pub(in crate::supervisor) fn began(&mut self, roll: Option<u64>, now: Instant) {
        self.roll = roll;
        if roll.is_none() {
            self.rest(now);
        }
    }

    /// The file to be named, right when it becomes suspected.
    pub(in crate::supervisor) fn suspect(&self) -> Option<&Path> {
        self.suspects.first().filter(|_| self.in_a_row == SUSPICIOUS).map(PathBuf::as_path)
    }

    /// When something is held that no roll stands before.
    pub(in crate::supervisor) fn due(&self) -> Option<Instant> {
        self.rest_until.filter(|_| self.held.is_some() && self.roll.is_none())
    }

    fn rest(&mut self, now: Instant) {
        self.rest_until = Some(now + if self.in_a_row >= SUSPICIOUS { LONG_REST } else { REST });
    }

    fn is_held_back(&self, now: Instant) -> bool {
        self.roll.is_some() || self.rest_until.is_some_and(|until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(paths: &[&str]) -> Changes {
        Changes { paths: paths.iter().map(PathBuf::from).collect(), more: 0 }
    }

    #[test]
    fn the_first_change_counts_at_once_and_the_next_after_the_roll_and_a_rest() {
        let (mut limiter, start) = (ReloadLimiter::default(), Instant::now());
        assert_eq!((limiter.next(start), limiter.due()), (None, None));
        limiter.note(changed(&["a"]), start);
        assert_eq!(limiter.next(start), Some(changed(&["a"])));
        limiter.began(Some(7), start);
        limiter.note(changed(&["b"]), start);
        limiter.note(changed(&["c"]), start);
        limiter.ended(Some(6), start + Duration::from_secs(60));
        assert_eq!(
            (limiter.next(start + Duration::from_secs(60)), limiter.due()),
            (None, None),
            "the roll is under way"
        );
        let end = start + Duration::from_secs(61);
        limiter.ended(Some(7), end);
        assert_eq!(limiter.due(), Some(end + REST));
        assert_eq!(limiter.next(end + REST - Duration::from_millis(1)), None);
        assert_eq!(limiter.next(end + REST), Some(changed(&["b", "c"])), "one for all");
        assert_eq!(limiter.due(), None);
    }

    #[test]
    fn a_signal_is_done_at_once_and_rests_too() {
        let (mut limiter, start) = (ReloadLimiter::default(), Instant::now());
        limiter.note(changed(&["a"]), start);
        assert!(limiter.next(start).is_some());
        limiter.began(None, start);
        limiter.note(changed(&["a"]), start);
        assert_eq!((limiter.next(start), limiter.due()), (None, Some(start + REST)));
        assert!(limiter.next(start + REST).is_some());
    }

    /// Rolls once for a change of these files; it ends at `now`, and then `wait` goes by. The suspect named by it.
    fn roll(limiter: &mut ReloadLimiter, paths: &[&str], now: &mut Instant, wait: Duration) -> Option<PathBuf> {
        limiter.note(changed(paths), *now);
        let due = limiter.due().unwrap_or(*now);
        assert!(limiter.next(due).is_some());
        limiter.began(Some(1), due);
        let suspect = limiter.suspect().map(Path::to_path_buf);
        limiter.ended(Some(1), due);
        *now = due + wait;
        suspect
    }

    #[test]
    fn a_file_that_causes_one_roll_after_the_other_is_named_once_and_waits_longer() {
        let (mut limiter, mut now) = (ReloadLimiter::default(), Instant::now());
        let moment = Duration::from_millis(10);
        assert_eq!(roll(&mut limiter, &["code", "data"], &mut now, moment), None);
        assert_eq!(roll(&mut limiter, &["data", "more"], &mut now, moment), None);
        assert_eq!(roll(&mut limiter, &["data"], &mut now, moment), Some("data".into()));
        limiter.note(changed(&["data"]), now);
        assert_eq!(limiter.due(), Some(now - moment + LONG_REST));
        assert_eq!(roll(&mut limiter, &["data"], &mut now, LONG_REST), None, "named already");
        // After a quiet time all begins anew.
        for _ in 0..5 {
            assert_eq!(roll(&mut limiter, &["data"], &mut now, REST), None, "each after its rest");
        }
    }

    #[test]
    fn different_files_in_a_row_are_no_suspects() {
        let (mut limiter, mut now) = (ReloadLimiter::default(), Instant::now());
        for path in ["a", "b", "c", "d", "d", "e"] {
            assert_eq!(roll(&mut limiter, &[path], &mut now, Duration::ZERO), None, "{path}");
        }
    }
}
