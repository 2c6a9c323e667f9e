//! Replicas in a world without a kernel: links that hold so many bytes, a lock, and a record; by seed some are killed, stand still, come back.

pub mod readers;
pub mod seeds;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::readers::{Reader, Truth};
use self::seeds::Dice;
use super::replica::{Io, Record, Replica};
use crate::hub::{Epoch, From, Hub, Kind, LoopSet, Notice, Payload, Position, Refused, Settings, Topic};

const TOPICS: [&str; 2] = ["a", "b"];
/// Bytes that a link holds in each direction.
const ROOM: usize = 1500;

/// One direction of a link.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// Nothing more is written to it.
    ended: bool,
    /// Nobody reads it.
    unread: bool,
}

/// Links by their numbers: of a link with the ends 2n and 2n+1, what an end reads is the pipe of its number.
#[derive(Default)]
struct Net {
    pipes: Vec<Pipe>,
    record: Record,
    told: usize,
}

impl Io for Net {
    fn write(&mut self, link: usize, bytes: &[u8]) -> usize {
        let pipe = &mut self.pipes[link ^ 1];
        if pipe.ended || pipe.unread {
            return 0;
        }
        let taken = bytes.len().min(ROOM - pipe.bytes.len());
        pipe.bytes.extend(&bytes[..taken]);
        taken
    }

    fn cut(&mut self, link: usize) {
        self.pipes[link ^ 1].ended = true;
        self.pipes[link].unread = true;
    }

    fn record(&mut self, record: &Record) {
        self.record = record.clone();
    }

    fn tell(&mut self, topic: &Arc<Topic>, _: LoopSet) {
        self.told += 1;
        topic.heard(0);
    }
}

struct Node {
    replica: Replica,
    hub: Arc<Hub>,
    readers: Vec<Reader>,
    links: Vec<usize>,
    stands_still: bool,
}

type Answers = Arc<Mutex<Vec<(usize, String, Result<Position, Refused>)>>>;

struct World {
    now: Duration,
    net: Net,
    nodes: Vec<Option<Node>>,
    leader: Option<usize>,
    dice: Dice,
    published: usize,
    answers: Answers,
    /// What stands where.
    truth: Truth,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            now: Duration::from_secs(1),
            net: Net::default(),
            nodes: Vec::new(),
            leader: None,
            dice: Dice::new(seed),
            published: 0,
            answers: Answers::default(),
            truth: Truth::new(),
        }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.dice.draw(below)
    }

    fn join(&mut self) -> usize {
        let number = self.nodes.len();
        let mut settings = Settings::new("chat");
        settings.history.count = 40;
        let hub = Arc::new(Hub::new(settings, Epoch(1000 * (number as u64 + 1)), 1));
        let replica = Replica::new(self.now, hub.clone(), number as u64 + 1, &number.to_string());
        self.nodes.push(Some(Node { replica, hub, readers: Vec::new(), links: Vec::new(), stands_still: false }));
        number
    }

    fn listen(&mut self, number: usize) {
        let Some(node) = &mut self.nodes[number] else { return };
        for name in TOPICS {
            let subscribed = node.hub.subscribe(self.now, name, 0, From::Now).unwrap();
            node.readers.push(Reader::new(subscribed.topic, name, subscribed.at));
        }
    }

    fn publish(&mut self, number: usize, id: Option<&str>) {
        self.published += 1;
        let (topic, length) = (TOPICS[self.draw(2)], self.draw(100));
        let text = format!("{} {} {}", self.published, id.unwrap_or_default(), "x".repeat(length));
        let Some(node) = &mut self.nodes[number] else { return };
        let (answers, said) = (self.answers.clone(), text.clone());
        let answer = move |outcome: Result<crate::hub::Published, Refused>| {
            answers.lock().unwrap().push((number, said, outcome.map(|published| published.position)));
        };
        match node.hub.publish(self.now, topic, Payload::Text(&text), id) {
            Err(Refused::Carried) => {
                let (topic, payload, id) = (topic.into(), text.into_bytes().into(), id.map(Box::from));
                let answer = Box::new(answer);
                let notice = Notice { topic, kind: Kind::Text, payload, id, except: Box::default(), answer };
                node.replica.carry(self.now, notice, &mut self.net);
            }
            outcome => answer(outcome),
        }
    }

    /// One of a replica's links ends at both ends, though both live: what was given to the kernel is read before that.
    fn sever(&mut self, number: usize) {
        let links = self.nodes[number].as_ref().map_or_else(Vec::new, |node| node.links.clone());
        if !links.is_empty() {
            let link = links[self.draw(links.len())];
            self.net.pipes[link].ended = true;
            self.net.pipes[link ^ 1].ended = true;
        }
    }

    fn kill(&mut self, number: usize) {
        let Some(node) = self.nodes[number].take() else { return };
        for link in node.links {
            self.net.cut(link);
        }
        if self.leader == Some(number) {
            self.leader = None;
        }
    }

    fn step(&mut self, number: usize) {
        let most = 1 + self.draw(400);
        let leader = self.leader;
        let leads = leader.is_some_and(|leader| self.nodes[leader].is_some());
        let Some(node) = &mut self.nodes[number] else { return };
        if node.stands_still {
            return;
        }
        for link in node.links.clone() {
            let pipe = &mut self.net.pipes[link];
            let bytes: Vec<u8> = pipe.bytes.drain(..pipe.bytes.len().min(most)).collect();
            let is_over = bytes.is_empty() && pipe.ended;
            if !bytes.is_empty() {
                node.replica.received(self.now, link, &bytes, &mut self.net);
            }
            if is_over {
                node.links.retain(|other| *other != link);
                self.net.cut(link);
                node.replica.closed(self.now, link, &mut self.net);
            } else {
                node.replica.drained(self.now, link, &mut self.net);
            }
        }
        if node.replica.seeks() {
            let record = self.net.record.clone();
            if !leads && node.replica.may_lead(self.now, &record) {
                node.replica.lead(self.now, &record, &mut self.net);
                self.leader = Some(number);
            } else if let Some(leader) = leader.filter(|leader| *leader != number && leads) {
                let link = self.net.pipes.len();
                self.net.pipes.extend([Pipe::default(), Pipe::default()]);
                node.links.push(link);
                node.replica.follow(link, &mut self.net);
                if let Some(leader) = &mut self.nodes[leader] {
                    leader.links.push(link + 1);
                    assert!(leader.replica.accept(link + 1));
                }
            }
        }
        if let Some(node) = &mut self.nodes[number] {
            node.replica.tick(self.now, &mut self.net);
        }
        self.read(number);
    }

    /// Readers read, and what they get is judged.
    fn read(&mut self, number: usize) {
        let Some(node) = &mut self.nodes[number] else { return };
        for reader in &mut node.readers {
            reader.read(&mut self.truth, |_| true);
        }
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| self.nodes[*number].is_some()).collect()
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.now += Duration::from_millis(5);
            for number in self.alive() {
                self.step(number);
            }
        }
    }

    /// Until all take part.
    fn settle(&mut self) {
        for node in self.nodes.iter_mut().flatten() {
            node.stands_still = false;
        }
        for _ in 0..2000 {
            self.run(1);
            let is_settled =
                |node: &Node| node.replica.is_settled() && node.replica.waiting() == 0 && node.replica.left() == 0;
            if self.nodes.iter().flatten().all(is_settled)
                && self.net.pipes.iter().all(|pipe| pipe.unread || pipe.bytes.is_empty() && !pipe.ended)
            {
                return;
            }
        }
        panic!(
            "they do not come together: {:?}",
            self.nodes.iter().flatten().map(|node| &node.replica).collect::<Vec<_>>()
        );
    }

    /// Whoever was told of no gap has had all that was promised.
    fn judge(&mut self) {
        self.alive().into_iter().for_each(|number| self.read(number));
        let answers = self.answers.lock().unwrap();
        for node in self.nodes.iter().flatten() {
            for reader in node.readers.iter().filter(|reader| reader.gaps == 0) {
                for (_, text, outcome) in answers.iter() {
                    let Ok(Position { epoch, offset }) = outcome else { continue };
                    if *epoch == reader.from.epoch && *offset <= reader.from.offset {
                        continue;
                    }
                    let is_here = self.truth.get(&(epoch.0, reader.name, *offset)) == Some(text);
                    assert!(
                        !is_here || *epoch != node.hub.epoch() || reader.had.contains(text),
                        "{text} is missing, and nobody said so: {outcome:?} at {:?}, from {:?} to {:?}",
                        node.replica,
                        reader.from,
                        reader.at
                    );
                }
            }
        }
    }
}

#[test]
fn one_alone_numbers_for_itself() {
    let mut world = World::new(1);
    let one = world.join();
    world.run(1);
    world.listen(one);
    world.publish(one, None);
    world.run(1);
    let node = world.nodes[one].as_ref().unwrap();
    assert!(node.replica.leads() && node.replica.is_settled());
    assert_eq!(world.answers.lock().unwrap().len(), 1);
    assert!(node.hub.publish(world.now, "a", Payload::Text("x"), None).is_ok(), "nothing goes over the bus");
}

#[test]
fn what_is_published_anywhere_comes_everywhere_once() {
    let mut world = World::new(2);
    let nodes: Vec<usize> = (0..3).map(|_| world.join()).collect();
    world.settle();
    nodes.iter().for_each(|node| world.listen(*node));
    for number in 0..60 {
        world.publish(nodes[number % 3], None);
        world.run(number % 3);
    }
    // The same id at two replicas is one message.
    world.publish(nodes[1], Some("x"));
    world.publish(nodes[2], Some("x"));
    world.settle();
    world.judge();
    let answers = world.answers.lock().unwrap();
    assert!(answers.len() == 62 && answers.iter().all(|(.., outcome)| outcome.is_ok()));
    let expected = world.truth.len();
    assert!((61..=62).contains(&expected));
    for node in world.nodes.iter().flatten() {
        assert_eq!(node.readers.iter().map(|reader| reader.had.len()).sum::<usize>(), expected);
        assert!(node.readers.iter().all(|reader| reader.gaps == 0));
    }
}

#[test]
fn a_dead_leader_costs_nobody_a_message() {
    for seed in 1..200 {
        let mut world = World::new(seed);
        let nodes: Vec<usize> = (0..3).map(|_| world.join()).collect();
        world.settle();
        nodes.iter().for_each(|node| world.listen(*node));
        for number in 0..20 {
            let node = nodes[world.draw(3)];
            world.publish(node, None);
            let steps = world.draw(3);
            world.run(steps);
            if number == 10 {
                let leader = world.leader.unwrap();
                world.kill(leader);
            }
        }
        world.settle();
        world.judge();
        for node in world.nodes.iter().flatten() {
            assert!(node.readers.iter().all(|reader| reader.gaps == 0), "seed {seed}");
        }
    }
}

/// Replicas that are killed, stand still, join and lose each other, by that seed.
fn trouble(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..3 {
        world.join();
    }
    world.settle();
    (0..3).for_each(|node| world.listen(node));
    for _ in 0..150 {
        let alive = world.alive();
        let node = alive[world.draw(alive.len())];
        match world.draw(40) {
            0 if alive.len() > 1 => world.kill(node),
            1 | 2 if Some(node) != world.leader => {
                let node = world.nodes[node].as_mut().unwrap();
                node.stands_still = !node.stands_still;
            }
            3 if alive.len() < 4 => {
                let new = world.join();
                world.run(80);
                world.listen(new);
            }
            4 | 5 => world.sever(node),
            _ => {
                let number = world.draw(60);
                let id = (number < 15).then(|| format!("id{number}"));
                world.publish(node, id.as_deref());
                let steps = world.draw(4);
                world.run(steps);
            }
        }
    }
    world.settle();
    world.judge();
    let (count, alive) = (world.truth.len(), world.alive());
    world.publish(alive[0], None);
    world.settle();
    world.judge();
    assert!(world.truth.len() > count, "seed {seed}: it goes on");
}

/// Whatever becomes of them: no number is given twice, nothing comes twice, no id is two messages, and nothing is missing silently. `SIMULATION_SEEDS` and
/// `SIMULATION_FIRST` say which seeds are tried.
#[test]
fn nothing_is_lost_in_silence() {
    seeds::try_all(400, trouble);
}

/// Each planted fault of replicas is found within 256 seeds.
#[cfg(debug_assertions)]
#[test]
fn planted_faults_of_replicas_are_found() {
    use crate::planted::Bug;

    seeds::find_all(&[Bug::StaleRecord, Bug::PublishedAgain, Bug::UnlearnedIds], trouble);
}

#[test]
fn whoever_says_what_no_replica_says_is_cut() {
    let mut world = World::new(3);
    let one = world.join();
    world.run(1);
    world.net.pipes.extend([Pipe::default(), Pipe::default()]);
    let node = world.nodes[one].as_mut().unwrap();
    for bytes in [&[255; 64][..], &[1, 0, 0, 0, 3], &[1, 0, 0, 0, 10], &[0, 0, 0, 0]] {
        let link = world.net.pipes.len();
        world.net.pipes.extend([Pipe::default(), Pipe::default()]);
        assert!(node.replica.accept(link + 1));
        assert_eq!(node.replica.followers().len(), 1);
        node.replica.received(world.now, link + 1, bytes, &mut world.net);
        assert!(world.net.pipes[link].ended, "{bytes:?}");
        assert_eq!(node.replica.followers().len(), 0);
    }
    assert!(node.hub.publish(world.now, "a", Payload::Text("x"), None).is_ok(), "alone again");
}
