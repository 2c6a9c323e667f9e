//! The rolling restart: place by place, the replacement first, on trial before anything old is touched.

use std::collections::VecDeque;
use std::time::Instant;

use crate::planted::{self, Bug};

use super::place::Member;
use super::policy::End;
use super::{Course, Ending, Event, Fleet, Machine, Name};

/// A rolling restart under way.
#[derive(Debug)]
pub struct Roll {
    /// Its number.
    pub id: u64,
    /// What its workers belong to.
    pub generation: u32,
    /// Places that it has replaced.
    pub done: usize,
    /// Places that it is to replace.
    pub total: usize,
    waiting: VecDeque<u32>,
    doing: Vec<u32>,
    /// A replacement has shown that it serves.
    pub(super) proven: bool,
}

impl Roll {
    /// Whether it is to replace a worker now.
    pub(super) fn replaces(&self, member: &Member) -> bool {
        member.generation != self.generation && self.doing.contains(&member.number)
    }

    /// Whether a worker has to show first that it serves, before anything old is touched.
    pub(super) fn tries(&self, member: &Member) -> bool {
        !self.proven && self.brings(member)
    }

    /// Whether a worker is one of its own.
    pub(super) fn brings(&self, member: &Member) -> bool {
        member.generation == self.generation && self.doing.contains(&member.number)
    }
}

/// How a roll ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollEnd {
    /// All workers are new.
    Done,
    /// It was given up; what was not replaced yet stays.
    Aborted {
        /// Why.
        reason: String,
        /// The last lines of the failed worker's stderr.
        last_lines: String,
    },
}

/// A roll that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollReport {
    /// Its number.
    pub id: u64,
    /// What its workers belonged to.
    pub generation: u32,
    /// Places that it has replaced.
    pub done: usize,
    /// Places that it was to replace.
    pub total: usize,
    /// How it ended.
    pub end: RollEnd,
    /// Who was left to serve then.
    pub left: Left,
}

/// Who serves when a roll has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Workers of older generations.
    pub old: usize,
    /// Workers that it has brought.
    pub new: usize,
    /// The server stops, or takes the app away.
    pub ends: bool,
}

impl std::fmt::Display for Left {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.old, self.new) {
            _ if self.ends => formatter.write_str("its workers answer the last requests"),
            (0, 0) => formatter.write_str("no worker serves"),
            (_, 0) => formatter.write_str("the old workers serve on"),
            (0, _) => formatter.write_str("the new workers serve on"),
            (old, new) => write!(formatter, "two versions serve on: {new} new and {old} old workers"),
        }
    }
}

impl Fleet {
    /// Replaces all workers, and returns the number of the roll that does. While one is under way the next is queued, once, however
    /// often it is asked for; one that has not started anything yet is joined.
    pub fn restart(&mut self, now: Instant, machine: &mut impl Machine) -> u64 {
        match (&self.roll, self.queued_roll) {
            (_, Some(id)) => id,
            (Some(roll), _) if !self.has_started(roll) => roll.id,
            (Some(_), None) => {
                let id = self.number_roll();
                self.queued_roll = Some(id);
                id
            }
            (None, None) => {
                let id = self.number_roll();
                self.begin_roll(id, now, machine);
                id
            }
        }
    }

    /// What the workers of a roll belong to that [`Fleet::restart`] has just named.
    pub fn generation_of(&self, id: u64) -> u32 {
        self.roll.as_ref().filter(|roll| roll.id == id).map_or(self.last.generation + 1, |roll| roll.generation)
    }

    /// The roll under way.
    pub fn roll(&self) -> Option<&Roll> {
        self.roll.as_ref()
    }

    /// The last one that has ended.
    pub fn last_roll(&self) -> Option<&RollReport> {
        self.last_roll.as_ref()
    }

    fn has_started(&self, roll: &Roll) -> bool {
        roll.done > 0 || self.members.iter().any(|member| member.generation == roll.generation)
    }

    fn number_roll(&mut self) -> u64 {
        self.last.roll += 1;
        self.last.roll
    }

    fn begin_roll(&mut self, id: u64, now: Instant, machine: &mut impl Machine) {
        self.last.generation += 1;
        let waiting: VecDeque<u32> = self.places.iter().map(|place| place.number).collect();
        let total = waiting.len();
        machine.say(Event::RollBegan(id, self.last.generation, total));
        if std::mem::take(&mut self.failed) {
            machine.recover();
        }
        let generation = self.last.generation;
        self.roll = Some(Roll { id, generation, done: 0, total, waiting, doing: Vec::new(), proven: false });
        self.advance_roll(now, machine);
    }

    /// Relieves the old where that may be, counts what is done, and begins what is next.
    pub(super) fn advance_roll(&mut self, now: Instant, machine: &mut impl Machine) {
        self.relieve(now, machine);
        let Some(mut roll) = self.roll.take() else { return };
        let (done, doing): (Vec<u32>, Vec<u32>) =
            roll.doing.iter().copied().partition(|number| self.is_rolled(&roll, *number));
        roll.done += done.len();
        roll.doing = doing;
        while roll.doing.len() < self.rule.parallel.max(1)
            && let Some(number) = roll.waiting.pop_front()
        {
            // Whoever ended before its turn, in a roll that was proven, has a new one in its place already.
            let is_done = self.is_rolled(&roll, number);
            match self.place_mut(number) {
                None => roll.total -= 1,
                Some(_) if is_done => roll.done += 1,
                Some(place) => {
                    place.start_afresh(now);
                    roll.doing.push(number);
                }
            }
        }
        let over = roll.doing.is_empty() && roll.waiting.is_empty();
        self.roll = Some(roll);
        if over {
            self.end_roll(RollEnd::Done, now, machine);
        }
    }

    /// Whether a place has a new worker that serves, and the old one is gone; a place that was scaled away counts as done.
    fn is_rolled(&self, roll: &Roll, number: u32) -> bool {
        if self.place(number).is_none() {
            return true;
        }
        let mut here = self.members.iter().filter(|member| member.number == number);
        let new = |member: &Member| member.generation == roll.generation;
        roll.proven
            && here.clone().any(|member| new(member) && member.is_running())
            && (here.all(new) || planted::active(Bug::HastyRoll))
    }

    fn end_roll(&mut self, end: RollEnd, now: Instant, machine: &mut impl Machine) {
        let Some(Roll { id, generation, done, total, .. }) = self.roll.take() else { return };
        if end == RollEnd::Done {
            self.generation = generation;
        }
        self.report_roll(RollReport { id, generation, done, total, end, left: self.left(generation) }, machine);
        if let Some(id) = self.queued_roll.take() {
            self.begin_roll(id, now, machine);
        }
    }

    /// What waits for the roll under way never begins, and whoever waits for it is told.
    pub(super) fn abort_queued_roll(&mut self, id: u64, reason: &str, machine: &mut impl Machine) {
        let (generation, total) = (self.last.generation + 1, self.places.len());
        let end = RollEnd::Aborted { reason: reason.to_owned(), last_lines: String::new() };
        self.report_roll(RollReport { id, generation, done: 0, total, end, left: self.left(generation) }, machine);
    }

    fn report_roll(&mut self, report: RollReport, machine: &mut impl Machine) {
        self.last_roll = Some(report.clone());
        machine.say(Event::RollEnded(report));
    }

    /// Who serves beside the workers of a generation, and of it.
    fn left(&self, generation: u32) -> Left {
        let serves = |member: &&Member| member.is_active() && !member.is_starting();
        let new = self.members.iter().filter(serves).filter(|member| member.generation == generation).count();
        let old = self.members.iter().filter(serves).count() - new;
        Left { old, new, ends: self.course != Course::Serve }
    }

    /// Takes everything back that can be: where an old worker serves on, its replacement is not needed.
    pub(super) fn abort_roll(&mut self, reason: &str, last_lines: &str, now: Instant, machine: &mut impl Machine) {
        let Some(roll) = &mut self.roll else { return };
        let (generation, proven, doing) = (roll.generation, roll.proven, std::mem::take(&mut roll.doing));
        roll.waiting.clear();
        for number in doing {
            let active = |name: &Name| self.member(*name).filter(|member| member.is_active());
            let Some(place) = self.place(number) else { continue };
            let serving = place.serving.as_ref().and_then(active);
            let next = place.next.as_ref().and_then(active).map(|next| next.name);
            match (serving, next) {
                (Some(serving), Some(next)) if serving.generation != generation => {
                    self.leave(next, Ending::Aborted, now, machine);
                    self.place_mut(number).into_iter().for_each(|place| place.release(next));
                }
                (None, None) if !proven && !place.given_up => {
                    self.decide(number, End::Crash, now, machine);
                }
                _ => {}
            }
        }
        let (reason, last_lines) = (reason.to_owned(), last_lines.to_owned());
        self.end_roll(RollEnd::Aborted { reason, last_lines }, now, machine);
    }

    /// Where a roll is proven, the new ones that are ready relieve the old. Whom is seen anew each time: a worker may have been out of
    /// reach for a moment when it was its turn.
    fn relieve(&mut self, now: Instant, machine: &mut impl Machine) {
        let Some(roll) = self.roll.as_ref().filter(|roll| roll.proven) else { return };
        for number in roll.doing.clone() {
            let next = self.place(number).and_then(|place| place.next).and_then(|next| self.member(next));
            let is_well = |next: &Member| next.is_running() && (next.trust.passed || !self.rule.checked);
            if next.is_some_and(is_well) {
                self.take_over(number, now, machine);
            }
        }
    }

    /// A worker has passed a health check, or has failed so many in a row that it is unhealthy. A roll that brings it goes on, or ends: another
    /// of its kind would be no better.
    pub fn checked(&mut self, name: Name, outcome: Result<(), &str>, now: Instant, machine: &mut impl Machine) {
        let brought = self.roll.as_ref().map(|roll| roll.generation);
        let Some(member) = self.member_mut(name) else { return };
        match outcome {
            Ok(()) if !member.trust.passed => {
                member.trust.passed = true;
                self.look_at = None;
            }
            Err(reason) if !member.trust.passed && brought == Some(member.generation) => {
                self.abort_roll(reason, "", now, machine)
            }
            _ => {}
        }
    }

    /// A worker let a request time out. If it has answered none yet, its age does not show any more that it serves; and if a roll depends on
    /// it, that ends, for others of its kind would do the same. `last_lines`: what it has said on stderr.
    pub fn timed_out(&mut self, name: Name, last_lines: &str, now: Instant, machine: &mut impl Machine) {
        let answered = machine.has_answered(name);
        let Some(member) = self.member_mut(name) else { return };
        member.trust.late |= !answered;
        if self.member(name).is_some_and(|member| self.is_on_trial(member)) {
            self.abort_roll("a request to the new worker has timed out", last_lines, now, machine);
        }
    }

    /// Whether the roll under way depends on it.
    pub(super) fn is_on_trial(&self, member: &Member) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.tries(member))
    }

    /// What a worker that is started now for a place belongs to.
    pub(super) fn generation_for(&self, number: u32) -> u32 {
        self.roll.as_ref().filter(|roll| roll.doing.contains(&number)).map_or(self.generation, |roll| roll.generation)
    }

    /// Whether it is a place's turn in the roll under way.
    pub(super) fn is_in_turn(&self, number: u32) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.doing.contains(&number))
    }

    /// A place is gone: the roll has one less to replace, if its turn had not come.
    pub(super) fn place_was_removed(&mut self, number: u32) {
        if let Some(roll) = &mut self.roll {
            let before = roll.waiting.len();
            roll.waiting.retain(|waiting| *waiting != number);
            roll.total -= before - roll.waiting.len();
        }
    }

    /// A place was added: a roll that is not proven yet takes it in, for its first worker may still be an old one.
    pub(super) fn place_was_added(&mut self, number: u32) {
        if let Some(roll) = self.roll.as_mut().filter(|roll| !roll.proven) {
            roll.waiting.push_back(number);
            roll.total += 1;
        }
    }
}
