"""A small worker that keeps to the contract, or breaks it in the one way that it is told: `faulty_worker.py FAULT [MARK]`.

For the tests of `production_server conformance`. Threads, one a connection; `none` is the fault of a worker without one.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

fault = sys.argv[1]
busy = []  # connections with a request under way
unanswered = []  # those and the new ones
leaving = []  # told to end in the middle of a request, by the thread that answers it


def main():
    if fault == "exits":
        sys.exit("no database")
    if fault == "other door":
        listener = socket.create_server(("127.0.0.1", 0))
    elif "LISTEN_FDS" in os.environ:
        assert os.environ["LISTEN_FDS"] == "1" and int(os.environ["LISTEN_PID"]) == os.getpid()
        listener = socket.socket(fileno=3)
    elif os.environ.get("PORT", "").isdigit():
        listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.environ["SOCKET_PATH"])
        listener.listen(64)
    if fault == "orphan":
        line = [sys.executable, "-c", "import time; time.sleep(1000)", sys.argv[2]]
        subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if fault == "ignores TERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif fault != "cuts on TERM":
        signal.signal(signal.SIGTERM, lambda *_: stop(listener))
    while True:
        connection, _ = listener.accept()
        if fault in ("drops the second", "says busy") and any(not has_hung_up(other) for other in list(unanswered)):
            if fault == "says busy":
                connection.sendall(b"HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()
            continue
        unanswered.append(connection)
        if fault == "blocks":
            serve(connection)
        else:
            threading.Thread(target=serve, args=[connection], daemon=True).start()


def has_hung_up(connection):
    events = select.poll()
    events.register(connection, select.POLLHUP)
    return bool(events.poll(0))


def stop(listener):
    listener.close()
    if fault == "blocks" and busy:
        # This interrupts the request, and would wait for itself.
        leaving.append(True)
        return
    while busy:
        time.sleep(0.005)
    os._exit(0)


def serve(connection):
    try:
        while one_request(connection):
            pass
    except (OSError, EOFError):
        if fault == "dies with its client" and connection in busy:
            os._exit(9)
    forget(connection)
    connection.close()


def forget(connection):
    for those in (busy, unanswered):
        if connection in those:
            those.remove(connection)


class Input:
    def __init__(self, connection):
        self.connection, self.bytes = connection, b""

    def more(self):
        piece = self.connection.recv(65536)
        if not piece:
            raise EOFError
        self.bytes += piece

    def take(self, count):
        while len(self.bytes) < count:
            self.more()
        taken, self.bytes = self.bytes[:count], self.bytes[count:]
        return taken

    def line(self):
        while b"\r\n" not in self.bytes:
            self.more()
        line, self.bytes = self.bytes.split(b"\r\n", 1)
        return line


inputs = {}


def one_request(connection):
    source = inputs.setdefault(connection, Input(connection))
    if not source.bytes:
        source.more()
    if fault == "one read" and b"\r\n\r\n" not in source.bytes:
        return refuse(connection)
    busy.append(connection)
    if connection not in unanswered:
        unanswered.append(connection)
    try:
        method, path, _ = source.line().decode().split(" ")
        if method not in ("GET", "HEAD", "POST"):
            raise ValueError
        fields = {}
        while line := source.line():
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        if fault == "refuses until the close" and "host" not in fields:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno Host")
            # The end is to come alone, behind the bytes.
            time.sleep(0.1)
            unanswered.remove(connection)
            busy.remove(connection)
            return False
        if fault != "leaves the body":
            read_body(source, fields)
        if path == "/slow":
            time.sleep(0.5)
        unanswered.remove(connection)
        kept = answer(connection, method, fields)
        busy.remove(connection)
        if leaving:
            os._exit(0)
        return kept
    except ValueError:
        return refuse(connection)


def read_body(source, fields):
    source.take(int(fields.get("content-length", 0)))
    if fields.get("transfer-encoding") == "chunked":
        while size := int(source.line(), 16):
            source.take(size + 2)
        source.take(2)


def answer(connection, method, fields):
    if fault == "never answers":
        time.sleep(1000)
    if fault == "talks nonsense":
        connection.sendall(b"hello\r\n\r\n")
        return False
    close = fields.get("connection") == "close" or fault == "says close"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n" + (b"Connection: close\r\n" if close else b"")
    if fault == "short time":
        head += b"Keep-Alive: timeout=1\r\n"
    body = b"" if method == "HEAD" and fault != "body after HEAD" else b"ok\n"
    connection.sendall(head + b"\r\n" + body)
    return not close and fault != "closes without a word"


def refuse(connection):
    unanswered.remove(connection)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return False


main()
