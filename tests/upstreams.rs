//! Servers that something else runs, by names: several addresses, others later, and name servers that do not answer.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use production_server::config::{self, Settings, Upstream};
use production_server::dispatch::Outcome;
use production_server::supervisor::Options;
use production_server::supervisor::resolver::Resolve;

use crate::supervision::{Server, options, serve_with, settings};
use crate::support::until;

/// A supervisor in front of `http://NAME:PORT`, looked up by that function.
fn before(port: u16, resolve: Resolve) -> Server {
    let mut settings: Settings = settings(&[], 1);
    settings.app.program.command = config::Command::None;
    settings.app.instead.upstreams = vec![Upstream::Tcp("app.test".to_owned(), port)];
    serve_with(settings, Options { resolve, ..options() })
}

fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Requests find nobody where the upstream was, until that has come about.
fn unreachable_until(server: &Server, what: &str, has_come: impl Fn() -> bool) {
    until(what, || {
        // A process that another test is just starting may have the listener for a moment longer: then it is found again.
        if !has_come() && !server.ready().is_empty() {
            server.release(server.permit(), Outcome::Unreachable);
        }
        has_come()
    });
}

fn address_of(server: &Server) -> SocketAddr {
    server.until_ready(1)[0].target.address.as_socket().unwrap()
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    fn both(_: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![([127, 0, 0, 2], port).into(), ([127, 0, 0, 1], port).into()])
    }
    let (_listener, address) = listen("127.0.0.1:0");
    let server = before(address.port(), both);
    assert_eq!(address_of(&server), address);
    server.stop();
}

#[test]
fn an_upstream_that_moves_is_found_by_its_name() {
    static ADDRESSES: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());
    fn looked_up(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        match ADDRESSES.lock().unwrap().clone() {
            none if none.is_empty() => Err(io::Error::other("no such name yet")),
            some => Ok(some),
        }
    }
    let server = before(1, looked_up);
    server.until_logged("cannot be looked up: no such name yet");
    let (first, address) = listen("127.0.0.1:0");
    ADDRESSES.lock().unwrap().push(address);
    assert_eq!(address_of(&server), address);
    let before = server.until_ready(1)[0].id;
    let in_flight = server.permit();

    let (_second, moved) = listen("127.0.0.2:0");
    *ADDRESSES.lock().unwrap() = vec![moved];
    drop(first);
    server.release(in_flight, Outcome::Unreachable);
    unreachable_until(&server, "the new address is in use", || {
        server.ready().first().is_some_and(|worker| worker.target.address.as_socket() == Some(moved))
    });
    until("the old one is forgotten", || server.snapshot().workers.len() == 1);
    assert_ne!(server.until_ready(1)[0].id, before);
    server.stop();
}

#[test]
fn a_name_server_that_does_not_answer_keeps_nobody_from_anything() {
    static ANSWERS: AtomicBool = AtomicBool::new(true);
    static ASKED: AtomicBool = AtomicBool::new(false);
    static PORT: Mutex<Option<SocketAddr>> = Mutex::new(None);
    fn looked_up(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        while !ANSWERS.load(Ordering::SeqCst) {
            ASKED.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(vec![PORT.lock().unwrap().unwrap()])
    }
    let (listener, address) = listen("127.0.0.1:0");
    *PORT.lock().unwrap() = Some(address);
    let server = before(address.port(), looked_up);
    let id = server.until_ready(1)[0].id;
    ANSWERS.store(false, Ordering::SeqCst);
    drop(listener);
    unreachable_until(&server, "the name is looked up again", || ASKED.load(Ordering::SeqCst));
    let _again = TcpListener::bind(address).unwrap();
    assert_eq!(server.until_ready(1)[0].id, id, "it is found where it was while nobody answers for its name");
    server.stop();
    ANSWERS.store(true, Ordering::SeqCst);
}
