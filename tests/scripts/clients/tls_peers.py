"""The clients of tls-attacks.py: one that asks in peace, and those that do what no client should.

    tls_peers.py calm PORT PATH RATE SECONDS       8 connections ask at that rate, timed from when each request was due
    tls_peers.py KIND PORT COUNT SECONDS           see KINDS

A kind that stands makes COUNT connections, says so, and leaves them as they are until it is told to go on. One that floods makes
one connection after the other, with COUNT records on each where it is about records, until the time is over. Each line that is
printed is JSON. Needs tlslite-ng and cryptography, for records that no proper library sends.
"""

import contextlib
import json
import os
import select
import socket
import ssl
import struct
import sys
import time

PATIENCE = 30.0
ASK = b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"
HANDSHAKE, ALERT, DATA = 22, 21, 23


def context(certificate=None, version=None, protocols=()):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if version:
        made.minimum_version = made.maximum_version = version
    if certificate:
        made.load_cert_chain(certificate)
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


def dial(port, buffer=0):
    stream = socket.socket()
    stream.settimeout(PATIENCE)
    if buffer:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    stream.connect(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def record(kind, body):
    return bytes([kind, 3, 3]) + struct.pack(">H", len(body)) + body


def hello(name="localhost"):
    """A proper ClientHello, in its record."""
    out = ssl.MemoryBIO()
    half = context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return out.read()


def drain(stream):
    """Reads to the end, whatever it is; how much came."""
    count = 0
    with contextlib.suppress(OSError):
        while piece := stream.recv(65536):
            count += len(piece)
    return count


class Sealer:
    """The client's half of a connection, whose records can be anything."""

    def __init__(self, port, tls13):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from tlslite.api import HandshakeSettings, TLSConnection

        self.tls13, self.aead = tls13, AESGCM
        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = (3, 4) if tls13 else (3, 3)
        settings.cipherNames, settings.eccCurves, settings.keyShares = ["aes128gcm"], ["secp256r1"], ["secp256r1"]
        self.stream = dial(port)
        self.connection = TLSConnection(self.stream)
        self.connection.handshakeClientCert(settings=settings, serverName="localhost")
        state = self.connection._recordLayer._writeState
        self.nonce, self.number = bytes(state.fixedNonce), state.seqnum
        self.cipher = AESGCM(bytes(state.encContext.key))
        self.secret = bytearray(self.connection.session.cl_app_secret) if tls13 else None

    def seal(self, kind, body):
        number = self.number.to_bytes(8, "big")
        self.number += 1
        if self.tls13:
            nonce = (int.from_bytes(self.nonce, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
            body += bytes([kind])
            head = bytes([DATA, 3, 3]) + struct.pack(">H", len(body) + 16)
            return head + self.cipher.encrypt(nonce, body, head)
        said = number + bytes([kind, 3, 3]) + struct.pack(">H", len(body))
        return record(kind, number + self.cipher.encrypt(self.nonce + number, body, said))

    def update_key(self, answer):
        """A KeyUpdate (RFC 8446, 4.6.3), sealed, behind which the next key holds."""
        from tlslite.mathtls import HKDF_expand_label

        sealed = self.seal(HANDSHAKE, bytes([24, 0, 0, 1, int(answer)]))
        self.secret = HKDF_expand_label(self.secret, b"traffic upd", b"", 32, "sha256")
        self.cipher = self.aead(bytes(HKDF_expand_label(self.secret, b"key", b"", 16, "sha256")))
        self.nonce, self.number = bytes(HKDF_expand_label(self.secret, b"iv", b"", 12, "sha256")), 0
        return sealed


def sealed(port, tls13, make):
    """One connection, on which everything that `make` makes of a sealer is sent at once; what it came to."""
    sealer = Sealer(port, tls13)
    data = b"".join(make(sealer))
    sent = 0
    with contextlib.suppress(OSError):
        # What comes back is read, so that the server is never held up by what it has to say.
        sealer.stream.setblocking(False)
        end = time.monotonic() + PATIENCE
        while sent < len(data) and time.monotonic() < end:
            readable, writable, _ = select.select([sealer.stream], [sealer.stream], [], 1)
            if writable:
                sent += sealer.stream.send(data[sent:sent + 65536])
            if readable and not sealer.stream.recv(65536):
                break
    sealer.stream.close()
    return sent


def secured(port, made, name="localhost"):
    return made.wrap_socket(dial(port), server_hostname=name)


def shaken(port, made, name="localhost"):
    """One handshake after which the server says whether it will go on."""
    with contextlib.suppress(OSError), secured(port, made, name) as stream:
        stream.sendall(ASK)
        stream.recv(1)


def told(port, data, finish=False):
    with dial(port) as stream, contextlib.suppress(OSError):
        stream.sendall(data)
        if finish:
            stream.shutdown(socket.SHUT_WR)
        drain(stream)


def one_byte(port, count):
    """A ClientHello, then requests, in records of one byte."""
    with dial(port) as stream:
        come, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context().wrap_bio(come, out, server_hostname="localhost")
        first = True
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
                break
            data = out.read()
            if first:
                data = b"".join(record(HANDSHAKE, bytes([byte])) for byte in data[5:])
                first = False
            stream.sendall(data)
            come.write(stream.recv(65536))
        for _ in range(max(1, count // len(ASK))):
            for byte in ASK:
                session.write(bytes([byte]))
            stream.sendall(out.read())
            answer = b""
            while b"\r\n\r\n" not in answer:
                piece = stream.recv(65536)
                if not piece:
                    raise OSError("the connection ended")
                come.write(piece)
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer += session.read(65536)


def dripped(port, count):
    """A message of a handshake that never ends, a byte a record, a record a segment."""
    with dial(port) as stream, contextlib.suppress(OSError):
        for byte in b"\1\0\xff\0" + bytes(count):
            stream.sendall(record(HANDSHAKE, bytes([byte])))


def upload(sealer):
    return sealer.seal(DATA, b"POST /small HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")


def half(port):
    stream = dial(port)
    data = hello()
    stream.sendall(data[:len(data) // 2])
    return stream


def long(port):
    """All but the end of a ClientHello of 17,000 bytes."""
    stream = dial(port)
    stream.sendall(record(HANDSHAKE, long_hello(17_000)[:16_000]))
    return stream


def long_hello(size):
    return b"\1" + size.to_bytes(3, "big") + b"\3\3" + bytes(size - 2)


def cut_record(port):
    """A handshake, and all but the end of a record of 16 KiB."""
    stream = secured(port, context())
    stream.setblocking(False)
    os.write(stream.fileno(), (bytes([DATA, 3, 3]) + struct.pack(">H", 16_400) + bytes(16_000)))
    return stream


def unread(port):
    stream = context().wrap_socket(dial(port, 4096), server_hostname="localhost")
    stream.sendall(ASK.replace(b"/small", b"/400k"))
    return stream


def unread_records(port):
    stream = context().wrap_socket(dial(port, 4096), server_hostname="localhost")
    stream.sendall(ASK.replace(b"/small", b"/stream"))
    return stream


# Each makes one connection that stays.
STANDS = {"half": half, "long": long, "cut-record": cut_record, "unread": unread, "streams": unread_records}
# Each makes one connection, and is done with it.
FLOODS = {
    "handshakes": lambda port, _: shaken(port, context()),
    "handshakes-1.2": lambda port, _: shaken(port, context(version=ssl.TLSVersion.TLSv1_2)),
    "one-byte": one_byte,
    "dripped": dripped,
    "too-long": lambda port, _: told(port, record(HANDSHAKE, long_hello(60_000)[:16_000])),
    "left": lambda port, _: told(port, hello()[:100], finish=True),
    "garbage": lambda port, _: told(port, record(HANDSHAKE, os.urandom(200))),
    "plain": lambda port, _: told(port, ASK),
    "name": lambda port, _: shaken(port, context(), "nobody.test"),
    "protocol": lambda port, _: shaken(port, context(protocols=["nothing"])),
    "certificate": lambda port, _: shaken(port, context(certificate=os.environ["CLIENT_CERTIFICATE"])),
    "hello-alerts": lambda port, count: told(port, hello() + record(ALERT, b"\1\x5a") * count),
    "alerts": lambda port, count: sealed(port, False, lambda sealer: (sealer.seal(ALERT, b"\1\x5a") for _ in range(count))),
    "renegotiation": lambda port, count: sealed(port, False, lambda sealer: (sealer.seal(HANDSHAKE, hello()[5:]) for _ in range(min(count, 100)))),
    "key-updates": lambda port, count: sealed(port, True, lambda sealer: (sealer.update_key(True) for _ in range(count))),
    "key-updates-between": lambda port, count: sealed(port, True, lambda sealer: (
        upload(sealer) if number == 0 else sealer.seal(DATA, b"x") if number % 31 == 0 else sealer.update_key(True) for number in range(count))),
    "empty-records": lambda port, count: sealed(port, True, lambda sealer: (sealer.seal(DATA, b"") for _ in range(count))),
    "one-byte-upload": lambda port, count: sealed(port, True, lambda sealer: (
        upload(sealer) if number == 0 else sealer.seal(DATA, b"x") for number in range(count))),
    "after-end": lambda port, count: sealed(port, True, lambda sealer: (
        sealer.seal(ALERT, b"\1\0") if number == 0 else sealer.seal(DATA, b"x" * 1000) for number in range(count))),
}


def say(**members):
    print(json.dumps(members), flush=True)


def calm(port, path, rate, seconds):
    made = context()
    streams = [secured(port, made) for _ in range(8)]
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    times, failed = [], 0
    start = time.monotonic()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        stream = streams[number % len(streams)]
        try:
            stream.sendall(request)
            answer = stream.recv(65536)
            while b"\r\n\r\n" not in answer:
                answer += stream.recv(65536) or b"\r\n\r\n"
            failed += not answer.startswith(b"HTTP/1.1 200 ")
        except OSError:
            failed += 1
        times.append((time.monotonic() - due) * 1e6)
    times.sort()
    at = lambda share: times[int(share * (len(times) - 1))]
    say(requests=len(times), failed=failed, p50_us=at(0.5), p99_us=at(0.99), max_us=times[-1])
    return 1 if failed else 0


def main():
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "calm":
        return calm(port, sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
    count, seconds = int(sys.argv[3]), float(sys.argv[4])
    if kind in STANDS:
        streams = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                streams.append(STANDS[kind](port))
        say(placed=len(streams))
        sys.stdin.readline()
        return 0
    rounds, failed, why, end = 0, 0, "", time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            FLOODS[kind](port, count)
        except Exception as error:  # Whatever a library makes of a server that has closed.
            failed, why = failed + 1, f"{type(error).__name__}: {error}"
        rounds += 1
    say(rounds=rounds, failed=failed, why=why)
    return 0


if __name__ == "__main__":
    sys.exit(main())
