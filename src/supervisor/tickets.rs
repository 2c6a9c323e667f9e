//! Restarts that somebody waits for: one ticket each, whichever apps it is about.

use serde_json::{Map, Value, json};

use crate::control::Answer;
use crate::dispatch::AppId;
use crate::fleet::{RollEnd, RollReport};

/// In the place of a roll, whose numbers begin with 1: the start of a new app.
const START: u64 = 0;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    last: u64,
    open: Vec<Ticket>,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    /// What is to be said before all else.
    preface: Option<String>,
    /// Rolls that have not ended.
    left: Vec<(AppId, u64)>,
    /// What came of the others.
    ended: Vec<Outcome>,
}

/// What came of an app's roll.
#[derive(Clone, Debug)]
struct Outcome {
    app: String,
    message: String,
    /// Its number and its generation; `None`: it was aborted.
    done: Option<(u64, u32)>,
}

impl Tickets {
    /// A ticket for these rolls.
    pub fn open(&mut self, rolls: Vec<(AppId, u64)>) -> u64 {
        self.add(None, rolls)
    }

    /// A ticket for a reload that says this first: for its rolls, and for the start of new apps.
    pub fn open_reload(&mut self, preface: String, mut rolls: Vec<(AppId, u64)>, started: &[AppId]) -> u64 {
        rolls.extend(started.iter().map(|id| (*id, START)));
        self.add(Some(preface), rolls)
    }

    /// Whether somebody waits for the start of an app.
    pub fn awaits_start(&self, id: AppId) -> bool {
        self.open.iter().any(|ticket| ticket.left.contains(&(id, START)))
    }

    /// An app has started, or has failed.
    pub fn started(&mut self, id: AppId, app: &str, serves: bool) -> Vec<(u64, Answer)> {
        let message = if serves { "the app is there" } else { "the app has failed: none of its workers serves" };
        let outcome = Outcome { app: app.to_owned(), message: message.to_owned(), done: serves.then_some((START, 1)) };
        self.settle(|left| left == (id, START), &outcome)
    }

    fn add(&mut self, preface: Option<String>, rolls: Vec<(AppId, u64)>) -> u64 {
        self.last += 1;
        self.open.push(Ticket { number: self.last, preface, left: rolls, ended: Vec::new() });
        self.last
    }

    /// A roll has ended: the tickets that are to be answered now.
    pub fn ended(&mut self, id: AppId, app: &str, report: &RollReport) -> Vec<(u64, Answer)> {
        let outcome = Outcome::of(app, report);
        self.settle(|left| left == (id, report.id), &outcome)
    }

    /// An app is gone, and with it all rolls of it.
    pub fn gone(&mut self, id: AppId, app: &str) -> Vec<(u64, Answer)> {
        let outcome = Outcome { app: app.to_owned(), message: format!("the app {app} was removed"), done: None };
        self.settle(|left| left.0 == id, &outcome)
    }

    fn settle(&mut self, is_it: impl Fn((AppId, u64)) -> bool, outcome: &Outcome) -> Vec<(u64, Answer)> {
        for ticket in &mut self.open {
            let before = ticket.left.len();
            ticket.left.retain(|left| !is_it(*left));
            if ticket.left.len() < before {
                ticket.ended.push(outcome.clone());
            }
        }
        let (over, open) =
            std::mem::take(&mut self.open).into_iter().partition(|ticket: &Ticket| ticket.left.is_empty());
        self.open = open;
        over.into_iter().map(|ticket| (ticket.number, answer(ticket.preface, &ticket.ended))).collect()
    }
}

impl Outcome {
    fn of(app: &str, report: &RollReport) -> Outcome {
        let RollReport { id, generation, done, total, end, left } = report;
        let (message, done) = match end {
            RollEnd::Done => {
                (format!("rolling restart {id} is done: {done} of {total} workers are new"), Some((*id, *generation)))
            }
            RollEnd::Aborted { reason, last_lines } => {
                let said =
                    if last_lines.is_empty() { String::new() } else { format!("; its last words: {last_lines}") };
                (format!("rolling restart {id} was aborted, {left}: {reason}{said}"), None)
            }
        };
        Outcome { app: app.to_owned(), message, done }
    }
}

/// One answer for all; where one was aborted that is the answer, and it says what became of the others.
fn answer(preface: Option<String>, outcomes: &[Outcome]) -> Answer {
    let said = match outcomes {
        [one] if preface.is_none() || one.done.is_some_and(|(roll, _)| roll != START) => vec![one.message.clone()],
        several => several.iter().map(|one| format!("{}: {}", one.app, one.message)).collect(),
    };
    let message = preface.into_iter().chain(said).collect::<Vec<_>>().join("\n");
    match outcomes {
        _ if outcomes.iter().any(|outcome| outcome.done.is_none()) => Answer::refused(409, message),
        [Outcome { done: Some((roll, generation)), .. }] => {
            Answer::Done(json!({ "message": message, "roll": roll, "generation": generation }))
        }
        several => {
            let rolls: Map<String, Value> =
                several.iter().map(|one| (one.app.clone(), json!(one.done.map(|(roll, _)| roll)))).collect();
            Answer::Done(json!({ "message": message, "rolls": rolls }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Left;

    fn report(id: u64, end: RollEnd) -> RollReport {
        RollReport { id, generation: 2, done: 1, total: 1, end, left: Left { old: 1, ..Left::default() } }
    }

    #[test]
    fn rolls_of_the_same_number_belong_to_their_apps() {
        let (mut tickets, web, api) = (Tickets::default(), AppId(0), AppId(1));
        let first = tickets.open(vec![(web, 1)]);
        let both = tickets.open(vec![(web, 1), (api, 1)]);
        assert_ne!(first, both);
        let told = tickets.ended(web, "web", &report(1, RollEnd::Done));
        assert!(matches!(&told[..], [(number, Answer::Done(document))] if *number == first && document["roll"] == 1));
        let told = tickets.ended(api, "api", &report(1, RollEnd::Done));
        let [(number, Answer::Done(document))] = &told[..] else { panic!("{told:?}") };
        assert_eq!((*number, &document["rolls"]), (both, &json!({"web": 1, "api": 1})));
        assert!(tickets.ended(api, "api", &report(1, RollEnd::Done)).is_empty(), "each is told once");
    }

    #[test]
    fn one_that_was_aborted_is_the_answer_for_all() {
        let (mut tickets, web, api) = (Tickets::default(), AppId(0), AppId(1));
        tickets.open(vec![(web, 3), (api, 1)]);
        let end = RollEnd::Aborted { reason: "exit: code 1".to_owned(), last_lines: "no database".to_owned() };
        assert!(tickets.ended(web, "web", &report(3, end)).is_empty(), "the other goes on");
        let told = tickets.gone(api, "api");
        let [(_, Answer::Refused { status: 409, message })] = &told[..] else { panic!("{told:?}") };
        assert!(message.contains("exit: code 1") && message.contains("no database"), "{message}");
        assert!(message.contains("the app api was removed"), "{message}");
    }
}
