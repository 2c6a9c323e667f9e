//! Messages: what a gathered send shows to the kernel, in boxes that stay where they are until it completes.

use std::ptr::null_mut;

use crate::buffers::outbox::GATHER;

/// No message: the send has one piece, and needs none.
pub(super) const NO_MESSAGE: u32 = u32::MAX;

/// One header with room for its vectors.
struct Message {
    header: libc::msghdr,
    vectors: [libc::iovec; GATHER],
}

/// The messages of a loop, used again, last freed first.
#[derive(Default)]
pub(super) struct Messages {
    /// Made from boxes and freed in `drop`; raw, so that no reference to them is ever held while the kernel reads them.
    messages: Vec<*mut Message>,
    free: Vec<u32>,
}

impl Messages {
    /// Takes a message and fills it; its index, the header to send, and the bytes in it. At most [`GATHER`] pieces.
    pub(super) fn fill<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> (u32, *const libc::msghdr, usize) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.messages.push(Box::into_raw(Box::new(empty())));
            (self.messages.len() - 1) as u32
        });
        // SAFETY: the message is one of ours, and free: no operation in flight refers to it.
        let message = unsafe { &mut *self.messages[index as usize] };
        let (mut count, mut bytes) = (0, 0);
        for (vector, piece) in message.vectors.iter_mut().zip(pieces) {
            *vector = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            bytes += piece.len();
            count += 1;
        }
        message.header.msg_iov = message.vectors.as_mut_ptr();
        message.header.msg_iovlen = count as _;
        (index, &raw const message.header, bytes)
    }

    /// Gives a message back whose send has completed.
    pub(super) fn release(&mut self, index: u32) {
        debug_assert!(!self.free.contains(&index), "a message is released twice");
        self.free.push(index);
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        for message in self.messages.drain(..) {
            // SAFETY: made by `Box::into_raw` in `fill`; the owner drops messages only once the kernel is done with them.
            drop(unsafe { Box::from_raw(message) });
        }
    }
}

fn empty() -> Message {
    let vector = libc::iovec { iov_base: null_mut(), iov_len: 0 };
    // SAFETY: a header of zeros is valid: no name, no vectors, no control data. Its private padding has no other way.
    let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
    Message { header, vectors: [vector; GATHER] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_shows_its_pieces_and_is_used_again() {
        let mut messages = Messages::default();
        let pieces: Vec<&[u8]> = [&b"one"[..], b"three"].into_iter().cycle().take(GATHER).collect();
        let (first, header, bytes) = messages.fill(pieces.iter().copied());
        // SAFETY: the header is valid until its message is released.
        let header = unsafe { &*header };
        assert_eq!((header.msg_iovlen, bytes), (GATHER as _, GATHER / 2 * 8));
        // SAFETY: as many vectors as the header says, over static bytes.
        let last = unsafe { &*header.msg_iov.add(GATHER - 1) };
        assert_eq!((last.iov_base.cast_const().cast(), last.iov_len), (pieces[1].as_ptr(), 5));
        let (second, _, _) = messages.fill(pieces.iter().copied());
        messages.release(first);
        assert_ne!(first, second);
        assert_eq!(messages.fill(pieces.iter().copied()).0, first);
    }
}
