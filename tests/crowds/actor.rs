//! A thread with an event loop of its own, which the test's thread asks and tells.

use std::io::ErrorKind;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Registry, Token, Waker};

/// The token of the bell; whoever runs in the thread uses the others.
const BELL: Token = Token(usize::MAX);

/// What runs in the thread.
pub trait Turns: Send + 'static {
    fn event(&mut self, event: &Event);

    /// Behind the events of each turn; how long the next one may wait for some.
    fn rest(&mut self) -> Duration;
}

type Question<T> = Box<dyn FnOnce(&mut T) + Send>;

/// Ends with its handle.
pub struct Actor<T> {
    questions: Option<Sender<Question<T>>>,
    bell: Waker,
    thread: Option<JoinHandle<()>>,
}

impl<T: Turns> Actor<T> {
    pub fn start(make: impl FnOnce(Registry) -> T) -> Actor<T> {
        let poll = Poll::new().unwrap();
        let bell = Waker::new(poll.registry(), BELL).unwrap();
        let actor = make(poll.registry().try_clone().unwrap());
        let (questions, asked) = mpsc::channel();
        let thread = std::thread::spawn(move || run(actor, poll, &asked));
        Actor { questions: Some(questions), bell, thread: Some(thread) }
    }

    /// Calls that in the thread.
    pub fn ask<R: Send + 'static>(&self, question: impl FnOnce(&mut T) -> R + Send + 'static) -> R {
        let (reply, answer) = mpsc::channel();
        let question = Box::new(move |actor: &mut T| {
            // Whoever asked waits below.
            let _ = reply.send(question(actor));
        });
        self.questions.as_ref().unwrap().send(question).expect("the thread lives");
        self.bell.wake().unwrap();
        answer.recv().expect("the thread lives")
    }
}

fn run<T: Turns>(mut actor: T, mut poll: Poll, asked: &Receiver<Question<T>>) {
    let mut events = Events::with_capacity(1024);
    loop {
        let wait = actor.rest();
        match poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
        for event in &events {
            if event.token() != BELL {
                actor.event(event);
            }
        }
        loop {
            match asked.try_recv() {
                Ok(question) => question(&mut actor),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }
}

impl<T> Drop for Actor<T> {
    fn drop(&mut self) {
        drop(self.questions.take());
        // A thread that has panicked has said so; then nobody hears the bell.
        let _ = self.bell.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
