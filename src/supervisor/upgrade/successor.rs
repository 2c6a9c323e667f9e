//! The new side of an upgrade: starts its workers, says that they are ready, and takes over when it is told to.
//!
//! A predecessor that ends before it has said so leaves its sockets to this server, which takes over at once. One that says anything
//! else is there, and serves on: this server ends.

use std::io;
use std::time::Instant;

use serde_json::Value;

use crate::control;
use crate::handover::{Changed, Channel, JoinedWorker, Message, Taken};
use crate::log::Level;
use crate::mailbox::Message as Mail;
use crate::metrics::Account;
use crate::supervisor::Supervisor;
use crate::supervisor::pid_file::PidFile;
use crate::supervisor::unit::Unit;
use crate::tls;

/// What a server is given that takes the place of another.
pub struct Succession {
    /// To the server before it.
    pub channel: Channel,
    /// Whether it has that one's run directory.
    pub takes_run_dir: bool,
    /// What the servers before it have counted so far.
    pub account: Account,
    /// Workers that they have started, and those that have crashed.
    pub lives: (u64, u64),
    /// Workers that had joined there.
    pub joined: Vec<JoinedWorker>,
    /// Apps that were down there, and are waited for by nobody.
    pub down: Vec<String>,
    /// Whether it hears that this server has handed over in its turn.
    pub hears_of_next: bool,
    /// Its process group, where this process was given another.
    pub group: Option<i32>,
    /// What else begins when it has taken over.
    pub begin: Box<dyn FnOnce()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its workers start.
    Starting,
    /// It has said that they are ready.
    Ready,
    /// It accepts; the server before it may still be the service's main process.
    Serving,
    /// It is the main process.
    Main,
}

/// See the module.
pub(super) struct Successor {
    /// `None`: the server before it has ended.
    channel: Option<Channel>,
    phase: Phase,
    takes_run_dir: bool,
    down: Vec<String>,
    hears_of_next: bool,
    /// To be joined.
    group: Option<i32>,
    /// What begins when it is the main process; `None`: it is.
    begin: Option<Box<dyn FnOnce()>>,
    /// What has come so far of what is in a hub.
    hub: Vec<u8>,
}

impl Successor {
    pub fn is_main(&self) -> bool {
        self.phase == Phase::Main
    }

    /// It is the server, and the one before it kills it no more: it goes where that one is, so that it hears what that one would of a terminal,
    /// or of whoever has started it.
    fn become_main(&mut self) {
        self.phase = Phase::Main;
        self.begin.take().into_iter().for_each(|begin| begin());
        if let Some(group) = self.group.take() {
            // SAFETY: plain numbers. A group that is gone, or another session's, is refused, and it stays where it is.
            unsafe { libc::setpgid(0, group) };
        }
    }

    /// Whether the server before this one still tells what it counts.
    pub fn is_told(&self) -> bool {
        self.channel.is_some()
    }

    pub fn tell_of_next(&mut self) {
        if let Some(channel) = self.channel.as_mut().filter(|_| self.hears_of_next) {
            // That it is gone is heard.
            channel.say(&Message::HandedOver).ok();
        }
    }

    pub fn entry(&self) -> Option<libc::pollfd> {
        self.channel.as_ref().map(Channel::poll_entry)
    }
}

impl Supervisor {
    /// Makes this server one that takes over. To be called before it runs.
    pub fn succeed(&mut self, succession: Succession) {
        let now = Instant::now();
        let Succession { channel, takes_run_dir, account, lives, joined, down, hears_of_next, group, begin } =
            succession;
        self.hold_pushes(true);
        self.inherit_counts(account);
        self.context.status.add_lives(lives);
        joined.iter().for_each(|worker| self.inherit_joined(worker, now));
        let (channel, phase) = (Some(channel), Phase::Starting);
        let (begin, hub) = (Some(begin), Vec::new());
        self.upgrades.successor =
            Some(Successor { channel, phase, takes_run_dir, down, hears_of_next, group, begin, hub });
    }

    fn inherit_joined(&mut self, worker: &JoinedWorker, now: Instant) {
        match control::join_of(worker.join.to_string().as_bytes()) {
            // Whether it is still there, the join finds out.
            Ok(join) => {
                let app = join.app.clone();
                if let Some(unit) = self.units.iter_mut().find(|unit| app.as_deref() == Some(unit.name())) {
                    unit.join(join, now);
                }
            }
            Err(message) => self.context.log.event(
                Level::Warn,
                format_args!("a worker that had joined the server before this one is left out: {message}"),
                &[],
            ),
        }
    }

    /// What has changed at the server before this one while this one started.
    fn inherit_changes(&mut self, changed: Changed, now: Instant) {
        let Changed { joined, ticket_keys } = changed;
        tls::adopt_ticket_keys(ticket_keys);
        let known = self.joined_workers();
        let name_of = |worker: &JoinedWorker| (worker.join["app"].clone(), worker.join["workerId"].clone());
        let stays = |name: &(Value, Value)| joined.iter().any(|worker| name_of(worker) == *name);
        // One that has joined anew elsewhere takes its own place.
        for (app, worker) in known.iter().map(name_of).filter(|name| !stays(name)) {
            let unit = self.units.iter_mut().find(|unit| app.as_str() == Some(unit.name()));
            unit.zip(worker.as_str()).into_iter().for_each(|(unit, worker)| drop(unit.quit(worker, now)));
        }
        joined.iter().filter(|worker| !known.contains(worker)).for_each(|worker| self.inherit_joined(worker, now));
    }

    pub(super) fn advance_succession(&mut self, now: Instant) {
        let Some(mut successor) = self.upgrades.successor.take() else { return };
        if successor.phase == Phase::Starting && self.stop.is_none() && self.has_all_workers(&successor.down) {
            successor.phase = Phase::Ready;
            if let Some(channel) = &mut successor.channel {
                // That it is gone is heard below.
                channel.say(&Message::Ready).ok();
            }
        }
        while let Some(channel) = &mut successor.channel {
            // That it is gone is heard, behind its last word.
            channel.flush().ok();
            let (message, broken) = match channel.hear() {
                Ok(Some(message)) => (Some(message), None),
                Ok(None) => break,
                Err(error) => (None, Some(error)),
            };
            match (successor.phase, message) {
                (Phase::Ready, Some(Message::Limit(told))) => self.inherit_limit(told, now),
                (Phase::Ready, Some(Message::Changed(changed))) => self.inherit_changes(changed, now),
                (Phase::Ready, Some(Message::Hub(part))) => {
                    // What is no base64 is no snapshot, either.
                    part.append(&mut successor.hub).ok();
                    if part.last {
                        self.inherit_hub(&part.name, &std::mem::take(&mut successor.hub), now);
                    }
                }
                (Phase::Serving | Phase::Main, Some(Message::Notice(notice))) => {
                    if !self.upgrades.pass_on(&notice) {
                        self.publish_notice(&notice, now);
                    }
                }
                (Phase::Ready, Some(Message::Go(account))) => self.take_over(&mut successor, Some(account), now),
                (Phase::Serving | Phase::Main, Some(Message::Counted(account))) => {
                    self.inherit_counts(account);
                    successor.become_main();
                    self.accept_anew();
                }
                (Phase::Serving | Phase::Main, Some(Message::Farewell(account))) => {
                    self.inherit_counts(account);
                    self.accept_anew();
                    successor.become_main();
                    successor.channel = None;
                    self.context.events.emit(Level::Info, "upgrade-over", "the server before this one has ended", &[]);
                }
                (_, message) => {
                    let why = broken.as_ref().map_or_else(|| format!("it said {message:?}"), io::Error::to_string);
                    let is_gone = broken.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
                    self.predecessor_lost(&mut successor, is_gone, &why, now);
                }
            }
        }
        self.upgrades.successor = Some(successor);
    }

    /// Whoever waits in a backlog may have been told to the server before this one alone, which accepts no more.
    fn accept_anew(&self) {
        if !self.upgrades.is_handed_over() {
            self.context.postboxes.broadcast(|| Mail::AcceptAnew);
        }
    }

    /// The server before this one is gone without a farewell, or does not go on with the handover.
    fn predecessor_lost(&mut self, successor: &mut Successor, is_gone: bool, why: &str, now: Instant) {
        let channel = successor.channel.take();
        let fields: [(&str, &dyn std::fmt::Display); 1] = [("error", &why)];
        match successor.phase {
            Phase::Serving | Phase::Main => {
                let message = "the server before this one has ended before its requests were finished";
                self.context.events.emit(Level::Warn, "upgrade-over", message, &fields);
                self.accept_anew();
            }
            Phase::Starting | Phase::Ready if is_gone => {
                let message = "the server before this one has ended without a word; this one takes over";
                self.context.events.emit(Level::Warn, "upgrade-alone", message, &fields);
                self.take_over(successor, None, now);
            }
            // It serves on, and two must not.
            Phase::Starting | Phase::Ready => {
                let message = "the server before this one does not hand over and serves on; this one ends";
                self.context.log.event(Level::Error, message, &fields);
                channel.into_iter().for_each(|channel| channel.fail(why));
                if self.stop.is_none() {
                    self.begin_stop(now);
                }
                return;
            }
        }
        successor.become_main();
    }

    /// From here on this server serves.
    fn take_over(&mut self, successor: &mut Successor, account: Option<Account>, now: Instant) {
        if let Some(account) = account {
            self.inherit_counts(account);
        }
        self.begin_pushes(now);
        let run_dir = successor.takes_run_dir;
        if run_dir {
            self.context.run.take_over();
            let path = self.context.control_path();
            if let Some(Err(error)) = self.control.as_mut().map(|control| control.move_to(&path)) {
                let fields: [(&str, &dyn std::fmt::Display); 1] = [("error", &error)];
                self.context.log.event(Level::Error, "the control socket cannot be put in its place", &fields);
            }
        }
        self.upgrades.holdings.take_over();
        if let Some(path) = &self.context.settings().process.pid_file
            && let Err(error) = self.upgrades.pid_file.insert(PidFile::at(path)).take_back()
        {
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("file", &path.display()), ("error", &error)];
            self.context.log.event(Level::Error, "the pid file cannot be written yet", &fields);
        }
        self.context.postboxes.broadcast(|| Mail::Accept);
        successor.phase = Phase::Serving;
        let process = std::process::id();
        self.context.events.emit(Level::Info, "upgrade-serving", "this server has taken over", &[("pid", &process)]);
        let taken = Taken { run_dir, listeners: self.upgrades.holdings.addresses() };
        if let Some(channel) = &mut successor.channel {
            // That it is gone is heard in this turn.
            channel.say(&Message::Serving(taken)).ok();
        }
        self.show_state(now);
    }

    /// Tells the server before this one that nothing comes of the upgrade, if it still waits.
    pub(in crate::supervisor) fn fail_succession(&mut self, reason: &str) {
        let waits = |successor: &&mut Successor| matches!(successor.phase, Phase::Starting | Phase::Ready);
        if let Some(channel) = self.upgrades.successor.as_mut().filter(waits).and_then(|waiting| waiting.channel.take())
        {
            channel.fail(reason);
        }
    }

    /// Whether each place of each app has a worker that is ready. What somebody else runs is not waited for, nor what was down before and is not
    /// required.
    fn has_all_workers(&self, down: &[String]) -> bool {
        let is_waited_for = |unit: &&Unit| {
            unit.starts_workers() && (unit.app().required || !down.iter().any(|name| name == unit.name()))
        };
        self.units.iter().filter(is_waited_for).all(|unit| unit.ready_workers() >= unit.fleet.wanted())
    }
}
