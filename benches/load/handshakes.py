#!/usr/bin/env python3
"""Shakes hands over TLS 1.3 with a server on loopback, one connection after the other, and closes each in order.

    benches/load/handshakes.py PORT full|resumed SECONDS

Prints how many. `resumed`: each comes back with the ticket of one that has been there. Exit codes: 0 done, 1 one failed or was of
the other kind.
"""

import contextlib
import socket
import ssl
import sys
import time

import processes


def main():
    port, resumed, seconds = int(sys.argv[1]), sys.argv[2] == "resumed", float(sys.argv[3])
    context = processes.tls()
    context.minimum_version = context.maximum_version
    ticket = None
    if resumed:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost") as stream:
            # Tickets come behind the handshake.
            stream.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n")
            processes.read_answer(stream)
            ticket = stream.session
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            stream = context.wrap_socket(plain, server_hostname="localhost", session=ticket)
            if stream.version() != "TLSv1.3" or stream.session_reused != resumed:
                raise SystemExit(f"{stream.version()}, resumed: {stream.session_reused}")
            # Some servers answer the end in order with theirs, and some do not.
            with contextlib.suppress(ssl.SSLError), stream:
                stream.unwrap()
            count += 1
    print(count)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"a handshake failed: {error}") from error
