//! TLS: the one room of the TLS library. Sans-IO: bytes in, bytes out, and no descriptor.
//!
//! A [`Session`] is one client's connection in three calls: [`Session::open`] takes records apart, [`Session::seal`] makes records of plain
//! bytes, [`Session::close`] says that nothing more will come. Who holds it decides where bytes lie and when they leave
//! (`event_loop/secure.rs`).
//!
//! | file | what |
//! |---|---|
//! | `mod` | sessions |
//! | `policy` | what a listener demands and shows, and how that is replaced while it serves |
//! | `certificates` | certificates and keys from files, what they are for, and which of them a client is shown |
//! | `tickets` | what clients come back with |
//! | `self_signed` | a certificate that is made here |
//! | `authority` | answers to a certificate authority's challenges, and the certificates that it has issued |
//! | `stand_in` | what the simulation has in the place of the cipher |
//! | `client` | a session in which this server is the client, with a server that it shares |
//! | `der` | the few fields of a certificate that people want to read |
//!
//! Rules:
//! - A session goes through one policy's configuration to its end; what replaces it holds for the next ones.
//! - Nothing of what a client sends is kept here but what the library keeps of a handshake.

mod authority;
mod certificates;
pub mod client;
mod der;
mod policy;
mod self_signed;
pub mod stand_in;
mod tickets;

pub use authority::{
    EXTENSION, Issued, answer_http, answer_tls, base, earlier_bases, http_answer, is_challenged, issued, short_hash,
    withdraw,
};
pub(crate) use certificates::now;
pub use certificates::{Certificates, Shown, authorities, day};
pub use der::seconds;
pub(crate) use policy::provider;
pub use policy::{Failure, Policies, Policy, Prepared, Renewed, prepare, seed};
pub use self_signed::{HandedOver, SelfSigned, adopt_self_signed, hand_over_self_signed, self_signed};
pub use tickets::{TicketKey, adopt_ticket_keys, ticket_keys};

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{AlertDescription, Error, HandshakeKind, PeerIncompatible, ProtocolVersion};

/// Plain bytes of a record, at most (RFC 8446, 5.1).
pub const RECORD_BYTES: usize = 16 * 1024;
/// What a record has besides, at most, in what is negotiated here, with room for a key update or an alert before it.
pub const OVERHEAD_BYTES: usize = 512;
/// The first byte of whatever a TLS client begins with: the type of a record of a handshake (RFC 8446, 5.1).
pub const HANDSHAKE: u8 = 22;

/// A ClientHello has so many bytes at most. One with keys that quantum computers do not break has 2,000, and BoringSSL takes none of more than 16 KiB.
pub const HELLO_BYTES: usize = 17 * 1024;
/// Of a first record: its head, and of its message the kind, the length and the version that the client claims to be of.
type Beginning = [u8; 11];
const CLIENT_HELLO: u8 = 1;
/// The alert for what comes where it should not (RFC 8446, 6.2).
const UNEXPECTED_MESSAGE: u8 = 10;
/// The alert for a version that is not spoken (RFC 8446, 6.2).
const PROTOCOL_VERSION: u8 = 70;
/// The alert for what cannot be read, or is too long (RFC 8446, 6.2).
const DECODE_ERROR: u8 = 50;

/// One client's connection.
pub struct Session {
    library: UnbufferedServerConnection,
    asks_for_certificates: bool,
    /// Its beginning was looked at.
    begun: bool,
    /// It claims to be of TLS 1.0 or 1.1, which is not asked of one that says its versions besides (RFC 8446, 4.2.1).
    claims_to_be_old: bool,
    #[cfg(debug_assertions)]
    stand_in: Option<stand_in::StandIn>,
}

/// What opening records has come to.
pub struct Opened {
    /// Bytes of the input that are used up. The rest is the beginning of what is still to come, and goes before it.
    pub used: usize,
    /// The peer has said that it has finished sending.
    pub ended: bool,
    /// Nothing can go on. What was to be said about it is among the bytes to be sent.
    pub failure: Option<Reason>,
}

/// Why a session has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No certificate has the name that the client asks for.
    UnknownName,
    /// No protocol that both speak inside (ALPN), no version, or no cipher.
    NothingInCommon,
    /// The client's certificate is missing or not accepted.
    ClientCertificate,
    /// The client has said that it will not go on, as it does when it does not trust the certificate.
    Refused,
    /// What came is no TLS, or breaks its rules.
    Malformed,
}

impl Session {
    /// A session that follows a policy as it is now.
    ///
    /// # Errors
    /// When the library has no randomness.
    pub fn new(policy: &Policy) -> Result<Session, Error> {
        Ok(Session {
            library: UnbufferedServerConnection::new(policy.config())?,
            asks_for_certificates: policy.asks_for_certificates(),
            begun: false,
            claims_to_be_old: false,
            #[cfg(debug_assertions)]
            stand_in: policy.is_stand_in.then(Default::default),
        })
    }

    /// Takes the records in `input` apart, in place: what was inside goes to `plain`, what is to be sent at once to `reply`. `input`
    /// begins with what was left the last time, as it was left.
    pub fn open(&mut self, input: &mut [u8], plain: &mut Vec<u8>, reply: &mut Vec<u8>) -> Opened {
        #[cfg(debug_assertions)]
        if let Some(stand_in) = &mut self.stand_in {
            return stand_in.open(input, plain, reply);
        }
        let mut opened = Opened { used: 0, ended: false, failure: None };
        let (mut alert, mut better, mut before) = (None, None, 0);
        if !self.begun
            && let Some(beginning) = input.first_chunk()
        {
            self.begun = true;
            self.claims_to_be_old = claims_to_be_old(beginning);
            if let Some((alert, reason)) = refusal(beginning) {
                reply.extend(fatal(alert));
                return Opened { failure: Some(reason), ..opened };
            }
        }
        loop {
            let UnbufferedStatus { discard, state } = self.library.process_tls_records(&mut input[opened.used..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(reply, |room| data.encode(room)),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => opened.ended = true,
                Err(error) => {
                    opened.failure = Some(Reason::of(&error));
                    (alert, better, before) = (self.unsaid(&error), self.better_alert(&error), reply.len());
                }
                // Early data is not offered.
                Ok(_) => done = true,
            }
            opened.used += discard;
            // After an error what it leaves to be said is fetched, and no record is looked at again.
            if done || (opened.failure.is_some() && !self.library.wants_write()) {
                if let Some(alert) = alert
                    && reply.len() == before
                {
                    reply.extend(fatal(alert));
                }
                if let (Some(better), Some([21, 3, _, 0, 2, 2, said])) = (better, reply.last_chunk_mut::<7>()) {
                    *said = better;
                }
                return opened;
            }
        }
    }

    /// The alert for an error of which the library may say nothing (RFC 8446, 6.2), as long as it needs no encryption: 40, handshake_failure, where
    /// the key signs nothing that the client takes; 10, unexpected_message, for what comes where it should not; 50, decode_error, for a message that is too
    /// long.
    fn unsaid(&self, error: &Error) -> Option<u8> {
        match error {
            _ if !self.is_plain() => None,
            Error::General(_) => Some(40),
            Error::PeerMisbehaved(_) => Some(UNEXPECTED_MESSAGE),
            Error::InvalidMessage(_) => Some(DECODE_ERROR),
            _ => None,
        }
    }

    /// The alert for an error of which the library says another: `unrecognized_name` (RFC 6066, 3) where no certificate is found, for which it says
    /// `access_denied`, `missing_extension` (RFC 8446, 9.2) for `handshake_failure`, and `protocol_version` for that where an old client lacks what its
    /// version has not had. Before there is a certificate nothing is encrypted, and the alert is the last record.
    fn better_alert(&self, error: &Error) -> Option<u8> {
        match error {
            Error::PeerIncompatible(PeerIncompatible::KeyShareExtensionRequired) => Some(109),
            Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired)
                if self.claims_to_be_old =>
            {
                Some(PROTOCOL_VERSION)
            }
            _ if Reason::of(error) == Reason::UnknownName => Some(112),
            _ => None,
        }
    }

    /// Whether an alert needs no encryption.
    fn is_plain(&self) -> bool {
        self.library.is_handshaking()
            && self.library.protocol_version() != Some(ProtocolVersion::TLSv1_3)
            && self.library.handshake_kind() != Some(HandshakeKind::Resumed)
    }

    /// Says of a message that is longer than is taken here what the library says of one that is longer than it takes.
    pub fn say_too_long(&self, reply: &mut Vec<u8>) -> Reason {
        if self.is_plain() {
            reply.extend(fatal(DECODE_ERROR));
        }
        Reason::Malformed
    }

    /// Whether the client was asked for its certificates, and has not shown them.
    pub fn awaits_certificates(&self) -> bool {
        self.asks_for_certificates && self.library.is_handshaking() && self.library.protocol_version().is_some()
    }

    /// Makes records of `plain` in `room`, which has [`OVERHEAD_BYTES`] more for each of [`RECORD_BYTES`]; how many bytes they have.
    /// `left` is what [`Session::open`] has left.
    ///
    /// # Errors
    /// When this session cannot send any more.
    pub fn seal(&mut self, left: &mut [u8], plain: &[u8], room: &mut [u8]) -> Result<usize, Error> {
        #[cfg(debug_assertions)]
        if let Some(stand_in) = &mut self.stand_in {
            return Ok(stand_in.seal(plain, room));
        }
        self.write(left, room, |traffic, room| traffic.encrypt(plain, room).map_err(|_| Error::EncryptError))
    }

    /// Writes into `room` that nothing more will be sent, once; how many bytes that has.
    pub fn close(&mut self, left: &mut [u8], room: &mut [u8]) -> usize {
        #[cfg(debug_assertions)]
        if let Some(stand_in) = &mut self.stand_in {
            return stand_in.close(room);
        }
        let closed =
            self.write(left, room, |traffic, room| traffic.queue_close_notify(room).map_err(|_| Error::EncryptError));
        // A session that cannot send has nothing to say.
        closed.unwrap_or(0)
    }

    fn write(
        &mut self,
        left: &mut [u8],
        room: &mut [u8],
        write: impl Fn(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, Error>,
    ) -> Result<usize, Error> {
        let mut used = 0;
        loop {
            match self.library.process_tls_records(left).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return write(&mut traffic, &mut room[used..]).map(|written| used + written);
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    used += data.encode(&mut room[used..]).map_err(|_| Error::EncryptError)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => {}
                _ => return Err(Error::HandshakeNotComplete),
            }
        }
    }

    /// Whether both sides have all that they need.
    pub fn is_ready(&self) -> bool {
        #[cfg(debug_assertions)]
        if let Some(stand_in) = &self.stand_in {
            return stand_in.ready;
        }
        !self.library.is_handshaking()
    }

    /// Who the client is, by a certificate of its own that was accepted, as an element of `X-Forwarded-Client-Cert` says it: the certificate's
    /// SHA-256 and its subject.
    pub fn client(&self) -> Option<String> {
        let certificate = self.library.peer_certificates()?.first()?;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let hash = der::hex(hash.as_ref());
        let subject = der::facts(certificate).unwrap_or_default().subject;
        let subject = subject.replace('\\', "\\\\").replace('"', "\\\"");
        Some(format!("Hash={hash};Subject=\"{subject}\""))
    }

    /// Whether it was about a challenge's answer and nothing else.
    pub fn is_challenge(&self) -> bool {
        self.library.alpn_protocol() == Some(authority::PROTOCOL)
    }

    /// Whether it goes on where an earlier one has ended, without the costs of a whole handshake.
    pub fn is_resumed(&self) -> bool {
        self.library.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// Why a client is turned away by the first bytes that it has sent, and with which alert: the library takes longer messages, and clients that claim to be
/// of SSL 3 or older (RFC 8446, D.5), and looks into a message before it says that it expects another.
fn refusal(beginning: &Beginning) -> Option<(u8, Reason)> {
    let [HANDSHAKE, _, _, record @ .., kind, first, second, third, major, minor] = *beginning else {
        return None;
    };
    let is_fragment = usize::from(u16::from_be_bytes(record)) < beginning.len() - 5;
    let length = u32::from_be_bytes([0, first, second, third]);
    match (major, minor) {
        _ if is_fragment => None,
        _ if kind != CLIENT_HELLO => Some((UNEXPECTED_MESSAGE, Reason::Malformed)),
        _ if length as usize > HELLO_BYTES => Some((DECODE_ERROR, Reason::Malformed)),
        version if version <= (3, 0) => Some((PROTOCOL_VERSION, Reason::NothingInCommon)),
        _ => None,
    }
}

/// Whether that is how a client begins which knows nothing newer than TLS 1.1, or says so.
fn claims_to_be_old(beginning: &Beginning) -> bool {
    matches!(beginning, [.., 3, 1 | 2])
}

/// What a client is told whose version is not spoken.
pub const NOT_THIS_VERSION: [u8; 7] = fatal(PROTOCOL_VERSION);

/// Whether that is how SSL 2 begins, which is not spoken (RFC 8446, D.5): a record of two bytes' length, and a ClientHello.
pub fn is_hello_of_ssl_2(input: &[u8]) -> bool {
    matches!(input, [128..=255, _, CLIENT_HELLO, ..])
}

/// A record of a fatal alert, in the clear.
const fn fatal(alert: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, alert]
}

/// Has something written behind what is in `out`, with as much room as it asks for.
fn encode(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, rustls::unbuffered::EncodeError>) {
    let before = out.len();
    if let Err(rustls::unbuffered::EncodeError::InsufficientSize(size)) = write(&mut []) {
        out.resize(before + size.required_size, 0);
        let written = write(&mut out[before..]).unwrap_or(0);
        out.truncate(before + written);
    }
}

impl Reason {
    fn of(error: &Error) -> Reason {
        match error {
            Error::AlertReceived(AlertDescription::NoRenegotiation) => Reason::Malformed,
            Error::AlertReceived(_) => Reason::Refused,
            Error::NoApplicationProtocol | Error::PeerIncompatible(_) => Reason::NothingInCommon,
            Error::NoCertificatesPresented | Error::InvalidCertificate(_) => Reason::ClientCertificate,
            Error::General(text) if text.contains("server certificate") => Reason::UnknownName,
            Error::General(text) if text.contains("signing key") => Reason::NothingInCommon,
            _ => Reason::Malformed,
        }
    }
}
