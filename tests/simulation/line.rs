//! A client's ends of connections, with TLS or without: to whoever writes and reads here there is no difference.
//!
//! Records are as long as chance has them, down to a byte each, and the network cuts them where it likes. What it does not take is kept
//! and sent as soon as it does. An end that the server has not announced is no end but a cut.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::rc::Rc;

use production_server::backends::simulated::{End, Place, World};
use production_server::tls::stand_in::{DATA, END, HEADER_BYTES, HELLO, record};

/// The world as clients have it.
#[derive(Clone)]
pub struct Line {
    world: World,
    /// Those that speak TLS, by their ends; `None` where nobody does.
    secured: Option<Rc<RefCell<BTreeMap<End, Secured>>>>,
}

#[derive(Default)]
struct Secured {
    /// Records that the network has not taken, and how much of what is to be written is in them.
    out: Vec<u8>,
    sealed: usize,
    /// It has said that this was all, and nothing is sent behind that.
    finished: bool,
    shut: bool,
    /// What has come of a record.
    input: Vec<u8>,
    /// What was inside, as far as nobody has read it.
    plain: Vec<u8>,
    /// The server has said that this was all.
    announced: bool,
    over: Option<ErrorKind>,
}

impl Deref for Line {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Line {
    pub fn new(world: &World, secure: bool) -> Line {
        Line { world: world.clone(), secured: secure.then(Rc::default) }
    }

    /// Runs that on what there is of an end that speaks TLS.
    fn with<T>(&self, end: End, act: impl FnOnce(&World, &mut Secured) -> T) -> Option<T> {
        let mut secured = self.secured.as_ref()?.borrow_mut();
        secured.get_mut(&end).map(|secured| act(&self.world, secured))
    }

    pub fn connect(&self, place: &Place) -> io::Result<End> {
        let end = self.world.connect(place)?;
        if let Some(secured) = &self.secured {
            let begun = Secured { out: record(HELLO, b""), ..Secured::default() };
            secured.borrow_mut().insert(end, begun);
        }
        Ok(end)
    }

    /// Sends a part of `bytes` as a record: it is written when the network has taken all of it, and until then the same is to be written.
    pub fn write(&self, end: End, bytes: &[u8]) -> io::Result<usize> {
        let written = self.with(end, |world, secured| {
            flush(world, end, secured)?;
            if secured.out.is_empty() && secured.sealed == 0 {
                secured.sealed = [1, world.between(1, 40), 16 * 1024][world.below(3)].min(bytes.len());
                secured.out = record(DATA, &bytes[..secured.sealed]);
                flush(world, end, secured)?;
            }
            if secured.out.is_empty() {
                Ok(std::mem::take(&mut secured.sealed))
            } else {
                Err(ErrorKind::WouldBlock.into())
            }
        });
        written.unwrap_or_else(|| self.world.write(end, bytes))
    }

    pub fn read(&self, end: End, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        let read = self.with(end, |world, secured| {
            // Whether it can still be written to is seen by who writes.
            let _ = flush(world, end, secured);
            while secured.plain.is_empty() && secured.over.is_none() {
                match world.read(end, &mut secured.input, most.max(HEADER_BYTES)) {
                    Ok(0) if secured.announced && secured.input.is_empty() => secured.over = Some(ErrorKind::Other),
                    Ok(0) => secured.over = Some(ErrorKind::UnexpectedEof),
                    Ok(_) => take_records(secured),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                    Err(error) => secured.over = Some(error.kind()),
                }
            }
            let count = secured.plain.len().min(most);
            into.extend(secured.plain.drain(..count));
            world.touch();
            match secured.over {
                Some(kind) if count == 0 && kind != ErrorKind::Other => Err(kind.into()),
                _ => Ok(count),
            }
        });
        read.unwrap_or_else(|| self.world.read(end, into, most))
    }

    pub fn is_readable(&self, end: End) -> bool {
        let has_more = self.with(end, |world, secured| {
            let _ = flush(world, end, secured);
            !secured.plain.is_empty() || secured.over.is_some()
        });
        has_more == Some(true) || self.world.is_readable(end)
    }

    pub fn finish(&self, end: End) {
        let finishes = self.with(end, |world, secured| {
            if !std::mem::replace(&mut secured.finished, true) {
                secured.out.extend(record(END, b""));
            }
            let _ = flush(world, end, secured);
        });
        if finishes.is_none() {
            self.world.finish(end);
        }
    }

    pub fn close(&self, end: End) {
        self.forget(end);
        self.world.close(end);
    }

    pub fn reset(&self, end: End) {
        self.forget(end);
        self.world.reset(end);
    }

    fn forget(&self, end: End) {
        if let Some(secured) = &self.secured {
            secured.borrow_mut().remove(&end);
        }
    }

    /// Sends on what the network has not taken.
    pub fn flush(&self) {
        let Some(secured) = &self.secured else { return };
        for (end, secured) in secured.borrow_mut().iter_mut() {
            let _ = flush(&self.world, *end, secured);
        }
    }
}

fn flush(world: &World, end: End, secured: &mut Secured) -> io::Result<()> {
    while !secured.out.is_empty() {
        match world.write(end, &secured.out) {
            Ok(count) => drop(secured.out.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                secured.out.clear();
                return Err(error);
            }
        }
    }
    if secured.finished && !std::mem::replace(&mut secured.shut, true) {
        world.finish(end);
    }
    Ok(())
}

fn take_records(secured: &mut Secured) {
    while let Some(([kind, high, low], rest)) = secured.input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(payload) = rest.get(..length) else { break };
        assert!(!secured.announced, "a record behind the end");
        match *kind {
            DATA => secured.plain.extend_from_slice(payload),
            END => secured.announced = true,
            HELLO => {}
            other => panic!("a record of the type {other}"),
        }
        secured.input.drain(..HEADER_BYTES + length);
    }
}
