//! The desk between the loops and whoever knows the inside of the server: the supervisor.
//!
//! A loop that is asked for a document puts the question here, rings, and goes on; the document comes back by mail. No loop ever waits
//! for another thread's work, and what a document costs is paid by the thread that makes it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::buffers::slots::Key;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// The metrics.
    Metrics {
        /// In the form of OpenMetrics.
        open: bool,
    },
    /// Whether the server lives: whether its loops turn.
    Live {
        /// With a line for each check.
        verbose: bool,
    },
    /// Whether it is to get requests.
    Ready {
        /// With a line for each check.
        verbose: bool,
    },
    /// Both, for people.
    Health {
        /// With a line for each check.
        verbose: bool,
    },
}

/// A question of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The loop's index.
    pub loop_index: u16,
    /// The exchange's name in that loop.
    pub exchange: Key,
    /// What it asks for.
    pub document: Document,
}

/// A document on its way to the exchange that asked.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The exchange's name.
    pub exchange: Key,
    /// 200, or 503 where a check has failed.
    pub status: u16,
    /// Its media type.
    pub content_type: &'static str,
    /// Further lines of its head, each with its end.
    pub lines: String,
    /// The document.
    pub body: Arc<[u8]>,
}

/// See the module. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Desk(Arc<Inner>);

#[derive(Default)]
struct Inner {
    questions: Mutex<Vec<Question>>,
    ring: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Desk")
    }
}

impl Desk {
    /// Somebody sits at it from now on, and is woken by `ring`. The first who does so stays.
    pub fn attend(&self, ring: Box<dyn Fn() + Send + Sync>) {
        // Nobody else is meant to.
        let _ = self.0.ring.set(ring);
    }

    /// Whether anybody would answer.
    pub fn is_attended(&self) -> bool {
        self.0.ring.get().is_some()
    }

    /// Wakes whoever sits at it.
    pub fn ring(&self) {
        if let Some(ring) = self.0.ring.get() {
            ring();
        }
    }

    /// Asks.
    pub fn ask(&self, question: Question) {
        self.0.questions.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        self.ring();
    }

    /// Takes all questions, the oldest first.
    pub fn questions(&self) -> Vec<Question> {
        std::mem::take(&mut *self.0.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
