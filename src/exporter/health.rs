//! The checks behind `/livez`, `/readyz` and `/health_check`, and how they are told.

use super::Sample;
use crate::control::status::State;

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, as in `loop 0` or `app web`.
    pub name: String,
    /// What is wrong; `None`: nothing.
    pub fault: Option<&'static str>,
    /// Whether all is well only if this is.
    pub counts: bool,
}

/// Whether the loops turn: which of them have answered a beat.
pub fn live(turning: &[bool]) -> Vec<Check> {
    let fault = |turns: bool| (!turns).then_some("it has not turned within a second");
    let check =
        |(index, turns): (usize, &bool)| Check { name: format!("loop {index}"), fault: fault(*turns), counts: true };
    turning.iter().enumerate().map(check).collect()
}

/// Whether the server is to get requests. `leaving`: it has been asked to stop, and may still listen.
pub fn ready(sample: &Sample<'_>, leaving: bool) -> Vec<Check> {
    let status = sample.status;
    let stops = leaving || matches!(status.server.state, State::Draining | State::Stopping);
    let mut checks =
        vec![Check { name: "listeners".to_owned(), fault: stops.then_some("the server stops"), counts: true }];
    // What is removed and still ends is not to get any.
    for app in status.apps.iter().filter(|app| stops || app.state != State::Stopping) {
        let fault = match app.state {
            State::Failed => Some("it has failed"),
            _ if app.workers_ready == 0 && app.workers_wanted > 0 => Some("no worker is ready"),
            State::Starting => Some("no worker was ready yet"),
            _ => None,
        };
        checks.push(Check { name: format!("app {}", app.name), fault, counts: app.needed });
    }
    checks
}

/// The status and the text: `ok` or what is wrong, or with `verbose` a line for each check.
pub fn tell(checks: &[Check], verbose: bool) -> (u16, String) {
    let failed = checks.iter().any(|check| check.counts && check.fault.is_some());
    let mut text = String::new();
    for check in checks {
        match &check.fault {
            Some(fault) if check.counts => text.push_str(&format!("[-] {}: {fault}\n", check.name)),
            Some(fault) if verbose => text.push_str(&format!("[~] {}: {fault}, which does not count\n", check.name)),
            None if verbose => text.push_str(&format!("[+] {}: ok\n", check.name)),
            _ => {}
        }
    }
    match failed {
        true => text.push_str("failed\n"),
        false => text.push_str("ok\n"),
    }
    (if failed { 503 } else { 200 }, text)
}
