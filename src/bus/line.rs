//! Messages that wait for who numbers them, in the order in which they came, each with a deadline.

use std::collections::VecDeque;
use std::time::Duration;

use crate::hub::{Answer, Notice, Published, Refused};

/// How long a message may wait for its number.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// One of them.
#[derive(Debug)]
pub struct Waiting {
    /// By which number its answer is known.
    pub request: u64,
    /// It was given away.
    pub sent: bool,
    /// What is to be published. Whoever waited for its answer may have had another by now.
    pub notice: Notice,
    until: Duration,
    answered: bool,
}

/// All of them. See the module.
#[derive(Debug, Default)]
pub struct Line {
    all: VecDeque<Waiting>,
    last: u64,
}

impl Line {
    /// One more.
    pub fn push(&mut self, now: Duration, notice: Notice) {
        self.last += 1;
        let until = now + PATIENCE;
        self.all.push_back(Waiting { request: self.last, sent: false, notice, until, answered: false });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The first that was not given away yet.
    pub fn unsent(&mut self) -> Option<&mut Waiting> {
        let at = self.all.partition_point(|waiting| waiting.sent);
        self.all.get_mut(at)
    }

    /// Whether one was not given away yet.
    pub fn has_unsent(&self) -> bool {
        self.all.back().is_some_and(|waiting| !waiting.sent)
    }

    /// Takes one out.
    pub fn take(&mut self, request: u64) -> Option<Waiting> {
        let at = self.all.binary_search_by_key(&request, |waiting| waiting.request).ok()?;
        self.all.remove(at)
    }

    /// Puts one back where it was.
    pub fn put_back(&mut self, waiting: Waiting) {
        let at = self.all.partition_point(|other| other.request < waiting.request);
        self.all.insert(at, waiting);
    }

    /// Takes the first out.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.all.pop_front()
    }

    /// Whoever was to number them is gone: they are to be given away anew, but for those that nobody waits for any more.
    pub fn again(&mut self) {
        self.all.retain(|waiting| !waiting.answered);
        self.all.iter_mut().for_each(|waiting| waiting.sent = false);
    }

    /// Tells those that have waited too long. What was given away stays, and may still be numbered.
    pub fn expire(&mut self, now: Duration) {
        let late = |waiting: &&mut Waiting| waiting.until <= now;
        for waiting in self.all.iter_mut().take_while(late).filter(|waiting| !waiting.answered) {
            waiting.answered = true;
            (std::mem::replace(&mut waiting.notice.answer, nobody()))(Err(Refused::Away));
        }
        if self.all.front().is_some_and(|first| first.answered) {
            self.all.retain(|waiting| !waiting.answered || waiting.sent);
        }
    }

    /// When the next one has waited too long.
    pub fn due(&self) -> Option<Duration> {
        self.all.iter().find(|waiting| !waiting.answered).map(|waiting| waiting.until)
    }
}

impl Waiting {
    /// Tells what came of it, and keeps it.
    pub fn tell(&mut self, outcome: Result<Published, Refused>) {
        self.answered = true;
        (std::mem::replace(&mut self.notice.answer, nobody()))(outcome);
    }

    /// Tells what came of it.
    pub fn answer(self, outcome: Result<Published, Refused>) {
        (self.notice.answer)(outcome);
    }
}

fn nobody() -> Answer {
    Box::new(|_| ())
}

impl Drop for Line {
    fn drop(&mut self) {
        while let Some(waiting) = self.pop() {
            waiting.answer(Err(Refused::Away));
        }
    }
}
