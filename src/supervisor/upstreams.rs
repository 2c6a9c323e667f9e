//! Servers that something else runs: found by connecting, lost by a refused connect, found again.

use std::net::ToSocketAddrs;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use socket2::SockAddr;

use super::probe::{Look, Probe};
use super::{StartError, Supervisor, run_directory};
use crate::config::{Settings, Upstream};
use crate::dispatch::{Dispatch, Moves, Target, WorkerId};
use crate::log::Level;

/// One upstream and what is known of it.
#[derive(Debug)]
pub(super) struct Watched {
    id: WorkerId,
    label: String,
    address: SockAddr,
    /// `None` while it answers.
    probe: Option<Probe>,
    /// Whether its absence was said.
    said: bool,
}

impl Watched {
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.probe.as_ref().and_then(Probe::descriptor)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.probe.as_ref().map(Probe::next)
    }
}

/// Resolves all upstreams and adds them to the dispatch. Names are resolved here, once.
pub(super) fn watch_all(settings: &Settings, dispatch: &Dispatch, now: Instant) -> Result<Vec<Watched>, StartError> {
    let mut watched = Vec::new();
    for (index, upstream) in settings.app.upstreams.iter().enumerate() {
        let (address, unix) = match upstream {
            Upstream::Unix(path) => {
                run_directory::check_length(path)?;
                (SockAddr::unix(path)?, true)
            }
            Upstream::Tcp(host, port) => (resolve(host, *port)?, false),
        };
        let label = upstream.to_string();
        let target = Target {
            address: address.clone(),
            label: label.clone(),
            unix,
            supervised: false,
            number: index as u32 + 1,
            moves: Arc::new(Moves::new(now)),
        };
        let full = || StartError { message: "too many upstreams".to_owned(), code: 64 };
        let id = dispatch.add(target, 0, None).ok_or_else(full)?;
        let probe = Some(Probe::of_upstream(address.clone(), now));
        watched.push(Watched { id, label, address, probe, said: false });
    }
    Ok(watched)
}

fn resolve(host: &str, port: u16) -> Result<SockAddr, StartError> {
    let found = (host, port).to_socket_addrs().ok().and_then(|mut found| found.next());
    let message = || format!("the upstream http://{host}:{port} cannot be resolved to an address");
    found.map(SockAddr::from).ok_or_else(|| StartError { message: message(), code: 69 })
}

impl Supervisor {
    /// A connect to an upstream was refused.
    pub(super) fn upstream_unreachable(&mut self, id: WorkerId, now: Instant) {
        if let Some(upstream) = self.upstreams.iter_mut().find(|upstream| upstream.id == id && upstream.probe.is_none())
        {
            upstream.probe = Some(Probe::of_upstream(upstream.address.clone(), now));
        }
    }

    pub(super) fn look_at_upstreams(&mut self, now: Instant) {
        for upstream in &mut self.upstreams {
            let Some(probe) = &mut upstream.probe else { continue };
            // Due only when a connect failed before, or one is under way.
            let first = probe.next();
            match probe.look(now) {
                Look::Listening => {
                    upstream.probe = None;
                    if !self.upstream_seen || std::mem::take(&mut upstream.said) {
                        self.crew.log.event(Level::Info, "upstream answers", &[("upstream", &upstream.label)]);
                    }
                    self.upstream_seen = true;
                    for grant in self.crew.dispatch.ready(upstream.id, now) {
                        self.crew.postboxes.grant(grant);
                    }
                }
                Look::NotYet if probe.descriptor().is_none() && probe.next() != first && !upstream.said => {
                    upstream.said = true;
                    let message = "upstream does not accept connections; it is tried again";
                    self.crew.log.event(Level::Warn, message, &[("upstream", &upstream.label)]);
                }
                Look::NotYet => {}
            }
        }
    }
}
