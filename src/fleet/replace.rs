//! What fills places and replaces workers, and what happens when one is lost.

use std::time::{Duration, Instant};

use crate::planted::{self, Bug};

use super::place::{Member, Phase, Place, Trust};
use super::policy::{Decision, End};
use super::roll::Roll;
use super::{Course, Ending, Event, Exit, Fleet, MEMORY_RETRY, Machine, Name, ROOM_RETRY, Start, Started};

/// A place wants a worker.
pub(super) struct Wish {
    /// From then on.
    pub at: Instant,
    /// It has waited since then, whatever all have to wait for as well.
    since: Instant,
    /// Whom it is to replace, and why; `None`: the place is empty.
    instead_of: Option<(Name, Ending)>,
}

/// A worker of a place has failed, or could not be started.
struct Loss<'a> {
    number: u32,
    generation: u32,
    end: End,
    reason: &'a str,
    last_lines: &'a str,
}

impl Fleet {
    pub(super) fn add_places(&mut self, count: usize, now: Instant) {
        for _ in 0..count {
            let number = (1..).find(|number| self.place(*number).is_none()).unwrap_or(u32::MAX);
            self.places.push(Place::new(number, &self.rule, now));
            self.places.sort_by_key(|place| place.number);
            self.place_was_added(number);
        }
    }

    /// Why a worker is to be replaced, if it is, and when at the earliest. A deploy counts for more than what would have replaced it
    /// anyway.
    fn reason(&self, member: &Member) -> Option<(Ending, Instant)> {
        let deploy = self.roll().is_some_and(|roll| roll.replaces(member));
        if deploy { Some((Ending::Deploy, member.born)) } else { member.due }
    }

    /// The worker that a place wants now, or at a time that is known. One that waits for what another does is not wished for
    /// yet: that event brings it.
    pub(super) fn wish(&self, place: &Place) -> Option<Wish> {
        let hasty =
            |next: &Name| planted::active(Bug::SecondReplacement) && !self.member(*next).is_some_and(Member::is_active);
        match (place.serving, place.next.filter(|next| !hasty(next))) {
            _ if place.given_up => None,
            (None, _) => Some(Wish { at: place.start_at, since: place.start_at, instead_of: None }),
            (Some(name), None) => {
                let member = self.member(name).filter(|member| member.is_active())?;
                let (ending, at) = self.reason(member).filter(|(ending, _)| self.may_replace(*ending))?;
                let next = if ending == Ending::Deploy { at } else { self.recycle_at };
                let since = place.retry_at.max(at);
                Some(Wish { at: since.max(next), since, instead_of: Some((name, ending)) })
            }
            (Some(_), Some(_)) => None,
        }
    }

    /// Workers on their way.
    pub(super) fn starting(&self) -> usize {
        self.members.iter().filter(|member| member.is_starting()).count()
    }

    /// Whether one more may be on its way: those that start at once take the machine from each other, until none is ready in time. A
    /// place that nobody fills waits for no replacement, which may hang: one start is always free for such places. `beside`: it is for
    /// another purpose ([`Fleet::is_beside`]).
    pub(super) fn may_start(&self, beside: bool) -> bool {
        let others = || self.members.iter().filter(|member| member.is_starting());
        others().count() < self.rule.start_parallel.max(1) || !beside && others().all(|member| member.beside)
    }

    /// Whether what a place wishes for may start now.
    pub(super) fn may_have(&self, number: u32, wish: &Wish) -> bool {
        self.may_start(self.is_beside(number, wish.instead_of.is_some()))
    }

    /// Whether a start for a place brings no worker back that is missing: it replaces one, or a roll brings it.
    fn is_beside(&self, number: u32, replaces: bool) -> bool {
        replaces || self.is_in_turn(number)
    }

    /// Whether a replacement for that reason may be started now. A roll counts its own, and all others wait for its end, and for
    /// whoever is on the way, so that starts do not take the machine.
    fn may_replace(&self, ending: Ending) -> bool {
        match ending {
            _ if self.course != Course::Serve => false,
            Ending::Deploy => true,
            _ if self.roll.is_some() && !planted::active(Bug::RecycleInRoll) => false,
            _ => self.starting() == 0,
        }
    }

    /// Starts a worker for every place that has none and is due, and the replacements that are due, as many as may be on their way:
    /// those first that have waited longest.
    pub(super) fn fill_places(&mut self, now: Instant, machine: &mut impl Machine) {
        let due = |place: &Place| self.wish(place).filter(|wish| wish.at <= now).map(|wish| (wish.since, place.number));
        let wishes = self.places.iter().filter_map(due);
        let mut waiting: Vec<(Instant, u32)> = wishes.chain(self.attempt().filter(|(at, _)| *at <= now)).collect();
        waiting.sort_unstable();
        for (_, number) in waiting {
            if self.attempt().is_some_and(|attempt| attempt.1 == number) {
                if self.may_start(false) {
                    self.start(number, now, machine);
                }
                continue;
            }
            let wish = self.place(number).and_then(|place| self.wish(place)).filter(|wish| wish.at <= now);
            match wish.filter(|wish| self.may_have(number, wish)).map(|wish| wish.instead_of) {
                Some(None) => self.start(number, now, machine),
                Some(Some((name, ending))) => self.start_replacement(number, name, ending, now, machine),
                None => {}
            }
        }
    }

    fn start(&mut self, number: u32, now: Instant, machine: &mut impl Machine) {
        let generation = self.generation_for(number);
        let requests = self.rule.requests;
        let name = self.next_name();
        let deadline = now + self.rule.ready_timeout;
        let in_turn = self.is_in_turn(number);
        let Some(place) = self.place_mut(number) else { return };
        let (limit, beside) = (place.limit(requests), in_turn || place.serving.is_some());
        match machine.start(Start { name, number, generation, limit }) {
            Started::Yes => {
                place.starts += 1;
                *(if place.serving.is_none() { &mut place.serving } else { &mut place.next }) = Some(name);
                self.members.push(Member {
                    name,
                    number,
                    generation,
                    phase: Phase::Starting { deadline },
                    born: now,
                    ready_at: None,
                    limit,
                    reloads: 0,
                    due: None,
                    trust: Trust::default(),
                    beside,
                    leaves: false,
                    ending: None,
                    expires: None,
                    burned: (Duration::ZERO, now),
                });
            }
            Started::NoRoom if place.given_up => self.attempt_later(now + ROOM_RETRY),
            Started::NoRoom => (place.start_at, place.retry_at) = (now + ROOM_RETRY, now + ROOM_RETRY),
            Started::Failed(message) => {
                let counts = place.serving.is_some() || place.given_up;
                machine.say(Event::StartFailed(number, message.clone()));
                if self.ever_ready && !counts && !self.is_in_turn(number) {
                    return self.start_later(number, now);
                }
                let loss = Loss { number, generation, end: End::Crash, reason: &message, last_lines: "" };
                self.failed(&loss, now, machine);
            }
        }
    }

    /// Start first where memory has room for both, else stop first where a worker may be missing, else wait.
    fn start_replacement(&mut self, number: u32, old: Name, ending: Ending, now: Instant, machine: &mut impl Machine) {
        if machine.fits_beside(old) {
            return self.start(number, now, machine);
        }
        // Nobody comes back to a place that was given up: waiting for that would have no end.
        let missing = self.places.iter().filter(|place| !place.given_up && !self.serves(place)).count();
        // Who holds too much memory is what takes the room.
        if missing < self.rule.max_unavailable || matches!(ending, Ending::Memory(_)) {
            return self.leave(old, ending, now, machine);
        }
        if ending == Ending::Deploy && self.rule.max_unavailable == 0 {
            let reason = "memory has no room for a replacement beside the old worker: free some, or permit that a worker \
                          is missing for a moment (--max-unavailable 1)";
            return self.abort_roll(reason, "", now, machine);
        }
        let waits_for_others = missing > 0 && self.rule.max_unavailable > 0;
        let Some(place) = self.place_mut(number) else { return };
        place.retry_at = now + if waits_for_others { ROOM_RETRY } else { MEMORY_RETRY };
        if !waits_for_others && !std::mem::replace(&mut place.short_of_memory, true) {
            machine.say(Event::NoMemory(number));
        }
    }

    /// Whether most places have no worker that gets requests.
    pub fn is_short(&self) -> bool {
        self.places.iter().filter(|place| self.serves(place)).count() * 2 < self.places.len()
    }

    /// Whether a place has a worker that gets requests.
    fn serves(&self, place: &Place) -> bool {
        let running = |name: Name| self.member(name).is_some_and(Member::is_running);
        place.serving.is_some_and(running) || place.next.is_some_and(running)
    }

    /// A worker got ready for the first time: it takes over, unless it is on trial, or a roll brings it that waits for its first check.
    pub(super) fn filled(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let Some(member) = self.member(name) else { return };
        let (number, born) = (member.number, member.born);
        let waits =
            |roll: &Roll| roll.tries(member) || self.rule.checked && !member.trust.passed && roll.brings(member);
        let (rolls, on_trial) = (self.roll.is_some(), self.roll().is_some_and(waits));
        let Some(place) = self.place_mut(number) else { return };
        place.short_of_memory = false;
        if place.next == Some(name) && (!on_trial || planted::active(Bug::NoTrial)) {
            if !rolls {
                self.recycle_at = now + now.duration_since(born);
            }
            self.take_over(number, now, machine);
        }
    }

    /// The replacement fills its place, and whoever did is drained.
    pub(super) fn take_over(&mut self, number: u32, now: Instant, machine: &mut impl Machine) {
        let Some(place) = self.place_mut(number).filter(|place| place.next.is_some()) else { return };
        let Some(old) = std::mem::replace(&mut place.serving, place.next.take()) else { return };
        let ending =
            self.member(old).and_then(|member| self.reason(member)).map_or(Ending::Deploy, |(ending, _)| ending);
        self.leave(old, ending, now, machine);
    }

    /// A worker that filled a place, or was to, is gone.
    pub(super) fn lost(
        &mut self,
        member: &Member,
        exit: &Exit,
        reason: &str,
        now: Instant,
        machine: &mut impl Machine,
    ) {
        let Some(place) = self.place_mut(member.number) else { return };
        let was_next = place.next == Some(member.name);
        if !was_next && place.serving != Some(member.name) {
            return;
        }
        place.release(member.name);
        let filled = place.serving.is_some();
        if self.has_served(member, exit, now) {
            self.bring_back(member.number, now);
        }
        if member.ending.is_some_and(Ending::is_planned) {
            if let Some(place) = self.place_mut(member.number).filter(|_| !filled) {
                place.start_at = now;
            }
        } else if was_next || !filled {
            // Where the one that served died while its replacement starts, the replacement fills the place.
            let (number, generation, last_lines) = (member.number, member.generation, &*exit.last_lines);
            let loss = Loss { number, generation, end: self.end_of(member, exit, now), reason, last_lines };
            self.failed(&loss, now, machine);
        }
    }

    /// Whether a worker has shown that it serves: it has answered, or was ready for long enough and owes nobody an answer. The one
    /// measure of it, for what crashes count, for the trial of a roll, and for those that leave.
    pub(super) fn is_proven(&self, name: Name, now: Instant, machine: &mut impl Machine) -> bool {
        let aged = self.member(name).is_some_and(|member| self.was_ready_long(member, now));
        aged && !machine.owes(name) || machine.has_answered(name)
    }

    /// The same of one that has ended.
    fn has_served(&self, member: &Member, exit: &Exit, now: Instant) -> bool {
        exit.answered || !exit.owed && self.was_ready_long(member, now)
    }

    /// Age says nothing of one that has only let requests wait, and begins anew when it owes no answer any more.
    fn was_ready_long(&self, member: &Member, now: Instant) -> bool {
        let from = member.ready_at.map(|at| at.max(member.trust.owed_at.unwrap_or(at)));
        !member.trust.late && from.is_some_and(|from| from + self.rule.proven_after <= now)
    }

    fn end_of(&self, member: &Member, exit: &Exit, now: Instant) -> End {
        match member.ending {
            _ if self.has_served(member, exit, now) => self.end_of_proven(member, now),
            None if exit.clean && member.ready_at.is_some() => End::Short,
            _ => End::Crash,
        }
    }

    fn end_of_proven(&self, member: &Member, now: Instant) -> End {
        if now.duration_since(member.born) >= self.rule.restart.base { End::Settled } else { End::Short }
    }

    /// Before a roll is proven that is its end. Else it is decided when the place gets another worker, if ever.
    fn failed(&mut self, loss: &Loss<'_>, now: Instant, machine: &mut impl Machine) {
        let in_turn = self.is_in_turn(loss.number);
        let on_trial = |roll: &Roll| in_turn && !roll.proven && roll.generation == loss.generation;
        let nobody_comes = self.roll().is_some_and(on_trial) || !self.decide(loss.number, loss.end, now, machine);
        if nobody_comes && in_turn {
            // The roll would wait for that one for ever.
            self.abort_roll(loss.reason, loss.last_lines, now, machine);
        }
    }

    /// The system has no process or descriptor for a worker. That is no fault of an app that has served before: it is tried again, as
    /// rarely as crashes allow, but never given up for it.
    fn start_later(&mut self, number: u32, now: Instant) {
        let longest = self.rule.restart.max;
        let Some(place) = self.place_mut(number) else { return };
        place.start_at = match place.policy.ended(End::Crash, now) {
            Decision::StartAt(at) => at.max(now + ROOM_RETRY),
            Decision::GiveUp => {
                place.policy.forget();
                now + longest
            }
        };
    }

    /// A worker that has served leaves its place by itself.
    pub(super) fn vacated(&mut self, member: &Member, now: Instant, machine: &mut impl Machine) {
        let Some(place) = self.place_mut(member.number) else { return };
        place.release(member.name);
        if place.serving.is_none() {
            self.decide(member.number, self.end_of_proven(member, now), now, machine);
        }
    }

    /// A worker has failed: when does its place get another one? Where the old one serves on, not for a while if this happens too
    /// often; a place that nobody fills is given up then. False: too often.
    pub(super) fn decide(&mut self, number: u32, end: End, now: Instant, machine: &mut impl Machine) -> bool {
        let longest = self.rule.restart.max;
        let Some(place) = self.place_mut(number) else { return true };
        if place.given_up {
            self.give_up(number, now, machine);
            return false;
        }
        match place.policy.ended(end, now) {
            Decision::StartAt(at) => {
                (place.retry_at, place.start_at) = (at, at);
                if end != End::Crash
                    && at > now
                    && let Some(ends) = place.policy.tell_loop(now)
                {
                    machine.say(Event::Loops(number, ends, at - now));
                }
                return true;
            }
            Decision::GiveUp if place.serving.is_some() => {
                place.policy.forget();
                place.retry_at = now + longest;
                machine.say(Event::OldServesOn(number));
            }
            Decision::GiveUp => self.give_up(number, now, machine),
        }
        false
    }

    pub(super) fn fail_if_all_gave_up(&mut self, now: Instant, machine: &mut impl Machine) {
        let lost = !self.places.is_empty() && self.places.iter().all(|place| place.given_up);
        let serves = self.members.iter().any(Member::is_active) || !self.joined.is_empty();
        if lost && !serves && !self.failed {
            self.failed = true;
            machine.give_up(now);
            machine.say(Event::AppFailed);
        }
    }
}

/// Scaling by hand.
impl Fleet {
    /// Changes the number of workers. New ones start at once. Of those that are too many, the ones that do not serve go first, then
    /// those that are missed least; each is drained.
    pub fn scale_to(&mut self, target: usize, why: &'static str, now: Instant, machine: &mut impl Machine) {
        let before = self.places.len();
        if target == before || self.course != Course::Serve {
            return;
        }
        if target > before {
            self.add_places(target - before, now);
        }
        while self.places.len() > target {
            self.remove_place(now, machine);
        }
        machine.say(Event::Scaled(before, target, why));
        self.fail_if_all_gave_up(now, machine);
    }

    fn remove_place(&mut self, now: Instant, machine: &mut impl Machine) {
        let idle = self.places.iter().rposition(|place| !self.serves(place));
        let position = idle.or_else(|| {
            let running = self.members.iter().filter(|member| member.is_running());
            let here = running.filter(|member| self.place(member.number).is_some_and(|place| place.holds(member.name)));
            let names: Vec<Name> = here.map(|member| member.name).collect();
            let least_missed = machine.least_missed(&names)?;
            self.places.iter().position(|place| place.holds(least_missed))
        });
        let place = self.places.remove(position.unwrap_or(self.places.len() - 1));
        self.place_was_removed(place.number);
        for name in place.serving.into_iter().chain(place.next) {
            self.leave(name, Ending::ScaledDown, now, machine);
        }
    }
}
