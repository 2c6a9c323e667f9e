//! What a listener of a loop is: a description, which comes with its socket. A new configuration brings listeners and takes some away; on
//! one that goes, and on one that only looks whether an address is free, nobody new is to get in.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::config::{Front, ListenAddress};
use crate::tls::Policy;

/// A listener of a loop, with its socket.
#[derive(Debug)]
pub struct ListenerSetup {
    /// Its name in the whole process, the same in each loop; no other listener of this process has had it.
    pub id: u32,
    /// As it is configured.
    pub asked: ListenAddress,
    /// The socket, bound and listening.
    pub descriptor: OwnedFd,
    /// The local port that `X-Forwarded-Port` tells; 0 for a Unix socket.
    pub port: u16,
    /// What TLS demands there, where it is spoken.
    pub tls: Option<Arc<Policy>>,
    /// Whether it serves the documents of the server's own and nothing else.
    pub admin: bool,
    /// What stands in front of it.
    pub front: Arc<Front>,
}

/// Has the kernel drop the first packet of each new connection, so that its client tries again until another socket listens there, or none,
/// and is refused then; whose connection stands is accepted. Without this, who came before the close and was not accepted would be reset.
#[cfg(target_os = "linux")]
pub fn refuse_newcomers(socket: &impl AsFd) {
    // The flags of the TCP header (RFC 9293, 3.1): of SYN and ACK, the first packet has SYN alone.
    let program = [
        (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
        (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x12),
        (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0x02),
        (libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        (libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = program
        .map(|(code, if_true, if_false, operand)| socket2::SockFilter::new(code as u16, if_true, if_false, operand));
    // Where the kernel refuses it, a client may be reset that comes in that moment.
    socket2::SockRef::from(socket).attach_filter(&program).ok();
}

/// Takes that back.
#[cfg(target_os = "linux")]
pub fn accept_newcomers(socket: &impl AsFd) {
    // Where there is none it cannot be taken away.
    socket2::SockRef::from(socket).detach_filter().ok();
}

/// Where there are no such filters, a client may be reset that comes in the moment of the close.
#[cfg(not(target_os = "linux"))]
pub fn refuse_newcomers(_socket: &impl AsFd) {}

/// See there.
#[cfg(not(target_os = "linux"))]
pub fn accept_newcomers(_socket: &impl AsFd) {}
