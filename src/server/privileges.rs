//! Whom the server becomes once its listeners are bound (`--user`, `--group`): it, and all that it starts, for good.
//!
//! Everything else is opened afterwards, so that what can be opened at the start can be opened again at a reload, at an upgrade and when
//! logs are rotated. To be called while there is one thread.

use std::ffi::{CString, OsString};
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, setgid, setuid};

use super::{StartError, exit};
use crate::config::Settings;

/// Becomes whoever is configured. Nothing happens for one who is that user already, as a successor is.
///
/// # Errors
/// With 78, when there is no such user or group; with 77, when this user may not become another.
pub(super) fn give_up(settings: &Settings) -> Result<(), StartError> {
    let Some(other) = Other::of(settings)? else { return Ok(()) };
    if settings.acme.is_wanted() {
        give_state(&settings.acme.directory, other.user, other.group);
    }
    other.become_it(settings)
}

/// The same, without anything being made.
///
/// # Errors
/// As [`give_up`].
pub(super) fn become_user(settings: &Settings) -> Result<(), StartError> {
    Other::of(settings)?.map_or(Ok(()), |other| other.become_it(settings))
}

/// What the workers of the configured user find in their environment of their own, as after a login; nothing where none is configured, or
/// one without an entry in passwd(5). Where this server has taken over from another it is that user already, with the variables of
/// whoever started the first one.
pub(super) fn variables(settings: &Settings) -> Vec<(&'static str, OsString)> {
    let entry = settings.process.user.as_deref().and_then(|name| find_user(name).ok()?.1);
    let Some(User { name, dir, .. }) = entry else { return Vec::new() };
    vec![("HOME", dir.into()), ("USER", name.clone().into()), ("LOGNAME", name.into())]
}

/// Somebody else than this process is.
struct Other {
    /// `None`: the user stays.
    user: Option<Uid>,
    name: Option<CString>,
    group: Gid,
}

impl Other {
    /// Who is configured, unless it is who this process is.
    fn of(settings: &Settings) -> Result<Option<Other>, StartError> {
        let user = settings.process.user.as_deref().map(find_user).transpose()?;
        let group = settings.process.group.as_deref().map(find_group).transpose()?;
        let (user, named) = user.map_or((None, None), |(number, named)| (Some(number), named));
        let wanted = group.or(named.as_ref().map(|named| named.gid));
        let is_other = wanted.is_some_and(|group| group != getegid()) || user.is_some_and(|number| number != geteuid());
        let name = named.and_then(|named| CString::new(named.name).ok());
        Ok(is_other.then(|| Other { user, name, group: wanted.unwrap_or_else(getegid) }))
    }

    fn become_it(self, settings: &Settings) -> Result<(), StartError> {
        // The further groups go with the user that had them.
        let further = if self.user.is_some() { take_groups(self.name, self.group) } else { Ok(()) };
        let become_it = further.and_then(|()| setgid(self.group)).and_then(|()| self.user.map_or(Ok(()), setuid));
        become_it.map_err(|error| StartError {
            message: format!("cannot run as {}: {error}; only root may", described(settings)),
            code: exit::PERMISSION,
        })?;
        stay_readable();
        Ok(())
    }
}

/// Makes the directory of accounts and certificates, which it will have to write to, where there is none. Where that fails, it is said by
/// whoever needs it.
fn give_state(directory: &Path, user: Option<Uid>, group: Gid) {
    let made = DirBuilder::new().mode(0o755).recursive(true).create(directory.parent().unwrap_or(directory));
    if made.and_then(|()| DirBuilder::new().mode(0o700).create(directory)).is_ok() {
        chown(directory, user.map(Uid::as_raw), Some(group.as_raw())).ok();
    }
}

/// The groups of that user beside `group`; of one without a name, none. By the C library itself: the wrappers are not there for macOS.
fn take_groups(name: Option<CString>, group: Gid) -> nix::Result<()> {
    let group = group.as_raw();
    let outcome = match name {
        // SAFETY: the name ends with a zero byte and is only read.
        Some(name) => unsafe { libc::initgroups(name.as_ptr(), group as _) },
        // SAFETY: one number is read, where it lies.
        None => unsafe { libc::setgroups(1, &group) },
    };
    Errno::result(outcome).map(drop)
}

/// Who they are, for people.
fn described(settings: &Settings) -> String {
    let part = |kind: &str, name: &Option<String>| name.as_ref().map(|name| format!("{kind} {name}"));
    let parts = [part("user", &settings.process.user), part("group", &settings.process.group)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn find_user(name: &str) -> Result<(Uid, Option<User>), StartError> {
    let by_number = name.parse().ok().map(Uid::from_raw);
    let found = match by_number {
        Some(number) => User::from_uid(number),
        None => User::from_name(name),
    };
    match (by_number, found) {
        (_, Ok(Some(user))) => Ok((user.uid, Some(user))),
        // A number needs no name.
        (Some(number), _) => Ok((number, None)),
        (None, _) => Err(StartError {
            message: format!("--user {name:?}: there is no such user on this machine"),
            code: exit::CONFIG,
        }),
    }
}

fn find_group(name: &str) -> Result<Gid, StartError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(StartError {
            message: format!("--group {name:?}: there is no such group on this machine"),
            code: exit::CONFIG,
        }),
    }
}

/// The kernel closes /proc/PID of a process that was another user's (prctl(2), PR_SET_DUMPABLE) to the user that it is now: who may
/// send it signals may see it, too.
fn stay_readable() {
    #[cfg(target_os = "linux")]
    // SAFETY: plain numbers.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 1 as libc::c_ulong, 0, 0, 0)
    };
}
