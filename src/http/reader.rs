//! Readers of bodies: how much of a body is still to come, in either direction.

use super::body::Chunked;
use super::{Framing, Refusal};
use crate::buffers::block::Block;

/// What is still to come of a body.
#[derive(Debug, Default)]
pub enum Reader {
    /// Nothing: the body is complete.
    #[default]
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks; `true` once the last one was seen. The decoder then still holds the trailers.
    Chunked(Chunked, bool),
    /// All until the connection ends.
    UntilClose,
}

impl Reader {
    /// A reader at the begin of a body that is framed so.
    pub fn new(framing: Framing) -> Reader {
        match framing {
            Framing::None | Framing::Length(0) => Reader::Done,
            Framing::Length(length) => Reader::Length(length),
            Framing::Chunked => Reader::Chunked(Chunked::new(), false),
            Framing::UntilClose => Reader::UntilClose,
        }
    }

    /// Whether the body is whole.
    pub fn is_done(&self) -> bool {
        matches!(self, Reader::Done | Reader::Chunked(_, true))
    }

    /// The trailers of a body that ended with some, ready to be sent.
    pub fn trailers(&self) -> &[u8] {
        match self {
            Reader::Chunked(chunked, true) => chunked.trailers(),
            _ => b"",
        }
    }

    /// Takes the next run of body bytes off `input`; `None` when nothing of the body is left in it.
    ///
    /// # Errors
    /// When the body is malformed; the reader is of no use then.
    pub fn take(&mut self, input: &mut Block) -> Result<Option<Block>, Refusal> {
        match self {
            Reader::Done => Ok(None),
            Reader::Length(left) => {
                let count = (*left).min(input.len() as u64) as usize;
                if count == 0 {
                    return Ok(None);
                }
                *left -= count as u64;
                if *left == 0 {
                    *self = Reader::Done;
                }
                let data = input.slice(0..count);
                input.advance(count);
                Ok(Some(data))
            }
            Reader::Chunked(chunked, done) => {
                while !*done && !input.is_empty() {
                    let progress = chunked.decode(input)?;
                    let data = input.slice(progress.data);
                    input.advance(progress.consumed);
                    *done = progress.done;
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                    debug_assert!(progress.done || progress.consumed > 0, "the decoder stands still");
                }
                Ok(None)
            }
            Reader::UntilClose => {
                let data = input.slice(0..input.len());
                input.advance(data.len());
                Ok((!data.is_empty()).then_some(data))
            }
        }
    }
}
