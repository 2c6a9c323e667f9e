//! Readers of bodies: how much of a body is still to come, in either direction.

use std::borrow::Cow;
use std::rc::Rc;

use super::body::Chunked;
use super::fields::Fields;
use super::route::Edits;
use super::{Framing, Refusal};
use crate::buffers::block::Block;

/// Bytes of an unwanted body that are read before the connection is given up instead: closing is cheaper then.
const SKIP_BYTES: usize = 256 * 1024;

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

    /// The same, behind a head with those fields: those that it declares to be for its connection alone do not come in a trailer either.
    #[inline(always)]
    pub fn behind(fields: &Fields, framing: Framing) -> Reader {
        let mut reader = Reader::new(framing);
        if let (Reader::Chunked(chunked, _), [_, ..]) = (&mut reader, fields.nominated()) {
            chunked.nominate(fields.nominated());
        }
        reader
    }

    /// Whether the body is whole.
    pub fn is_done(&self) -> bool {
        matches!(self, Reader::Done | Reader::Chunked(_, true))
    }

    /// Bytes that are sure to come: of a body with its length all, of one in chunks those of the chunk that has begun.
    pub fn announced(&self) -> u64 {
        match self {
            Reader::Length(left) => *left,
            Reader::Chunked(chunked, _) => chunked.announced(),
            Reader::Done | Reader::UntilClose => 0,
        }
    }

    /// Bytes of the framing that lay between so many of the body.
    pub fn overhead(&self, data: u64) -> u64 {
        if let Reader::Chunked(chunked, _) = self { chunked.overhead(data) } else { 0 }
    }

    /// The trailers of a body that ended with some, ready to be sent.
    pub fn trailers(&self) -> &[u8] {
        match self {
            Reader::Chunked(chunked, true) => chunked.trailers(),
            _ => b"",
        }
    }

    /// The same, to be changed.
    pub fn trailers_mut(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Reader::Chunked(chunked, true) => Some(&mut chunked.trailers),
            _ => None,
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

/// A request's body that is coming in.
pub struct RequestBody {
    /// What is still to come of it.
    pub reader: Reader,
    /// What its route changes of the request: a field that goes from the head does not come in a trailer either.
    pub edits: Option<Rc<Edits>>,
    /// Nobody wants it: so many bytes are read and forgotten at most, for the sake of the next request.
    skip: Option<usize>,
}

impl RequestBody {
    /// One that is framed so, behind a head with those fields; `None` when nothing of it is to come.
    pub fn behind(fields: &Fields, framing: Framing) -> Option<Box<RequestBody>> {
        let reader = Reader::behind(fields, framing);
        (!reader.is_done()).then(|| Box::new(RequestBody { reader, edits: None, skip: None }))
    }

    /// The trailers that go on, ready to be sent, of a body that has ended with some.
    pub fn trailers(&self) -> Cow<'_, [u8]> {
        let all = self.reader.trailers();
        let Some(edits) = self.edits.as_ref().filter(|_| !all.is_empty()) else { return Cow::Borrowed(all) };
        let stays = |line: &&[u8]| !edits.removes(&line[..memchr::memchr(b':', line).unwrap_or(line.len())]);
        Cow::Owned(all.split_inclusive(|byte| *byte == b'\n').filter(stays).collect::<Vec<_>>().concat())
    }

    /// Takes a run of an unwanted body off `input` and forgets it; false when there was none.
    ///
    /// # Errors
    /// When the body is malformed, or too long to be read for nothing.
    pub fn skip(&mut self, input: &mut Block) -> Result<bool, Refusal> {
        let Some(data) = self.reader.take(input)? else { return Ok(false) };
        let left = self.skip.unwrap_or(SKIP_BYTES);
        self.skip = Some(left.checked_sub(data.len()).ok_or(Refusal {
            status: 413,
            section: "RFC 9110 §15.5.14",
            reason: "nobody here wants a body of that size",
        })?);
        Ok(true)
    }
}
