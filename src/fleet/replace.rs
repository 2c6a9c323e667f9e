//! What fills places and replaces workers, and what happens when one is lost.

use std::time::Instant;

use super::place::{Member, Phase, Place};
use super::policy::Decision;
use super::{Ending, Event, Exit, Fleet, MEMORY_RETRY, Machine, Name, RECYCLED_AT_ONCE, ROOM_RETRY, Start, Started};

/// Who holds a place.
enum Occupant {
    /// Nobody: it is to be filled.
    Nobody,
    /// Somebody who is not to be replaced, or whose replacement is on its way or was, or who has to end first.
    Somebody,
    /// Somebody who is to be replaced.
    Due(Name, Ending),
}

impl Fleet {
    pub(super) fn add_places(&mut self, count: usize, now: Instant) {
        for _ in 0..count {
            let taken = |number: u32| self.places.iter().any(|place| place.number == number);
            let number = (1..).find(|number| !taken(*number)).unwrap_or(u32::MAX);
            self.places.push(Place::new(number, &self.rule, now));
            self.places.sort_by_key(|place| place.number);
            self.place_was_added(number);
        }
    }

    /// When something is to be done about a place, as far as that is known.
    pub(super) fn place_due(&self, place: &Place) -> Option<Instant> {
        if place.given_up {
            return None;
        }
        match self.occupant(place.number) {
            Occupant::Nobody => Some(place.start_at),
            // A replacement that waits for another to get ready is started by that event and needs no timer.
            Occupant::Due(_, ending) if self.may_replace(ending) => Some(place.retry_at),
            Occupant::Due(..) | Occupant::Somebody => None,
        }
    }

    fn occupant(&self, number: u32) -> Occupant {
        let here = self.members.iter().filter(|member| member.number == number);
        let mut active = here.clone().filter(|member| member.is_active());
        match (active.next(), active.next()) {
            // Its replacement is on its way, or on trial.
            (Some(_), Some(_)) => Occupant::Somebody,
            // A replacement that failed is judged at its exit, which may end the roll or ask for a delay: no other before that.
            (Some(_), None) if here.clone().any(|other| !other.is_active() && !other.replaced) => Occupant::Somebody,
            (Some(member), None) => member.due.map_or(Occupant::Somebody, |ending| Occupant::Due(member.name, ending)),
            (None, _) if here.clone().all(|member| member.replaced) => Occupant::Nobody,
            (None, _) => Occupant::Somebody,
        }
    }

    /// Whether a replacement for that reason may be started now. A roll counts its own, and all others wait for its end.
    fn may_replace(&self, ending: Ending) -> bool {
        match ending {
            _ if self.settling => false,
            Ending::Deploy => true,
            _ if self.roll.is_some() => false,
            _ => {
                let starting = self.members.iter().filter(|member| member.is_starting()).count();
                starting < self.places.len().div_ceil(RECYCLED_AT_ONCE)
            }
        }
    }

    /// Starts a worker for every place that has none and is due, and the replacements that are due.
    pub(super) fn fill_places(&mut self, now: Instant, machine: &mut impl Machine) {
        let numbers: Vec<u32> = self.places.iter().map(|place| place.number).collect();
        for number in numbers {
            let Some(place) = self.places.iter().find(|place| place.number == number && !place.given_up) else {
                continue;
            };
            let (start_at, retry_at) = (place.start_at, place.retry_at);
            match self.occupant(number) {
                Occupant::Nobody if start_at <= now => self.start(number, now, machine),
                Occupant::Due(name, ending) if retry_at <= now && self.may_replace(ending) => {
                    self.start_replacement(number, name, ending, now, machine);
                }
                _ => {}
            }
        }
    }

    fn start(&mut self, number: u32, now: Instant, machine: &mut impl Machine) {
        let generation = self.generation_for(number);
        let requests = self.rule.requests;
        let name = Name(self.next_name);
        self.next_name += 1;
        let Some(place) = self.place_mut(number) else { return };
        let limit = if requests == 0 { 0 } else { place.jitter.add(requests) };
        let start = Start { name, number, generation, limit };
        match machine.start(start) {
            Started::Yes => {
                place.restarts += u32::from(place.filled_before);
                place.filled_before = true;
                let deadline = now + self.rule.ready_timeout;
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
                    due_anyway: None,
                    ending: None,
                    expires: None,
                    replaced: false,
                });
            }
            Started::NoRoom => {
                place.start_at = now + ROOM_RETRY;
                place.retry_at = now + ROOM_RETRY;
            }
            Started::Failed(message) => {
                machine.say(Event::StartFailed(number, message.clone()));
                if self.ever_ready && !self.is_filled(number) && !self.is_in_turn(number) {
                    return self.start_later(number, now);
                }
                self.start_failed(number, generation, &message, "", now, machine);
            }
        }
    }

    /// Start first where memory has room for both, else stop first where a worker may be missing, else wait.
    fn start_replacement(&mut self, number: u32, old: Name, ending: Ending, now: Instant, machine: &mut impl Machine) {
        if machine.fits_beside(old) {
            return self.start(number, now, machine);
        }
        let serves =
            |place: &&Place| self.members.iter().any(|member| member.number == place.number && member.is_running());
        // Nobody comes back to a place that was given up: waiting for that would have no end.
        let missing = self.places.iter().filter(|place| !place.given_up && !serves(place)).count();
        // Who holds too much memory is what takes the room.
        if missing < self.rule.max_unavailable || matches!(ending, Ending::Memory(_)) {
            if let Some(index) = self.members.iter().position(|member| member.name == old) {
                self.leave(index, ending, now, machine);
            }
            return;
        }
        if ending == Ending::Deploy && self.rule.max_unavailable == 0 && self.roll.is_some() {
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

    /// A worker got ready for the first time: whoever filled its place before is drained, unless the new one is on trial.
    pub(super) fn filled(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let Some(number) = self.member(name).map(|member| member.number) else { return };
        if let Some(place) = self.place_mut(number) {
            place.short_of_memory = false;
        }
        if !self.is_on_trial(name, number, now) {
            self.retire_others(number, name, now, machine);
        }
    }

    /// Drains those in a place who were there before one of them.
    pub(super) fn retire_others(&mut self, number: u32, name: Name, now: Instant, machine: &mut impl Machine) {
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if member.number == number && member.name < name && member.is_active() {
                member.replaced = true;
                let ending = member.due.unwrap_or(Ending::Deploy);
                self.leave(index, ending, now, machine);
            }
        }
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
        let number = member.number;
        if member.replaced || !self.places.iter().any(|place| place.number == number) {
            return;
        }
        let failed = !member.ending.is_some_and(Ending::is_planned);
        let unproven = member.ready_at.is_none() || self.is_unproven(member);
        if failed && unproven && self.is_rolling(number, member.generation) {
            return self.start_failed(number, member.generation, reason, &exit.last_lines, now, machine);
        }
        let other = self.members.iter().find(|other| other.number == number && other.is_active());
        match other {
            // The one that served died while its replacement starts: the replacement fills the place.
            Some(other) if other.name > member.name => {}
            Some(_) if failed => self.start_failed(number, member.generation, reason, &exit.last_lines, now, machine),
            Some(_) => {}
            None if failed => {
                self.decide(number, exit.answered, now, machine);
                if self.is_given_up(number) && self.is_in_turn(number) {
                    // Nobody will come to this place, and the roll would wait for that one for ever.
                    self.abort_roll(reason, &exit.last_lines, now, machine);
                }
            }
            None => {
                if let Some(place) = self.place_mut(number) {
                    place.start_at = now;
                }
            }
        }
    }

    /// A start came to nothing. In a roll that may be its end. Else, where the old worker still serves it goes on, and the
    /// replacement is tried again later.
    fn start_failed(
        &mut self,
        number: u32,
        generation: u32,
        reason: &str,
        last_lines: &str,
        now: Instant,
        machine: &mut impl Machine,
    ) {
        let rolling = self.is_rolling(number, generation);
        if rolling && !self.is_proven() {
            return self.abort_roll(reason, last_lines, now, machine);
        }
        if !self.is_filled(number) && !rolling {
            return self.decide(number, false, now, machine);
        }
        let longest = self.rule.restart.max;
        let Some(place) = self.place_mut(number) else { return };
        match place.policy.exited(false, now) {
            Decision::StartAt(at) => (place.retry_at, place.start_at) = (at, at),
            Decision::GiveUp if rolling => self.abort_roll(reason, last_lines, now, machine),
            Decision::GiveUp => {
                place.policy.forget();
                place.retry_at = now + longest;
                machine.say(Event::OldServesOn(number));
            }
        }
    }

    /// The system has no process or descriptor for a worker. That is no fault of an app that has served before: it is tried again, as
    /// rarely as crashes allow, but never given up for it.
    fn start_later(&mut self, number: u32, now: Instant) {
        let longest = self.rule.restart.max;
        let Some(place) = self.place_mut(number) else { return };
        place.start_at = match place.policy.exited(false, now) {
            Decision::StartAt(at) => at.max(now + ROOM_RETRY),
            Decision::GiveUp => {
                place.policy.forget();
                now + longest
            }
        };
    }

    /// Whether somebody serves in a place, or will.
    pub(super) fn is_filled(&self, number: u32) -> bool {
        self.members.iter().any(|member| member.number == number && member.is_active())
    }

    pub(super) fn is_given_up(&self, number: u32) -> bool {
        self.places.iter().any(|place| place.number == number && place.given_up)
    }

    /// Nobody fills the place: when is it filled again, if ever?
    pub(super) fn decide(&mut self, number: u32, answered: bool, now: Instant, machine: &mut impl Machine) {
        let Some(place) = self.place_mut(number) else { return };
        match place.policy.exited(answered, now) {
            Decision::StartAt(at) => place.start_at = at,
            Decision::GiveUp => {
                place.given_up = true;
                machine.say(Event::GaveUp(number));
                self.fail_if_all_gave_up(now, machine);
            }
        }
    }

    pub(super) fn fail_if_all_gave_up(&mut self, now: Instant, machine: &mut impl Machine) {
        let lost = !self.places.is_empty() && self.places.iter().all(|place| place.given_up);
        let serves = self.members.iter().any(Member::is_active) || !self.guests.is_empty();
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
    /// the coldest; each is drained.
    pub fn scale_to(&mut self, target: usize, why: &'static str, now: Instant, machine: &mut impl Machine) {
        let before = self.places.len();
        if target == before || self.settling || self.stopping {
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
        let running = |number: u32| self.members.iter().find(|member| member.number == number && member.is_running());
        let idle = self.places.iter().rposition(|place| running(place.number).is_none());
        let position = idle.or_else(|| {
            let names: Vec<Name> =
                self.places.iter().filter_map(|place| running(place.number)).map(|member| member.name).collect();
            let coldest = machine.coldest(&names)?;
            let number = self.member(coldest)?.number;
            self.places.iter().position(|place| place.number == number)
        });
        let place = self.places.remove(position.unwrap_or(self.places.len() - 1));
        self.place_was_removed(place.number);
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if member.number != place.number {
                continue;
            }
            // Nobody's end is a loss to a place that gets this number next, or has to be waited for.
            member.replaced = true;
            if member.is_active() {
                self.leave(index, Ending::ScaledDown, now, machine);
            }
        }
    }
}
