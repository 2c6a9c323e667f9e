//! Sockets that this process does not open itself: those of the server that it succeeds, and those that systemd has opened.
//!
//! A successor binds nothing that it was given. What it was given and does not want it closes; the server before it still has it, and
//! lets in who is in its backlog.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::Socket;

use super::{Listening, StartError, exit};
use crate::config::{ListenAddress, Loaded};
use crate::handover::{Channel, Estate, JoinedWorker, Listener, RunDir};
use crate::metrics::{Account, Metrics};
use crate::socket_file::SocketFile;
use crate::supervisor::RunDirectory;
use crate::supervisor::upgrade::Succession;
use crate::systemd;
use crate::tls;

/// What was inherited and is not used yet.
#[derive(Default)]
pub(super) struct Inherited {
    listeners: Vec<(Listener, Vec<OwnedFd>)>,
    systemd: Vec<systemd::Socket>,
    run_dir: Option<(RunDir, OwnedFd)>,
    took_run_dir: bool,
    account: Account,
    lives: (u64, u64),
    joined: Vec<JoinedWorker>,
    down: Vec<String>,
    hears_of_next: bool,
    group: Option<i32>,
}

impl Inherited {
    /// What this process was given at its start.
    ///
    /// # Errors
    /// When the handover breaks, descriptors are not what they should be, or the configuration file of the server before it is gone.
    pub fn take(predecessor: Option<&mut Channel>, loaded: &Loaded) -> Result<Inherited, StartError> {
        match predecessor {
            None => {
                let sockets = systemd::take_sockets(&|name| std::env::var_os(name));
                let systemd = sockets.map_err(|message| StartError { message, code: exit::CANNOT_CREATE })?;
                Ok(Inherited { systemd, ..Inherited::default() })
            }
            Some(channel) => {
                let estate = channel.inherit();
                let (estate, descriptors) =
                    estate.map_err(|message| StartError { message, code: exit::CANNOT_CREATE })?;
                let there = loaded.is_of(estate.configuration.as_deref());
                there.map_err(|message| StartError { message, code: exit::CONFIG })?;
                Ok(Inherited::of(estate, descriptors))
            }
        }
    }

    fn of(estate: Estate, descriptors: Vec<OwnedFd>) -> Inherited {
        let mut descriptors = descriptors.into_iter();
        let run_dir = estate.run_dir.and_then(|place| Some((place, descriptors.next()?)));
        let mut with_sockets = |listener: Listener| {
            let sockets = descriptors.by_ref().take(listener.sockets).collect();
            (listener, sockets)
        };
        let listeners = estate.listeners.into_iter().map(&mut with_sockets).collect();
        tls::adopt_ticket_keys(estate.ticket_keys);
        estate.self_signed.into_iter().for_each(tls::adopt_self_signed);
        let Estate { account, lives, joined, down, hears_of_next, process_group: group, .. } = estate;
        Inherited { listeners, run_dir, account, lives, joined, down, hears_of_next, group, ..Inherited::default() }
    }

    /// The listeners that are there already for an address, and are for those who watch the server if `admin` says so; `None`: it is to be
    /// opened.
    ///
    /// # Errors
    /// When systemd should have opened it and has not.
    pub fn listeners(&mut self, asked: &ListenAddress, admin: bool) -> Result<Option<Vec<Listening>>, StartError> {
        let name = asked.to_string();
        let mut found = Vec::new();
        let is_it =
            |(listener, _): &(Listener, _)| listener.asked == name && listener.admin.is_none_or(|it| it == admin);
        while let Some(at) = self.listeners.iter().position(is_it) {
            let (Listener { address, file, .. }, sockets) = self.listeners.remove(at);
            let address = parsed(&address, asked);
            let file = match &address {
                ListenAddress::Unix(path) => file.map(|identity| SocketFile::inherited(path, identity)),
                _ => None,
            };
            found.push(Listening { id: 0, asked: asked.clone(), address, sockets, file, admin: false, tls: None });
            // Only systemd opens several for one name: of others that are alike each is asked for.
            if !matches!(asked, ListenAddress::Systemd(_)) {
                break;
            }
        }
        if !found.is_empty() {
            return Ok(Some(found));
        }
        match asked {
            ListenAddress::Systemd(wanted) => self.of_systemd(asked, wanted).map(Some),
            _ => Ok(None),
        }
    }

    fn of_systemd(&mut self, asked: &ListenAddress, wanted: &str) -> Result<Vec<Listening>, StartError> {
        let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.systemd)
            .into_iter()
            .partition(|socket| wanted.is_empty() || socket.name == wanted);
        let names: Vec<&str> = left.iter().map(|socket| socket.name.as_str()).collect();
        if taken.is_empty() {
            let there = match names[..] {
                [] => "it has opened none for this process".to_owned(),
                _ => format!("it has opened {}", names.join(", ")),
            };
            let message = format!("cannot listen on {asked}: systemd has opened no socket of that name; {there}");
            return Err(StartError { message, code: exit::CANNOT_CREATE });
        }
        self.systemd = left;
        let listening = |socket: systemd::Socket| {
            let name = socket.name;
            of_socket(asked, socket.descriptor).map_err(|error| StartError {
                message: format!("cannot listen on the socket {name} of systemd: {error}"),
                code: exit::CANNOT_CREATE,
            })
        };
        taken.into_iter().map(listening).collect()
    }

    /// The run directory: that of the server before, when it is the one that is configured now.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn run_directory(&mut self, configured: &Path) -> Result<RunDirectory, StartError> {
        let opened = match self.run_dir.take().filter(|(before, _)| before.configured == configured) {
            Some((before, lock)) => {
                self.took_run_dir = true;
                RunDirectory::inherit(&before.path, lock)
            }
            None => RunDirectory::open(configured),
        };
        opened.map_err(|error| StartError { message: error.to_string(), code: error.code() })
    }

    /// Has counters go on where those of the server before stand. They have the names of the configuration by then: what it does not
    /// name any more takes no number from what it names.
    pub fn count_on(&self, metrics: &Metrics) {
        metrics.inherit(&self.account);
    }

    /// Lines about sockets of systemd that nothing was configured for.
    pub fn warnings(&self) -> Vec<String> {
        let line = |socket: &systemd::Socket| {
            let name = &socket.name;
            format!("systemd has opened the socket {name}, and no listener asks for it (systemd:{name})")
        };
        self.systemd.iter().map(line).collect()
    }

    /// In whose place this server is, and what it does when it has taken over.
    pub fn succession(self, channel: Channel, begin: Box<dyn FnOnce()>) -> Succession {
        let Inherited { took_run_dir: takes_run_dir, account, lives, joined, down, hears_of_next, group, .. } = self;
        Succession { channel, takes_run_dir, account, lives, joined, down, hears_of_next, group, begin }
    }
}

/// An address as the server before has told it.
fn parsed(address: &str, asked: &ListenAddress) -> ListenAddress {
    match address.strip_prefix("unix:") {
        Some(path) => ListenAddress::Unix(path.into()),
        None => address.parse().map_or_else(|_| asked.clone(), ListenAddress::Tcp),
    }
}

/// A socket that somebody else has opened: where it is, it tells itself. All loops share it.
fn of_socket(asked: &ListenAddress, descriptor: OwnedFd) -> io::Result<Listening> {
    let socket = Socket::from(descriptor);
    socket.set_nonblocking(true)?;
    let local = socket.local_addr()?;
    let address = match local.as_socket() {
        Some(address) => ListenAddress::Tcp(address),
        None => {
            let path = local.as_pathname().map(Path::to_path_buf);
            let name =
                || local.as_abstract_namespace().map(|name| format!("@{}", String::from_utf8_lossy(name)).into());
            ListenAddress::Unix(path.or_else(name).ok_or(io::ErrorKind::Unsupported)?)
        }
    };
    if matches!(address, ListenAddress::Tcp(_)) {
        // Linux hands it down to accepted sockets.
        socket.set_tcp_nodelay(true)?;
    }
    let asked = asked.clone();
    Ok(Listening { id: 0, asked, address, sockets: vec![socket.into()], file: None, admin: false, tls: None })
}
