//! What may stand in front of the server, and how far it is believed: proxies that the user trusts, and load balancers that begin each
//! connection with a PROXY protocol header.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::Tls;

/// A set of peers: networks, and whoever comes over a Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    networks: Vec<IpNet>,
    unix: bool,
}

impl Peers {
    /// Adds one or, with commas between them, several: `10.0.0.0/8`, `192.0.2.1`, `unix`, `loopback`.
    ///
    /// # Errors
    /// What would have been right. Nothing is added then.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let mut more = self.clone();
        for word in text.split(',').map(str::trim) {
            match word {
                "unix" => more.unix = true,
                "loopback" => more.networks.extend(LOOPBACK.into_iter().filter_map(network)),
                _ => more.networks.push(network(word).ok_or(EXPECTED)?),
            }
        }
        *self = more;
        Ok(())
    }

    /// Whether nobody is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Whether a peer is in it; `None` is one on a Unix socket.
    pub fn contains(&self, peer: Option<IpAddr>) -> bool {
        match peer.map(|address| address.to_canonical()) {
            Some(address) => self.networks.iter().any(|network| network.contains(&address)),
            None => self.unix,
        }
    }
}

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
const EXPECTED: &str = "expected addresses and networks such as 10.0.0.0/8, unix or loopback";

/// A network, or an address as one of its own. Those of IPv4 that are written as IPv6 are of IPv4, as peers' addresses are.
fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(mapped), IpAddr::V4(address)) => {
            let length = mapped.prefix_len().checked_sub(96)?;
            IpNet::new(IpAddr::V4(address), length).ok()
        }
        _ => Some(network.trunc()),
    }
}

/// What stands in front of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// Whose X-Forwarded-* and the like are believed.
    pub trusted: Peers,
    /// Whether workers are told `Forwarded` (RFC 7239), too.
    pub writes_forwarded: bool,
    /// Who may connect, and has to begin with a PROXY protocol header; if it is nobody, all may and no header is expected.
    pub proxies: Peers,
    /// How long that header may take to come.
    pub header_timeout: Duration,
    /// What is spoken there.
    pub tls: Tls,
    /// Whose requests are taken; if it is nobody, all are.
    pub allow: Peers,
    /// Whose requests are refused.
    pub deny: Peers,
}

impl Front {
    /// Whether a listener that has this in front of it may have the other instead without being opened anew; `unix`: on a Unix socket.
    pub fn may_become(&self, other: &Front, unix: bool) -> bool {
        let speaks = |front: &Front| (front.tls.is_spoken(unix), front.tls.redirect_https);
        speaks(self) == speaks(other) && *self == Front { tls: self.tls.clone(), ..other.clone() }.letting_in_as(self)
    }

    /// The same, but for whose requests are taken: those that the other takes.
    pub fn letting_in_as(self, other: &Front) -> Front {
        Front { allow: other.allow.clone(), deny: other.deny.clone(), ..self }
    }

    /// Whose requests are taken, and whose are refused.
    pub fn lets_in(&self) -> (&Peers, &Peers) {
        (&self.allow, &self.deny)
    }
}

impl Default for Front {
    /// Nothing stands there.
    fn default() -> Front {
        Front {
            trusted: Peers::default(),
            writes_forwarded: false,
            proxies: Peers::default(),
            header_timeout: Duration::from_secs(5),
            tls: Tls::default(),
            allow: Peers::default(),
            deny: Peers::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(text: &str) -> Peers {
        let mut peers = Peers::default();
        peers.add(text).unwrap();
        peers
    }

    #[test]
    fn peers_are_networks_addresses_and_unix_sockets() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/8", "10.0.0.1", "11.0.0.1"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("loopback", "127.8.0.1", "128.0.0.1"),
            ("loopback", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
            ("::ffff:10.0.0.0/104", "10.0.0.1", "11.0.0.1"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            (" 10.0.0.0/8 , 192.168.0.0/16", "192.168.1.1", "172.16.0.1"),
        ] {
            let peers = peers(text);
            assert!(peers.contains(Some(inside.parse().unwrap())), "{inside} in {text}");
            assert!(!peers.contains(Some(outside.parse().unwrap())), "{outside} in {text}");
            assert!(!peers.contains(None) && !peers.is_empty());
        }
        assert!(peers("unix").contains(None) && !peers("unix").contains(Some("127.0.0.1".parse().unwrap())));
        assert!(!Peers::default().contains(None) && Peers::default().is_empty());
    }

    #[test]
    fn what_is_no_peer_is_refused() {
        for text in
            ["", "10.0.0.0/33", "10.0.0", "localhost", "Unix", "unix:/run/x", "10.0.0.0/8,", "::ffff:1.2.3.4/90"]
        {
            let mut peers = peers("unix");
            assert!(peers.add(text).unwrap_err().starts_with("expected"), "{text}");
            assert_eq!(peers, self::peers("unix"), "{text}");
        }
    }
}
