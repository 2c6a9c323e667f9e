//! What a server holds for a successor: the sockets that it listens on, and the files of those that have one.
//!
//! Every loop has copies of its own. These are kept so that they can be handed over: a socket with connections in its backlog must
//! not be closed by the last who has it. They go as soon as the server accepts no more; a copy that nobody accepts from would keep
//! clients waiting.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::handover::Listener;
use crate::listener::{accept_newcomers, refuse_newcomers};
use crate::socket_file::SocketFile;
use crate::supervisor::wake;

/// A listener, as it is held.
#[derive(Debug)]
pub struct Held {
    /// Its name in the loops.
    pub id: u32,
    /// As it is configured: the port may be 0.
    pub asked: String,
    /// Where it is.
    pub address: String,
    /// Copies of its sockets, in the order of the loops.
    pub sockets: Vec<OwnedFd>,
    /// The file of a Unix socket that a server has made: this one, or one before it.
    pub file: Option<SocketFile>,
    /// Whether it is for those who watch the server.
    pub admin: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Holdings {
    /// The run directory as it is configured, absolute.
    pub run_dir: PathBuf,
    /// The configuration file, where there is one.
    pub configuration: Option<PathBuf>,
    /// The listeners.
    pub listeners: Vec<Held>,
    /// Those that are not configured any more, until nobody waits in their backlog.
    pub retired: Vec<Retired>,
}

/// A listener that is not configured any more.
#[derive(Debug)]
pub struct Retired {
    pub held: Held,
    since: Instant,
    look_at: Instant,
}

/// So long a listener stays at least once nobody new may begin to connect: handshakes that had begun end.
const LAST_HANDSHAKES: Duration = Duration::from_millis(250);
/// So long clients may wait in its backlog while there is no room for them.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// How often its backlog is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Holdings {
    /// What is told of the listeners, and copies of their sockets in the same order.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn copies(&self) -> io::Result<(Vec<Listener>, Vec<OwnedFd>)> {
        let told = self.listeners.iter().map(|held| Listener {
            asked: held.asked.clone(),
            address: held.address.clone(),
            sockets: held.sockets.len(),
            file: held.file.as_ref().map(SocketFile::identity),
            admin: Some(held.admin),
        });
        let sockets: io::Result<Vec<OwnedFd>> =
            self.listeners.iter().flat_map(|held| &held.sockets).map(OwnedFd::try_clone).collect();
        Ok((told.collect(), sockets?))
    }

    /// The server accepts no more.
    pub fn close(&mut self) {
        self.listeners.iter_mut().for_each(|held| held.sockets.clear());
        self.retired.clear();
    }

    /// These listeners are not configured any more: whoever begins to connect from now on finds nobody.
    pub fn retire(&mut self, ids: &[u32], now: Instant) {
        for mut held in self.listeners.extract_if(.., |held| ids.contains(&held.id)) {
            // Whoever opens the path finds nothing any more.
            drop(held.file.take());
            // What systemd has opened is its own, and keeps its backlog.
            if held.asked.starts_with("systemd:") {
                held.sockets.clear();
            }
            if !held.address.starts_with("unix:") {
                held.sockets.iter().for_each(refuse_newcomers);
            }
            self.retired.push(Retired { held, since: now, look_at: now });
        }
    }

    /// These are configured again before they have closed.
    pub fn revive(&mut self, ids: &[u32]) {
        for Retired { held, .. } in self.retired.extract_if(.., |retired| ids.contains(&retired.held.id)) {
            held.sockets.iter().for_each(accept_newcomers);
            self.listeners.push(held);
        }
    }

    /// When those that are retired are to be looked at.
    pub fn due(&self) -> Option<Instant> {
        self.retired.iter().map(|retired| retired.look_at).min()
    }

    /// Those of them whose backlog is empty, each with its address, and whether it is not, after so long. The own copies close.
    pub fn quiet(&mut self, now: Instant) -> Vec<(u32, String, bool)> {
        let mut quiet = Vec::new();
        for retired in &mut self.retired {
            if retired.look_at > now {
                continue;
            }
            retired.look_at = now + LOOK_AGAIN;
            let age = now.saturating_duration_since(retired.since);
            let is_over = retired.held.sockets.is_empty();
            let waits = !is_over && (age < LAST_HANDSHAKES || retired.held.sockets.iter().any(has_waiting));
            if !waits || age >= LAST_WAIT {
                quiet.push((retired.held.id, retired.held.address.clone(), waits));
            }
        }
        self.retired.retain(|retired| quiet.iter().all(|(id, ..)| *id != retired.held.id));
        quiet
    }

    /// From now on the files are this server's.
    pub fn take_over(&mut self) {
        self.listeners.iter_mut().filter_map(|held| held.file.as_mut()).for_each(SocketFile::take_over);
    }

    /// From now on the files of those listeners are the successor's.
    pub fn give_away(&mut self, addresses: &[String]) {
        let given = self.listeners.iter_mut().filter(|held| addresses.contains(&held.address));
        given.filter_map(|held| held.file.as_mut()).for_each(SocketFile::give_away);
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(|held| held.address.clone()).collect()
    }
}

/// Whether somebody waits to be accepted.
fn has_waiting(socket: &OwnedFd) -> bool {
    let mut entries = [wake::entry(socket.as_raw_fd(), libc::POLLIN)];
    wake::poll(&mut entries, Some(Duration::ZERO)).is_ok() && entries[0].revents & libc::POLLIN != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};

    fn held(listener: &TcpListener) -> (Holdings, SocketAddr) {
        let address = listener.local_addr().unwrap();
        let sockets = vec![listener.try_clone().unwrap().into()];
        let held =
            Held { id: 7, asked: address.to_string(), address: address.to_string(), sockets, file: None, admin: false };
        (Holdings { listeners: vec![held], ..Holdings::default() }, address)
    }

    /// Whether somebody new gets in.
    fn lets_in(address: SocketAddr) -> bool {
        TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
    }

    #[test]
    fn a_retired_listener_stays_until_who_is_there_is_accepted_and_lets_nobody_new_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut holdings, address) = held(&listener);
        let client = TcpStream::connect(address).unwrap();
        let now = Instant::now();
        holdings.retire(&[7], now);
        assert!(holdings.listeners.is_empty() && holdings.due() == Some(now));
        if cfg!(target_os = "linux") {
            assert!(!lets_in(address), "the connections of others do not begin any more");
        }
        let later = now + LAST_HANDSHAKES;
        assert_eq!(holdings.quiet(later), [], "somebody waits");
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        assert_eq!(holdings.quiet(later + LOOK_AGAIN), [(7, address.to_string(), false)]);
        assert_eq!((holdings.due(), holdings.quiet(later + LAST_WAIT)), (None, Vec::new()), "it is told once");
    }

    #[test]
    fn clients_that_nobody_accepts_do_not_hold_a_retired_listener_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut holdings, address) = held(&listener);
        let _client = TcpStream::connect(address).unwrap();
        let now = Instant::now();
        holdings.retire(&[7], now);
        assert_eq!(holdings.quiet(now), [], "handshakes may be under way");
        assert_eq!(holdings.quiet(now + LAST_WAIT), [(7, address.to_string(), true)]);
    }

    #[test]
    fn a_listener_that_is_wanted_again_lets_everybody_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut holdings, address) = held(&listener);
        holdings.retire(&[7], Instant::now());
        holdings.revive(&[7]);
        assert_eq!((holdings.listeners.len(), holdings.due()), (1, None));
        assert!(lets_in(address));
    }
}
