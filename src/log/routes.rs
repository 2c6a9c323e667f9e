//! Where everything goes and how it looks, made of the settings: what changes at once when they do.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Weak};

use super::access;
use super::event::{self, Look};
use super::framing::Framing;
use super::output::Output;
use super::sink::{Handle, Sink, Source, Trouble};
use super::{Inner, Level};
use crate::config::{AccessLogSettings, EventFormat, EventLogSettings, LogTarget, SyslogAddress};

/// One sink, and what the settings call it.
#[derive(Clone)]
pub struct Place {
    pub target: LogTarget,
    pub sink: Arc<Handle>,
    pub terminal: bool,
}

impl Place {
    fn colour(&self) -> bool {
        self.terminal && colours_wanted()
    }
}

/// See the module.
#[derive(Clone)]
pub struct Routes {
    /// This process's own streams, which stay as they are; none in a log that says nothing.
    pub streams: Option<[Place; 2]>,
    /// Where events go, how they look, and which.
    pub events: Option<Place>,
    pub event_look: Look,
    pub level: Level,
    /// Where the lines go that workers write to stdout and stderr, and how they look.
    pub workers: Option<[(Place, Look); 2]>,
    pub access: Option<Place>,
    pub access_look: Arc<access::Look>,
}

impl Routes {
    /// A log that says nothing.
    pub fn none() -> Routes {
        let access = AccessLogSettings::new(LogTarget::Off, crate::config::AccessLogFormat::Human);
        Routes {
            streams: None,
            events: None,
            event_look: Look::default(),
            level: Level::Info,
            workers: None,
            access: None,
            access_look: Arc::new(access::Look::new(&access, Framing::Lines, false)),
        }
    }

    /// What the settings say, with this process's streams, and with every sink of `self` that is still wanted. An error names what cannot
    /// be opened.
    pub fn changed(
        &self,
        log: &Weak<Inner>,
        access: &AccessLogSettings,
        events: &EventLogSettings,
    ) -> io::Result<Routes> {
        let mut made: Vec<Place> = self.places().cloned().collect();
        let mut place = |target: &LogTarget| -> io::Result<Option<Place>> {
            if *target == LogTarget::Off {
                return Ok(None);
            }
            if let Some(place) = made.iter().find(|place| place.target == *target) {
                return Ok(Some(place.clone()));
            }
            // A log without streams has nowhere to put what would go there.
            let Some(place) = open(log, target)? else { return Ok(None) };
            made.push(place.clone());
            Ok(Some(place))
        };
        let (event_place, access_place) = (place(&events.target)?, place(&access.target)?);
        let look = |place: &Place, always: bool| Look { json: always, colour: place.colour() };
        let event_look = event_place.as_ref().map_or(Look::default(), |place| {
            look(place, events.format.is_json(place.terminal || place.sink.framing().is_datagrams()))
        });
        // Workers' lines are wrapped in JSON only when JSON was asked for: by default people read them.
        let json = events.format == EventFormat::Json;
        let workers = match (&events.target, &event_place) {
            (LogTarget::Stderr, _) => {
                self.streams.clone().map(|places| places.map(|place| (place.clone(), look(&place, json))))
            }
            (_, Some(place)) => Some([(place.clone(), look(place, json)), (place.clone(), look(place, json))]),
            (_, None) => None,
        };
        let framing = access_place.as_ref().map_or(Framing::Lines, |place| place.sink.framing().clone());
        let colour = access_place.as_ref().is_some_and(Place::colour);
        Ok(Routes {
            streams: self.streams.clone(),
            events: event_place,
            event_look,
            level: events.level,
            workers,
            access: access_place,
            access_look: Arc::new(access::Look::new(access, framing, colour)),
        })
    }

    /// All sinks, some of them more than once.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.streams.iter().flatten().chain(&self.events).chain(&self.access)
    }
}

/// This process's stdout and stderr: one sink if they are the same terminal, pipe or file, so that lines are never torn.
pub fn own_streams(log: &Weak<Inner>) -> io::Result<[Place; 2]> {
    let (out, err) = (io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?);
    let (out_terminal, err_terminal) = (out.is_terminal(), err.is_terminal());
    let (out, err) = (File::from(out), File::from(err));
    let same = is_same(&out, &err);
    let [mut stdout, mut stderr] = streams(log, (!same).then_some(Box::new(out)), Box::new(err))?;
    (stdout.terminal, stderr.terminal) = (out_terminal, err_terminal);
    Ok([stdout, stderr])
}

/// The same with writers of the caller's own; without a first one both are the second.
pub fn streams(
    log: &Weak<Inner>,
    stdout: Option<Box<dyn Write + Send>>,
    stderr: Box<dyn Write + Send>,
) -> io::Result<[Place; 2]> {
    let start = |target: LogTarget, writer| {
        let sink = start_sink(log, &target.to_string(), Output::Stream(writer), Framing::Lines)?;
        Ok::<Place, io::Error>(Place { target, sink, terminal: false })
    };
    let stderr = start(LogTarget::Stderr, stderr)?;
    let stdout = match stdout {
        Some(writer) => start(LogTarget::Stdout, writer)?,
        None => Place { target: LogTarget::Stdout, ..stderr.clone() },
    };
    Ok([stdout, stderr])
}

fn open(log: &Weak<Inner>, target: &LogTarget) -> io::Result<Option<Place>> {
    let (output, framing) = match target {
        LogTarget::Off | LogTarget::Stdout | LogTarget::Stderr => return Ok(None),
        LogTarget::File(path) => {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            (Output::file(path).map_err(named)?, Framing::Lines)
        }
        LogTarget::Syslog(address) => (Output::datagrams(address.clone()), Framing::syslog()),
        LogTarget::Journald(path) => (Output::datagrams(SyslogAddress::Unix(path.clone())), Framing::Journal),
    };
    // A path may be that of a terminal.
    let terminal = matches!(&output, Output::File(_, file) if file.is_terminal());
    let sink = start_sink(log, &target.to_string(), output, framing)?;
    Ok(Some(Place { target: target.clone(), sink, terminal }))
}

/// A sink whose troubles are told where the log's events go by then.
pub fn start_sink(log: &Weak<Inner>, name: &str, output: Output, framing: Framing) -> io::Result<Arc<Handle>> {
    let (told, dropped) = (log.clone(), log.upgrade().map(|log| Arc::clone(&log.dropped)).unwrap_or_default());
    let sink = Sink::start(name, output, framing, dropped, move |own, trouble| {
        if let Some(log) = told.upgrade() {
            log.tell(own, trouble);
        }
    })?;
    Ok(Arc::new(sink))
}

impl Inner {
    /// Says what a sink has met with: where events go, or, if that is the sink itself, on stderr.
    fn tell(&self, own: &Sink, trouble: Trouble) {
        let routes = self.routes();
        let events = routes.events.as_ref().filter(|place| !std::ptr::eq(&**place.sink, own));
        let stderr = routes.streams.as_ref().map(|[_, stderr]| stderr);
        let Some(place) = events.or(stderr).or(routes.events.as_ref()) else { return };
        let look = if events.is_some() {
            routes.event_look
        } else {
            Look { json: routes.event_look.json && !place.terminal, colour: place.colour() }
        };
        let sink = ("sink", &own.name() as &dyn std::fmt::Display);
        let put = |level, message: &str, fields: &[(&str, &dyn std::fmt::Display)]| {
            let line = event::event(place.sink.framing(), look, level, &message, fields);
            place.sink.push(Source::Server, &line, 1);
        };
        match trouble {
            Trouble::Dropped(whose, lines) => {
                let mut fields = vec![sink, ("lines", &lines as &dyn std::fmt::Display)];
                fields.extend(whose.as_ref().map(|label| ("worker", label as &dyn std::fmt::Display)));
                put(Level::Warn, "log lines were dropped", &fields);
            }
            Trouble::Failed(error) => put(Level::Error, "cannot write the log", &[sink, ("error", &error)]),
            Trouble::Closed => put(Level::Warn, "the log's reader is gone, its lines are dropped", &[sink]),
            Trouble::NotReopened(error) => {
                put(Level::Error, "cannot reopen the log, the old file stays in use", &[sink, ("error", &error)]);
            }
        }
    }
}

impl EventFormat {
    /// `readers`: whether people, or programs that want plain text, read there.
    fn is_json(self, readers: bool) -> bool {
        match self {
            EventFormat::Auto => !readers,
            EventFormat::Human => false,
            EventFormat::Json => true,
        }
    }
}

/// Whether colours are welcome on a terminal: <https://no-color.org>, and terminals that say that they have none.
fn colours_wanted() -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_colour && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Whether two descriptors are the same terminal, pipe or file.
fn is_same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
