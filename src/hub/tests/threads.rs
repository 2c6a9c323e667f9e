//! Publishers and readers on threads of their own: nothing is lost, doubled or out of order, and no loop that has something to read is left untold.

use std::sync::{Condvar, atomic::AtomicUsize};
use std::thread;

use super::*;

const PUBLISHERS: usize = 4;
const LOOPS: u16 = 4;
const EACH: u64 = 1500;
const TOPICS: [&str; 2] = ["a", "b"];
/// Whoever waits as long as this waits for ever.
const FOR_EVER: Duration = Duration::from_secs(60);

/// What a loop is told.
#[derive(Default)]
struct Mail(Mutex<Vec<Arc<str>>>, Condvar);

impl Mail {
    fn post(&self, topic: &str) {
        lock(&self.0).push(topic.into());
        self.1.notify_one();
    }

    fn wait(&self) -> Vec<Arc<str>> {
        let letters = self.1.wait_timeout_while(lock(&self.0), FOR_EVER, |letters| letters.is_empty());
        let (mut letters, timeout) = letters.unwrap();
        assert!(!timeout.timed_out(), "a loop was not told");
        std::mem::take(&mut *letters)
    }
}

/// A loop with three subscribers of each topic, the third of which leaves and comes back all the time. Reads until each of the others is at the end.
fn read(hub: &Hub, mail: &Mail, index: u16, begun: &AtomicUsize) -> u64 {
    let subscribe = |topic: &str, from: From| hub.subscribe(Duration::ZERO, topic, index, from).unwrap();
    let mut cursors: Vec<Vec<Subscribed>> =
        TOPICS.map(|topic| (0..3).map(|_| subscribe(topic, From::Now)).collect()).into_iter().collect();
    begun.fetch_add(1, Ordering::SeqCst);
    let last = PUBLISHERS as u64 * EACH;
    let mut missed = 0;
    while cursors.iter().flatten().any(|cursor| cursor.at.offset < last) {
        for topic in mail.wait() {
            let group = cursors.iter_mut().find(|group| group[0].topic.name() == &*topic).unwrap();
            group[0].topic.heard(index);
            for cursor in &mut *group {
                let mut messages = Vec::new();
                loop {
                    let read = cursor.topic.read(cursor.at, 500, &mut messages);
                    let first = messages.first().map_or(read.at.offset, |message| message.position().offset - 1);
                    assert_eq!(read.gap.map_or(cursor.at.offset, |gap| gap.to.offset), first);
                    missed += read.gap.map_or(0, |gap| gap.to.offset - gap.from.offset);
                    for (expected, message) in (first + 1..).zip(messages.drain(..)) {
                        assert_eq!(message.position().offset, expected);
                        assert!(
                            bytes(&message.event_chunk()).contains(std::str::from_utf8(message.payload()).unwrap())
                        );
                    }
                    cursor.at = read.at;
                    if !read.more {
                        break;
                    }
                }
            }
            let at = group[2].at;
            hub.unsubscribe(&group[2].topic, index);
            group[2] = subscribe(&topic, From::After(at));
            missed += group[2].gap.map_or(0, |gap| gap.to.offset - gap.from.offset);
        }
    }
    missed
}

fn run(count: usize) -> u64 {
    let hub = hub(|settings| {
        settings.history.count = count;
        settings.history.bytes = 64 << 20;
    });
    let hub = Hub::new((*hub.settings()).clone(), EPOCH, usize::from(LOOPS));
    let mails: Vec<Mail> = (0..LOOPS).map(|_| Mail::default()).collect();
    let begun = AtomicUsize::new(0);
    let missed = thread::scope(|scope| {
        let (hub, mails, begun) = (&hub, &mails, &begun);
        let readers: Vec<_> =
            (0..LOOPS).map(|index| scope.spawn(move || read(hub, &mails[usize::from(index)], index, begun))).collect();
        while begun.load(Ordering::SeqCst) < usize::from(LOOPS) {
            thread::yield_now();
        }
        for publisher in 0..PUBLISHERS {
            scope.spawn(move || {
                for number in 0..EACH {
                    for topic in TOPICS {
                        let text = format!("{publisher} {number}");
                        let id = format!("{publisher} {number}");
                        let published = hub.publish(Duration::ZERO, topic, Payload::Text(&text), Some(&id)).unwrap();
                        published.tell.iter().for_each(|index| mails[usize::from(index)].post(topic));
                        assert!(hub.publish(Duration::ZERO, topic, Payload::Text(&text), Some(&id)).unwrap().duplicate);
                    }
                }
                hub.sweep(Duration::ZERO);
            });
        }
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    for topic in TOPICS {
        let mut messages = Vec::new();
        let topic = hub.subscribe(Duration::ZERO, topic, 0, From::Now).unwrap().topic;
        topic.read(at(0), usize::MAX, &mut messages);
        if messages.len() == PUBLISHERS * EACH as usize {
            check_order(&messages);
        }
        let weight = |message: &Arc<Message>| {
            message.cost() + message.forms().iter().map(|form| shared_bytes(form.len())).sum::<usize>()
        };
        assert_eq!(topic.bytes(), messages.iter().map(weight).sum::<usize>());
    }
    missed
}

/// Each publisher's messages are there once, in the order in which it has published them.
fn check_order(messages: &[Arc<Message>]) {
    let mut next = [0; PUBLISHERS];
    for message in messages {
        let text = std::str::from_utf8(message.payload()).unwrap();
        let (publisher, number) = text.split_once(' ').unwrap();
        let expected = &mut next[publisher.parse::<usize>().unwrap()];
        assert_eq!(number.parse(), Ok(*expected));
        *expected += 1;
    }
    assert_eq!(next, [EACH; PUBLISHERS]);
}

#[test]
fn between_threads_nothing_is_lost_or_doubled_and_every_loop_is_told() {
    assert_eq!(run(PUBLISHERS * EACH as usize), 0, "all of it is there, so that nobody may have missed any");
}

#[test]
fn between_threads_who_is_too_slow_is_told_exactly_what_it_has_missed() {
    run(4);
}

#[test]
fn whoever_has_found_a_topic_that_is_forgotten_then_looks_again() {
    let hub = hub(|_| ());
    let first = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    hub.unsubscribe(&first, 0);
    let mut ring = first.ring();
    let second = thread::scope(|scope| {
        let subscriber = scope.spawn(|| hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic);
        // The table has it, we do, and so does the subscriber, which waits for the lock that we hold.
        while Arc::strong_count(&first) < 3 {
            thread::yield_now();
        }
        ring.forgotten = true;
        hub.table_to_change().topics.remove("a");
        drop(ring);
        subscriber.join().unwrap()
    });
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(say(&hub, 0, "a", "x").unwrap().subscribers, 1);
}
