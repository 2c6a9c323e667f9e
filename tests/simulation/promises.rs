//! What the fleet promises, seen from outside: who is started, who has to leave, and who is there at that moment.
//!
//! - Whoever serves does so until a successor is ready, or there is no memory for both; in a roll, until one of the new generation has
//!   answered or has lived for a while.
//! - A place gets no second replacement before a failed one is gone.
//! - A roll replaces so many places at a time, from the successor's start until the old worker is gone, and nobody is recycled
//!   meanwhile.
//! - Whoever leaves gets no requests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use production_server::fleet::{Ending, Fleet, Member, Name, Rule};

/// What was seen of a fleet so far.
pub struct Promises {
    parallel: usize,
    max_unavailable: usize,
    proven_after: Duration,
    /// Workers that were seen, and those of them that were seen to leave.
    started: BTreeSet<Name>,
    left: BTreeSet<Name>,
    /// Generations of which somebody has shown that it serves.
    proven: BTreeSet<u32>,
    /// The roll under way at the last look, and whoever left already when it began, or lost its place.
    roll: Option<u64>,
    left_before: BTreeSet<Name>,
    /// Those for whose replacements there was no memory.
    unfit: BTreeSet<Name>,
}

impl Promises {
    /// Of a fleet that keeps to that rule.
    pub fn new(rule: &Rule) -> Promises {
        Promises {
            parallel: rule.parallel,
            max_unavailable: rule.max_unavailable,
            proven_after: rule.proven_after,
            started: BTreeSet::new(),
            left: BTreeSet::new(),
            proven: BTreeSet::new(),
            roll: None,
            left_before: BTreeSet::new(),
            unfit: BTreeSet::new(),
        }
    }

    /// There is no memory for a worker beside that one.
    pub fn unfit(&mut self, name: Name) {
        self.unfit.insert(name);
    }

    /// Looks at everybody: `has_answered` a request, `gets_none` any more.
    pub fn check(
        &mut self,
        fleet: &Fleet,
        now: Instant,
        has_answered: impl Fn(Name) -> bool,
        gets_none: impl Fn(Name) -> bool,
    ) {
        let lived = |member: &Member| member.ready_at.is_some_and(|at| at + self.proven_after <= now);
        let unknown = |member: &&Member| !self.proven.contains(&member.generation);
        let proven = fleet.members().iter().filter(unknown).filter(|it| lived(it) || has_answered(it.name));
        let proven: Vec<u32> = proven.map(|member| member.generation).collect();
        self.proven.extend(proven);
        let roll = fleet.roll().map(|roll| roll.id);
        let goes_on = roll.is_some() && roll == self.roll;
        if !goes_on {
            let leave = fleet.members().iter().filter(|member| !member.is_active());
            self.left_before = leave.map(|member| member.name).collect();
        }
        // A place that is taken away takes those who leave it along, and its number comes back.
        let astray = fleet.members().iter().filter(|member| fleet.place(member.number).is_none());
        self.left_before.extend(astray.map(|member| member.name));
        self.roll = roll;
        for member in fleet.members() {
            if self.started.insert(member.name) {
                check_start(fleet, member, goes_on);
            }
            if member.is_active() {
                continue;
            }
            assert!(gets_none(member.name), "requests still go to {member:?}");
            if self.left.insert(member.name) {
                self.check_departure(fleet, member);
            }
        }
        self.check_roll(fleet);
    }

    /// Whoever is replaced as planned has somebody in its stead.
    fn check_departure(&self, fleet: &Fleet, member: &Member) {
        let memory = match member.ending() {
            Some(Ending::Memory(_)) => true,
            Some(Ending::Deploy | Ending::Requests(_) | Ending::Lifetime(_) | Ending::Reloads(_)) => false,
            _ => return,
        };
        let ready = |it: &&Member| it.is_active() && it.ready_at.is_some() && it.name > member.name;
        let Some(successor) = of_place(fleet, member.number).find(ready) else {
            let stops_first = (self.max_unavailable > 0 || memory) && self.unfit.contains(&member.name);
            assert!(stops_first, "nobody serves in the stead of {member:?}");
            return;
        };
        let proven = successor.generation == member.generation || self.proven.contains(&successor.generation);
        assert!(proven, "{member:?} was replaced although nobody of the new generation has served");
    }

    /// A roll has no more places under way than it may.
    fn check_roll(&self, fleet: &Fleet) {
        let Some(roll) = fleet.roll() else { return };
        let old = |it: &Member| it.generation < roll.generation && !self.left_before.contains(&it.name);
        let leaves = |it: &Member| old(it) && !it.is_active() && it.ending() == Some(Ending::Deploy);
        let under_way = |number: u32| {
            let new = of_place(fleet, number).any(|it| it.is_active() && it.generation == roll.generation);
            of_place(fleet, number).any(|it| leaves(it) || (new && it.is_active() && old(it)))
        };
        let count = fleet.places().iter().filter(|place| under_way(place.number)).count();
        assert!(count <= self.parallel, "a roll replaces {count} places at a time: {:#?}", fleet.members());
    }
}

/// Those who live and were started for a place.
fn of_place(fleet: &Fleet, number: u32) -> impl Iterator<Item = &Member> + Clone {
    fleet.members().iter().filter(move |member| member.number == number)
}

/// A worker was started, in a roll that `goes_on` for longer.
fn check_start(fleet: &Fleet, member: &Member, goes_on: bool) {
    let older = of_place(fleet, member.number).filter(|other| other.name < member.name);
    let Some(serving) = older.clone().find(|other| other.is_active()) else { return };
    let failed =
        |it: &Member| it.name > serving.name && !it.is_active() && !it.ending().is_some_and(Ending::is_planned);
    assert!(
        !older.clone().any(failed),
        "a second replacement of {serving:?} before the failed one is gone: {member:?}"
    );
    let of_roll = fleet.roll().is_none_or(|roll| roll.generation == member.generation);
    assert!(!goes_on || of_roll, "{serving:?} is recycled in the middle of a roll");
}
