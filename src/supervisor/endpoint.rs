//! Where a worker listens: a Unix socket that it opens itself, one that it inherits listening, a loopback TCP port, or the first or
//! the last of these as it likes.
//!
//! Owns what has to exist before the worker does: the listening socket that it is to inherit, until its start. Rules:
//! - The server never keeps a listening socket that a worker has: when the worker is gone, connects are refused.
//! - Paths and ports belong to one start of one worker and are not used again for the next.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::run_directory::{check_length, clear_path};
use crate::config::{ReadyBy, WorkerSocket};

/// Connections that may wait in the queue of an inherited socket; the system's own limit (somaxconn) may be lower.
const BACKLOG: i32 = 4096;
/// Ports given lately that are not given again: their workers may not have opened them yet.
const REMEMBERED_PORTS: usize = 256;
/// How often another port is asked for when the system offers one that was given lately.
const PORT_ATTEMPTS: usize = 16;

/// Where one worker listens. See the module.
#[derive(Debug)]
pub struct Endpoint {
    address: SockAddr,
    /// Where else it may turn out to listen, until that is known.
    others: Vec<SockAddr>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The worker opens it.
    Unix(PathBuf),
    /// The worker inherits it; here until it is started.
    Inherited(PathBuf, Option<OwnedFd>),
    /// The worker opens it, on the loopback address.
    Port(u16),
    /// The worker opens the one or the other.
    Either(PathBuf, u16),
}

impl Endpoint {
    /// The place for one worker. `path` is for Unix sockets, and has to be one that no earlier worker had.
    ///
    /// # Errors
    /// When the path is too long or something there answers, or the system has no socket or port.
    pub fn open(kind: WorkerSocket, path: PathBuf, ports: &Ports) -> io::Result<Endpoint> {
        if kind == WorkerSocket::Tcp {
            let port = ports.choose()?;
            let others = vec![loopback_v6(port).into()];
            return Ok(Endpoint { address: loopback(port).into(), others, place: Place::Port(port) });
        }
        check_length(&path).map_err(io::Error::other)?;
        if !clear_path(&path) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{} exists and is in use", path.display())));
        }
        let address = SockAddr::unix(&path)?;
        if kind == WorkerSocket::Unix {
            return Ok(Endpoint { address, others: Vec::new(), place: Place::Unix(path) });
        }
        if kind == WorkerSocket::Auto {
            let port = ports.choose()?;
            let others = vec![loopback(port).into(), loopback_v6(port).into()];
            return Ok(Endpoint { address, others, place: Place::Either(path, port) });
        }
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        listener.bind(&address)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.listen(BACKLOG)?;
        Ok(Endpoint { address, others: Vec::new(), place: Place::Inherited(path, Some(listener.into())) })
    }

    /// Where requests go to.
    pub fn address(&self) -> &SockAddr {
        &self.address
    }

    /// Where the worker may turn out to listen instead; none once that is known.
    pub fn others(&self) -> &[SockAddr] {
        &self.others
    }

    /// It listens there. True: that is not where it was looked for first.
    pub fn settle(&mut self, address: &SockAddr) -> bool {
        self.others.clear();
        let moved = self.address != *address;
        self.address = address.clone();
        moved
    }

    /// Whether it is a Unix socket, as far as is known.
    pub fn is_unix(&self) -> bool {
        self.address.is_unix()
    }

    /// Whether the worker may open a port or leave it alone, so that somebody else may have it by now.
    pub fn may_leave_port(&self) -> bool {
        matches!(self.place, Place::Either(..))
    }

    /// The Unix socket's path; `None` where it is given none.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Unix(path) | Place::Inherited(path, _) | Place::Either(path, _) => Some(path),
            Place::Port(_) => None,
        }
    }

    /// The path of the Unix socket that the worker inherits, if it does; see [`super::probe::Probe::of_readiness`].
    pub fn inherited(&self) -> Option<&Path> {
        self.path().filter(|_| matches!(self.place, Place::Inherited(..)))
    }

    /// The TCP port; `None` where it is given none.
    pub fn port(&self) -> Option<u16> {
        match self.place {
            Place::Port(port) | Place::Either(_, port) => Some(port),
            Place::Unix(_) | Place::Inherited(..) => None,
        }
    }

    /// Takes the listening socket out, to be given to the worker and kept by nobody else.
    ///
    /// # Errors
    /// When it was taken before: one endpoint is for one start.
    pub(super) fn take_listener(&mut self) -> io::Result<Option<OwnedFd>> {
        let Place::Inherited(_, listener) = &mut self.place else { return Ok(None) };
        let listener = listener.take().ok_or_else(|| io::Error::other("the listening socket was given away before"))?;
        Ok(Some(listener))
    }

    /// Removes the socket's file once its worker is gone, unless somebody answers there.
    pub fn clear(&self) {
        if let Some(path) = self.path() {
            clear_path(path);
        }
    }

    /// The sentence for a worker that refused a connection and did not come back.
    pub fn not_back(&self, within: Duration, reason: Option<&str>) -> String {
        let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
        format!("the worker did not accept any more on {self} within {} s{reason}", within.as_secs_f32())
    }

    /// The sentence for a worker that did not get ready in time: what it should have done, where, and the last thing that
    /// was seen ([`super::probe::Probe::reason`]).
    pub fn not_ready(&self, ready: &ReadyBy, within: Duration, reason: Option<&str>) -> String {
        let seconds = format!("{} s", within.as_secs_f32());
        let duty = match &self.place {
            Place::Unix(_) => "it is to listen on the path in $SOCKET_PATH or {socket}",
            Place::Inherited(..) => "it is to accept on descriptor 3 (LISTEN_FDS of sd_listen_fds(3))",
            Place::Port(_) => "it is to listen on 127.0.0.1 and the port in $PORT or {port}",
            Place::Either(..) => "it is to listen on the path in $SOCKET_PATH, or on the port in $PORT",
        };
        let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
        match ready {
            ReadyBy::Notify if reason.is_empty() => format!(
                "the worker did not say READY=1 within {seconds}: it is to send that to $NOTIFY_SOCKET (sd_notify(3))"
            ),
            // One that has said so and is looked for is waited for as if it had not.
            ReadyBy::Listen | ReadyBy::Notify => {
                let verb = if self.inherited().is_some() { "accept on" } else { "open" };
                format!("the worker did not {verb} {self} within {seconds}{reason}: {duty}")
            }
            ReadyBy::Http(path) => format!(
                "the worker did not answer GET {path} on {self} with 2xx within {seconds}{reason}: {duty}, and to answer \
                 that path"
            ),
            ReadyBy::Join => {
                format!(
                    "the worker did not join within {seconds}: it is to POST its join to /worker on $CONTROL_SOCKET"
                )
            }
        }
    }
}

impl Endpoint {
    /// What helps a worker that did not get ready and listens on these addresses instead; empty where nothing is known.
    pub fn remedy(&self, listens_on: &[String]) -> String {
        let port = listens_on.iter().find(|address| !address.starts_with("unix:"));
        match (&self.place, port) {
            (Place::Unix(_), _) => "; an app that takes $PORT for a number needs --socket tcp".to_owned(),
            (Place::Port(_) | Place::Either(..), Some(port)) => format!(
                "; it listens on {port} instead: tell it its port by {{port}} in the command, as in -- npm start -- --port {{port}}"
            ),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(path) => write!(formatter, "the Unix socket {}", path.display()),
            Place::Inherited(path, _) => write!(formatter, "the inherited Unix socket {}", path.display()),
            Place::Port(_) => match self.address.as_socket() {
                Some(address) => write!(formatter, "{address}"),
                None => Ok(()),
            },
            Place::Either(path, port) if !self.others.is_empty() => {
                write!(formatter, "the Unix socket {} or {}", path.display(), loopback(*port))
            }
            Place::Either(path, _) => match self.address.as_socket() {
                Some(address) => write!(formatter, "{address}"),
                None => write!(formatter, "the Unix socket {}", path.display()),
            },
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// What `localhost` is first on many systems.
fn loopback_v6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

/// Whether somebody has that port of the other family; where there is no IPv6 nobody does.
fn is_taken_v6(port: u16) -> bool {
    TcpListener::bind(loopback_v6(port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Free loopback ports, chosen by the system. Between the choice and the worker's bind another program may take one: the
/// worker then ends with an error and is started again, on another port.
#[derive(Clone, Debug, Default)]
pub struct Ports(RefCell<VecDeque<u16>>);

impl Ports {
    fn choose(&self) -> io::Result<u16> {
        let mut given = self.0.borrow_mut();
        for _ in 0..PORT_ATTEMPTS {
            // Bound and closed without a connection, the port is free again at once: there is no TIME_WAIT.
            let port = TcpListener::bind(loopback(0))?.local_addr()?.port();
            if !given.contains(&port) && !is_taken_v6(port) {
                if given.len() == REMEMBERED_PORTS {
                    given.pop_front();
                }
                given.push_back(port);
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "the system has no other free port"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::os::unix::net::UnixStream;

    fn open(kind: WorkerSocket, directory: &tempfile::TempDir) -> Endpoint {
        Endpoint::open(kind, directory.path().join("web.sock"), &Ports::default()).unwrap()
    }

    #[test]
    fn a_plain_socket_is_left_to_the_worker() {
        let directory = tempfile::tempdir().unwrap();
        let mut endpoint = open(WorkerSocket::Unix, &directory);
        let path = directory.path().join("web.sock");
        assert!(!path.exists() && endpoint.take_listener().unwrap().is_none());
        assert_eq!((endpoint.path(), endpoint.inherited(), endpoint.port()), (Some(path.as_path()), None, None));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        endpoint.clear();
        assert!(path.exists(), "somebody answers there");
        let refused = Endpoint::open(WorkerSocket::Inherit, path.clone(), &Ports::default()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        endpoint.clear();
        assert!(!path.exists());
        let long = directory.path().join("x".repeat(200));
        assert!(Endpoint::open(WorkerSocket::Unix, long, &Ports::default()).is_err());
    }

    #[test]
    fn an_inherited_socket_listens_before_the_worker_and_is_given_away_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut endpoint = open(WorkerSocket::Inherit, &directory);
        let path = endpoint.inherited().unwrap().to_path_buf();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        let listener = endpoint.take_listener().unwrap().unwrap();
        assert!(endpoint.take_listener().is_err(), "one endpoint, one worker");
        drop(listener);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        endpoint.clear();
        assert!(!path.exists());
    }

    #[test]
    fn ports_are_free_and_all_different() {
        let ports = Ports::default();
        let chosen: Vec<u16> = (0..REMEMBERED_PORTS).map(|_| ports.choose().unwrap()).collect();
        assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), REMEMBERED_PORTS);
        let directory = tempfile::tempdir().unwrap();
        let endpoint = open(WorkerSocket::Tcp, &directory);
        let address = endpoint.address().as_socket().unwrap();
        assert_eq!(address, loopback(endpoint.port().unwrap()));
        assert!(!endpoint.is_unix());
        TcpListener::bind(address).expect("the port is free");
    }

    #[test]
    fn a_worker_may_listen_at_either_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut endpoint = open(WorkerSocket::Auto, &directory);
        let (path, port) = (directory.path().join("web.sock"), endpoint.port().unwrap());
        assert_eq!(endpoint.path(), Some(path.as_path()));
        assert_eq!(endpoint.others(), [loopback(port).into(), loopback_v6(port).into()]);
        assert!(endpoint.to_string().contains(&format!("web.sock or 127.0.0.1:{port}")));
        assert!(endpoint.settle(&loopback(port).into()));
        assert_eq!((endpoint.is_unix(), endpoint.to_string()), (false, format!("127.0.0.1:{port}")));
        assert!(endpoint.others().is_empty() && !endpoint.settle(&loopback(port).into()));
    }

    #[test]
    fn the_message_ends_with_what_helps() {
        let directory = tempfile::tempdir().unwrap();
        let of = |kind, listens_on: &[&str]| {
            open(kind, &directory).remedy(&listens_on.iter().map(|address| (*address).to_owned()).collect::<Vec<_>>())
        };
        assert!(of(WorkerSocket::Unix, &["[::]:3000"]).ends_with("--socket tcp"));
        assert!(of(WorkerSocket::Unix, &[]).ends_with("--socket tcp"));
        for kind in [WorkerSocket::Auto, WorkerSocket::Tcp] {
            let said = of(kind, &["[::]:3000"]);
            assert!(said.contains("listens on [::]:3000") && said.ends_with("--port {port}"), "{said}");
            assert_eq!(of(kind, &["unix:/x"]), "");
        }
    }

    #[test]
    fn a_worker_that_is_not_ready_is_told_what_was_expected() {
        let directory = tempfile::tempdir().unwrap();
        let [unix, inherited, tcp] = [WorkerSocket::Unix, WorkerSocket::Inherit, WorkerSocket::Tcp].map(|kind| {
            let endpoint = open(kind, &directory);
            endpoint.clear();
            endpoint
        });
        let http = ReadyBy::Http("/up".to_owned());
        let within = Duration::from_millis(1500);
        let path = directory.path().join("web.sock");
        for (endpoint, ready, reason, expected) in [
            (
                &unix,
                &ReadyBy::Listen,
                None,
                format!("did not open the Unix socket {} within 1.5 s: it", path.display()),
            ),
            (
                &inherited,
                &ReadyBy::Listen,
                Some("nothing yet"),
                "within 1.5 s (nothing yet): it is to accept".to_owned(),
            ),
            (&tcp, &ReadyBy::Listen, None, format!("did not open 127.0.0.1:{} within", tcp.port().unwrap())),
            (&unix, &http, Some("GET /up was answered with 503"), "(GET /up was answered with 503): it".to_owned()),
            (&tcp, &ReadyBy::Notify, None, "did not say READY=1 within 1.5 s: it is to send".to_owned()),
            (&unix, &ReadyBy::Join, None, "did not join within".to_owned()),
        ] {
            let said = endpoint.not_ready(ready, within, reason);
            assert!(said.contains(&expected), "{said}");
        }
    }
}
