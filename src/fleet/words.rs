//! What a worker had said before its end and was heard only after it: it counts as if it had been heard in time, but nobody makes room
//! for one that is gone.

use std::time::Instant;

use super::{Ending, Event, Fleet, Machine, Name, Phase};

/// One thing that a worker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is ready.
    Ready,
    /// It leaves by itself.
    Leaves,
    /// It is stuck, for that reason.
    Stuck(Ending),
}

impl Fleet {
    /// A worker has ended, and all that it has answered is known: `words` are what it had still said, in order. To be told before its
    /// end is judged by [`Member::ending`](super::Member::ending) and [`Fleet::exited`], also when there are none: one that said that
    /// it leaves may have shown only afterwards that it had served.
    pub fn last_words(&mut self, name: Name, words: &[Word], now: Instant, machine: &mut impl Machine) {
        for word in words {
            match *word {
                Word::Ready => self.was_ready(name, now, machine),
                Word::Leaves => self.leaving(name, now, machine),
                Word::Stuck(ending) => {
                    if let Some(member) = self.member_mut(name) {
                        member.ending.get_or_insert(ending);
                    }
                }
            }
        }
        let proven = self.is_proven(name, now, machine);
        let Some(member) = self.member_mut(name).filter(|member| member.leaves && proven && member.ending.is_none())
        else {
            return;
        };
        member.ending = Some(Ending::Leaving);
        let member = member.clone();
        self.prove(name, now);
        self.vacated(&member, now, machine);
    }

    /// It takes nobody's place over any more, and no request waits for it.
    fn was_ready(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let Some(member) = self.member_mut(name).filter(|member| member.is_starting()) else { return };
        member.phase = Phase::Running;
        member.ready_at = Some(now);
        self.ever_ready = true;
        machine.say(Event::Ready(name));
    }
}
