"""A worker that tells how it was started: `worker.py NAME FOLDER [WORD]`.

/       its process id, and what it was started with, one in a line
/hang   nothing
/up     200, and FOLDER/NAME.asked is made

Files in FOLDER tell it what to do: with NAME.crash it ends as it starts, with NAME.slow it does not listen; READY=1 is not said before NAME.quiet is
gone, and WATCHDOG=1 not again once NAME.silent is there. It makes NAME.listens when it listens, and NAME.SIGNAL when it gets HUP or USR2.
"""

import os
import signal
import socket
import sys
import threading
import time

name, folder = sys.argv[1:3]


def path(what):
    return os.path.join(folder, f"{name}.{what}")


def there(what):
    return os.path.exists(path(what))


def make(what):
    open(path(what), "w").close()


def say(words):
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(words.encode(), os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))


def told(number, _):
    make(signal.Signals(number).name.removeprefix("SIG"))


def serve(connection):
    pending = b""
    while True:
        while b"\r\n\r\n" not in pending:
            piece = connection.recv(65536)
            if not piece:
                return
            pending += piece
        request, pending = pending.split(b"\r\n\r\n", 1)
        asked = request.split(b" ", 2)[1]
        if asked == b"/hang":
            threading.Event().wait()
        if asked == b"/up":
            make("asked")
        facts = [os.getpid(), os.getcwd(), os.environ.get("VALUE"), "SOCKET_PATH" in os.environ, sys.argv[3:]]
        body = "\n".join(map(str, facts)).encode()
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def quietly(connection):
    try:
        serve(connection)
    except OSError:
        pass  # the server has closed it


def accept(listener):
    while True:
        threading.Thread(target=quietly, args=(listener.accept()[0],), daemon=True).start()


for each in (signal.SIGHUP, signal.SIGUSR2):
    signal.signal(each, told)
if there("crash"):
    sys.exit("as it was told")
while there("slow"):
    time.sleep(0.01)
if "SOCKET_PATH" in os.environ:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ["SOCKET_PATH"])
else:
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
listener.listen(64)
make("listens")
threading.Thread(target=accept, args=(listener,), daemon=True).start()
while there("quiet"):
    time.sleep(0.01)
say("READY=1\nWATCHDOG=1")
while True:
    # Long where nobody listens, for there are many of these.
    time.sleep(0.05 if "WATCHDOG_USEC" in os.environ else 60)
    if not there("silent"):
        say("WATCHDOG=1")
