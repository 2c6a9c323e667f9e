"""A worker that takes requests in threads and does what their paths say: `worker.py FOLDER`.

/pid        its process id
/hold/NAME  the process id, once FOLDER/NAME exists; /begun/NAME the same, with the head and half of the body at once
/open/NAME  the process id in an answer that ends with its connection, half of it once FOLDER/NAME exists; /exit/NAME the same, and then it
            ends with code 0
/tunnel     an upgrade: what comes goes back
/spin       runs in a circle, holding the interpreter

/last       its process id, and then it dies

On USR1 it writes where it stands. With FOLDER/broken it does not start, with FOLDER/absent it ends at once; with FOLDER/slow it does not start
until FOLDER/go exists, and with FOLDER/heavy not before it has burned 0.3 s of CPU. A request that is under way when TERM comes is not waited for:
that is the server's part. One that is started with FOLDER/mute takes requests and never answers. With FOLDER/patient TERM only closes the socket, and the worker ends when its last connection has; with FOLDER/plain
TERM does what it does by default.
"""

import os
import signal
import socket
import sys
import threading
import time

folder = sys.argv[1]


def there(name):
    return os.path.exists(os.path.join(folder, name))


def wait_for(name):
    while not there(name):
        time.sleep(0.005)


def say(words):
    os.write(2, f"{words} {os.getpid()}\n".encode())


def head(length):
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n".encode()


def serve(connection):
    pending = b""
    while True:
        while b"\r\n\r\n" not in pending:
            piece = connection.recv(65536)
            if not piece:
                return
            pending += piece
        request, pending = pending.split(b"\r\n\r\n", 1)
        path = request.split(b" ", 2)[1].decode()
        body = str(os.getpid()).encode()
        if mute:
            threading.Event().wait()
        if path.startswith("/hold/"):
            wait_for(path[len("/hold/"):])
        if path.startswith("/begun/"):
            connection.sendall(head(2 * len(body)) + body)
            wait_for(path[len("/begun/"):])
            connection.sendall(body)
            continue
        if path.startswith(("/open/", "/exit/")):
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
            wait_for(path[len("/open/"):])
            connection.sendall(body)
            if path.startswith("/exit/"):
                os._exit(0)
            return
        if path == "/tunnel":
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            while piece := connection.recv(65536):
                connection.sendall(piece)
            return
        if path == "/last":
            connection.sendall(head(len(body)) + body)
            os._exit(1)
        if path == "/spin":
            spinning.set()
            threading.Event().wait()
        connection.sendall(head(len(body)) + body)


def take_all(listener):
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            closed.set()
            return
        thread = threading.Thread(target=quietly, args=(connection,), daemon=True)
        served.append(thread)
        thread.start()


def quietly(connection):
    try:
        with connection:
            serve(connection)
    except OSError:
        pass  # the server has closed it: the request was cut


def end(*_):
    if not there("patient"):
        os._exit(0)
    # Refuses, and takes nobody in any more.
    listener.shutdown(socket.SHUT_RDWR)


served = []
closed = threading.Event()
spinning = threading.Event()
mute = there("mute")
signal.signal(signal.SIGUSR1, lambda *_: say("dumped by"))
if not there("plain"):
    signal.signal(signal.SIGTERM, end)
if there("absent"):
    say("cannot reach the database, says")
    sys.exit(1)
while there("heavy") and time.process_time() < 0.3:
    pass
if there("broken"):
    say("cannot reach the database, says")
    # Not ready, and not gone either.
    while True:
        signal.pause()
if there("slow"):
    say("slow to start is")
    wait_for("go")
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["SOCKET_PATH"])
listener.listen(64)
threading.Thread(target=take_all, args=(listener,), daemon=True).start()
# Here, where signals are handled: between two rounds.
while True:
    if spinning.wait(0.05):
        while True:
            pass
    if closed.is_set() and not any(thread.is_alive() for thread in served):
        os._exit(0)
