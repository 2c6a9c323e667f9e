//! The ledger: what every request was to get, where it went and what came back, and the rules that all of it has to keep.
//!
//! Clients and workers write into it as things happen; a broken rule panics with the request's number, and the driver adds the
//! seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use production_server::dispatch::HOME_ADVANTAGE;

/// Deadlines pass in steps, and what a worker does is seen a moment later.
const COARSE: Duration = Duration::from_millis(20);

/// A request's number, in its target and in the answer to it.
pub type RequestId = u32;

/// What a worker did with a request that reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is still at it.
    Running,
    /// It has answered to the end.
    Answered,
    /// It said that it did not run it: 503 with `Rip-Worker-Busy` or `Rip-Worker-Draining`.
    Declined,
    /// The connection ended before the answer did, and the worker lives.
    Dropped,
    /// The worker died with the request.
    Died,
}

/// The answer that a worker means to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Its status.
    pub status: u16,
    /// Bytes of its whole body.
    pub body: usize,
    /// Whether it will be malformed or cut, so that it must never look whole to a client.
    pub broken: bool,
    /// Its body ends with the connection, which ended early.
    pub shortened: bool,
}

#[derive(Debug)]
struct Delivery {
    worker: u32,
    reused: bool,
    fate: Fate,
    /// When it wrote the first byte of its answer, and when the last of its head.
    wrote: Option<Instant>,
    /// See there.
    headed: Option<Instant>,
    intent: Option<Intent>,
    begun: Instant,
    /// Since when the worker neither writes nor waits for the other side, and the longest time for which it did so.
    silent_since: Option<Instant>,
    longest_silence: Duration,
    /// It reads the request slowly. From when on it has all of it is not known to anybody.
    slow: bool,
}

impl Delivery {
    fn new(worker: u32, reused: bool, begun: Instant) -> Delivery {
        Delivery {
            worker,
            reused,
            fate: Fate::Running,
            wrote: None,
            headed: None,
            intent: None,
            begun,
            silent_since: None,
            longest_silence: Duration::ZERO,
            slow: false,
        }
    }

    fn was_silent(&self, patience: Duration, now: Instant) -> bool {
        let silence = self.silent_since.map_or(Duration::ZERO, |since| now - since);
        self.longest_silence.max(silence) + COARSE >= patience || (self.slow && self.was_late(patience, now))
    }

    /// Whether no head of its answer came for so long.
    fn was_late(&self, patience: Duration, now: Instant) -> bool {
        self.headed.unwrap_or(now) + COARSE >= self.begun + patience
    }
}

/// What a client is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expects {
    /// The answer of a worker, where nothing goes wrong.
    Answer,
    /// Anything but to be blamed: it is never silent when it is to send.
    Anything,
    /// Anything: it stops sending in the middle of its request.
    Blame,
}

#[derive(Debug)]
struct Record {
    idempotent: bool,
    expects: Expects,
    /// One of a crowd.
    crowded: bool,
    first_byte: Option<Instant>,
    /// When its last byte was written, and it was the first in its connection's line.
    whole: Option<Instant>,
    /// It waits for a worker since everything stood still with it whole.
    settled: bool,
    deliveries: Vec<Delivery>,
    answered: bool,
    /// Requests that must reach a worker before this one.
    after: Vec<RequestId>,
}

/// What came back to a client for one request.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// The request and delivery that `X-Answer` names; `None` for an answer of the server's own.
    pub answer: Option<(RequestId, usize)>,
    /// Bytes of the body.
    pub body: usize,
    /// What the server's own answer says.
    pub text: String,
}

impl Reply {
    /// An answer with that body.
    pub fn new(status: u16, answer: Option<(RequestId, usize)>, body: &[u8]) -> Reply {
        let text = if answer.is_some() { String::new() } else { String::from_utf8_lossy(body).into_owned() };
        Reply { status, answer, body: body.len(), text }
    }
}

/// What the rules of a run are.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// When it began.
    pub started: Instant,
    /// No fault may cost a request, each gets its worker's answer.
    pub calm: bool,
    /// One worker, one request at a time and nothing that changes the order, so first come, first served.
    pub orderly: bool,
    /// The longest way of bytes to the server.
    pub way: Duration,
    /// For how long a worker may be silent, before its head altogether, and for how long its requests wait for one.
    pub read: Duration,
    /// See there.
    pub request: Duration,
    /// See there.
    pub queue: Duration,
}

/// All requests of a run.
pub struct Ledger {
    requests: BTreeMap<RequestId, Record>,
    /// The rules.
    pub rules: Rules,
    /// How long the ordinary request waited for its answer that waited longest.
    pub longest_wait: Duration,
}

impl Ledger {
    /// An empty one.
    pub fn new(rules: Rules) -> Ledger {
        Ledger { requests: BTreeMap::new(), rules, longest_wait: Duration::ZERO }
    }

    /// Registers a request of an ordinary client.
    pub fn open(&mut self, idempotent: bool) -> RequestId {
        self.register(idempotent, Expects::Answer, false)
    }

    /// Registers one of a crowd.
    pub fn open_crowded(&mut self, idempotent: bool, expects: Expects) -> RequestId {
        self.register(idempotent, expects, true)
    }

    fn register(&mut self, idempotent: bool, expects: Expects, crowded: bool) -> RequestId {
        let id = self.requests.len() as u32 + 1;
        let record = Record {
            idempotent,
            expects,
            crowded,
            first_byte: None,
            whole: None,
            settled: false,
            deliveries: Vec::new(),
            answered: false,
            after: Vec::new(),
        };
        self.requests.insert(id, record);
        id
    }

    /// How many requests of ordinary clients there are, and how many of them got a worker's or the server's own answer.
    pub fn counts(&self) -> (usize, usize) {
        let ordinary = || self.requests.values().filter(|record| !record.crowded);
        (ordinary().count(), ordinary().filter(|record| record.answered).count())
    }

    /// How many requests have reached a worker twice.
    pub fn retried(&self) -> usize {
        self.requests.values().filter(|record| record.deliveries.len() > 1).count()
    }

    fn record(&mut self, id: RequestId) -> &mut Record {
        self.requests.get_mut(&id).unwrap_or_else(|| panic!("nobody sent a request {id}"))
    }

    /// The first byte of a request is being written.
    pub fn begun(&mut self, id: RequestId, now: Instant) {
        // Until the network takes some of it, it is tried again.
        if self.record(id).first_byte.is_some() {
            return;
        }
        if self.rules.orderly {
            let waiting = self.requests.iter().filter(|(_, record)| record.settled && record.deliveries.is_empty());
            let after = waiting.filter(|(_, record)| !record.answered).map(|(id, _)| *id).collect();
            self.record(id).after = after;
        }
        self.record(id).first_byte = Some(now);
    }

    /// The last byte of a request has been written, and no other of its connection is unanswered.
    pub fn whole(&mut self, id: RequestId, now: Instant) {
        self.record(id).whole = Some(now);
    }

    /// Nobody can go on before time does: what was whole long enough ago stands in the queue by now, and for so long that nobody who
    /// comes now may go first, even on a loop whose permit comes back.
    pub fn stands_still(&mut self, now: Instant) {
        let way = self.rules.way + HOME_ADVANTAGE;
        for record in self.requests.values_mut() {
            record.settled |= record.whole.is_some_and(|whole| now > whole + way);
        }
    }

    /// A worker has got a request, or a part of it: by the retry table that must be allowed. Returns which delivery it is.
    pub fn delivered(&mut self, id: RequestId, worker: u32, reused: bool, now: Instant) -> usize {
        let orderly = self.rules.orderly;
        let record = self.record(id);
        assert!(record.first_byte.is_some(), "request {id} was delivered before it was sent");
        // Each worker may decline it; beside that it is sent again once.
        let ran = record.deliveries.iter().filter(|delivery| delivery.fate != Fate::Declined).count();
        assert!(ran < 2, "request {id} ran twice and was delivered once more: {record:?}");
        if let Some(before) = record.deliveries.last() {
            let allowed = match before.fate {
                Fate::Declined => true,
                Fate::Dropped => record.idempotent && before.reused && before.wrote.is_none(),
                Fate::Running | Fate::Answered | Fate::Died => false,
            };
            assert!(allowed, "request {id} went to worker {worker} after worker {}: {record:?}", before.worker);
        }
        assert!(!record.answered, "request {id} was delivered after its answer: {record:?}");
        record.deliveries.push(Delivery::new(worker, reused, now));
        let (number, after) = (record.deliveries.len() - 1, std::mem::take(&mut record.after));
        if orderly && number == 0 {
            for earlier in after {
                let earlier_record = &self.requests[&earlier];
                let overtaken = earlier_record.deliveries.is_empty() && !earlier_record.answered;
                assert!(!overtaken, "request {id} has overtaken {earlier}: {earlier_record:?}");
            }
        }
        number
    }

    fn delivery(&mut self, id: RequestId, number: usize) -> &mut Delivery {
        &mut self.record(id).deliveries[number]
    }

    /// What a worker is going to answer.
    pub fn intends(&mut self, id: RequestId, number: usize, intent: Intent) {
        self.delivery(id, number).intent = Some(intent);
    }

    /// An answer whose body ends with the connection was cut.
    pub fn shortened(&mut self, id: RequestId, number: usize) {
        if let Some(intent) = &mut self.delivery(id, number).intent {
            intent.shortened = true;
        }
    }

    /// A worker has written a byte of an answer; with `headed`, all of its head.
    pub fn wrote(&mut self, id: RequestId, number: usize, headed: bool, now: Instant) {
        let delivery = self.delivery(id, number);
        delivery.wrote.get_or_insert(now);
        if headed {
            delivery.headed.get_or_insert(now);
        }
    }

    /// The worker writes, or waits for what the other side is to send or to take.
    pub fn speaks(&mut self, id: RequestId, number: usize, now: Instant) {
        let delivery = self.delivery(id, number);
        if let Some(since) = delivery.silent_since.take() {
            delivery.longest_silence = delivery.longest_silence.max(now - since);
        }
    }

    /// The worker reads this request slowly.
    pub fn reads_slowly(&mut self, id: RequestId, number: usize) {
        self.delivery(id, number).slow = true;
    }

    /// The worker is waited for, and is silent.
    pub fn pauses(&mut self, id: RequestId, number: usize, now: Instant) {
        self.delivery(id, number).silent_since.get_or_insert(now);
    }

    /// Whether a worker has given reason to report it: it was silent for too long with a request, or, unless that must be said of it,
    /// did not answer one in time.
    pub fn was_silent(&self, worker: u32, stuck: bool, now: Instant) -> bool {
        let Rules { read, request, .. } = self.rules;
        let patience = if stuck { request } else { read.min(request) };
        let failed = |it: &Delivery| it.was_silent(patience, now) || (!stuck && it.was_late(request, now));
        let mut deliveries = self.requests.values().flat_map(|record| &record.deliveries);
        deliveries.any(|delivery| delivery.worker == worker && failed(delivery))
    }

    /// Whether a worker is still at a delivery.
    pub fn is_running(&self, id: RequestId, number: usize) -> bool {
        self.requests
            .get(&id)
            .and_then(|record| record.deliveries.get(number))
            .is_some_and(|it| it.fate == Fate::Running)
    }

    /// How a delivery ended.
    pub fn ended(&mut self, id: RequestId, number: usize, fate: Fate) {
        let delivery = self.delivery(id, number);
        if delivery.fate == Fate::Running {
            delivery.fate = fate;
        }
    }

    /// A client has got a whole answer to its request.
    pub fn answered(&mut self, id: RequestId, reply: &Reply, now: Instant) {
        let rules = self.rules;
        let record = self.record(id);
        assert!(!record.answered, "request {id} was answered twice");
        record.answered = true;
        let Some((answered, number)) = reply.answer else {
            return record.refused(id, reply, &rules, now);
        };
        if let (Some(whole), false) = (record.whole, record.crowded) {
            self.longest_wait = self.longest_wait.max(now - whole);
        }
        let record = self.record(id);
        assert_eq!(answered, id, "request {id} got the answer to another: {reply:?}");
        assert_eq!(number + 1, record.deliveries.len(), "request {id} got the answer of an earlier try");
        let intent = record.deliveries[number].intent.as_ref();
        let intent = intent.unwrap_or_else(|| panic!("request {id} got an answer before it was given: {reply:?}"));
        assert!(!intent.broken, "request {id} got a broken answer that looks whole: {reply:?}, {intent:?}");
        let whole = reply.body == intent.body || (intent.shortened && reply.body < intent.body);
        assert!(whole && reply.status == intent.status, "request {id} got another answer: {reply:?}, {intent:?}");
    }

    /// A connection ended with this request unanswered.
    pub fn cut(&mut self, id: RequestId, by_client: bool) {
        let rules = self.rules;
        let record = self.record(id);
        let expected = by_client || !rules.calm || record.expects != Expects::Answer;
        assert!(expected, "request {id} was cut although nothing was wrong: {record:?}");
    }
}

impl Record {
    /// The server has answered in a worker's place: it may do so, and blames nobody who does his part.
    fn refused(&self, id: RequestId, reply: &Reply, rules: &Rules, now: Instant) {
        let expected = !rules.calm || self.expects != Expects::Answer;
        let Reply { status, text, .. } = reply;
        assert!(expected, "request {id} was refused although nothing was wrong: {status} {text:?}, {self:?}");
        match *status {
            408 => assert!(self.expects == Expects::Blame, "request {id} was blamed, and was not silent: {self:?}"),
            504 => {
                assert!(self.waited_in_vain(rules, now), "request {id} got a 504, and no worker was silent: {self:?}")
            }
            413 | 502 | 503 => {}
            _ => panic!("request {id} got an answer that nobody gave: {reply:?}"),
        }
    }

    /// Whether a worker was silent for longer than it may be, or none was found for long enough.
    fn waited_in_vain(&self, rules: &Rules, now: Instant) -> bool {
        let elapsed =
            |since: Option<Instant>, patience: Duration| since.is_some_and(|at| now + COARSE >= at + patience);
        match self.deliveries.last() {
            Some(last) if matches!(last.fate, Fate::Running | Fate::Answered) => {
                last.was_silent(rules.read.min(rules.request), now) || last.was_late(rules.request, now)
            }
            _ => elapsed(self.first_byte, rules.read.min(rules.request).min(rules.queue)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (Ledger, RequestId) {
        let second = Duration::from_secs(1);
        let (way, read, request, queue) = (Duration::ZERO, second, second * 2, second * 3);
        let mut ledger =
            Ledger::new(Rules { started: Instant::now(), calm: false, orderly: false, way, read, request, queue });
        let id = ledger.open(true);
        ledger.begun(id, Instant::now());
        (ledger, id)
    }

    fn panics(action: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).is_err()
    }

    #[test]
    fn a_second_delivery_is_allowed_by_the_retry_table_only() {
        let cases = [
            (true, Fate::Dropped, true),
            (false, Fate::Dropped, false),
            (false, Fate::Declined, true),
            (true, Fate::Died, false),
            (true, Fate::Running, false),
            (true, Fate::Answered, false),
        ];
        for (reused, fate, allowed) in cases {
            let (mut ledger, id) = ledger();
            let number = ledger.delivered(id, 1, reused, Instant::now());
            ledger.ended(id, number, fate);
            assert_eq!(
                panics(|| assert!(ledger.delivered(id, 2, false, Instant::now()) == 1)),
                !allowed,
                "{reused} {fate:?}"
            );
        }
        let (mut ledger, id) = ledger();
        let number = ledger.delivered(id, 1, true, Instant::now());
        ledger.wrote(id, number, true, Instant::now());
        ledger.ended(id, number, Fate::Dropped);
        assert!(panics(|| assert!(ledger.delivered(id, 2, false, Instant::now()) == 1)), "an answer had begun");
    }

    #[test]
    fn an_answer_must_be_the_one_that_was_given() {
        let right = Reply::new(200, Some((1, 0)), b"12345");
        let wrong = [
            Reply::new(200, Some((2, 0)), b"12345"),
            Reply::new(201, Some((1, 0)), b"12345"),
            Reply::new(200, Some((1, 0)), b"1234"),
            Reply::new(200, None, b"12345"),
        ];
        for (reply, fine) in std::iter::once((&right, true)).chain(wrong.iter().map(|reply| (reply, false))) {
            let (mut ledger, id) = ledger();
            let number = ledger.delivered(id, 1, false, Instant::now());
            ledger.intends(id, number, Intent { status: 200, body: 5, broken: false, shortened: false });
            assert_eq!(panics(|| ledger.answered(id, reply, Instant::now())), !fine, "{reply:?}");
            assert!(panics(|| ledger.answered(id, &right, Instant::now())), "twice");
        }
    }

    #[test]
    fn nobody_is_blamed_who_does_his_part() {
        let refusal = |status| Reply { status, answer: None, body: 5, text: String::new() };
        let (mut ledger, id) = ledger();
        assert!(panics(|| ledger.answered(id, &refusal(408), Instant::now())), "it had sent all");
        for (silence, allowed) in [(900, false), (1100, true)] {
            let (mut ledger, id) = super::tests::ledger();
            let now = Instant::now();
            let number = ledger.delivered(id, 1, false, now);
            ledger.pauses(id, number, now);
            let later = now + Duration::from_millis(silence);
            ledger.speaks(id, number, later);
            assert_eq!(ledger.was_silent(1, false, later), allowed);
            assert_eq!(!panics(|| ledger.answered(id, &refusal(504), later)), allowed);
        }
    }
}
