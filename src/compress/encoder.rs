//! The encoders: gzip, Brotli and Zstandard behind one surface, and how many of them a loop has.
//!
//! A context is large (gzip about 260 KiB, Brotli above 1 MiB, Zstandard about 1 MiB): of each coding a loop has a bounded number, and
//! those that have served stay for the next. Where none is left, an answer leaves as it is. What nobody waits for is collected first, and
//! compressed in one go: answers of up to 64 KiB then have the same context one after the other, and find it in the processor's cache.

use std::cell::RefCell;
use std::hash::RandomState;
use std::io::{self, Write};
use std::rc::Rc;

use flate2::{Compress, Compression, FlushCompress};
use zstd::stream::raw::{CParameter, InBuffer, Operation, OutBuffer};

use crate::buffers::block::SMALL;
use crate::config::{Coding, Compressing};

/// How much the window of a stream may hold, as a power of two: half a mebibyte of Zstandard, a quarter of Brotli.
const ZSTD_WINDOW: u32 = 19;
const BROTLI_WINDOW: u32 = 18;
/// Room that is made for what comes out, in bytes.
const ROOM: usize = 16 * 1024;

/// How much of a stream is compressed in one turn at most, in bytes.
const TURN: usize = 64 * 1024;
/// What is collected at most of one that is longer than that, or as long as nobody knows: with one receive more it is a turn's.
const COLLECTED: usize = TURN - SMALL;

/// How many streams of each coding a loop compresses at once at most.
const fn most(coding: Coding) -> usize {
    match coding {
        Coding::Gzip => 64,
        Coding::Brotli | Coding::Zstd => 16,
    }
}

/// The contexts of a loop.
#[derive(Default)]
pub struct Contexts {
    all: Rc<RefCell<[Of; 3]>>,
    /// Makes numbers that nobody outside can tell beforehand.
    pub random: RandomState,
}

/// Those of one coding.
#[derive(Default)]
struct Of {
    used: usize,
    /// Those that are for the next, each with its level.
    idle: Vec<(u32, Context)>,
}

enum Context {
    Gzip(Compress),
    Zstd(zstd::stream::raw::Encoder<'static>),
    /// One that has been used cannot be used again.
    Brotli(Option<Box<brotli::CompressorWriter<Vec<u8>>>>),
}

/// What becomes of what was put in before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// It leaves when the coding finds it worth it.
    No,
    /// All of it leaves now.
    Now,
    /// It is the last.
    End,
}

/// A stream that is compressed.
pub struct Encoder {
    coding: Coding,
    level: u32,
    /// From the first byte that is compressed up to the last one.
    context: Option<Context>,
    /// What has not been compressed yet.
    collected: Vec<u8>,
    /// How much of it there may be, in bytes.
    most: usize,
    home: Rc<RefCell<[Of; 3]>>,
    /// Nothing was put in since the last flush.
    flushed: bool,
}

impl Contexts {
    /// An encoder for that coding, of a body that is so long, where that is known; `None`: as many as there may be are at work.
    pub fn encoder(&self, coding: Coding, settings: &Compressing, length: Option<u64>) -> Option<Encoder> {
        let of = &mut self.all.borrow_mut()[coding as usize];
        if of.used >= most(coding) {
            return None;
        }
        of.used += 1;
        let (level, home) = (settings.level(coding), self.all.clone());
        // One that a turn may take is collected up to its end, and has a context for no longer than it takes to compress it.
        let whole = length.filter(|length| *length <= TURN as u64).map(|length| length as usize);
        let (collected, most) = (Vec::with_capacity(whole.unwrap_or_default()), whole.unwrap_or(COLLECTED));
        Some(Encoder { coding, level, context: None, collected, most, home, flushed: true })
    }
}

impl Of {
    fn context(&mut self, coding: Coding, level: u32) -> io::Result<Context> {
        match self.idle.iter().rposition(|(other, _)| *other == level) {
            Some(at) => Ok(self.idle.remove(at).1),
            None => {
                // Routes may differ in their levels, and reloads may change them: the idle ones make room.
                self.idle.truncate(most(coding) - self.used);
                Context::new(coding, level)
            }
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.give_back();
        self.home.borrow_mut()[self.coding as usize].used -= 1;
    }
}

impl Encoder {
    /// The coding of what comes out.
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// Compresses bytes; what comes out is put behind what is in `out`. After the end nothing more may come.
    ///
    /// # Errors
    /// The library has failed, most likely for want of memory: the stream cannot go on.
    pub fn encode(&mut self, input: &[u8], flush: Flush, out: &mut Vec<u8>) -> io::Result<()> {
        let flush = if flush == Flush::Now && input.is_empty() && self.flushed { Flush::No } else { flush };
        self.flushed = flush != Flush::No || (self.flushed && input.is_empty());
        if flush == Flush::No && self.collected.len() + input.len() <= self.most {
            self.collected.extend_from_slice(input);
            return Ok(());
        }
        let collected = std::mem::take(&mut self.collected);
        let (first, last) = if input.is_empty() { (input, &collected[..]) } else { (&collected[..], input) };
        if !first.is_empty() {
            self.run(first, Flush::No, out)?;
        }
        if !last.is_empty() || flush != Flush::No {
            self.run(last, flush, out)?;
        }
        if flush == Flush::End {
            self.give_back();
        }
        Ok(())
    }

    fn run(&mut self, input: &[u8], flush: Flush, out: &mut Vec<u8>) -> io::Result<()> {
        let context = match &mut self.context {
            Some(context) => context,
            none => none.insert(self.home.borrow_mut()[self.coding as usize].context(self.coding, self.level)?),
        };
        match context {
            Context::Gzip(compress) => gzip(compress, input, flush, out),
            Context::Zstd(encoder) => zstd(encoder, input, flush, out),
            Context::Brotli(writer) => brotli(writer, input, flush, out),
        }
    }

    fn give_back(&mut self) {
        if let Some(context) = self.context.take().and_then(Context::renewed) {
            self.home.borrow_mut()[self.coding as usize].idle.push((self.level, context));
        }
    }
}

impl Context {
    fn new(coding: Coding, level: u32) -> io::Result<Context> {
        Ok(match coding {
            Coding::Gzip => Context::Gzip(Compress::new_gzip(Compression::new(level), 15)),
            Coding::Zstd => {
                let mut encoder = zstd::stream::raw::Encoder::new(level as i32)?;
                encoder.set_parameter(CParameter::WindowLog(ZSTD_WINDOW))?;
                Context::Zstd(encoder)
            }
            Coding::Brotli => {
                let writer = brotli::CompressorWriter::new(Vec::new(), 4096, level, BROTLI_WINDOW);
                Context::Brotli(Some(Box::new(writer)))
            }
        })
    }

    /// As new, where that costs less than a new one.
    fn renewed(self) -> Option<Context> {
        match self {
            Context::Gzip(mut compress) => {
                compress.reset();
                Some(Context::Gzip(compress))
            }
            Context::Zstd(mut encoder) => encoder.reinit().is_ok().then_some(Context::Zstd(encoder)),
            Context::Brotli(_) => None,
        }
    }
}

fn gzip(compress: &mut Compress, mut input: &[u8], flush: Flush, out: &mut Vec<u8>) -> io::Result<()> {
    let how = match flush {
        Flush::No => FlushCompress::None,
        Flush::Now => FlushCompress::Sync,
        Flush::End => FlushCompress::Finish,
    };
    loop {
        out.reserve(ROOM);
        let before = compress.total_in();
        let status = compress.compress_vec(input, out, how).map_err(io::Error::other)?;
        input = &input[(compress.total_in() - before) as usize..];
        let is_done = match flush {
            Flush::End => status == flate2::Status::StreamEnd,
            // What did not fit comes with the next call.
            Flush::No | Flush::Now => input.is_empty() && out.len() < out.capacity(),
        };
        if is_done {
            return Ok(());
        }
    }
}

fn zstd(
    encoder: &mut zstd::stream::raw::Encoder<'static>,
    input: &[u8],
    flush: Flush,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let mut input = InBuffer::around(input);
    while input.pos() < input.src.len() {
        with_room(out, |room| encoder.run(&mut input, room).map(|_| ()))?;
    }
    let mut left = usize::from(flush != Flush::No);
    while left > 0 {
        with_room(out, |room| {
            left = if flush == Flush::End { encoder.finish(room, true)? } else { encoder.flush(room)? };
            Ok(())
        })?;
    }
    Ok(())
}

/// Lets `fill` put more behind what is there.
fn with_room(out: &mut Vec<u8>, fill: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<()>) -> io::Result<()> {
    out.reserve(ROOM);
    let at = out.as_slice().len();
    fill(&mut OutBuffer::around_pos(out, at))
}

fn brotli(
    writer: &mut Option<Box<brotli::CompressorWriter<Vec<u8>>>>,
    input: &[u8],
    flush: Flush,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    if flush == Flush::End {
        let Some(mut writer) = writer.take() else { return Err(io::ErrorKind::Unsupported.into()) };
        writer.write_all(input)?;
        out.append(&mut writer.into_inner());
        return Ok(());
    }
    let Some(writer) = writer else { return Err(io::ErrorKind::Unsupported.into()) };
    writer.write_all(input)?;
    if flush == Flush::Now {
        writer.flush()?;
    }
    out.append(writer.get_mut());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn decoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).map(|_| ()),
            Coding::Zstd => zstd::stream::copy_decode(bytes, &mut plain),
            Coding::Brotli => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain).map(|_| ()),
        }
        .unwrap();
        plain
    }

    /// What has come out so far, of a stream that has not ended.
    fn so_far(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = vec![0; 1 << 20];
        let mut read: Box<dyn Read> = match coding {
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
            Coding::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
        };
        let mut filled = 0;
        while let Ok(count) = read.read(&mut plain[filled..]) {
            if count == 0 {
                break;
            }
            filled += count;
        }
        plain.truncate(filled);
        plain
    }

    /// Text that compresses, and bytes that do not.
    fn bytes(count: usize, random: bool) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..count).map(|at| if random { next() as u8 } else { b"the quick brown fox "[at % 20] }).collect()
    }

    #[test]
    fn what_goes_in_comes_out_whatever_its_pieces() {
        let contexts = Contexts::default();
        let settings = Compressing::default();
        for coding in Coding::ALL {
            for (count, random) in [(0, false), (1, false), (700, false), (200_000, false), (300_000, true)] {
                let plain = bytes(count, random);
                for piece in [1_000_000, 65_536, 4093, 911] {
                    for flush in [Flush::No, Flush::Now] {
                        let mut encoder = contexts.encoder(coding, &settings, None).unwrap();
                        let mut out = Vec::new();
                        for piece in plain.chunks(piece) {
                            encoder.encode(piece, flush, &mut out).unwrap();
                        }
                        encoder.encode(b"", Flush::End, &mut out).unwrap();
                        assert!(decoded(coding, &out) == plain, "{coding:?} {count} {random} {piece} {flush:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_flush_lets_everything_out_and_a_second_one_adds_nothing() {
        let contexts = Contexts::default();
        for coding in Coding::ALL {
            let mut encoder = contexts.encoder(coding, &Compressing::default(), None).unwrap();
            let (mut out, mut plain) = (Vec::new(), Vec::new());
            for number in 0..50 {
                let event = format!("data: {number}\n\n");
                plain.extend_from_slice(event.as_bytes());
                encoder.encode(event.as_bytes(), Flush::Now, &mut out).unwrap();
                assert_eq!(so_far(coding, &out), plain, "{coding:?}");
                let length = out.len();
                encoder.encode(b"", Flush::Now, &mut out).unwrap();
                assert_eq!(out.len(), length, "{coding:?}");
            }
        }
    }

    #[test]
    fn no_loop_has_more_contexts_than_it_may_and_each_comes_back() {
        let contexts = Contexts::default();
        for coding in Coding::ALL {
            for _ in 0..2 {
                let encoders: Vec<Encoder> =
                    std::iter::from_fn(|| contexts.encoder(coding, &Compressing::default(), None)).collect();
                assert_eq!(encoders.len(), most(coding));
            }
            // One that was left in the middle of its work is as good as new.
            let mut cut = contexts.encoder(coding, &Compressing::default(), None).unwrap();
            cut.encode(&bytes(100_000, true), Flush::No, &mut Vec::new()).unwrap();
            drop(cut);
            let mut out = Vec::new();
            let mut encoder = contexts.encoder(coding, &Compressing::default(), None).unwrap();
            encoder.encode(b"hello", Flush::End, &mut out).unwrap();
            assert_eq!(decoded(coding, &out), b"hello");
        }
    }

    #[test]
    fn contexts_of_two_levels_lie_side_by_side_and_are_together_no_more_than_they_may_be() {
        let contexts = Contexts::default();
        let levels = [1, 2].map(|level| {
            let mut settings = Compressing::default();
            settings.set_level(&format!("gzip={level}")).unwrap();
            settings
        });
        let idle = || contexts.all.borrow()[Coding::Gzip as usize].idle.len();
        let begun = |settings: &Compressing| {
            let mut encoder = contexts.encoder(Coding::Gzip, settings, None)?;
            encoder.encode(b"a", Flush::Now, &mut Vec::new()).unwrap();
            Some(encoder)
        };
        for _ in 0..3 {
            for settings in &levels {
                assert_eq!(begun(settings).unwrap().level, settings.level(Coding::Gzip));
            }
            assert_eq!(idle(), 2);
        }
        for settings in &levels {
            let all: Vec<Encoder> = std::iter::from_fn(|| begun(settings)).collect();
            assert_eq!((all.len(), idle()), (most(Coding::Gzip), 0));
            drop(all);
            assert_eq!(idle(), most(Coding::Gzip));
        }
    }

    #[test]
    fn what_nobody_waits_for_is_collected_and_takes_no_context_before() {
        let contexts = Contexts::default();
        let settings = Compressing::default();
        let idle = || contexts.all.borrow()[Coding::Gzip as usize].idle.len();
        let mut encoders: Vec<Encoder> =
            (0..8).map(|_| contexts.encoder(Coding::Gzip, &settings, None).unwrap()).collect();
        const PIECE: usize = SMALL;
        let (piece, mut outs) = (bytes(PIECE, false), vec![Vec::new(); 8]);
        for _ in 0..2 {
            for (encoder, out) in encoders.iter_mut().zip(&mut outs) {
                encoder.encode(&piece, Flush::No, out).unwrap();
                assert!(out.is_empty() && encoder.context.is_none());
            }
        }
        for (encoder, out) in encoders.iter_mut().zip(&mut outs) {
            encoder.encode(b"", Flush::End, out).unwrap();
            assert_eq!(decoded(Coding::Gzip, out), piece.repeat(2));
        }
        assert_eq!(idle(), 1, "each has had the same one");
        drop(encoders);
        let mut long = contexts.encoder(Coding::Gzip, &settings, None).unwrap();
        for _ in 0..10 {
            long.encode(&piece, Flush::No, &mut outs[0]).unwrap();
            assert!(long.collected.len() + PIECE <= TURN);
        }
        assert!(long.context.is_some());
    }

    #[test]
    fn one_whose_length_a_turn_may_take_has_a_context_only_at_its_end() {
        let contexts = Contexts::default();
        let settings = Compressing::default();
        let begun = |length: usize| {
            let mut encoder = contexts.encoder(Coding::Gzip, &settings, Some(length as u64)).unwrap();
            let (plain, mut out) = (bytes(length, false), Vec::new());
            plain.chunks(SMALL).for_each(|piece| encoder.encode(piece, Flush::No, &mut out).unwrap());
            let has_begun = encoder.context.is_some();
            encoder.encode(b"", Flush::End, &mut out).unwrap();
            assert!(decoded(Coding::Gzip, &out) == plain);
            has_begun
        };
        assert!(!begun(TURN));
        assert!(begun(TURN + 1));
    }
}
