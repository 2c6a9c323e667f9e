//! The control socket and its connections, turned by the supervisor's poll loop.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::connection::{Connection, may_wait};
use super::requests::{self, Asked};
use super::{Answer, Command, CommandHandler};
use crate::http::fields::Fields;
use crate::http::head::HeadLimits;
use crate::log;
use crate::socket_file::{SocketFile, clear};

/// Connections at once. Further ones wait in the listener's backlog until one closes, or makes room: one that is idle does so at once, and
/// one whose request is not whole behind [`SILENCE`]. The server keeps descriptors for so many.
pub const MOST_CONNECTIONS: usize = 64;
/// For how long a connection may say nothing at all, or only a part of a request, while others wait to be accepted.
const SILENCE: Duration = Duration::from_millis(100);
/// Readers of events at once.
const MOST_STREAMS: usize = 16;
/// Connections that wait for an answer at once. With the readers of events this leaves the half of all to those that come and go.
const MOST_WAITING: usize = 16;
/// Requests of one connection that are carried out in one turn.
const REQUESTS_A_CONNECTION: usize = 8;
/// Behind this much time of a turn no further request is begun in it: the supervisor has other things to do, and a status of a large site
/// takes long on a machine that is busy.
const TURN: Duration = Duration::from_millis(5);
/// How soon accepting is tried again after it failed, for want of descriptors for instance.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The control socket. See the [module](super).
pub struct ControlServer {
    listener: UnixListener,
    file: SocketFile,
    /// A second name of the same socket.
    link: Option<SocketFile>,
    connections: Vec<Connection>,
    fields: Fields,
    accept_again: Option<Instant>,
    /// When it last had its turn.
    turned: Instant,
    closed: bool,
}

impl ControlServer {
    /// Listens at a path, for this user alone (0600). What a dead server left there goes; whoever calls this holds the run
    /// directory's lock.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there, `AlreadyExists` when something else than a socket lies there, `InvalidInput` when the
    /// path is too long for a socket, and what the system says otherwise.
    pub fn open(path: &Path) -> io::Result<ControlServer> {
        clear(path)?;
        ControlServer::put(path)
    }

    /// Listens at a path, in the place of whatever lies there.
    fn put(path: &Path) -> io::Result<ControlServer> {
        // Bound beside its place, protected, and only then put there: at no time anybody else may connect.
        let fresh = path.with_extension("new");
        clear(&fresh)?;
        let listener = UnixListener::bind(&fresh)?;
        let placed = fs::set_permissions(&fresh, Permissions::from_mode(0o600))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| fs::rename(&fresh, path))
            .and_then(|()| SocketFile::of(path));
        match placed {
            Ok(file) => Ok(ControlServer {
                listener,
                file,
                link: None,
                connections: Vec::new(),
                fields: Fields::new(HeadLimits::default().fields),
                accept_again: None,
                turned: Instant::now(),
                closed: false,
            }),
            Err(error) => {
                fs::remove_file(&fresh).ok();
                Err(error)
            }
        }
    }

    /// Listens at another path as well, in the place of whoever listens there. At no time is nobody there.
    ///
    /// # Errors
    /// What the system says.
    pub fn move_to(&mut self, path: &Path) -> io::Result<()> {
        if self.path() == path {
            return Ok(());
        }
        let fresh = path.with_extension("new");
        clear(&fresh)?;
        // A name for the same socket: whoever knows the first one still finds it.
        fs::hard_link(self.path(), &fresh).and_then(|()| fs::rename(&fresh, path))?;
        self.link = Some(SocketFile::of(path)?);
        Ok(())
    }

    /// Listens anew where it did, if the file that led there was removed; connections stay. Whether it was.
    ///
    /// # Errors
    /// Those of [`ControlServer::open`].
    pub fn reopen(&mut self) -> io::Result<bool> {
        let file = self.link.as_ref().unwrap_or(&self.file);
        if self.closed || file.path().exists() {
            return Ok(false);
        }
        self.become_one(ControlServer::open(file.path())?);
        Ok(true)
    }

    /// Listens anew where it did, if another server that is gone by now has put its socket there; connections stay.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_back(&mut self, now: Instant) -> io::Result<()> {
        let file = self.link.as_ref().unwrap_or(&self.file);
        if self.closed || file.is_there() {
            return Ok(());
        }
        let path = file.path().to_owned();
        if let Some(mut link) = self.link.take() {
            // It has its first name still, and what is to come under the second one is the same file.
            link.give_away();
            return self.move_to(&path);
        }
        // Who has connected to it before is heard.
        self.accept(now);
        self.become_one(ControlServer::put(&path)?);
        Ok(())
    }

    /// Listens where a fresh one does, and nowhere else.
    fn become_one(&mut self, mut fresh: ControlServer) {
        std::mem::swap(&mut self.listener, &mut fresh.listener);
        std::mem::swap(&mut self.file, &mut fresh.file);
        self.link = None;
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Adds what poll(2) is to wait for.
    pub fn poll_entries(&self, entries: &mut Vec<libc::pollfd>) {
        if self.closed {
            return;
        }
        if self.accept_again.is_none() && self.has_room(self.turned) {
            entries.push(libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 });
        }
        entries.extend(self.connections.iter().filter_map(Connection::poll_entry));
    }

    /// When it needs a turn although nothing has come.
    pub fn due(&self) -> Option<Instant> {
        if self.connections.iter().any(Connection::is_eager) {
            return Some(self.turned);
        }
        // Whether somebody waits to be accepted is seen only when there is room.
        let full = self.connections.len() >= MOST_CONNECTIONS && !self.has_room(self.turned);
        let unwhole = self.connections.iter().filter(|_| full).filter_map(Connection::unwhole_since).min();
        let room = unwhole.map(|since| since + SILENCE);
        self.connections.iter().filter_map(Connection::due).chain(self.accept_again).chain(room).min()
    }

    /// Does all that can be done without waiting: accepts, reads, has commands carried out, answers. To be called whenever poll(2)
    /// has returned.
    pub fn turn(&mut self, handler: &mut dyn CommandHandler, now: Instant) {
        if self.closed {
            return;
        }
        self.turned = now;
        self.accept(now);
        let end = Instant::now() + TURN;
        let mut next = 0;
        for index in 0..self.connections.len() {
            if index == 0 || Instant::now() < end {
                self.serve(index, end, handler, now);
                next = index + 1;
            }
            self.connections[index].flush(now);
        }
        // Whoever had no turn is the first in the next.
        self.connections.rotate_left(next);
        self.connections.retain(|connection| !connection.is_closed());
    }

    /// Answers all that wait for this ticket; nobody may be there any more.
    pub fn answer(&mut self, ticket: u64, answer: Answer) {
        debug_assert!(matches!(answer, Answer::Done(_) | Answer::Refused { .. }), "a ticket is answered at last");
        let now = Instant::now();
        for connection in self.connections.iter_mut().filter(|connection| connection.waits(Some(ticket))) {
            connection.answer(&answer, now);
        }
    }

    /// Gives an event, a JSON object, to all who read events. One without `time` gets the time now.
    pub fn publish(&mut self, event: &Value) {
        if !self.connections.iter().any(Connection::is_stream) {
            return;
        }
        let mut line = match event {
            Value::Object(members) if !members.contains_key("time") => {
                let mut timed = members.clone();
                timed.insert("time".to_owned(), log::timestamp().into());
                Value::Object(timed).to_string()
            }
            other => other.to_string(),
        };
        line.push('\n');
        for connection in &mut self.connections {
            connection.publish(line.as_bytes());
        }
    }

    /// Ends: tells those who wait, sends what can be sent at once, closes all connections and removes the socket's file. Later
    /// calls of anything do nothing.
    pub fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.file.remove();
        self.link.take();
        let now = Instant::now();
        for mut connection in self.connections.drain(..) {
            connection.end(now);
        }
    }

    /// Has some requests of a connection carried out: one, and further ones until that moment.
    fn serve(&mut self, index: usize, end: Instant, handler: &mut dyn CommandHandler, now: Instant) {
        self.connections[index].expire(now);
        for served in 0..REQUESTS_A_CONNECTION {
            if served > 0 && Instant::now() >= end {
                return;
            }
            let Some(request) = self.connections[index].next_request(&mut self.fields, now) else { return };
            let (method, path, body) = (&request.method[..], &request.path[..], &request.body[..]);
            match requests::command(&Asked { method, path, query: request.query, body }) {
                Ok(command) => self.carry_out(index, command, handler, now),
                Err(fault) => self.connections[index].refuse_whole(fault.status, fault.allow, &fault.message, now),
            }
        }
    }

    fn carry_out(&mut self, index: usize, command: Command, handler: &mut dyn CommandHandler, now: Instant) {
        let waiting = self.connections.iter().filter(|connection| connection.waits(None)).count();
        let streams = self.connections.iter().filter(|connection| connection.is_stream()).count();
        let crowded = match &command {
            Command::Events if streams >= MOST_STREAMS => Some(("read events", MOST_STREAMS)),
            command if may_wait(command) && waiting >= MOST_WAITING => Some(("wait for an answer", MOST_WAITING)),
            _ => None,
        };
        let connection = &mut self.connections[index];
        if let Some((what, most)) = crowded {
            let message = format!("{most} connections {what} already, and no more may");
            return connection.refuse_whole(503, None, &message, now);
        }
        let ends = matches!(command, Command::Stop { .. });
        let answer = handler.carry_out(command, now);
        if ends && matches!(answer, Answer::Done(_)) {
            connection.hold();
        }
        connection.answer(&answer, now);
    }

    fn accept(&mut self, now: Instant) {
        if self.accept_again.is_some_and(|again| again > now) {
            return;
        }
        self.accept_again = None;
        while self.has_room(now) {
            match self.listener.accept().and_then(|(stream, _)| nonblocking(stream)) {
                Ok(stream) => {
                    self.make_room(now);
                    self.connections.push(Connection::new(stream, now));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(_) => {
                    // Mostly for want of descriptors, of which those that do nothing have some.
                    self.close_idlest(now);
                    self.accept_again = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn has_room(&self, now: Instant) -> bool {
        self.connections.len() < MOST_CONNECTIONS
            || self.connections.iter().any(|one| gives_way_since(one, now).is_some())
    }

    /// Makes room for another connection, when there is none.
    fn make_room(&mut self, now: Instant) {
        if self.connections.len() >= MOST_CONNECTIONS {
            self.close_idlest(now);
        }
    }

    /// Closes the connection that has been idle the longest, if one is.
    fn close_idlest(&mut self, now: Instant) {
        let idle = self.connections.iter().enumerate();
        let idle = idle.filter_map(|(index, one)| Some((gives_way_since(one, now)?, index)));
        if let Some((_, index)) = idle.min() {
            self.connections.swap_remove(index).close();
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Since when a connection has nothing to do, if it makes room for others: it is between two requests, or its request is not whole for too
/// long.
fn gives_way_since(connection: &Connection, now: Instant) -> Option<Instant> {
    let unwhole = connection.unwhole_since().filter(|since| now >= *since + SILENCE);
    connection.idle_since().or(unwhole)
}

fn nonblocking(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    Ok(stream)
}
