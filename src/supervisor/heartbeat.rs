//! Whether the loops turn: each is asked by mail to show the number of a beat, and one that does not hangs. The service manager's watchdog
//! and `/livez` both ask so.

use std::sync::atomic::Ordering;

use crate::mailbox::{Message, Postboxes};
use crate::metrics::Metrics;

/// The number of the last beat that was asked for; 0: none was.
#[derive(Debug, Default)]
pub(super) struct Heartbeat(u64);

impl Heartbeat {
    /// Asks all loops to show that they turn: the beat's number. Each rings as it answers.
    pub fn ask(&mut self, postboxes: &Postboxes) -> u64 {
        self.0 += 1;
        let beat = self.0;
        postboxes.broadcast(|| Message::Beat(beat));
        beat
    }
}

/// Loop by loop, whether it has turned since that beat was asked for. Before any was nobody is missing.
pub(super) fn turning(metrics: &Metrics, beat: u64) -> Vec<bool> {
    metrics.loops().map(|counters| counters.beat.load(Ordering::Acquire) >= beat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_does_not_answer_is_seen() {
        let (metrics, postboxes) = (Metrics::new(2), Postboxes::new(Vec::new()));
        let mut heartbeat = Heartbeat::default();
        assert_eq!(turning(&metrics, 0), [true, true], "nobody was asked");
        let first = heartbeat.ask(&postboxes);
        assert_eq!(turning(&metrics, first), [false, false]);
        metrics.of_loop(0).beat.store(first, Ordering::Release);
        assert_eq!(turning(&metrics, first), [true, false], "the second loop is silent");
        metrics.of_loop(1).beat.store(first, Ordering::Release);
        assert_eq!(turning(&metrics, first), [true, true]);
        let second = heartbeat.ask(&postboxes);
        assert_eq!(turning(&metrics, second), [false, false], "an old answer is none to a new question");
        metrics.of_loop(0).beat.store(second, Ordering::Release);
        assert_eq!(turning(&metrics, first), [true, true], "and a new one is to an old question");
    }
}
