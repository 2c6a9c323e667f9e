//! Upgrades: this server hands its work over to a successor, or has taken it over from a predecessor.
//!
//! `predecessor` is the old side, `successor` the new one; `holdings` is what goes from one to the other and `crate::handover` how.
//!
//! Rules:
//! - The old server changes nothing of what it does until the new one has said that it serves. Whatever goes wrong before leaves it as
//!   it was: the attempt is ended, and why it failed is told.
//! - The new server accepts nobody, and touches nothing that is the old one's, before it is told to go.
//! - Workers, guard and orphans stay with the server that has started them.
//! - A server that has handed over stays until the one before it has ended, and passes on what it hears from it. So each is the parent of
//!   the next for as long as it lives, and nothing is lost that is counted or published behind it.

use std::time::Instant;

mod holdings;
mod predecessor;
mod successor;

pub use holdings::{Held, Holdings};
pub use successor::Succession;

use super::Supervisor;
use super::pid_file::PidFile;
use crate::control::{Answer, status};
use predecessor::Attempt;
use successor::Successor;

/// What a supervisor knows of upgrades.
#[derive(Default)]
pub(super) struct Upgrades {
    pub holdings: Holdings,
    pub pid_file: Option<PidFile>,
    /// New servers that are children of this process, and are looked after here.
    pub children: Vec<u32>,
    /// The new server that is being started, or that has taken over.
    attempt: Option<Attempt>,
    /// What has come of the last one.
    last: Option<status::Upgrade>,
    /// Attempts so far.
    count: u64,
    /// What those are still to be told who wait for one.
    pub answers: Vec<(u64, Answer)>,
    /// This server is itself one that takes over.
    successor: Option<Successor>,
}

impl Upgrades {
    pub fn new(holdings: Holdings, pid_file: Option<PidFile>) -> Upgrades {
        Upgrades { holdings, pid_file, ..Upgrades::default() }
    }

    /// Whether another server serves in the place of this one.
    pub fn is_handed_over(&self) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::is_over)
    }

    /// Whether a new server is being started, or this one has not taken over yet.
    pub fn is_under_way(&self) -> bool {
        self.attempt.is_some() || self.is_silent()
    }

    /// Whether the service manager is another's to talk to: that of the server before this one, still.
    pub fn is_silent(&self) -> bool {
        self.successor.as_ref().is_some_and(|successor| !successor.is_main())
    }

    /// Whether the new server may take over at any moment: what is changed here from now on, it does not hear of.
    pub fn is_going(&self) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::is_going)
    }

    /// Whether the server before this one still has something to tell to the one after it.
    pub fn passes_on(&self) -> bool {
        self.is_handed_over() && self.successor.as_ref().is_some_and(Successor::is_told)
    }

    /// What an app has published at the server before this one: whether it is the next one's to publish.
    fn pass_on(&mut self, notice: &str) -> bool {
        self.attempt.as_mut().is_some_and(|attempt| attempt.takes(notice))
    }

    /// Tells the server before this one that the one after it serves.
    fn tell_of_next(&mut self) {
        self.successor.iter_mut().for_each(Successor::tell_of_next);
    }

    /// What poll(2) is to wait for.
    pub fn entries(&self) -> impl Iterator<Item = libc::pollfd> {
        let old = self.attempt.as_ref().and_then(Attempt::entry);
        old.into_iter().chain(self.successor.as_ref().and_then(Successor::entry))
    }

    /// When something is to be done without anybody's word.
    pub fn due(&self) -> Option<Instant> {
        self.attempt.as_ref().and_then(Attempt::due).into_iter().chain(self.holdings.due()).min()
    }

    /// What the status document says of the last upgrade.
    pub fn status(&self) -> Option<status::Upgrade> {
        self.last.clone()
    }
}

impl Supervisor {
    /// Goes on with what is under way, on either side.
    pub(super) fn advance_upgrade(&mut self, now: Instant) {
        self.advance_attempt(now);
        self.advance_succession(now);
    }
}
