//! Tasks: what a request of a crowd asks of the worker that gets it, in a field that the server passes on.

use std::time::Duration;

use super::wire::Head;

/// Bytes at a time, and how long after some the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// So many at a time, at most.
    pub bytes: usize,
    /// The time between two pieces.
    pub every: Duration,
}

impl Pace {
    /// As fast as it goes.
    pub const FULL: Pace = Pace { bytes: usize::MAX, every: Duration::ZERO };

    /// So many bytes in so many milliseconds.
    pub fn new(bytes: usize, milliseconds: usize) -> Pace {
        Pace { bytes, every: Duration::from_millis(milliseconds as u64) }
    }
}

/// What a worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Bytes of the answer's body.
    pub length: usize,
    /// The answer is an event stream.
    pub stream: bool,
    /// It is given before the request's body was read.
    pub early: bool,
    /// How the answer is written.
    pub writes: Pace,
    /// How the request's body, or what comes through a tunnel, is read.
    pub reads: Pace,
}

impl Task {
    /// An answer of that length, at once.
    pub fn answer(length: usize) -> Task {
        Task { length, stream: false, early: false, writes: Pace::FULL, reads: Pace::FULL }
    }

    /// The field that says it.
    pub fn field(&self) -> String {
        let [writes, reads] =
            [self.writes, self.reads].map(|pace| format!("{} {}", pace.bytes, pace.every.as_millis()));
        let (length, stream, early) = (self.length, u8::from(self.stream), u8::from(self.early));
        format!("X-Task: {length} {stream} {early} {writes} {reads}\r\n")
    }

    /// The one that a request's head asks for.
    pub fn of(head: &Head) -> Option<Task> {
        let numbers: Vec<usize> =
            head.field("x-task")?.split(' ').map(|word| word.parse().expect("a task is numbers")).collect();
        let [length, stream, early, written, writes, read, reads] = numbers[..] else { panic!("not a task: {head:?}") };
        let (stream, early) = (stream == 1, early == 1);
        Some(Task { length, stream, early, writes: Pace::new(written, writes), reads: Pace::new(read, reads) })
    }
}

#[test]
fn a_task_is_read_as_it_was_written() {
    let task = Task { stream: true, writes: Pace::new(300, 20), reads: Pace::FULL, ..Task::answer(7000) };
    let mut bytes = format!("GET / HTTP/1.1\r\n{}\r\n", task.field()).into_bytes();
    assert_eq!(Task::of(&Head::take(&mut bytes).unwrap().unwrap()), Some(task));
}
