//! What a worker writes to stdout and stderr: always drained, cut into lines, the last ones kept for reports.
//!
//! Owns the reading ends of one worker's pipes. A read never blocks and takes a bounded amount at a time, so that one
//! chatty worker does not keep the supervisor from the others. Lines go to the log at once; the log drops and counts
//! what it cannot take, so that a pipe is never left full and a worker never blocks on its own output.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Bytes of one line that are kept; the rest of a longer line is dropped.
pub const LINE_LIMIT: usize = 8 * 1024;
/// Lines of stderr kept for reports about a worker's end.
const LAST_LINES: usize = 10;
/// Bytes of each line kept for reports.
const LAST_LINE_LIMIT: usize = 300;
/// Bytes read from one pipe in one turn at most: the size of a pipe's buffer on Linux.
const TURN_LIMIT: usize = 64 * 1024;
/// Put behind a line that was cut.
const CUT: &[u8] = b" [cut]";

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Debug, Default)]
pub struct LineSplitter {
    line: Vec<u8>,
    /// The line was too long: everything up to its end is dropped.
    skipping: bool,
}

impl LineSplitter {
    /// Takes bytes in and calls `each` for every line that they complete, without its line end (LF or CRLF).
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let piece = &bytes[..end];
            bytes = &bytes[end + 1..];
            if self.skipping {
                self.skipping = false;
            } else if self.line.is_empty() && piece.len() <= LINE_LIMIT {
                each(without_return(piece));
            } else {
                self.keep(piece, &mut each);
                if !std::mem::take(&mut self.skipping) {
                    each(without_return(&self.line));
                    self.line.clear();
                }
            }
        }
        if !self.skipping {
            self.keep(bytes, &mut each);
        }
    }

    /// The stream is over: what came since the last line end is a line, too.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            each(without_return(&self.line));
        }
        *self = LineSplitter::default();
    }

    /// Adds to the line; one that gets too long is handed out cut, and skipped to its end.
    fn keep(&mut self, piece: &[u8], each: &mut impl FnMut(&[u8])) {
        let room = LINE_LIMIT - self.line.len();
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() > room {
            self.line.extend_from_slice(CUT);
            each(&self.line);
            self.line.clear();
            self.skipping = true;
        }
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The last lines of a stream, for reports.
#[derive(Debug, Default)]
pub struct LastLines(VecDeque<String>);

impl LastLines {
    /// Keeps a line and forgets the oldest beyond the limit. Blank lines say nothing and are not kept.
    pub fn push(&mut self, line: &[u8]) {
        if line.trim_ascii().is_empty() {
            return;
        }
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(String::from_utf8_lossy(&line[..line.len().min(LAST_LINE_LIMIT)]).into_owned());
    }

    /// The lines, oldest first, joined for a message; empty if there were none.
    pub fn joined(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }
}

/// One pipe from a worker.
#[derive(Debug)]
pub struct Capture {
    /// `None` once the other end was closed.
    pipe: Option<std::fs::File>,
    lines: LineSplitter,
}

impl Capture {
    /// Takes the reading end over and makes it non-blocking.
    ///
    /// # Errors
    /// When fcntl(2) fails.
    pub fn new(pipe: OwnedFd) -> io::Result<Capture> {
        set_nonblocking(pipe.as_fd())?;
        Ok(Capture { pipe: Some(pipe.into()), lines: LineSplitter::default() })
    }

    /// The descriptor to be polled for reading, while it is open.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.pipe.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads what is there, up to one turn's share, and calls `each` for every line. True: there may be more now.
    pub fn read(&mut self, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> bool {
        let mut taken = 0;
        while taken < TURN_LIMIT {
            let Some(pipe) = &mut self.pipe else { return false };
            match pipe.read(buffer) {
                Ok(count) if count > 0 => {
                    taken += count;
                    self.lines.push(&buffer[..count], &mut each);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Ok(_) | Err(_) => {
                    self.pipe = None;
                    self.lines.finish(&mut each);
                }
            }
        }
        true
    }

    /// The worker is gone: takes what is left in the pipe and closes it, whoever else may hold its other end.
    pub fn finish(&mut self, buffer: &mut [u8], mut each: impl FnMut(&[u8])) {
        // A pipe holds at most 1 MiB (fs.pipe-max-size), so this many turns empty it even if somebody still writes.
        for _ in 0..16 {
            if !self.read(buffer, &mut each) {
                break;
            }
        }
        if self.pipe.take().is_some() {
            self.lines.finish(each);
        }
    }
}

/// What one worker writes: both pipes, and the last lines of its stderr.
#[derive(Debug)]
pub struct Output {
    /// Its stdout.
    pub stdout: Capture,
    /// Its stderr.
    pub stderr: Capture,
    /// The last lines of its stderr.
    pub last_lines: LastLines,
}

impl Output {
    /// Nothing was read yet.
    pub fn new(stdout: Capture, stderr: Capture) -> Output {
        Output { stdout, stderr, last_lines: LastLines::default() }
    }

    /// The descriptors to be polled for reading, while they are open.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        [&self.stdout, &self.stderr].into_iter().filter_map(Capture::descriptor)
    }
}

/// Makes a descriptor non-blocking.
///
/// # Errors
/// When fcntl(2) fails.
pub fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl with these commands takes and returns plain numbers; the descriptor is borrowed and thus open.
    let done = unsafe {
        let flags = libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece, |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        }
        splitter.finish(|line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn lines_end_at_lf_or_crlf_or_the_streams_end() {
        assert_eq!(split(&[b"one\ntw", b"o\r", b"\n\nlast"]), ["one", "two", "", "last"]);
        assert_eq!(split(&[b"", b"whole\n"]), ["whole"]);
    }

    #[test]
    fn a_long_line_is_cut_once_and_the_next_one_is_whole() {
        let long = vec![b'x'; LINE_LIMIT + 1];
        let cut = format!("{}{}", "x".repeat(LINE_LIMIT), " [cut]");
        assert_eq!(split(&[&long, &long, b"\nnext\n"]), [cut.as_str(), "next"]);
        assert_eq!(split(&[b"x", &long, b"\n", b"next"]), [cut.as_str(), "next"]);
        assert_eq!(split(&[&[&long[..], b"\nnext\n"].concat()]), [cut.as_str(), "next"]);
        let exact = vec![b'x'; LINE_LIMIT];
        assert_eq!(split(&[&exact, b"\nnext"]), ["x".repeat(LINE_LIMIT).as_str(), "next"]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a')], 0..300),
            cuts in prop::collection::vec(0usize..300, 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(&pieces), split(&[&bytes]));
        }
    }

    #[test]
    fn a_pipe_is_drained_without_blocking_and_its_end_is_seen() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut capture = Capture::new(reader.into()).unwrap();
        let mut buffer = [0; 64];
        let mut lines = Vec::new();
        assert!(!capture.read(&mut buffer, |line| lines.push(line.to_vec())), "nothing there, no wait");
        writer.write_all(b"first\nsec").unwrap();
        assert!(!capture.read(&mut buffer, |line| lines.push(line.to_vec())));
        assert_eq!(lines, [b"first".to_vec()]);
        capture.finish(&mut buffer, |line| lines.push(line.to_vec()));
        assert_eq!(lines, [b"first".to_vec(), b"sec".to_vec()], "also while the writer is still open");
        assert_eq!(capture.descriptor(), None);
    }

    #[test]
    fn the_last_lines_are_kept() {
        let mut last = LastLines::default();
        for number in 0..30 {
            last.push(format!("line {number}").as_bytes());
            last.push(b"  ");
        }
        assert!(last.joined().starts_with("line 20 | line 21") && last.joined().ends_with("line 29"));
    }
}
