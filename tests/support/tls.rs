//! TLS around tests that know nothing of it: a relay that speaks plainly with a test's client, and TLS with the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use socket2::SockRef;

/// What a server's backend is called in tests that reach it through TLS.
pub const SUFFIX: &str = "+tls";

/// A certificate for tests, and its key.
pub struct Pair {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Pair {
    /// For these names, signed by itself.
    pub fn of(names: &[&str]) -> Pair {
        Pair::made(names, |_| ())
    }

    /// One that held in those years alone, the last one excluded.
    pub fn of_years(names: &[&str], from: i32, until: i32) -> Pair {
        let year = |year| rcgen::date_time_ymd(year, 1, 1);
        Pair::made(names, |params| (params.not_before, params.not_after) = (year(from), year(until)))
    }

    /// One of which something is other.
    pub fn made(names: &[&str], change: impl FnOnce(&mut rcgen::CertificateParams)) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        Pair { certificate: made.der().clone(), certificate_pem: made.pem(), key_pem: key.serialize_pem() }
    }

    /// Written into a folder, as `NAME.pem` and `NAME.key`.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate_pem).unwrap();
        std::fs::write(&key, &self.key_pem).unwrap();
        (certificate, key)
    }

    /// What a client takes that trusts it, and nobody else.
    pub fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    }
}

/// That of all relays.
pub fn localhost() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| Pair::of(&["localhost"]))
}

/// Bytes that a relay lets the kernel keep on each side of it.
const ROOM: usize = 256 * 1024;

/// Where plain connections are taken, each of which becomes one with TLS to the server.
pub struct Relay {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub fn to(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (ends, config) = (over.clone(), Arc::new(localhost().client()));
        let thread = std::thread::spawn(move || {
            let mut ways = Vec::new();
            for client in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                // Who takes nothing takes little here, too, and not what the kernel would have room for.
                SockRef::from(&server).set_recv_buffer_size(ROOM).unwrap();
                SockRef::from(&client).set_send_buffer_size(ROOM).unwrap();
                let session =
                    ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap();
                ways.push(std::thread::spawn(move || Way { client, server, session, to_client: Vec::new() }.run()));
            }
            ways.into_iter().for_each(|way| way.join().unwrap());
        });
        Relay { address, over, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it; the server is gone, and so are its connections.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection's way.
struct Way {
    client: TcpStream,
    server: TcpStream,
    session: ClientConnection,
    /// Taken apart, and not yet taken by the client.
    to_client: Vec<u8>,
}

impl Way {
    fn run(mut self) {
        for stream in [&self.client, &self.server] {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        // A reset of one side is one of the other.
        if self.relay().is_err() {
            for stream in [&self.client, &self.server] {
                SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    }

    /// Until both sides have ended, or one has failed.
    fn relay(&mut self) -> std::io::Result<()> {
        let (mut client_ended, mut server_ended, mut told) = (false, false, false);
        loop {
            let wants_client = !client_ended && !self.session.is_handshaking() && !self.session.wants_write();
            let wants_server = !server_ended && self.to_client.is_empty();
            let events = |read: bool, write: bool| {
                (if read { libc::POLLIN } else { 0 }) | (if write { libc::POLLOUT } else { 0 })
            };
            let of = |stream: &TcpStream, events| libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
            let mut polled = [
                of(&self.client, events(wants_client, !self.to_client.is_empty())),
                of(&self.server, events(wants_server, self.session.wants_write())),
            ];
            // SAFETY: the array lives, and its length is told.
            unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
            if wants_client && polled[0].revents != 0 {
                client_ended = self.hear_client()?;
            } else if polled[0].revents & (libc::POLLERR | libc::POLLHUP) != 0 && self.to_client.is_empty() {
                return Err(ErrorKind::ConnectionReset.into());
            }
            if server_ended && polled[1].revents & (libc::POLLERR | libc::POLLHUP) != 0 {
                return Ok(());
            }
            while self.session.wants_write() && !would_block(self.session.write_tls(&mut self.server))? {}
            if client_ended && !told && !self.session.wants_write() {
                told = true;
                self.server.shutdown(Shutdown::Write)?;
            }
            if wants_server && polled[1].revents != 0 {
                server_ended = self.hear_server()?;
            }
            while !self.to_client.is_empty() {
                match self.client.write(&self.to_client) {
                    Ok(count) => drop(self.to_client.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if server_ended && self.to_client.is_empty() {
                if client_ended {
                    return Ok(());
                }
                // It may still take what the client has to say.
                self.client.shutdown(Shutdown::Write).ok();
            }
        }
    }

    /// Whether the client has ended, of which the server is told.
    fn hear_client(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        match self.client.read(&mut buffer) {
            Ok(0) => {
                self.session.send_close_notify();
                Ok(true)
            }
            Ok(count) => self.session.writer().write_all(&buffer[..count]).map(|()| false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the server has ended.
    fn hear_server(&mut self) -> std::io::Result<bool> {
        let ended = match self.session.read_tls(&mut self.server) {
            Ok(count) => count == 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => return Err(error),
        };
        let state = self.session.process_new_packets().map_err(std::io::Error::other)?;
        let before = self.to_client.len();
        self.to_client.resize(before + state.plaintext_bytes_to_read(), 0);
        self.session.reader().read_exact(&mut self.to_client[before..])?;
        Ok(ended || state.peer_has_closed())
    }
}

/// Whether there is no more room.
fn would_block(outcome: std::io::Result<usize>) -> std::io::Result<bool> {
    match outcome {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
