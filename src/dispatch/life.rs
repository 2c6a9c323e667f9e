//! Which process a worker is, and whether that lives: what the supervisor says of it, for loops that have to judge an end of a connection.

use super::{Dispatch, Standing, WorkerId};

/// What is known of a worker's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Nothing: it is not ours, or not started yet.
    Unknown,
    /// It lives, as far as the supervisor has seen.
    Lives {
        /// Its process id, which is nobody else's while this is said.
        process: u32,
        /// It is on its way out, and may be killed at any moment.
        leaves: bool,
    },
    /// It has ended, or is forgotten.
    Ended {
        /// With code 0: by itself, with its work done.
        well: bool,
    },
}

impl Dispatch {
    /// Says as which process a worker was started.
    pub fn runs_as(&self, worker: WorkerId, process: u32) {
        let mut board = self.lock();
        if let Some(index) = board.workers.find(worker) {
            board.workers.at_mut(index).process = process;
        }
    }

    /// Says that a worker's process has ended with code 0; [`Dispatch::died`] follows.
    pub fn ended_well(&self, worker: WorkerId) {
        let mut board = self.lock();
        if let Some(index) = board.workers.find(worker) {
            board.workers.at_mut(index).ended_well = true;
        }
    }

    /// What is known of a worker's process.
    pub fn life(&self, worker: WorkerId) -> Life {
        let board = self.lock();
        match board.workers.lookup(worker) {
            None => Life::Ended { well: false },
            Some(worker) if !worker.is_supervised() => Life::Unknown,
            Some(worker) if worker.standing == Standing::Dead => Life::Ended { well: worker.ended_well },
            Some(worker) if worker.process == 0 => Life::Unknown,
            Some(worker) => Life::Lives { process: worker.process, leaves: worker.standing == Standing::Draining },
        }
    }

    /// Whether a worker's process lives. `None`: it is not ours to know. A forgotten one counts as dead.
    pub fn is_alive(&self, worker: WorkerId) -> Option<bool> {
        let board = self.lock();
        let Some(worker) = board.workers.lookup(worker) else {
            return Some(false);
        };
        worker.is_supervised().then_some(worker.standing != Standing::Dead)
    }
}
