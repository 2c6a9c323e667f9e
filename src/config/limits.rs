//! Limits as people say them: `[limits.NAME]` and what flags say of all clients. What they do is in [`crate::limits`].

use std::time::Duration;

use super::keys::{Key, key};
use super::units::{count, duration, rate, switch};
use crate::limits::{BY_ADDRESS, By, Policy, Rate};

/// The limit that `--rate-limit` makes.
pub const OF_FLAG: &str = "rate-limit";
/// The longest time until a whole allowance has come back: beyond it a limit is a ban, and most likely a mistake.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// The longest time in a rate.
const DAY: Duration = Duration::from_secs(86_400);
/// The most that may come at once.
const MOST: u64 = 1_000_000;

/// The keys that say something of all clients.
pub const KEYS: &[Key] = &[
    key("rate-limit", "N/TIME", "", RATE_HELP, |settings, text| {
        let policy = Policy { everywhere: true, ..Policy::new(OF_FLAG, frequency(text)?) };
        whole(&policy)?;
        settings.limits.retain(|limit| limit.name != OF_FLAG);
        settings.limits.push(policy);
        Ok(())
    })
    .example("300/m"),
    key("connections-per-ip", "N", "", CONNECTIONS_HELP, |settings, text| {
        settings.bounds.connections_per_ip = Some(count(text, 1..=MOST)? as u32);
        Ok(())
    })
    .example("100"),
    key(
        "allow",
        "WHOM",
        "",
        "Whose requests are taken, of all others none: networks, addresses, loopback, unix",
        |settings, text| settings.listening.front.allow.add(text),
    )
    .many()
    .example("10.0.0.0/8"),
    key("deny", "WHOM", "", "Whose requests are refused with 403; it goes before --allow", |settings, text| {
        settings.listening.front.deny.add(text)
    })
    .many()
    .example("192.0.2.0/24"),
];

const RATE_HELP: &str = "Requests that each client address may send, as in 300/m; so many may come at once, and what is beyond is \
    answered with 429. [limits.NAME] in the file says more";

const CONNECTIONS_HELP: &str =
    "Connections that each client address may have open, of IPv6 each /64; further ones are closed at once";

/// What is said of one limit.
#[derive(Clone, Debug)]
pub struct Draft {
    rate: Option<Rate>,
    burst: Option<u64>,
    delay: Duration,
    by: Option<By>,
    prefix: (u8, u8),
    status: u16,
    dry_run: bool,
    everywhere: bool,
    headers: bool,
}

impl Default for Draft {
    fn default() -> Draft {
        Draft {
            rate: None,
            burst: None,
            delay: Duration::ZERO,
            by: None,
            prefix: (32, 64),
            status: 429,
            dry_run: false,
            everywhere: false,
            headers: false,
        }
    }
}

impl Draft {
    pub(super) fn rate(&mut self, text: &str) -> Result<(), String> {
        frequency(text).map(|rate| self.rate = Some(rate))
    }

    pub(super) fn burst(&mut self, text: &str) -> Result<(), String> {
        count(text, 1..=MOST).map(|burst| self.burst = Some(burst))
    }

    pub(super) fn delay(&mut self, text: &str) -> Result<(), String> {
        duration(text, Duration::ZERO..=Duration::from_secs(60)).map(|delay| self.delay = delay)
    }

    pub(super) fn by(&mut self, text: &str) -> Result<(), String> {
        let by = whom(text).or((text == "all").then_some(By::All));
        self.by = Some(by.ok_or("expected client_ip, field:NAME, user or all")?);
        Ok(())
    }

    /// The bits of an address of each kind that count: `32/64`.
    pub(super) fn prefix(&mut self, text: &str) -> Result<(), String> {
        let bits = text.split_once('/').and_then(|(v4, v6)| Some((bits(v4, 32)?, bits(v6, 128)?)));
        self.prefix =
            bits.ok_or("expected bits of IPv4 and IPv6 addresses, from 1 to 32 and from 1 to 128, as in 32/64")?;
        Ok(())
    }

    pub(super) fn status(&mut self, text: &str) -> Result<(), String> {
        count(text, 400..=599).map(|status| self.status = status as u16)
    }

    pub(super) fn dry_run(&mut self, text: &str) -> Result<(), String> {
        switch(text).map(|on| self.dry_run = on)
    }

    pub(super) fn everywhere(&mut self, text: &str) -> Result<(), String> {
        switch(text).map(|on| self.everywhere = on)
    }

    pub(super) fn headers(&mut self, text: &str) -> Result<(), String> {
        switch(text).map(|on| self.headers = on)
    }

    /// The limit that is said, or what is wrong with it as a whole.
    pub(super) fn policy(&self, name: &str) -> Result<Policy, String> {
        let rate = self.rate.ok_or("expected `rate` in it, as in rate = \"300/m\"")?;
        let by = match self.by.clone() {
            None | Some(By::Address { .. }) => By::Address { v4: self.prefix.0, v6: self.prefix.1 },
            Some(by) => by,
        };
        let Draft { delay, status, dry_run, everywhere, headers, .. } = *self;
        let burst = self.burst.unwrap_or(rate.count);
        let policy = Policy { name: name.to_owned(), rate, burst, delay, by, status, dry_run, everywhere, headers };
        whole(&policy)?;
        Ok(policy)
    }
}

/// What clients are told apart by.
pub(super) fn whom(text: &str) -> Option<By> {
    match text.split_once(':') {
        Some(("field", name)) if super::route::is_token(name) => Some(By::Field(name.to_owned())),
        None if text == "client_ip" => Some(BY_ADDRESS),
        None if text == "user" => Some(By::User),
        _ => None,
    }
}

fn bits(text: &str, most: u64) -> Option<u8> {
    count(text, 1..=most).ok().map(|bits| bits as u8)
}

/// `300/m`, `5/s`, `1000/h`, `10/10s`: so many in a time.
fn frequency(text: &str) -> Result<Rate, String> {
    let expected = "expected requests and a time from 1s to 24h, as in 300/m or 5/10s";
    let text = match text.split_once('/') {
        Some((count, unit @ ("s" | "m" | "h"))) => format!("{count}/1{unit}"),
        Some((count, "d")) => format!("{count}/24h"),
        _ => text.to_owned(),
    };
    let range = Duration::from_secs(1)..=DAY;
    let (count, per) =
        rate(&text, 1..=MOST, range).map_err(|_| format!("{expected}; at least 1 and at most {MOST}"))?;
    Ok(Rate { count, per })
}

/// Whether a limit makes sense as a whole.
fn whole(policy: &Policy) -> Result<(), String> {
    if policy.tolerance() > LONGEST.as_nanos() as u64 {
        return Err("expected a rate and a burst such that what was used has come back within seven days".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, count, seconds) in
            [("300/m", 300, 60), ("5/s", 5, 1), ("1_000/h", 1000, 3600), ("10/d", 10, 86_400), ("7/10s", 7, 10)]
        {
            assert_eq!(frequency(text), Ok(Rate { count, per: Duration::from_secs(seconds) }), "{text}");
        }
        for text in ["", "300", "0/m", "-1/m", "300/", "300/x", "1/500ms", "1/25h", "1000001/s", "1.5/s", "/m"] {
            assert!(frequency(text).unwrap_err().starts_with("expected"), "{text}");
        }
    }

    #[test]
    fn a_limit_is_whole_or_says_what_it_lacks() {
        let mut draft = Draft::default();
        assert!(draft.policy("a").unwrap_err().contains("`rate`"));
        draft.rate("10/m").unwrap();
        assert_eq!(draft.policy("a"), Ok(Policy::new("a", Rate { count: 10, per: Duration::from_secs(60) })));
        draft.prefix("24/48").unwrap();
        assert_eq!(draft.policy("a").unwrap().by, By::Address { v4: 24, v6: 48 });
        draft.by("field:X-Tenant").unwrap();
        assert_eq!(draft.policy("a").unwrap().by, By::Field("X-Tenant".to_owned()));
        for text in ["", "field:", "field:a b", "header", "ip"] {
            assert!(draft.by(text).is_err(), "{text}");
        }
        for text in ["", "0/64", "33/64", "32/129", "32"] {
            assert!(draft.prefix(text).is_err(), "{text}");
        }
        draft.rate("1/d").unwrap();
        draft.burst("8").unwrap();
        assert!(draft.policy("a").unwrap_err().contains("seven days"));
    }
}
