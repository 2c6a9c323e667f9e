//! How many connections each address has open. Bounded by how many connections there may be at all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use super::{lock, network};

/// Who is there, over all loops.
#[derive(Debug, Default)]
pub struct Crowd(Mutex<HashMap<[u8; 17], u32>>);

impl Crowd {
    /// Lets one more in, unless so many of its address are there; whether it was let in. IPv6 is counted by /64.
    pub fn enter(&self, address: Option<IpAddr>, most: u32) -> bool {
        let mut there = lock(&self.0);
        let count = there.entry(network(address, 32, 64)).or_default();
        let enters = *count < most;
        *count += u32::from(enters);
        enters
    }

    /// One that was let in is gone.
    pub fn leave(&self, address: Option<IpAddr>) {
        let mut there = lock(&self.0);
        let key = network(address, 32, 64);
        if let Some(count) = there.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                there.remove(&key);
            }
        }
    }

    /// Addresses that are there.
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
