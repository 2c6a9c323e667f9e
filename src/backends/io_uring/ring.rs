//! The ring: submission and completion queues shared with the kernel, and the one `io_uring_enter` of a turn.
//!
//! Rules:
//! - A ring belongs to the thread that made it (SINGLE_ISSUER), and completions appear only in that thread's `enter`
//!   (DEFER_TASKRUN), where the kernel accepts both; [`KernelVersion`] has what is done without.
//! - No entry is lost: one that finds the submission queue full goes out with an early submit, or waits in the backlog.
//! - Every entry ends in exactly one final completion, so `in_flight` says whether the kernel may still touch our memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::io_uring::{IoUring, cqueue, squeue};

use super::super::{Sock, TAKEN_AHEAD};

/// Entries of the submission queue: more leave with an early submit, and a small one stays in the cache.
const SUBMISSIONS: u32 = 256;
/// Entries of the completion queue: what beyond it completes at once is kept by the kernel until the next enter. An accept that brings many
/// ends there: within a turn, which may submit early, it brings no more than twice as many.
const COMPLETIONS: u32 = TAKEN_AHEAD as u32 / 2;
/// Operations of io_uring_register(2) that give and take back an index which stands for the ring's descriptor
/// (Linux 5.18): one reference count less for each enter.
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;
const ENTER_GETEVENTS: libc::c_uint = 1 << 0;
const ENTER_EXT_ARG: libc::c_uint = 1 << 3;
const ENTER_REGISTERED_RING: libc::c_uint = 1 << 4;

/// What an entry was for; the high byte of its token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Operation {
    Accept,
    Bell,
    Cancel,
    Connect,
    Send,
    /// A poll for room to send.
    Room,
    /// A receive from the group with that number; the four follow each other.
    Receive0,
    Receive1,
    Receive2,
    Receive3,
}

const OPERATIONS: [Operation; 10] = [
    Operation::Accept,
    Operation::Bell,
    Operation::Cancel,
    Operation::Connect,
    Operation::Send,
    Operation::Room,
    Operation::Receive0,
    Operation::Receive1,
    Operation::Receive2,
    Operation::Receive3,
];

impl Operation {
    /// The receive that draws from `group`.
    pub(super) fn receive(group: usize) -> Operation {
        OPERATIONS[Operation::Receive0 as usize + group]
    }
}

/// Sockets that a token can name: 24 bits of index.
pub(super) const MOST_SOCKETS: usize = 1 << 24;

/// The name of an entry towards the kernel: operation (8 bits), index (24), generation (32).
pub(super) fn token(operation: Operation, sock: Sock) -> u64 {
    debug_assert!((sock.index as usize) < MOST_SOCKETS, "an index beyond the token's bits");
    u64::from(operation as u8) << 56 | u64::from(sock.index) << 32 | u64::from(sock.generation)
}

/// The name for entries that belong to no socket.
pub(super) fn bare_token(operation: Operation) -> u64 {
    u64::from(operation as u8) << 56
}

/// What [`token`] was made of.
pub(super) fn parse(token: u64) -> (Operation, Sock) {
    let operation = OPERATIONS[(token >> 56) as usize];
    (operation, Sock { index: (token >> 32) as u32 & (MOST_SOCKETS as u32 - 1), generation: token as u32 })
}

/// `struct io_uring_getevents_arg` of the kernel's interface.
#[repr(C)]
struct GetEvents {
    signals: u64,
    signals_size: u32,
    min_wait_us: u32,
    timeout: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// The versions of the kernel that brought something which a ring makes use of; each includes those before it. Provided buffers in
/// rings came with the first, and without them there is no backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum KernelVersion {
    /// An entry that fails stops no other (SUBMIT_ALL); completions interrupt nobody (COOP_TASKRUN).
    Linux519,
    /// They wait for the one thread that submits (SINGLE_ISSUER, DEFER_TASKRUN).
    Linux61,
    /// No array of indices between the program and its entries (NO_SQARRAY).
    Linux66,
}

/// The queues shared with the kernel.
pub(super) struct Ring {
    ring: IoUring,
    /// The index registered for the ring's descriptor.
    registered: Option<u32>,
    /// Entries that found the submission queue full and the kernel unwilling.
    backlog: VecDeque<squeue::Entry>,
    in_flight: usize,
    /// Completions taken from the kernel; those before the cursor are handled.
    completions: Vec<cqueue::Entry>,
    cursor: usize,
}

impl Ring {
    /// Opens a ring with as much help as this kernel gives, and no more than `most`.
    pub(super) fn new(most: KernelVersion) -> io::Result<Ring> {
        let ring = open(most)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring lacks EXT_ARG or NODROP"));
        }
        let registered = register(&ring);
        Ok(Ring {
            ring,
            registered,
            backlog: VecDeque::new(),
            in_flight: 0,
            completions: Vec::with_capacity(COMPLETIONS as usize),
            cursor: 0,
        })
    }

    /// The crate's handle, for registrations.
    pub(super) fn handle(&self) -> &IoUring {
        &self.ring
    }

    /// Queues an entry for the next enter.
    ///
    /// # Safety
    /// What the entry points to must stay valid and in place until its final completion.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        // SAFETY: the caller keeps the entry's memory.
        if self.backlog.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.backlog.push_back(entry);
        self.submit_backlog();
    }

    /// Entries that the kernel has not completed yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether completions wait to be taken by [`Ring::next`].
    pub(super) fn has_completions(&self) -> bool {
        self.cursor < self.completions.len()
    }

    /// Submits what is queued, sleeps until `want` completions are there or the timeout is over, and takes them.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.submit_backlog();
        }
        let want = if self.backlog.is_empty() { want } else { 0 };
        let entered = self.call(want, timeout);
        if self.cursor == self.completions.len() {
            self.completions.clear();
            self.cursor = 0;
        }
        self.completions.extend(self.ring.completion());
        match entered {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The sum of what succeeded under that token and was not taken by [`Ring::next`] yet.
    pub(super) fn untaken(&self, token: u64) -> u64 {
        // SAFETY: the queue's other users take it as exclusive, and none of them is under way while this lives.
        let mut queue = unsafe { self.ring.completion_shared() };
        let taken_in = self.completions[self.cursor..].iter().cloned();
        let ours = taken_in.chain(&mut queue).filter(|entry| entry.user_data() == token);
        let sum = ours.map(|entry| u64::try_from(entry.result()).unwrap_or(0)).sum();
        // Dropped, it would say that what was looked at has been taken.
        std::mem::forget(queue);
        sum
    }

    /// The next completion of this turn.
    #[inline]
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        let entry = self.completions.get(self.cursor)?.clone();
        self.cursor += 1;
        if !cqueue::more(entry.flags()) {
            debug_assert!(self.in_flight > 0, "a completion without an operation");
            self.in_flight -= 1;
        }
        Some(entry)
    }

    /// Makes room by submitting, as far as the kernel takes entries.
    #[cold]
    fn submit_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed the entry keeps its memory until it completes.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if self.call(0, None).is_err() || self.ring.submission().is_full() {
                // The kernel is short of memory or its completion queue has overflowed: after this turn it may go on.
                return;
            }
        }
    }

    /// io_uring_enter(2) with everything that is queued.
    fn call(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        let submit = self.ring.submission().len() as libc::c_uint;
        let timespec = timeout.map(|timeout| Timespec {
            seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: i64::from(timeout.subsec_nanos()),
        });
        let argument = GetEvents {
            signals: 0,
            signals_size: 0,
            min_wait_us: 0,
            timeout: timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64),
        };
        // GETEVENTS also without a wait: deferred work, and completions kept aside, come only with it.
        let mut flags = ENTER_GETEVENTS | ENTER_EXT_ARG;
        let descriptor = match self.registered {
            Some(index) => {
                flags |= ENTER_REGISTERED_RING;
                index as libc::c_int
            }
            None => self.ring.as_raw_fd(),
        };
        // SAFETY: the argument and its timespec outlive the call; the entries' memory is kept by those who pushed them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                submit,
                want,
                flags,
                std::ptr::from_ref(&argument),
                size_of::<GetEvents>(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let Some(index) = self.registered else { return };
        // The registered index holds the ring open until its thread ends.
        let mut update = RingUpdate { offset: index, reserved: 0, data: 0 };
        // SAFETY: the update outlives the call.
        unsafe { register_call(&self.ring, UNREGISTER_RING_FDS, &mut update) };
    }
}

/// Tries the sets of flags from the most to the least helpful.
fn open(most: KernelVersion) -> io::Result<IoUring> {
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for version in [KernelVersion::Linux66, KernelVersion::Linux61, KernelVersion::Linux519]
        .into_iter()
        .filter(|version| *version <= most)
    {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(COMPLETIONS).setup_submit_all().setup_coop_taskrun();
        if version >= KernelVersion::Linux61 {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        if version >= KernelVersion::Linux66 {
            builder.setup_no_sqarray();
        }
        result = builder.build(SUBMISSIONS);
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            _ => return result,
        }
    }
    result
}

/// Registers the ring's descriptor, where the kernel can and this thread has an index left (16 each).
fn register(ring: &IoUring) -> Option<u32> {
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: ring.as_raw_fd() as u64 };
    // SAFETY: the update outlives the call, which writes the index into it.
    let count = unsafe { register_call(ring, REGISTER_RING_FDS, &mut update) };
    (count == 1).then_some(update.offset)
}

/// io_uring_register(2) with one update.
///
/// # Safety
/// The operation must be one that takes a [`RingUpdate`].
unsafe fn register_call(ring: &IoUring, operation: libc::c_uint, update: &mut RingUpdate) -> libc::c_long {
    let update = std::ptr::from_mut(update);
    // SAFETY: the pointer is valid for the call, and one element lies behind it.
    unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), operation, update, 1) }
}

/// Whether the next turn may simply try again: a signal, the timeout, a shortage that handling completions ends.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::io_uring::opcode;

    #[test]
    fn a_token_tells_what_it_was_made_of() {
        let sock = Sock { index: MOST_SOCKETS as u32 - 1, generation: u32::MAX };
        for operation in OPERATIONS {
            assert_eq!(parse(token(operation, sock)), (operation, sock));
            assert_eq!(parse(bare_token(operation)).0, operation);
        }
        assert_eq!(Operation::receive(3), Operation::Receive3);
    }

    #[test]
    fn more_entries_than_the_queue_holds_all_complete() {
        for version in [KernelVersion::Linux519, KernelVersion::Linux61, KernelVersion::Linux66] {
            let mut ring = Ring::new(version).unwrap();
            for number in 0..3000 {
                let entry = opcode::Nop::new().build().user_data(number);
                // SAFETY: a no-op refers to no memory.
                unsafe { ring.push(entry) };
            }
            let mut seen = Vec::new();
            while seen.len() < 3000 {
                ring.enter(1, Some(Duration::from_secs(10))).unwrap();
                assert!(ring.has_completions(), "an entry was lost");
                seen.extend(std::iter::from_fn(|| ring.next()).map(|entry| entry.user_data()));
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..3000));
            assert_eq!(ring.in_flight(), 0);
        }
    }

    /// What is tested as the oldest kernel is not secretly the newest.
    #[test]
    fn a_ring_has_no_more_help_than_it_may() {
        let plain = open(KernelVersion::Linux519).unwrap();
        assert!(!plain.params().is_setup_single_issuer());
    }
}
