//! The one thread that asks the authority and writes files, as the planner says. It ends when the server begins to: from then on the
//! authority's challenges meet closed listeners, or another server, which needs the directory.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::{Applicant, Client, Failure, Host, Obtained, Wanted};
use super::https::Https;
use super::key::base64;
use super::planner::{Planner, Reason, Span, Step};
use super::store::{Account, Order, Store};
use crate::config::{Acme, Challenge};
use crate::control::status;
use crate::log::{Level, Log};
use crate::tls::{self, Issued, Policies};

/// How often the planner is asked at least: clocks jump.
const LOOK: i64 = 600;
/// How soon it is tried again where another process has the directory, as one that is about to end after an upgrade.
const BUSY: Duration = Duration::from_secs(5);
/// After so long it is told: whoever ends after an upgrade has given the directory up by then.
const SUCCESSION: i64 = 60;
/// How often it is told.
const REMINDER: i64 = 86_400;
/// How soon the authority is told of an address again that it has not taken.
const AGAIN: i64 = 3600;
/// How soon where the directory cannot be used.
const BROKEN: Duration = Duration::from_secs(60);
/// Without anything to look after.
const IDLE: Duration = Duration::from_secs(86_400);

static REPORT: Mutex<Option<status::Acme>> = Mutex::new(None);
static THREAD: Mutex<Thread> = Mutex::new(Thread::None);

/// The thread.
enum Thread {
    /// It has not been needed.
    None,
    /// Another server still looks after certificates; who is to, and by which settings, from when this one has taken over.
    Held(Option<(Keeper, Acme)>),
    /// How it is told of other settings. It ends when nobody can tell it any more.
    Told(Sender<Acme>),
    /// There will be none.
    Retired,
}

fn thread() -> MutexGuard<'static, Thread> {
    THREAD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No certificate is looked after any more, and another process may have the directory. An attempt under way ends.
pub fn retire() {
    *thread() = Thread::Retired;
}

/// None is started before [`begin`] says so: another server has not handed over yet.
pub fn hold() {
    *thread() = Thread::Held(None);
}

/// This server has taken over: certificates that are wanted are looked after from now on.
pub fn begin() {
    let mut thread = thread();
    let Thread::Held(held) = &mut *thread else { return };
    let held = held.take();
    *thread = Thread::None;
    drop(thread);
    if let Some((keeper, acme)) = held {
        keeper.configure(&acme);
    }
}

/// How the certificates of this process stand that come by themselves; `None`: there are none.
pub fn report() -> Option<status::Acme> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note(note: impl FnOnce(&mut status::Acme)) {
    note(REPORT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
}

/// Looks after certificates as long as it lives.
#[derive(Clone)]
pub struct Keeper {
    policies: Policies,
    log: Log,
}

impl Keeper {
    /// Begins to, if any are wanted, and has policies show them; not before [`begin`], where that is awaited.
    pub fn start(acme: &Acme, policies: &Policies, log: &Log) -> Keeper {
        let keeper = Keeper { policies: policies.clone(), log: log.clone() };
        keeper.configure(acme);
        keeper
    }

    /// Goes on by other settings.
    pub fn configure(&self, acme: &Acme) {
        let mut thread = thread();
        if let Thread::Told(told) = &*thread {
            // A thread that has ended has said why.
            let _ = told.send(acme.clone());
        } else if let Thread::Held(held) = &mut *thread {
            *held = Some((self.clone(), acme.clone()));
        } else if acme.is_wanted() && matches!(*thread, Thread::None) {
            let (told, settings) = mpsc::channel();
            let (acme, policies, log) = (acme.clone(), self.policies.clone(), self.log.clone());
            let body = move || {
                let mut next = Some(acme);
                while let Some(acme) = next {
                    next = Charge::new(acme, &settings, (&policies, &log)).keep();
                }
            };
            match std::thread::Builder::new().name("acme".to_owned()).spawn(body) {
                Ok(_) => *thread = Thread::Told(told),
                Err(error) => {
                    self.log.event(Level::Error, "cannot start the thread of certificates", &[("error", &error)])
                }
            }
        }
    }
}

/// What is looked after by one set of settings.
struct Charge<'a> {
    acme: Acme,
    ears: Ears<'a>,
    policies: &'a Policies,
    log: &'a Log,
    open: Option<Open>,
    busy: Busy,
}

/// Another process has the directory.
#[derive(Default)]
struct Busy {
    /// When that is told.
    tell_at: Option<i64>,
}

impl Busy {
    /// Whether it is to be told now.
    fn tells(&mut self, now: i64) -> bool {
        let is_due = *self.tell_at.get_or_insert(now + SUCCESSION) <= now;
        if is_due {
            self.tell_at = Some(now + REMINDER);
        }
        is_due
    }
}

/// Hears of other settings, and of the end.
struct Ears<'a> {
    settings: &'a Receiver<Acme>,
    /// What was heard while something else was under way; `None` inside: the end.
    heard: Option<Option<Acme>>,
}

impl Ears<'_> {
    /// Waits; whether nothing was heard.
    fn wait(&mut self, time: Duration) -> bool {
        if self.heard.is_none() {
            self.heard = match self.settings.recv_timeout(time) {
                Ok(acme) => Some(Some(acme)),
                Err(RecvTimeoutError::Disconnected) => Some(None),
                Err(RecvTimeoutError::Timeout) => None,
            };
        }
        self.heard.is_none()
    }
}

/// What is known of the directory that is held.
struct Open {
    store: Store,
    planner: Planner,
    held: Option<Issued>,
    client: Option<Client<Https>>,
    /// Before when the authority is told of no other address.
    tell_at: i64,
}

fn span(issued: &Issued) -> Span {
    Span { not_before: issued.not_before, not_after: issued.not_after }
}

impl<'a> Charge<'a> {
    fn new(acme: Acme, settings: &'a Receiver<Acme>, (policies, log): (&'a Policies, &'a Log)) -> Charge<'a> {
        let report = status::Acme {
            names: acme.domains.clone(),
            authority: acme.url.clone(),
            challenge: acme.challenge.word().to_owned(),
            ..report().unwrap_or_default()
        };
        *REPORT.lock().unwrap_or_else(PoisonError::into_inner) = acme.is_wanted().then_some(report);
        Charge { acme, ears: Ears { settings, heard: None }, policies, log, open: None, busy: Busy::default() }
    }

    /// Until there are other settings, which it gives back, or the server ends.
    fn keep(&mut self) -> Option<Acme> {
        loop {
            let pause = self.turn();
            if !self.ears.wait(pause) {
                return self.ears.heard.take().flatten();
            }
        }
    }

    /// Does what is due; how long nothing more is.
    fn turn(&mut self) -> Duration {
        if !self.acme.is_wanted() {
            return IDLE;
        }
        let Some(open) = &mut self.open else {
            return match self.take_directory() {
                Ok(true) => Duration::ZERO,
                Ok(false) => {
                    self.tell_busy();
                    BUSY
                }
                Err(failure) => {
                    self.log.seldom(Level::Error, "certificates cannot be kept", &[("error", &failure.what)]);
                    note(|report| report.last_error = Some(failure.what));
                    BROKEN
                }
            };
        };
        let now = tls::now();
        match open.planner.next(now) {
            Step::Order(reason) => self.attempt(reason),
            Step::PollAri => self.ask_when(),
            Step::Wait(_) if open.knows_another_address(&self.acme, now) => self.tell_address(),
            Step::Wait(until) => {
                self.tell_outlook();
                return Duration::from_secs((until - now).clamp(1, LOOK).unsigned_abs());
            }
        }
        Duration::ZERO
    }

    /// Whether the directory is ours now.
    fn take_directory(&mut self) -> Result<bool, Failure> {
        let Some(store) = Store::open(&self.acme)? else { return Ok(false) };
        let held = store.held();
        let planner = Planner::new(store.brakes()?, held.as_ref().map(span));
        // The process before this one may have renewed it since listeners have read it.
        self.show();
        note(|report| {
            report.not_after = held.as_ref().map(|held| held.not_after);
            report.last_error = None;
        });
        self.open = Some(Open { store, planner, held, client: None, tell_at: i64::MIN });
        self.busy = Busy::default();
        Ok(true)
    }

    fn tell_busy(&mut self) {
        let directory = self.acme.directory.display();
        note(|report| report.last_error = Some(format!("another process has the directory {directory}")));
        if self.busy.tells(tls::now()) {
            let hint = "two servers need a directory each: set acme.directory";
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("directory", &directory), ("hint", &hint)];
            self.log.event(Level::Warn, "no certificate can come: another process has the directory", &fields);
        }
    }

    /// Tells the authority whom it is to write to.
    fn tell_address(&mut self) {
        let Some(open) = &mut self.open else { return };
        if let Err(failure) = open.tell_address(&self.acme) {
            let wait = failure.retry_after.unwrap_or(AGAIN).max(AGAIN);
            open.tell_at = tls::now().saturating_add(wait);
            open.client = None;
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("address", &self.acme.email), ("error", &failure.what)];
            self.log.event(Level::Warn, "the authority does not take the address that it is to write to", &fields);
        }
    }

    fn show(&self) {
        for failure in self.policies.reread(&self.acme.managed()) {
            self.log.event(Level::Error, "a listener cannot show its certificates", &[("error", &failure)]);
        }
    }

    fn tell_outlook(&self) {
        if let Some(open) = &self.open {
            let (reason, at) = open.planner.outlook(tls::now());
            note(|report| (report.decided_by, report.next_attempt) = (reason.word().to_owned(), at));
        }
    }

    fn attempt(&mut self, reason: Reason) {
        let Some(open) = &mut self.open else { return };
        open.planner.begin(tls::now());
        let names = self.acme.domains.join(", ");
        let fields: [(&str, &dyn std::fmt::Display); 3] =
            [("names", &names), ("authority", &self.acme.url), ("reason", &reason.word())];
        self.log.event(Level::Info, "a certificate is ordered", &fields);
        let outcome = open.attempt(&self.acme, &mut self.ears);
        if let Err(failure) = &outcome {
            open.planner.failed(tls::now(), failure.retry_after);
            open.client = None;
        }
        // What is not written counts as the attempt that has begun above.
        let kept = open.store.keep_brakes(open.planner.brakes());
        let outcome = outcome.and_then(|issued| kept.map(|()| issued));
        if self.ears.heard.is_some() && outcome.is_err() {
            return;
        }
        self.tell_outlook();
        match outcome {
            Ok(issued) => {
                let until = tls::day(issued.not_after);
                let fields: [(&str, &dyn std::fmt::Display); 2] = [("names", &names), ("until", &until)];
                self.log.event(Level::Info, "a certificate has come", &fields);
                note(|report| {
                    (report.not_after, report.last_error) = (Some(issued.not_after), None);
                    report.issued += 1;
                });
                self.show();
            }
            Err(failure) => {
                let next = report().map_or(0, |report| report.next_attempt - tls::now());
                let next = format!("{next} s");
                let fields: [(&str, &dyn std::fmt::Display); 3] =
                    [("names", &names), ("error", &failure.what), ("next_attempt_in", &next)];
                self.log.event(Level::Warn, "no certificate has come", &fields);
                note(|report| {
                    report.last_error = Some(failure.what);
                    report.failed += 1;
                });
            }
        }
    }

    /// Asks the authority when it suggests the renewal.
    fn ask_when(&mut self) {
        let Some(open) = &mut self.open else { return };
        let identity = open.held.as_ref().and_then(identity);
        let now = tls::now();
        let answer = open.client(&self.acme).and_then(|client| match identity {
            Some(identity) if client.suggests() => client.renewal(&identity).map(Some),
            _ => Ok(None),
        });
        match answer {
            Ok(Some((window, retry_after))) => {
                let mut random = [0; 4];
                // Without randomness it is the window's first second.
                let _ = aws_lc_rs::rand::fill(&mut random);
                open.planner.suggested(now, window, retry_after, u32::from_ne_bytes(random));
            }
            Ok(None) => open.planner.never_suggests(),
            Err(failure) => {
                open.client = None;
                open.planner.suggests_nothing(now, failure.retry_after);
            }
        }
    }
}

/// How the authority names a certificate (RFC 9773, 4.1).
fn identity(issued: &Issued) -> Option<String> {
    issued.identity.as_ref().map(|(key, serial)| format!("{}.{}", base64(key), base64(serial)))
}

impl Open {
    /// The client, which reads the authority's directory first.
    fn client(&mut self, acme: &Acme) -> Result<&mut Client<Https>, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let Account { key, url, .. } = self.store.account()?;
                Client::new(Https::new(acme.ca_file.as_deref())?, &acme.url, key, url)?
            }
        };
        Ok(self.client.insert(client))
    }

    /// Obtains a certificate, if anything can be kept at all.
    fn attempt(&mut self, acme: &Acme, ears: &mut Ears) -> Result<Issued, Failure> {
        if !self.store.is_there() {
            // Whoever has removed the directory has not taken the brakes away, which are remembered.
            let store = Store::open(acme)?;
            self.store = store.ok_or_else(|| Failure::new("another process has the directory"))?;
        }
        self.store.keep_brakes(self.planner.brakes())?;
        self.obtain(acme, ears)
    }

    /// Obtains a certificate and keeps it.
    fn obtain(&mut self, acme: &Acme, ears: &mut Ears) -> Result<Issued, Failure> {
        // The directory may say something else than it did months ago.
        self.client = None;
        let account = self.register(acme)?;
        let replaces = self.held.as_ref().and_then(identity);
        let Open { store, planner, client, .. } = self;
        let Some(client) = client else { return Err(Failure::new("there is no connection to the authority")) };
        let mut attempt = Attempt { store, planner, ears, challenge: acme.challenge, account };
        let resumed = match attempt.store.order(&attempt.account) {
            Some(Order { url, key, .. }) => client.resume(&url, &key, &acme.domains, &mut attempt)?,
            None => None,
        };
        let obtained = match resumed {
            Some(obtained) => Ok(obtained),
            None => {
                attempt.store.forget_order();
                let wanted = Wanted {
                    names: &acme.domains,
                    profile: acme.profile.as_deref(),
                    replaces: replaces.as_deref(),
                    challenge: acme.challenge,
                };
                client.order(&wanted, &mut attempt)
            }
        };
        let obtained = obtained.map_err(|mut failure| {
            // Its key cannot have another.
            if failure.is_of_the_account() {
                store.forget_account();
                failure.what.push_str("; the next attempt makes another account");
            }
            failure
        })?;
        self.keep(&obtained)
    }

    /// Makes sure that there is an account; its URL.
    fn register(&mut self, acme: &Acme) -> Result<String, Failure> {
        let secret = match &acme.eab_key_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                Failure::new(format!("cannot read the key of the external account {}: {error}", path.display()))
            })?),
            None => None,
        };
        let applicant = Applicant { email: &acme.email, external: acme.eab_kid.as_deref().zip(secret.as_deref()) };
        let url = self.client(acme)?.account(&applicant)?;
        let known = self.store.account()?;
        if known.url.as_ref() != Some(&url) {
            let email = Some(acme.email.clone());
            self.store.keep_account(&Account { url: Some(url.clone()), email, ..known })?;
        }
        Ok(url)
    }

    /// Whether the authority is to be told of another address now.
    fn knows_another_address(&self, acme: &Acme, now: i64) -> bool {
        // What cannot be read of the account, the next attempt says.
        let known = if self.tell_at <= now { self.store.known_account().ok().flatten() } else { None };
        known.is_some_and(|known| known.url.is_some() && known.email.as_ref() != Some(&acme.email))
    }

    fn tell_address(&mut self, acme: &Acme) -> Result<(), Failure> {
        self.client(acme)?.change_contact(&acme.email)?;
        let account = self.store.account()?;
        self.store.keep_account(&Account { email: Some(acme.email.clone()), ..account })
    }

    fn keep(&mut self, obtained: &Obtained) -> Result<Issued, Failure> {
        let Open { store, planner, .. } = self;
        let kept = store.keep(obtained, |issued| match planner.accepts(span(issued)) {
            true => Ok(()),
            false => {
                Err(Failure::new("the certificate that has come ends earlier than the one that is there, which stays"))
            }
        });
        let issued = kept.inspect_err(|failure| {
            // What came is of no use; but where only the disk is full, it can be fetched again.
            if !failure.what.starts_with("cannot ") {
                store.forget_order();
            }
        })?;
        store.forget_order();
        planner.obtained(tls::now(), span(&issued));
        self.held = Some(issued.clone());
        Ok(issued)
    }
}

/// What an attempt needs besides the authority.
struct Attempt<'a, 'b> {
    store: &'a Store,
    planner: &'a mut Planner,
    ears: &'a mut Ears<'b>,
    challenge: Challenge,
    /// Where the account is.
    account: String,
}

impl Host for Attempt<'_, '_> {
    fn wait(&mut self, time: Duration) -> Result<(), Failure> {
        if self.ears.wait(time) { Ok(()) } else { Err(Failure::new("the server has something else to do")) }
    }

    fn validation_begins(&mut self, name: &str, token: &str, authorization: &str) -> Result<(), Failure> {
        if !self.planner.validation_begins(tls::now()) {
            return Err(Failure::new("validations have failed three times in this hour, and no other is begun"));
        }
        self.store.keep_brakes(self.planner.brakes())?;
        match self.challenge {
            Challenge::Http01 => tls::answer_http(token, authorization),
            Challenge::TlsAlpn01 => tls::answer_tls(name, authorization).map_err(Failure::new)?,
        }
        Ok(())
    }

    fn validation_ends(&mut self, name: &str, token: &str, succeeded: bool) {
        tls::withdraw(match self.challenge {
            Challenge::Http01 => token,
            Challenge::TlsAlpn01 => name,
        });
        if succeeded {
            self.planner.validation_succeeded();
        }
    }

    fn order_begins(&mut self, url: &str, key: &str) -> Result<(), Failure> {
        if !self.planner.order_begins(tls::now()) {
            return Err(Failure::new("two certificates were demanded for these names today, and no other is"));
        }
        let order = Order { url: url.to_owned(), key: key.to_owned(), account: self.account.clone() };
        let kept = self.store.keep_brakes(self.planner.brakes()).and_then(|()| self.store.keep_order(&order));
        kept.inspect_err(|_| self.planner.order_withdrawn())
    }

    fn key_refused(&mut self) {
        self.store.forget_order();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_another_process_has_is_told_once_a_day_and_not_to_a_successor() {
        let mut busy = Busy::default();
        let told: Vec<i64> = (0..200_000).step_by(5).filter(|now| busy.tells(*now)).collect();
        assert_eq!(told, [SUCCESSION, SUCCESSION + REMINDER, SUCCESSION + 2 * REMINDER]);
    }
}
