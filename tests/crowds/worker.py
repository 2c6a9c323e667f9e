"""A worker that takes requests in threads and is healthy whatever it looks like: `worker.py FOLDER`.

/pid           its process id
/quiet         an event stream with one event and then nothing
/lively        an event stream with an event every tenth of a second
/rows/N        an answer of N rows, one every tenth of a second
/early         answers the head at once, and how much it was sent when it has all of that
/pause/MS      reads the whole body, rests for so long, and answers how much it was sent
/stop/MS       reads half of the body, rests for so long, reads the rest and answers
/hold/NAME     its process id, once FOLDER/NAME exists; when that is sent it makes FOLDER/NAME.done
"""

import os
import socket
import sys
import threading
import time

folder = sys.argv[1]
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def answer(connection, text):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


def length_of(head):
    lines = head.lower().split(b"\r\n")
    return next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)


class Body:
    """What is left of a request's body; the bytes that came with the head are counted already."""

    def __init__(self, connection, size, come):
        self.connection, self.size, self.count = connection, size, come

    def read(self, until):
        while self.count < until:
            piece = self.connection.recv(65536)
            if not piece:
                raise OSError
            self.count += len(piece)

    def said(self):
        return b"%d bytes" % self.count


def serve(connection):
    pending = b""
    while True:
        while b"\r\n\r\n" not in pending:
            piece = connection.recv(65536)
            if not piece:
                return
            pending += piece
        head, pending = pending.split(b"\r\n\r\n", 1)
        path = head.split(b" ", 2)[1].decode().split("/")[1:]
        body = Body(connection, length_of(head), len(pending))
        pending = b""
        HANDLERS[path[0]](connection, body, *path[1:])


def quiet(connection, _body):
    connection.sendall(EVENTS + b"data: hello\n\n")
    connection.recv(1)  # nothing comes but the end
    raise OSError


def lively(connection, _body):
    connection.sendall(EVENTS)
    while True:
        connection.sendall(b"data: tick\n\n")
        time.sleep(0.1)


def rows(connection, _body, count):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(int(count)):
        connection.sendall(b"4\r\nrow\n\r\n")
        time.sleep(0.1)
    connection.sendall(b"0\r\n\r\n")


def early(connection, body):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")
    body.read(body.size)
    connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body.said()) + 1, b" " + body.said()))


def pause(connection, body, milliseconds):
    body.read(body.size)
    time.sleep(int(milliseconds) / 1000)
    answer(connection, body.said())


def stop(connection, body, milliseconds):
    body.read(body.size // 2)
    time.sleep(int(milliseconds) / 1000)
    body.read(body.size)
    answer(connection, body.said())


def hold(connection, _body, name):
    path = os.path.join(folder, name)
    while not os.path.exists(path):
        time.sleep(0.005)
    try:
        answer(connection, str(os.getpid()).encode())
    finally:
        # The server may not want the answer any more.
        open(path + ".done", "w").close()


HANDLERS = {
    "pid": lambda connection, _body: answer(connection, str(os.getpid()).encode()),
    "quiet": quiet, "lively": lively, "rows": rows, "early": early, "pause": pause, "stop": stop, "hold": hold,
}


def quietly(connection):
    try:
        serve(connection)
    except OSError:
        pass  # the server has closed it
    finally:
        connection.close()


listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["SOCKET_PATH"])
listener.listen(64)
while True:
    threading.Thread(target=quietly, args=(listener.accept()[0],), daemon=True).start()
