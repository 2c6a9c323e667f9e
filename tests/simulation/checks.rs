//! The ledger: what every request was to get, where it went and what came back, and the rules that all of it has to keep.
//!
//! Clients and workers write into it as things happen; a broken rule panics with the request's number, and the driver adds the
//! seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
    wrote: bool,
    intent: Option<Intent>,
}

#[derive(Debug)]
struct Record {
    idempotent: bool,
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
}

/// All requests of a run.
pub struct Ledger {
    requests: BTreeMap<RequestId, Record>,
    calm: bool,
    orderly: bool,
    way: Duration,
}

impl Ledger {
    /// An empty one. `calm`: no fault may cost a request, each gets its worker's answer. `orderly`: one worker, one request at
    /// a time and nothing that changes the order, so first come, first served; `way` is the longest way of bytes to the server.
    pub fn new(calm: bool, orderly: bool, way: Duration) -> Ledger {
        Ledger { requests: BTreeMap::new(), calm, orderly, way }
    }

    /// Registers a request.
    pub fn open(&mut self, idempotent: bool) -> RequestId {
        let id = self.requests.len() as u32 + 1;
        let record = Record {
            idempotent,
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

    /// How many requests there are, and how many of them got a worker's or the server's own answer.
    pub fn counts(&self) -> (usize, usize) {
        (self.requests.len(), self.requests.values().filter(|record| record.answered).count())
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
        if self.orderly {
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

    /// Nobody can go on before time does: what was whole long enough ago stands in the queue by now.
    pub fn stands_still(&mut self, now: Instant) {
        let way = self.way;
        for record in self.requests.values_mut() {
            record.settled |= record.whole.is_some_and(|whole| now > whole + way);
        }
    }

    /// A worker has got a request, or a part of it: by the retry table that must be allowed. Returns which delivery it is.
    pub fn delivered(&mut self, id: RequestId, worker: u32, reused: bool) -> usize {
        let orderly = self.orderly;
        let record = self.record(id);
        assert!(record.first_byte.is_some(), "request {id} was delivered before it was sent");
        assert!(record.deliveries.len() < 2, "request {id} was delivered three times: {record:?}");
        if let Some(before) = record.deliveries.last() {
            let allowed = match before.fate {
                Fate::Declined => true,
                Fate::Dropped => record.idempotent && before.reused && !before.wrote,
                Fate::Running | Fate::Answered | Fate::Died => false,
            };
            assert!(allowed, "request {id} went to worker {worker} after worker {}: {record:?}", before.worker);
        }
        assert!(!record.answered, "request {id} was delivered after its answer: {record:?}");
        record.deliveries.push(Delivery { worker, reused, fate: Fate::Running, wrote: false, intent: None });
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

    /// A worker has written a byte of an answer.
    pub fn wrote(&mut self, id: RequestId, number: usize) {
        self.delivery(id, number).wrote = true;
    }

    /// How a delivery ended.
    pub fn ended(&mut self, id: RequestId, number: usize, fate: Fate) {
        let delivery = self.delivery(id, number);
        if delivery.fate == Fate::Running {
            delivery.fate = fate;
        }
    }

    /// A client has got a whole answer to its request.
    pub fn answered(&mut self, id: RequestId, reply: &Reply) {
        let calm = self.calm;
        let record = self.record(id);
        assert!(!record.answered, "request {id} was answered twice");
        record.answered = true;
        let Some((answered, number)) = reply.answer else {
            assert!(!calm, "request {id} was refused although nothing was wrong: {reply:?}, {record:?}");
            let own = [408, 413, 502, 503, 504].contains(&reply.status);
            return assert!(own, "request {id} got an answer that nobody gave: {reply:?}");
        };
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
        let calm = self.calm;
        let record = self.record(id);
        assert!(by_client || !calm, "request {id} was cut although nothing was wrong: {record:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (Ledger, RequestId) {
        let mut ledger = Ledger::new(false, false, Duration::ZERO);
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
            let number = ledger.delivered(id, 1, reused);
            ledger.ended(id, number, fate);
            assert_eq!(panics(|| assert!(ledger.delivered(id, 2, false) == 1)), !allowed, "{reused} {fate:?}");
        }
        let (mut ledger, id) = ledger();
        let number = ledger.delivered(id, 1, true);
        ledger.wrote(id, number);
        ledger.ended(id, number, Fate::Dropped);
        assert!(panics(|| assert!(ledger.delivered(id, 2, false) == 1)), "an answer had begun");
    }

    #[test]
    fn an_answer_must_be_the_one_that_was_given() {
        let right = Reply { status: 200, answer: Some((1, 0)), body: 5 };
        let wrong = [
            Reply { status: 200, answer: Some((2, 0)), body: 5 },
            Reply { status: 201, answer: Some((1, 0)), body: 5 },
            Reply { status: 200, answer: Some((1, 0)), body: 4 },
            Reply { status: 200, answer: None, body: 5 },
        ];
        for (reply, fine) in std::iter::once((&right, true)).chain(wrong.iter().map(|reply| (reply, false))) {
            let (mut ledger, id) = ledger();
            let number = ledger.delivered(id, 1, false);
            ledger.intends(id, number, Intent { status: 200, body: 5, broken: false, shortened: false });
            assert_eq!(panics(|| ledger.answered(id, reply)), !fine, "{reply:?}");
            assert!(panics(|| ledger.answered(id, &right)), "twice");
        }
    }
}
