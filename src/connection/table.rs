//! The connection array: one entry for each socket of the backend, at the same index.

use super::{Client, Link, LinkState, Role};
use crate::backends::Sock;

struct Entry {
    generation: u32,
    role: Role,
}

/// The connection array.
pub(crate) struct Table {
    entries: Vec<Entry>,
    clients: usize,
    /// The connection that is worked on, which a panic is to cost; [`Sock::NONE`] for what concerns none.
    pub subject: Sock,
}

impl Table {
    pub fn new(capacity: usize) -> Table {
        Table { entries: Vec::with_capacity(capacity), clients: 0, subject: Sock::NONE }
    }

    pub fn put(&mut self, sock: Sock, role: Role) {
        while self.entries.len() <= sock.index as usize {
            self.entries.push(Entry { generation: 0, role: Role::Free });
        }
        let entry = &mut self.entries[sock.index as usize];
        debug_assert!(matches!(entry.role, Role::Free), "an entry is used twice");
        self.clients += usize::from(matches!(role, Role::Client(_)));
        *entry = Entry { generation: sock.generation, role };
    }

    pub fn take(&mut self, sock: Sock) -> Role {
        match self.entries.get_mut(sock.index as usize) {
            Some(entry) if entry.generation == sock.generation => {
                let role = std::mem::replace(&mut entry.role, Role::Free);
                self.clients -= usize::from(matches!(role, Role::Client(_)));
                role
            }
            _ => Role::Free,
        }
    }

    /// Who it belongs to; [`Role::Free`] for a socket that is gone.
    #[inline]
    pub fn role(&self, sock: Sock) -> &Role {
        match self.entries.get(sock.index as usize) {
            Some(entry) if entry.generation == sock.generation => &entry.role,
            _ => &Role::Free,
        }
    }

    /// Whether that worker's connection is not connected yet.
    #[inline]
    pub fn is_connecting(&self, sock: Sock) -> bool {
        matches!(self.role(sock), Role::Link(link) if link.state == LinkState::Connecting)
    }

    /// The socket that lives at that index now.
    pub fn at(&self, index: u32) -> Sock {
        let generation = self.entries.get(index as usize).map_or(0, |entry| entry.generation);
        Sock { index, generation }
    }

    /// How many clients' connections are in the table.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// All of it, for what concerns every connection: a drain, a stop.
    pub fn roles(&self) -> impl Iterator<Item = (Sock, &Role)> {
        let sock = |index: usize, generation| Sock { index: index as u32, generation };
        self.entries.iter().enumerate().map(move |(index, entry)| (sock(index, entry.generation), &entry.role))
    }

    #[inline]
    pub fn client(&mut self, sock: Sock) -> Option<&mut Client> {
        match self.entries.get_mut(sock.index as usize) {
            Some(Entry { generation, role: Role::Client(client) }) if *generation == sock.generation => Some(client),
            _ => None,
        }
    }

    #[inline]
    pub fn link(&mut self, sock: Sock) -> Option<&mut Link> {
        match self.entries.get_mut(sock.index as usize) {
            Some(Entry { generation, role: Role::Link(link) }) if *generation == sock.generation => Some(link),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Entry>() <= 120, "an entry has {} bytes", size_of::<Entry>());
    }
}
