//! Session tickets (RFC 8446, 4.6.1; RFC 5077): what a client brings back to spare both sides a whole handshake.
//!
//! There is one ticketer for the process, whatever its listeners and however often they are reloaded, or nobody who comes back would be
//! known. It seals with a key for [`ROTATE`] and opens with it for as long as a ticket of its last moment holds; a successor gets the keys.
//! Whoever has them can read what was said in sessions that were resumed without a new exchange of keys, which is why they go.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, MAX_TAG_LEN, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};

use super::certificates::now;

/// For how long a key seals, in seconds.
const ROTATE: i64 = 6 * 3600;
/// For how long a ticket holds, in seconds.
const ACCEPT: i64 = 12 * 3600;
const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;

/// A key that tickets are sealed with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    name: Vec<u8>,
    secret: Vec<u8>,
    /// When it was made, in seconds since 1970.
    born: i64,
}

impl fmt::Debug for TicketKey {
    /// Without its secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TicketKey").field("born", &self.born).finish_non_exhaustive()
    }
}

impl TicketKey {
    fn new(now: i64) -> Option<TicketKey> {
        let (mut name, mut secret) = (vec![0; NAME_BYTES], vec![0; SECRET_BYTES]);
        rand::fill(&mut name).ok()?;
        rand::fill(&mut secret).ok()?;
        Some(TicketKey { name, secret, born: now })
    }

    fn cipher(&self) -> Option<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.secret).ok()
    }
}

/// The keys, the newest first.
#[derive(Debug, Default)]
pub(super) struct Ticketer(Mutex<VecDeque<TicketKey>>);

impl Ticketer {
    fn keys(&self) -> MutexGuard<'_, VecDeque<TicketKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that seals at that time, and none that is too old left.
    fn sealing(&self, now: i64) -> Option<TicketKey> {
        let mut keys = self.keys();
        keys.retain(|key| key.born <= now && now - key.born < ROTATE + ACCEPT);
        if keys.front().is_none_or(|key| now - key.born >= ROTATE) {
            keys.push_front(TicketKey::new(now)?);
        }
        keys.front().cloned()
    }

    fn seal_at(&self, now: i64, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.sealing(now)?;
        let mut sealed = plain.to_vec();
        let nonce = key.cipher()?.seal_in_place_append_tag(Aad::from(&key.name), &mut sealed).ok()?;
        Some([&key.name[..], nonce.as_ref(), &sealed].concat())
    }

    fn open_at(&self, now: i64, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let is_it = |key: &&TicketKey| key.name == name && now - key.born < ROTATE + ACCEPT;
        let key = self.keys().iter().find(is_it).cloned()?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        key.cipher()?.open_in_place(nonce, Aad::from(name), &mut plain).ok()?;
        plain.truncate(plain.len().checked_sub(MAX_TAG_LEN)?);
        Some(plain)
    }

    fn adopt(&self, others: Vec<TicketKey>) {
        let fits = |key: &TicketKey| key.name.len() == NAME_BYTES && key.secret.len() == SECRET_BYTES;
        let mut keys = self.keys();
        for other in others.into_iter().filter(fits) {
            if keys.iter().all(|key| key.name != other.name) {
                keys.push_back(other);
            }
        }
        keys.make_contiguous().sort_by_key(|key| std::cmp::Reverse(key.born));
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        ACCEPT as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal_at(now(), plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open_at(now(), ticket)
    }
}

/// That of the process.
pub(super) fn ticketer() -> &'static Arc<Ticketer> {
    static TICKETER: OnceLock<Arc<Ticketer>> = OnceLock::new();
    TICKETER.get_or_init(Arc::default)
}

/// The keys of this process, for its successor.
pub fn ticket_keys() -> Vec<TicketKey> {
    let ticketer = ticketer();
    // One that seals from now on is among them: whichever of both gives a ticket, the other opens it.
    let _ = ticketer.sealing(now());
    ticketer.keys().iter().cloned().collect()
}

/// Takes over the keys of a predecessor.
pub fn adopt_ticket_keys(keys: Vec<TicketKey>) {
    ticketer().adopt(keys);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_holds_for_its_time_and_keys_change() {
        let (ticketer, start) = (Ticketer::default(), 1_000_000);
        let first = ticketer.seal_at(start, b"session").unwrap();
        let last = ticketer.seal_at(start + ROTATE - 1, b"session").unwrap();
        assert_eq!(first[..NAME_BYTES], last[..NAME_BYTES]);
        let next = ticketer.seal_at(start + ROTATE, b"other").unwrap();
        assert_ne!(first[..NAME_BYTES], next[..NAME_BYTES]);
        assert_eq!(ticketer.open_at(start + ROTATE - 1 + ACCEPT, &last).unwrap(), b"session");
        assert_eq!(ticketer.open_at(start + ROTATE + ACCEPT, &last), None);
        for rotation in 1..10 {
            ticketer.seal_at(start + rotation * ROTATE, b"").unwrap();
        }
        assert_eq!(ticketer.keys().len(), 3);
        // A clock that goes back leaves keys of the future behind, or none would ever be new.
        ticketer.seal_at(start, b"").unwrap();
        assert_eq!(ticketer.keys().len(), 1);
    }

    #[test]
    fn a_successor_opens_what_its_predecessor_has_sealed() {
        let (old, new) = (Ticketer::default(), Ticketer::default());
        let ticket = old.seal_at(5, b"session").unwrap();
        assert_eq!(new.open_at(6, &ticket), None);
        let said = serde_json::to_string(&old.keys().iter().cloned().collect::<Vec<_>>()).unwrap();
        new.adopt(serde_json::from_str(&said).unwrap());
        new.adopt(old.keys().iter().cloned().collect());
        new.adopt(vec![TicketKey { name: vec![1], secret: vec![2], born: 9 }]);
        assert_eq!(new.open_at(6, &ticket).unwrap(), b"session");
        assert_eq!(new.keys().len(), 1, "what is no key is none");
        assert!(!format!("{:?}", new.keys()).contains("secret"));
    }

    #[test]
    fn what_is_no_ticket_opens_nothing() {
        let ticketer = Ticketer::default();
        let ticket = ticketer.seal_at(5, b"session").unwrap();
        for length in 0..ticket.len() {
            assert_eq!(ticketer.open_at(6, &ticket[..length]), None);
        }
        for index in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[index] ^= 1;
            assert_eq!(ticketer.open_at(6, &forged), None);
        }
    }
}
