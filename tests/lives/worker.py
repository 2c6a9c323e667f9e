"""A worker that takes requests in threads and does what their paths say: `worker.py FOLDER`.

/pid        its process id
/hold/NAME  the process id, once FOLDER/NAME exists; /begun/NAME the same, with the head and half of the body at once
/spin       runs in a circle, holding the interpreter

On USR1 it writes where it stands. With FOLDER/broken it does not start; with FOLDER/slow not until FOLDER/go exists. A request that is
under way when TERM comes is not waited for: that is the server's part.
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
        if path.startswith("/hold/"):
            wait_for(path[len("/hold/"):])
        if path.startswith("/begun/"):
            connection.sendall(head(2 * len(body)) + body)
            wait_for(path[len("/begun/"):])
            connection.sendall(body)
            continue
        if path == "/spin":
            spinning.set()
            threading.Event().wait()
        connection.sendall(head(len(body)) + body)


def take_all(listener):
    while True:
        threading.Thread(target=quietly, args=(listener.accept()[0],), daemon=True).start()


def quietly(connection):
    try:
        serve(connection)
    except OSError:
        pass  # the server has closed it: the request was cut


spinning = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: say("dumped by"))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
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
