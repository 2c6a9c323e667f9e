//! The rolling restart: place by place, the replacement first, on trial before anything old is touched.

use std::collections::VecDeque;
use std::time::Instant;

use super::place::Member;
use super::{Ending, Event, Fleet, Machine, Name, TRIAL, TRIAL_LOOK};

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
    proven: bool,
    /// The replacement on trial, until when at most, and when it is looked at next.
    trial: Option<Trial>,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    name: Name,
    until: Instant,
    look_at: Instant,
}

impl Trial {
    fn of(name: Name, now: Instant) -> Trial {
        Trial { name, until: now + TRIAL, look_at: now + TRIAL_LOOK }
    }
}

impl Roll {
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.trial.map(|trial| trial.look_at)
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
        let id = self.next_roll;
        self.next_roll += 1;
        id
    }

    fn begin_roll(&mut self, id: u64, now: Instant, machine: &mut impl Machine) {
        self.newest += 1;
        let waiting: VecDeque<u32> = self.places.iter().map(|place| place.number).collect();
        let total = waiting.len();
        machine.say(Event::RollBegan(id, self.newest, total));
        if std::mem::take(&mut self.failed) {
            machine.recover();
        }
        let generation = self.newest;
        self.roll =
            Some(Roll { id, generation, done: 0, total, waiting, doing: Vec::new(), proven: false, trial: None });
        self.advance_roll(now, machine);
    }

    /// Ends the trial if it is time, counts what is done, and begins what is next.
    pub(super) fn advance_roll(&mut self, now: Instant, machine: &mut impl Machine) {
        self.judge_trial(now, machine);
        let Some(mut roll) = self.roll.take() else { return };
        let (done, doing): (Vec<u32>, Vec<u32>) =
            roll.doing.iter().copied().partition(|number| self.is_rolled(&roll, *number));
        roll.done += done.len();
        roll.doing = doing;
        while roll.doing.len() < self.rule.parallel.max(1)
            && let Some(number) = roll.waiting.pop_front()
        {
            if self.begin_place(number, roll.generation, now) {
                roll.doing.push(number);
            } else {
                roll.total -= 1;
            }
        }
        let over = roll.doing.is_empty() && roll.waiting.is_empty();
        self.roll = Some(roll);
        if over {
            self.end_roll(RollEnd::Done, now, machine);
        }
    }

    /// False: the place is gone.
    fn begin_place(&mut self, number: u32, generation: u32, now: Instant) -> bool {
        let Some(place) = self.places.iter_mut().find(|place| place.number == number) else { return false };
        place.start_afresh(now);
        // A place that was added meanwhile may have a new worker already.
        let old = |member: &&mut Member| member.number == number && member.generation != generation;
        for member in self.members.iter_mut().filter(|member| member.is_active()).filter(old) {
            member.mark(Ending::Deploy);
        }
        true
    }

    /// Whether a place has a new worker that serves, and the old one is gone; a place that was scaled away counts as done.
    fn is_rolled(&self, roll: &Roll, number: u32) -> bool {
        if !self.places.iter().any(|place| place.number == number) {
            return true;
        }
        let mut here = self.members.iter().filter(|member| member.number == number);
        let new = |member: &Member| member.generation == roll.generation;
        roll.proven && here.clone().any(|member| new(member) && member.is_running()) && here.all(new)
    }

    fn end_roll(&mut self, end: RollEnd, now: Instant, machine: &mut impl Machine) {
        let Some(roll) = self.roll.take() else { return };
        let report = RollReport { id: roll.id, generation: roll.generation, done: roll.done, total: roll.total, end };
        if report.end == RollEnd::Done {
            self.generation = roll.generation;
        }
        self.last_roll = Some(report.clone());
        machine.say(Event::RollEnded(report));
        if let Some(id) = self.queued_roll.take() {
            self.begin_roll(id, now, machine);
        }
    }

    /// Takes everything back that can be: old workers are not to be replaced any more, and new ones that are not needed end.
    pub(super) fn abort_roll(&mut self, reason: &str, last_lines: &str, now: Instant, machine: &mut impl Machine) {
        let Some(roll) = &mut self.roll else { return };
        let (generation, proven, doing) = (roll.generation, roll.proven, std::mem::take(&mut roll.doing));
        roll.trial = None;
        roll.waiting.clear();
        self.members.iter_mut().for_each(Member::spare);
        for number in doing {
            let serves =
                |member: &Member| member.number == number && member.generation != generation && member.is_active();
            if self.members.iter().any(serves) {
                self.withdraw(number, generation, now, machine);
            } else if !proven && !self.is_given_up(number) && !self.is_filled(number) {
                self.decide(number, false, now, machine);
            }
        }
        let (reason, last_lines) = (reason.to_owned(), last_lines.to_owned());
        self.end_roll(RollEnd::Aborted { reason, last_lines }, now, machine);
    }

    /// The old worker of a place serves on, so its replacement is not needed.
    fn withdraw(&mut self, number: u32, generation: u32, now: Instant, machine: &mut impl Machine) {
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if member.number == number && member.generation == generation && member.is_active() {
                member.replaced = true;
                self.leave(index, Ending::Aborted, now, machine);
            }
        }
    }

    /// Whether a worker that just got ready has to show first that it serves.
    pub(super) fn is_on_trial(&mut self, name: Name, number: u32, now: Instant) -> bool {
        let Some(roll) = self.roll.as_mut().filter(|roll| !roll.proven && roll.doing.contains(&number)) else {
            return false;
        };
        let new = self.members.iter().any(|member| member.name == name && member.generation == roll.generation);
        if new {
            roll.trial.get_or_insert(Trial::of(name, now));
        }
        new
    }

    /// Ends the trial if it is time. Who is judged, and whom the new ones relieve, is seen anew each time: a worker may have been out
    /// of reach for a moment when it was its turn.
    fn judge_trial(&mut self, now: Instant, machine: &mut impl Machine) {
        let Some(roll) = &mut self.roll else { return };
        if !roll.proven {
            let new = |member: &&Member| member.generation == roll.generation && roll.doing.contains(&member.number);
            let on_trial = |trial: &Trial| self.members.iter().find(|member| member.name == trial.name);
            let Some(judged) = roll.trial.as_ref().and_then(on_trial) else {
                let other = self.members.iter().filter(new).find(|member| member.is_running());
                roll.trial = other.map(|member| Trial::of(member.name, now));
                return;
            };
            let Some(trial) = roll.trial.as_mut().filter(|trial| trial.look_at <= now) else { return };
            // One that does not run refused a connection and is being looked at, or it leaves.
            if !judged.is_running() || (now < trial.until && !machine.has_answered(trial.name)) {
                trial.look_at = now + TRIAL_LOOK;
                return;
            }
            let name = trial.name;
            self.prove(name);
        }
        let Some(roll) = &self.roll else { return };
        let (generation, doing) = (roll.generation, roll.doing.clone());
        for number in doing {
            let ready =
                |member: &&Member| member.number == number && member.generation == generation && member.is_running();
            if let Some(name) = self.members.iter().find(ready).map(|member| member.name) {
                self.retire_others(number, name, now, machine);
            }
        }
    }

    /// A worker has shown that it serves: if it was on trial, the roll goes on.
    pub(super) fn prove(&mut self, name: Name) {
        if let Some(roll) = self.roll.as_mut().filter(|roll| roll.trial.is_some_and(|trial| trial.name == name)) {
            roll.trial = None;
            roll.proven = true;
            self.generation = roll.generation;
        }
    }

    /// What a worker that is started now for a place belongs to.
    pub(super) fn generation_for(&self, number: u32) -> u32 {
        self.roll.as_ref().filter(|roll| roll.doing.contains(&number)).map_or(self.generation, |roll| roll.generation)
    }

    /// Whether it is a place's turn in the roll under way.
    pub(super) fn is_in_turn(&self, number: u32) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.doing.contains(&number))
    }

    /// Whether the roll under way is replacing a place with workers of that generation.
    pub(super) fn is_rolling(&self, number: u32, generation: u32) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.generation == generation && roll.doing.contains(&number))
    }

    pub(super) fn is_proven(&self) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.proven)
    }

    /// Whether a worker is of a roll of which none has shown yet that it serves.
    pub(super) fn is_unproven(&self, member: &Member) -> bool {
        self.roll.as_ref().is_some_and(|roll| !roll.proven && roll.generation == member.generation)
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
