//! The directory by which replicas find each other: a lock that one of them has, what that one writes into it, and the socket by which it is reached.
//!
//! For the hub `chat` there are `chat.lock`, whose text is the [`Record`], and `chat.sock`. The kernel gives the lock back however its owner ends, and whoever
//! has it may clear the socket away. Only who runs as the same user gets in.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::replica::{Io, Record, Replica};
use super::{Turn, next_token};
use crate::hub::{LoopSet, Topic};
use crate::log::Level;
use crate::mailbox::{Message, Postboxes};
use crate::socket_file::SocketFile;

/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(20);
/// The same where something is wrong with the directory.
const RETRY_WITH_PROBLEM: Duration = Duration::from_secs(1);
/// The same at most where links end as soon as they are made.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How long a link has to have lasted that the next one is made at once.
const LASTED: Duration = Duration::from_secs(1);
/// Bytes of a record.
const RECORD_BYTES: usize = 4096;
/// Bytes that a socket is asked to hold.
const SOCKET_BYTES: usize = 1 << 20;
/// Reads of a socket before others have their turns.
const READS: usize = 32;
/// Bytes of the longest path that every kernel takes for a socket.
const LONGEST_PATH: usize = 103;

/// The sockets of a replica, and its lock.
#[derive(Debug)]
pub struct Sockets {
    links: HashMap<usize, UnixStream>,
    lock: Option<File>,
    listener: Option<(UnixListener, usize, SocketFile)>,
    postboxes: Postboxes,
}

/// A replica, and the directory in which it has others.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    hub: String,
    replica: Replica,
    sockets: Sockets,
    /// When the leader is looked for next.
    look_at: Instant,
    /// Since when there is a link to it.
    followed: Option<Instant>,
    /// How long it is waited before the next one is made, if that one does not last.
    wait: Duration,
    /// Sockets that were not read to their end.
    unread: Vec<usize>,
    /// What keeps it from taking part.
    pub problem: Option<String>,
}

impl Io for Sockets {
    fn write(&mut self, link: usize, bytes: &[u8]) -> usize {
        // One that is gone is noticed by whoever reads it.
        self.links.get_mut(&link).and_then(|socket| socket.write(bytes).ok()).unwrap_or_default()
    }

    fn cut(&mut self, link: usize) {
        self.links.remove(&link);
    }

    fn record(&mut self, record: &Record) {
        if let Some(lock) = &self.lock {
            let mut text = written(record);
            text.resize(RECORD_BYTES, b'\n');
            // One call: it is there as a whole, or as it was.
            lock.write_all_at(&text, 0).ok();
        }
    }

    fn tell(&mut self, topic: &Arc<Topic>, loops: LoopSet) {
        loops.iter().for_each(|loop_index| self.postboxes.post(loop_index, Message::Published(topic.clone())));
    }
}

/// The text of a record.
fn written(record: &Record) -> Vec<u8> {
    let in_step: Vec<_> = record.in_step.iter().map(|it| format!("{it:016x}")).collect();
    let Record { term, leader, epoch, .. } = record;
    format!("1 {term:x} {leader:x} {epoch:x} {}\n", in_step.join(" ")).into_bytes()
}

/// The record of a text; the empty one where that is none.
fn read(text: &str) -> Record {
    let mut words = text.split_ascii_whitespace();
    let version = words.next();
    let numbers: Option<Vec<u64>> = words.map(|word| u64::from_str_radix(word, 16).ok()).collect();
    match (version, numbers.as_deref()) {
        (Some("1"), Some([term, leader, epoch, in_step @ ..])) => {
            Record { term: *term, leader: *leader, epoch: *epoch, in_step: in_step.to_vec() }
        }
        _ => Record::default(),
    }
}

impl Directory {
    /// The part of that replica.
    pub fn new(path: &Path, hub: &str, replica: Replica, postboxes: Postboxes) -> Directory {
        let sockets = Sockets { links: HashMap::new(), lock: None, listener: None, postboxes };
        let (path, hub) = (path.to_owned(), hub.to_owned());
        let (look_at, unread) = (Instant::now(), Vec::new());
        Directory { path, hub, replica, sockets, look_at, followed: None, wait: RETRY, unread, problem: None }
    }

    /// The replica.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Something is to be published.
    pub fn carry(&mut self, turn: &Turn<'_>, notice: crate::hub::Notice) {
        self.replica.carry(turn.now, notice, &mut self.sockets);
    }

    /// Whether something is to be done at once, or when.
    pub fn due(&self, turn: &Turn<'_>) -> Option<Duration> {
        if !self.unread.is_empty() {
            return Some(Duration::ZERO);
        }
        let looks = self.replica.seeks().then(|| self.look_at.saturating_duration_since(turn.instant));
        let due = self.replica.due().map(|due| due.saturating_sub(turn.now));
        looks.into_iter().chain(due).min()
    }

    /// Something has happened to a socket. Whether it is one of these.
    pub fn event(&mut self, turn: &Turn<'_>, token: usize, writable: bool) -> bool {
        if self.sockets.listener.as_ref().is_some_and(|(_, own, _)| *own == token) {
            self.accept(turn);
            return true;
        }
        if !self.sockets.links.contains_key(&token) {
            return false;
        }
        if writable {
            self.replica.drained(turn.now, token, &mut self.sockets);
        }
        self.read(turn, token);
        true
    }

    /// What is due.
    pub fn tick(&mut self, turn: &Turn<'_>) {
        for token in std::mem::take(&mut self.unread) {
            self.read(turn, token);
        }
        if self.replica.seeks()
            && let Some(since) = self.followed.take()
        {
            self.left_alone(turn, since);
        }
        if self.replica.seeks() && turn.instant >= self.look_at {
            self.look_at = turn.instant + RETRY;
            let before = self.problem.take();
            if let Err(error) = self.look(turn) {
                let problem = error.to_string();
                if before.as_ref() != Some(&problem) {
                    let fields: [(&str, &dyn std::fmt::Display); 3] =
                        [("hub", &self.hub), ("directory", &self.path.display()), ("error", &problem)];
                    turn.log.event(Level::Error, "a hub cannot find its replicas: nothing is published in it", &fields);
                }
                self.problem = Some(problem);
                self.look_at = turn.instant + RETRY_WITH_PROBLEM;
            }
        }
        self.replica.tick(turn.now, &mut self.sockets);
    }

    fn read(&mut self, turn: &Turn<'_>, token: usize) {
        let mut room = vec![0; 64 << 10];
        for _ in 0..READS {
            let Some(socket) = self.sockets.links.get_mut(&token) else { return };
            match socket.read(&mut room) {
                Ok(count @ 1..) => self.replica.received(turn.now, token, &room[..count], &mut self.sockets),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.sockets.links.remove(&token);
                    return self.replica.closed(turn.now, token, &mut self.sockets);
                }
            }
        }
        self.unread.push(token);
    }

    /// The link to the leader has ended, which there was since then.
    fn left_alone(&mut self, turn: &Turn<'_>, since: Instant) {
        let (pause, next) = pause(turn.instant.saturating_duration_since(since), self.wait);
        (self.look_at, self.wait) = (turn.instant + pause, next);
        turn.log.event(Level::Info, "the replica that numbers a hub's messages is gone", &[("hub", &self.hub)]);
    }

    fn accept(&mut self, turn: &Turn<'_>) {
        while let Some((listener, ..)) = &self.sockets.listener
            && let Ok((socket, _)) = listener.accept()
        {
            let token = next_token();
            if is_own(&socket)
                && prepare(socket, token, turn.registry, &mut self.sockets).is_ok()
                && !self.replica.accept(token)
            {
                self.sockets.links.remove(&token);
            }
        }
    }

    /// Looks for the leader, or becomes it.
    fn look(&mut self, turn: &Turn<'_>) -> io::Result<()> {
        make(&self.path)?;
        let file = |ending: &str| self.path.join(format!("{}.{ending}", self.hub));
        let (lock_path, socket_path) = (file("lock"), file("sock"));
        if socket_path.as_os_str().len() > LONGEST_PATH {
            let message = format!("{} is too long for a socket: choose a shorter directory", socket_path.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        let lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path)?;
        if self.replica.may_lead(turn.now, &record_in(&lock)) && lock.try_lock().is_ok() {
            // Not one that somebody has removed meanwhile.
            let is_it =
                fs::metadata(&lock_path).is_ok_and(|found| found.ino() == lock.metadata().map_or(0, |own| own.ino()));
            return if is_it { self.lead(turn, lock, &socket_path) } else { Ok(()) };
        }
        // Nobody may be there yet, or any more.
        let Ok(socket) = connect(&socket_path) else { return Ok(()) };
        let token = next_token();
        if is_own(&socket) {
            prepare(socket, token, turn.registry, &mut self.sockets)?;
            self.replica.follow(token, &mut self.sockets);
            self.followed = Some(turn.instant);
            turn.log.event(Level::Info, "another replica numbers a hub's messages", &[("hub", &self.hub)]);
        }
        Ok(())
    }

    fn lead(&mut self, turn: &Turn<'_>, lock: File, socket_path: &Path) -> io::Result<()> {
        let record = record_in(&lock);
        match fs::remove_file(socket_path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut listener = UnixListener::bind(socket_path)?;
        fs::set_permissions(socket_path, Permissions::from_mode(0o600))?;
        let file = SocketFile::of(socket_path)?;
        let token = next_token();
        turn.registry.register(&mut listener, Token(token), Interest::READABLE)?;
        (self.sockets.listener, self.sockets.lock) = (Some((listener, token, file)), Some(lock));
        self.replica.lead(turn.now, &record, &mut self.sockets);
        turn.log.event(Level::Info, "this replica numbers a hub's messages", &[("hub", &self.hub)]);
        Ok(())
    }
}

/// How long it is waited until another link is made, where the last one has lasted so long, and how long after that one, if that does not last.
fn pause(lasted: Duration, wait: Duration) -> (Duration, Duration) {
    match lasted >= LASTED {
        // At once: nothing is published meanwhile.
        true => (Duration::ZERO, RETRY),
        false => (wait, (2 * wait).min(LONGEST_RETRY)),
    }
}

/// What a lock's file says.
fn record_in(lock: &File) -> Record {
    let mut text = [0; RECORD_BYTES];
    let count = lock.read_at(&mut text, 0).unwrap_or_default();
    read(std::str::from_utf8(&text[..count]).unwrap_or_default())
}

/// The directory, for this user alone.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::metadata(path)?;
    let wrong = if !found.is_dir() {
        "it is no directory"
    } else if found.uid() != nix::unistd::geteuid().as_raw() {
        "it belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "others may go there: give it the mode 0700"
    } else {
        return Ok(());
    };
    Err(io::Error::new(ErrorKind::PermissionDenied, wrong))
}

/// Never waits: a full backlog is nobody, for now.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from_std(std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(socket))))
}

fn prepare(mut socket: UnixStream, token: usize, registry: &Registry, sockets: &mut Sockets) -> io::Result<()> {
    // More is better and no more is fine.
    SockRef::from(&socket).set_send_buffer_size(SOCKET_BYTES).ok();
    registry.register(&mut socket, Token(token), Interest::READABLE | Interest::WRITABLE)?;
    sockets.links.insert(token, socket);
    Ok(())
}

/// Whether the other end runs as the same user.
#[cfg(target_os = "linux")]
fn is_own(socket: &UnixStream) -> bool {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    getsockopt(socket, PeerCredentials).is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

/// The directory lets nobody else in.
#[cfg(not(target_os = "linux"))]
fn is_own(_: &UnixStream) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record { term: 7, leader: u64::MAX, epoch: 1 << 63, in_step: vec![1, 2, u64::MAX] };
        let mut text = written(&record);
        assert_eq!(read(std::str::from_utf8(&text).unwrap()), record);
        text.resize(RECORD_BYTES, b'\n');
        assert_eq!(read(std::str::from_utf8(&text).unwrap()), record);
        let full = Record { in_step: vec![u64::MAX; super::super::replica::MOST_REPLICAS], ..record };
        assert!(written(&full).len() <= RECORD_BYTES);
        for wrong in ["", "\n\n", "2 1 2 3", "1 1 2", "1 1 2 x", "1 1 2 3 11111111111111111"] {
            assert_eq!(read(wrong), Record::default(), "{wrong:?}");
        }
    }

    #[test]
    fn a_leader_that_cuts_whoever_comes_is_not_asked_all_the_time() {
        let mut wait = RETRY;
        let pauses: Vec<_> = (0..10)
            .map(|_| {
                let (now, next) = pause(Duration::ZERO, wait);
                wait = next;
                now
            })
            .collect();
        assert!(pauses.is_sorted() && pauses[0] == RETRY && pauses[9] == LONGEST_RETRY, "{pauses:?}");
        assert_eq!(pause(LASTED, wait), (Duration::ZERO, RETRY));
    }

    #[test]
    fn a_directory_is_made_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus");
        make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        make(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        assert!(make(&path).unwrap_err().to_string().contains("0700"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(make(&folder.path().join("file")).is_err());
        assert!(make(&folder.path().join("no/such")).is_err());
    }
}
