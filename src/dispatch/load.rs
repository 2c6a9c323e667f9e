//! What one worker has to do, and how much of it it may have at once.

/// The requests and tunnels of one worker, beside what it may have.
pub(super) struct Load {
    pub in_flight: u32,
    pub tunnels: u32,
    /// Requests for a tunnel that are in flight: each may become one.
    pub(super) upgrading: u32,
    /// Requests that it may have at once, if fewer than its cohort's; else `u32::MAX`.
    most: u32,
    /// One of its slots is kept from requests.
    pub spared: bool,
    /// Requests that it may have at once just now: what follows from its cohort and from these two.
    capacity: u32,
}

impl Load {
    /// Nothing, of that much that it may have.
    pub fn new(capacity: u32) -> Load {
        Load { in_flight: 0, tunnels: 0, upgrading: 0, most: u32::MAX, spared: false, capacity }
    }

    /// Whether no request is in flight.
    pub fn is_none(&self) -> bool {
        self.in_flight == 0 && self.upgrading == 0
    }

    /// One more request is in flight.
    #[inline]
    pub fn begin(&mut self, tunnel: bool) {
        self.in_flight += 1;
        self.upgrading += u32::from(tunnel);
    }

    /// One has ended.
    #[inline]
    pub fn end(&mut self, tunnel: bool) {
        debug_assert!(self.in_flight > 0, "a worker without requests ends one");
        self.in_flight -= 1;
        self.upgrading -= u32::from(tunnel);
    }

    #[inline]
    pub fn has_capacity(&self) -> bool {
        self.in_flight < self.capacity
    }

    /// It may have so many at once from now on; `None`: as many as others, and it is not on trial.
    pub fn limit(&mut self, most: Option<u32>) {
        self.most = most.map_or(u32::MAX, |most| most.max(1));
    }

    /// What it may have where others of its cohort may have that many.
    pub fn share(&mut self, concurrency: u32) {
        self.capacity = concurrency.min(self.most) - u32::from(self.spared);
    }

    /// Whether it has to show that it is well again.
    #[inline]
    pub fn on_trial(&self) -> bool {
        self.most < u32::MAX
    }

    /// Whether it may have fewer requests at once than others.
    pub fn has_less(&self) -> bool {
        self.spared || self.on_trial()
    }

    /// Its tunnels, and those that may yet come of requests in flight.
    #[inline]
    pub fn tunnel_load(&self) -> u32 {
        self.tunnels.saturating_add(self.upgrading)
    }

    /// A tunnel has ended. Whether it was the last.
    pub fn end_tunnel(&mut self) -> bool {
        let had = self.tunnels;
        self.tunnels = had.saturating_sub(1);
        had == 1
    }
}
