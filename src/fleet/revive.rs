//! What was given up is tried again by itself: one worker at a time, and later each time. The first that is proven brings the
//! others back.

use std::time::{Duration, Instant};

use super::place::Member;
use super::{Course, Event, Fleet, Machine, Name, TRIAL_LOOK};

/// The longest time between two attempts, unless crashed workers may wait for longer.
const LONGEST: Duration = Duration::from_secs(300);

/// When a place that was given up is tried next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revival {
    /// Then.
    pub at: Instant,
    /// How long that was waited for.
    delay: Duration,
}

impl Fleet {
    /// A place is not filled any more but by an attempt, or an attempt was in vain.
    pub(super) fn give_up(&mut self, number: u32, now: Instant, machine: &mut impl Machine) {
        let first = self.rule.restart.max;
        let others = self.places.iter().any(|place| place.given_up);
        let Some(place) = self.place_mut(number) else { return };
        let again = std::mem::replace(&mut place.given_up, true);
        place.start_at = now;
        let delay = match self.revival {
            Some(revival) if again => (revival.delay * 2).min(LONGEST.max(first)),
            _ => first,
        };
        match self.revival.filter(|_| others && !again) {
            Some(_) => {}
            None => self.revival = Some(Revival { at: now + delay, delay }),
        }
        let at = self.revival.map_or(now, |revival| revival.at);
        machine.say(Event::GaveUp(number, at.saturating_duration_since(now)));
        self.fail_if_all_gave_up(now, machine);
    }

    /// The place that is tried next, and when: the one that was not tried for the longest time. `None`: one is being tried, or nothing is
    /// to be. A roll has its own way to bring places back.
    pub(super) fn attempt(&self) -> Option<(Instant, u32)> {
        let revival = self.revival.filter(|_| self.roll.is_none() && self.course == Course::Serve)?;
        let given_up = self.places.iter().filter(|place| place.given_up);
        if given_up.clone().any(|place| place.serving.is_some()) {
            return None;
        }
        given_up.map(|place| (place.start_at, place.number)).min().map(|(_, number)| (revival.at, number))
    }

    /// There is no room for an attempt just now.
    pub(super) fn attempt_later(&mut self, at: Instant) {
        if let Some(revival) = &mut self.revival {
            revival.at = revival.at.max(at);
        }
    }

    /// A worker of a place has shown that it serves: if the place was given up, all that were are filled again.
    pub(super) fn bring_back(&mut self, number: u32, now: Instant) {
        if self.place(number).is_some_and(|place| place.given_up) {
            self.revival = None;
            self.places.iter_mut().filter(|place| place.given_up).for_each(|place| place.start_afresh(now));
        }
    }

    /// Looks whether one of those serves by now on whom something depends: a roll, or what was given up.
    pub(super) fn judge_trials(&mut self, now: Instant, machine: &mut impl Machine) {
        if self.look_at.is_some_and(|at| at > now) {
            return;
        }
        let tried = self.members.iter().filter(|member| member.is_running() && self.is_tried(member));
        let tried: Vec<Name> = tried.map(|member| member.name).collect();
        for name in &tried {
            if machine.owes(*name) {
                self.member_mut(*name).into_iter().for_each(|member| member.trust.owed_at = Some(now));
            }
            if self.is_proven(*name, now, machine) || self.member(*name).is_some_and(|member| member.trust.passed) {
                self.prove(*name, now);
            }
        }
        let left = |name: &Name| self.member(*name).is_some_and(|member| self.is_tried(member));
        self.look_at = tried.iter().any(left).then(|| now + TRIAL_LOOK);
    }

    fn is_tried(&self, member: &Member) -> bool {
        let given_up = || self.place(member.number).is_some_and(|place| place.given_up && place.holds(member.name));
        self.is_on_trial(member) || given_up()
    }

    /// A worker has shown that it serves: if it was on trial, the roll goes on, and so does what was given up.
    pub(super) fn prove(&mut self, name: Name, now: Instant) {
        let Some(member) = self.position(name).map(|index| &self.members[index]) else { return };
        let number = member.number;
        let is_well = !self.rule.checked || member.trust.passed;
        if let Some(roll) = self.roll.as_mut().filter(|roll| is_well && roll.tries(member)) {
            roll.proven = true;
            self.generation = roll.generation;
        }
        self.bring_back(number, now);
    }
}
