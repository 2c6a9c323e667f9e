//! How a socket closes with [`How::Flushed`]: what is queued leaves, the sending half is shut, and the peer is given the time to
//! read it and to end.
//!
//! ```text
//!   FLUSHING ── all is sent, input may come ──▶ LINGERING ── the peer has ended ──▶ closed
//!      │ └───── all is sent, no input is expected ──────────────────────────────────▶ closed
//!      │                                            └───── the linger time is over ─▶ closed
//!      └─ nothing worth the name was acknowledged for the stall time ───────────────▶ closed with a reset
//! ```
//!
//! Decisions only: no descriptor and no clock. A backend says what it knows of the socket and does the [`Step`] that follows, again
//! whenever something has changed; [`CloseDeadlines`] has the times.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{How, Options, Progress, Sock};

/// What a backend knows of a socket that is being closed.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    /// The connect has ended.
    pub connected: bool,
    /// Bytes are queued that the kernel has not taken.
    pub unsent: bool,
    /// They never will leave: a send or the connect has failed.
    pub send_failed: bool,
    /// The peer has ended, or a receive has failed.
    pub input_over: bool,
    /// [`Step::Linger`] was done.
    pub lingering: bool,
}

/// What is to be done with it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: its outbox or its peer is waited for.
    Wait,
    /// Shut the sending half, and discard what still comes until the peer ends, at most for the linger time.
    Linger,
    /// Close it.
    End,
}

impl Facts {
    /// The step that follows. `expects_no_input`: whether a receive was armed at the close and nothing has come since, and the
    /// sending half was not shut before. Only asked when it matters.
    pub(super) fn next(self, expects_no_input: impl FnOnce() -> bool) -> Step {
        if self.send_failed {
            Step::End
        } else if self.unsent {
            Step::Wait
        } else if self.input_over || !self.connected {
            Step::End
        } else if self.lingering {
            Step::Wait
        } else if expects_no_input() {
            Step::End
        } else {
            Step::Linger
        }
    }
}

/// The closes that peers hold up, each with the end of its wait, or the next look at it. All of a kind wait equally long, so that each queue is in
/// the order of the ends.
pub(super) struct CloseDeadlines {
    stall: Duration,
    linger: Duration,
    /// Those whose bytes the peer does not take.
    flushing: VecDeque<Deadline>,
    lingering: VecDeque<Deadline>,
}

struct Deadline {
    ends_at: Instant,
    sock: Sock,
    /// Of one that flushes.
    progress: Progress,
}

impl CloseDeadlines {
    pub(super) fn new(options: &Options) -> CloseDeadlines {
        let (stall, linger) = (options.stall, options.linger);
        CloseDeadlines { stall, linger, flushing: VecDeque::new(), lingering: VecDeque::new() }
    }

    /// Another stall time, for closes from now on.
    pub fn set_stall(&mut self, stall: Duration) {
        self.stall = stall;
    }

    /// Gives the peer of a close the stall time to acknowledge more than that. For when it is seen to be behind: a close whose bytes
    /// the kernel takes at once costs nothing here.
    pub(super) fn await_progress(&mut self, now: Instant, sock: Sock, acknowledged: u64) {
        self.look_again(now, sock, Progress::since(acknowledged));
    }

    fn look_again(&mut self, now: Instant, sock: Sock, progress: Progress) {
        self.flushing.push_back(Deadline { ends_at: now + Progress::interval(self.stall), sock, progress });
    }

    /// Gives the peer of a close the linger time to end.
    pub(super) fn await_end(&mut self, now: Instant, sock: Sock) {
        self.lingering.push_back(Deadline { ends_at: now + self.linger, sock, progress: Progress::default() });
    }

    /// The next close that was held up for too long, and how it is to be closed now. `progress` says what the peer of a close that
    /// still flushes has acknowledged, and `None` of any other.
    pub(super) fn overdue(&mut self, now: Instant, progress: impl Fn(Sock) -> Option<u64>) -> Option<(Sock, How)> {
        while let Some(mut deadline) = self.flushing.pop_front_if(|first| first.ends_at <= now) {
            let Some(acknowledged) = progress(deadline.sock) else { continue };
            if deadline.progress.is_over(acknowledged, self.stall) {
                // What is cut should not look whole.
                return Some((deadline.sock, How::Reset));
            }
            self.look_again(now, deadline.sock, deadline.progress);
        }
        let deadline = self.lingering.pop_front_if(|first| first.ends_at <= now)?;
        Some((deadline.sock, How::Now))
    }

    /// When the next of them has to be looked at. Forgets those that are over: `alive` says which sockets there still are, of which
    /// there are `count`.
    pub(super) fn next_due(&mut self, count: usize, alive: impl Fn(Sock) -> bool) -> Option<Instant> {
        let mut due = None;
        for queue in [&mut self.flushing, &mut self.lingering] {
            if queue.len() > 2 * count {
                // Closes that were soon over, behind one that takes its time.
                queue.retain(|deadline| alive(deadline.sock));
            }
            while queue.pop_front_if(|first| !alive(first.sock)).is_some() {}
            due = due.into_iter().chain(queue.front().map(|first| first.ends_at)).min();
        }
        due
    }

    /// Whether nobody holds up a close.
    pub(super) fn is_empty(&self) -> bool {
        self.flushing.is_empty() && self.lingering.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::block::{Budget, Pool};

    fn facts() -> Facts {
        Facts { connected: true, unsent: false, send_failed: false, input_over: false, lingering: false }
    }

    #[test]
    fn a_close_flushes_then_lingers_then_ends() {
        let never = || -> bool { panic!("it does not matter here") };
        assert_eq!(Facts { unsent: true, ..facts() }.next(never), Step::Wait);
        assert_eq!(facts().next(|| false), Step::Linger);
        assert_eq!(Facts { lingering: true, ..facts() }.next(never), Step::Wait);
        assert_eq!(Facts { lingering: true, input_over: true, ..facts() }.next(never), Step::End);
    }

    #[test]
    fn nobody_is_waited_for_in_vain() {
        let never = || -> bool { panic!("it does not matter here") };
        assert_eq!(facts().next(|| true), Step::End);
        assert_eq!(Facts { input_over: true, ..facts() }.next(never), Step::End);
        assert_eq!(Facts { send_failed: true, unsent: true, ..facts() }.next(never), Step::End);
        assert_eq!(Facts { connected: false, ..facts() }.next(never), Step::End);
        assert_eq!(Facts { connected: false, unsent: true, ..facts() }.next(never), Step::Wait);
    }

    #[test]
    fn a_close_without_progress_is_cut_and_one_that_is_over_is_forgotten() {
        let (stall, linger) = (Duration::from_secs(5), Duration::from_secs(1));
        let pool = Pool::new(1, 0, Budget::new(0));
        let mut deadlines = CloseDeadlines::new(&Options { max_sockets: 9, pool, stall, linger, accept_retry: linger });
        let sock = |index| Sock { index, generation: 1 };
        let start = Instant::now();
        deadlines.await_progress(start, sock(1), 10);
        deadlines.await_progress(start, sock(2), 10);
        deadlines.await_end(start, sock(3));
        assert_eq!(deadlines.next_due(9, |_| true), Some(start + linger));
        let progress = |of: Sock| if of == sock(1) { Some(10 + 5 * 512) } else { Some(9 + 5 * 512) };
        assert_eq!(deadlines.overdue(start, progress), None);
        for quarter in 1..4 {
            let over = if quarter == 1 { Some((sock(3), How::Now)) } else { None };
            assert_eq!(deadlines.overdue(start + quarter * stall / 4, progress), over);
        }
        assert_eq!(deadlines.overdue(start + stall, progress), Some((sock(2), How::Reset)));
        assert_eq!(deadlines.overdue(start + stall, progress), None);
        assert_eq!(deadlines.next_due(9, |_| true), Some(start + stall * 5 / 4), "the first has made progress");
        assert_eq!(deadlines.overdue(start + stall * 5 / 4, progress), Some((sock(1), How::Reset)), "once");
        deadlines.await_progress(start, sock(1), 10);
        assert_eq!(deadlines.overdue(start + 2 * stall, |_| None), None, "it does not flush any more");
        for index in 0..100 {
            deadlines.await_end(start, sock(index));
        }
        deadlines.next_due(4, |of| of == sock(0) || of == sock(99));
        assert_eq!(deadlines.lingering.len(), 2);
        assert_eq!(deadlines.next_due(4, |_| false), None);
        assert!(deadlines.is_empty());
    }
}
