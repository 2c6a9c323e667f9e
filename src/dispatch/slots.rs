//! Who may have fewer requests at once than the others of its generation: one on trial, and one that is to be asked how it is.

use super::load::Load;
use super::workers::THRESHOLD;
use super::{Dispatch, Grant, Standing, WorkerId};

impl Dispatch {
    /// A worker may have so many requests at once from now on, at least 1, and is on trial: each answer and its first failure are told
    /// ([`Notice::Recovers`](super::Notice::Recovers), [`Notice::Failing`](super::Notice::Failing)). `None`: as many as the others, and no
    /// trial. Those in flight go on. The caller is to tell the grants.
    pub fn limit(&self, worker: WorkerId, most: Option<u32>) -> Vec<Grant> {
        self.share(worker, |load| load.limit(most))
    }

    /// A worker is due after so many requests from now on, those counted that it had ([`Notice::Threshold`](super::Notice::Threshold)), which
    /// may be at once; 0 counts as no limit.
    pub fn limit_requests(&self, worker: WorkerId, limit: u64) {
        let mut board = self.lock();
        let Some(index) = board.workers.find(worker) else { return };
        let place = board.workers.at_mut(index);
        let replaceable = matches!(place.standing, Standing::Ready | Standing::Unreachable);
        if place.record.limit(limit) && replaceable {
            board.tell(index, THRESHOLD);
        }
        self.unlock(board);
    }

    /// Keeps one of a worker's slots from requests, until [`Dispatch::unspare`]. True: it is free; false:
    /// [`Notice::Spared`](super::Notice::Spared) says when. `None`: there is no such worker.
    pub fn spare(&self, worker: WorkerId) -> Option<bool> {
        let mut board = self.lock();
        let index = board.workers.find(worker)?;
        board.workers.share(index, |load| load.spared = true);
        Some(board.workers.has_spare(index))
    }

    /// Gives it back. The caller is to tell the grants.
    pub fn unspare(&self, worker: WorkerId) -> Vec<Grant> {
        self.share(worker, |load| load.spared = false)
    }

    fn share(&self, worker: WorkerId, change: impl FnOnce(&mut Load)) -> Vec<Grant> {
        let mut grants = self.room_for_grants();
        let mut board = self.lock();
        if let Some(index) = board.workers.find(worker) {
            board.workers.share(index, change);
            grants.extend(std::iter::from_fn(|| self.hand_on(&mut board, index, None)));
        }
        grants
    }
}
