//! What a client that listens is going to do, visit by visit.

use std::collections::VecDeque;
use std::time::Duration;

use production_server::hub::Position;

use crate::simulation::line::Line;

/// How it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A WebSocket that gets messages as they are.
    Bare,
    /// A WebSocket whose messages come with their topics and ids.
    Told,
    Events,
    Poll,
}

/// With what id it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    Now,
    /// The last that it knows, if any.
    Last,
    Nonsense,
    /// One of another epoch.
    Elsewhere,
    /// One that no message has yet.
    Beyond,
}

/// How it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// When the server ends.
    Stays,
    /// As the protocol has it.
    Closes,
    Drops,
    Resets,
}

/// What it says over a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// With where it comes from, if from anywhere.
    Subscribe(String, Option<Position>),
    Unsubscribe(String),
    /// A message for the app, of about so many bytes.
    Say(usize),
    Ping,
    /// What breaks the protocol.
    Nonsense,
}

/// A visit.
pub struct Plan {
    pub way: Way,
    pub topics: Vec<String>,
    pub resume: Resume,
    pub deflates: bool,
    pub http10: bool,
    /// Bytes written and read in a step, at most, and in how many steps of 1000 it reads.
    pub piece: usize,
    pub read: usize,
    pub reads: u32,
    /// It takes nothing, from then on and for so long.
    pub deaf: Option<(Duration, Duration)>,
    /// Each with the time since the one before it.
    pub actions: VecDeque<(Duration, Action)>,
    pub leave: Leave,
    pub stays: Duration,
}

/// What clients of a run may do.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Visits of each, at most.
    pub visits: usize,
    /// There is an app that hears what they say.
    pub app: bool,
    /// They may do what a server has to defend itself against.
    pub rude: bool,
    /// Bytes of what they say, at most.
    pub longest: usize,
    /// How long they take nothing, at most.
    pub deaf: Duration,
    /// How long they stay, at most.
    pub stays: Duration,
}

impl Plan {
    /// One visit; the last one may be until the server ends.
    pub fn draw(line: &Line, topics: &[String], manners: &Manners, is_last: bool) -> Plan {
        let some = |most: Duration| Duration::from_micros(line.below(most.as_micros() as usize + 1) as u64);
        let way = [Way::Bare, Way::Told, Way::Told, Way::Events, Way::Poll][line.below(5)];
        let mut of = topics.to_vec();
        while of.len() > 1 && line.chance(600) {
            of.remove(line.below(of.len()));
        }
        let is_socket = matches!(way, Way::Bare | Way::Told);
        let actions = if is_socket && line.chance(700) { line.between(1, 8) } else { 0 };
        let actions = (0..actions).map(|_| (some(manners.stays / 8), Plan::action(line, topics, manners))).collect();
        let leave = match line.below(6) {
            _ if is_last && line.chance(600) => Leave::Stays,
            0..3 if is_socket => Leave::Closes,
            3 if manners.rude => Leave::Resets,
            _ => Leave::Drops,
        };
        Plan {
            way,
            topics: of,
            resume: match line.below(20) {
                0 => Resume::Nonsense,
                1 => Resume::Elsewhere,
                2 => Resume::Beyond,
                3..8 => Resume::Now,
                _ => Resume::Last,
            },
            deflates: line.chance(200),
            http10: way == Way::Events && line.chance(150),
            piece: [3, 60, 4096][line.below(3)],
            read: [manners.longest.max(300) / 5, 4096, 65_536][line.below(3)],
            reads: [150, 1000, 1000][line.below(3)],
            deaf: line.chance(350).then(|| (some(manners.stays), some(manners.deaf))),
            actions,
            leave,
            stays: some(manners.stays),
        }
    }

    fn action(line: &Line, topics: &[String], manners: &Manners) -> Action {
        let topic = || topics[line.below(topics.len())].clone();
        match line.below(12) {
            0 if manners.rude => Action::Nonsense,
            1 => Action::Ping,
            _ if manners.app => {
                Action::Say(if line.chance(200) { line.below(manners.longest) } else { line.below(60) })
            }
            2..5 => Action::Unsubscribe(topic()),
            5..9 => Action::Subscribe(topic(), Some(Position::NOWHERE)),
            _ => Action::Subscribe(topic(), None),
        }
    }
}
