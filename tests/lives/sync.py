"""A worker that takes one connection at a time, as gunicorn's of the kind sync do: `sync.py FOLDER`.

/pid        its process id
/hold/NAME  the process id, once FOLDER/NAME exists
/healthz    200; 500 while FOLDER/ill or FOLDER/ill.PID exists, or where FOLDER/faulty did when it was started; nothing at all while FOLDER/mute.PID
            does

It counts what it is asked at /healthz in FOLDER/asked.PID, a byte each time, and makes FOLDER/crowded when somebody has connected while it was at
a request for something else.
"""

import os
import select
import socket
import sys
import time

folder = sys.argv[1]


def path(name):
    return os.path.join(folder, name)


def there(name):
    return os.path.exists(path(name)) or os.path.exists(path(f"{name}.{os.getpid()}"))


def serve(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        piece = connection.recv(65536)
        if not piece:
            return
        request += piece
    target = request.split(b" ", 2)[1].decode()
    status = b"200 OK"
    if target == "/healthz":
        with open(path(f"asked.{os.getpid()}"), "ab") as count:
            count.write(b".")
        while there("mute"):
            time.sleep(0.005)
        if there("ill") or faulty:
            status = b"500 Ill"
    elif target.startswith("/hold/"):
        while not there(target[len("/hold/"):]):
            time.sleep(0.005)
        if select.select([listener], [], [], 0)[0]:
            open(path("crowded"), "w").close()
    body = str(os.getpid()).encode()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    connection.sendall(head + body)


faulty = there("faulty")
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["SOCKET_PATH"])
listener.listen(64)
while True:
    connection = listener.accept()[0]
    try:
        serve(connection)
    except OSError:
        pass  # whoever asked has left
    connection.close()
