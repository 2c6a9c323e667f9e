//! What is heard from workers and seen of them while they live: their own words, their watchdogs and their memory.
//!
//! It turns these into what the fleet is to know, and decides nothing.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::crew::Crew;
use super::memory::{self, MemoryWatch};
use super::notify::{Message, NotifySocket, Watchdog};
use super::probe::Probe;
use super::process::Process;
use super::wake;
use crate::config::ReadyBy;
use crate::fleet::Name;
use crate::log::Level;

/// A worker's way to speak, and what it has said.
#[derive(Debug)]
pub struct Voice {
    /// Where it speaks.
    pub socket: NotifySocket,
    /// Whether it still says that it lives.
    pub watchdog: Watchdog,
    /// The last `STATUS=`; empty before.
    pub status: String,
}

/// News of a worker for the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It says that it is ready, and that is what was waited for.
    Ready,
    /// It says that it leaves.
    Leaves,
    /// It was silent for longer than it had promised.
    Silent(Duration),
    /// It holds so many bytes, and has held too many for too long.
    Heavy(u64),
}

impl Crew {
    /// Reads what workers say and looks at what is due. Never blocks; memory is read within the bounds of
    /// [`memory::proportional_of`].
    pub(super) fn hear(&mut self, now: Instant) -> Vec<(Name, Heard)> {
        let mut heard = Vec::new();
        let waited_for = self.settings.app.ready.by == ReadyBy::Notify;
        let mut hung_up = Vec::new();
        for process in &mut self.processes {
            let Some(voice) = &mut process.voice else { continue };
            let Voice { socket, watchdog, status } = voice;
            socket.read(|message| {
                watchdog.take(&message, now);
                match message {
                    Message::Ready if waited_for => heard.push((process.name, Heard::Ready)),
                    Message::Stopping => heard.push((process.name, Heard::Leaves)),
                    Message::Status(text) => *status = text,
                    _ => {}
                }
            });
            if watchdog.has_expired(now) {
                let period = watchdog.period().unwrap_or_default();
                *watchdog = Watchdog::new(None);
                heard.push((process.name, Heard::Silent(period)));
                hung_up.push((process.label.clone(), process.child.id(), period));
            }
        }
        for (label, pid, period) in hung_up {
            let fields: [(&str, &dyn Display); 2] = [("worker", &label), ("pid", &pid)];
            let message =
                format!("the worker has not said WATCHDOG=1 for {} s, and is taken for stuck", period.as_secs_f32());
            self.tell(Level::Error, "worker-silent", &message, &fields);
        }
        self.weigh(now, &mut heard);
        heard
    }

    fn weigh(&mut self, now: Instant, heard: &mut Vec<(Name, Heard)>) {
        let due = |process: &&mut Process| process.memory.as_ref().is_some_and(|watch| watch.next() <= now);
        let mut weighed: Vec<&mut Process> = self.processes.iter_mut().filter(due).collect();
        if weighed.is_empty() {
            return;
        }
        let groups: Vec<i32> = weighed.iter().map(|process| process.group()).collect();
        for (process, bytes) in weighed.iter_mut().zip(memory::proportional_of(&groups)) {
            if process.memory.as_mut().is_some_and(|watch| watch.sample(bytes, now)) {
                heard.push((process.name, Heard::Heavy(bytes.unwrap_or(0))));
            }
        }
    }

    /// Whether memory has room for another worker like this one; so, where nothing is known.
    pub(super) fn has_room_beside(&self, name: Name) -> bool {
        let held = self.process(name).and_then(|process| memory::proportional(process.group()));
        held.zip((self.headroom)()).is_none_or(|(held, free)| held <= free)
    }

    /// What the supervisor sleeps on for probes and voices.
    pub(super) fn entries(&self) -> impl Iterator<Item = libc::pollfd> {
        let voices = self.processes.iter().filter_map(|process| process.voice.as_ref());
        let voices = voices.map(|voice| wake::entry(voice.socket.descriptor(), libc::POLLIN));
        self.processes.iter().filter_map(|process| process.probe.as_ref()?.entry()).chain(voices)
    }
}

/// When a probe, a watchdog or a sample is due.
pub(super) fn due(processes: &[Process]) -> Option<Instant> {
    let of_one = |process: &Process| {
        let probe = process.probe.as_ref().map(Probe::next);
        let watchdog = process.voice.as_ref().and_then(|voice| voice.watchdog.due());
        let memory = process.memory.as_ref().map(MemoryWatch::next);
        [probe, watchdog, memory].into_iter().flatten().min()
    };
    processes.iter().filter_map(of_one).min()
}
