#!/usr/bin/env python3
"""Slow readers of large answers and slow uploads beside fast clients: the spool keeps the worker free.

    tests/scripts/spool.py [--server target/release/production_server] [--backends epoll,io_uring] [--readers 200] [--uploads 200]
                           [--mib 64] [--seconds 30]

One worker that takes one request at a time. Readers take 10 KB a second and uploads send 100 KB a second for the given time, beside 64 clients
that ask for something small; then both go on as fast as they can. All bytes have to be equal, the worker may be busy no longer with a large request
than three times what it is when nobody else is there and its client is fast, the server's memory may grow by --buffer-bytes (256 MiB) and 64 MiB, the files take no more
than --spool-bytes, and after a kill -9 none is left. Exit codes: 0, 1 a bound was passed, 64 wrong flags.
"""

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time

MIB = 1 << 20
FAST = 64
PATIENT = ["--queue-timeout-ms", "900000", "--request-timeout", "300s", "--read-timeout-ms", "120000", "--write-timeout", "300s",
           "--body-timeout", "300s", "--max-body", "1GiB", "--buffer-bytes", "256MiB"]


def blocks(mib):
    """A body in pieces of a MiB, no two of them the same."""
    filling = bytes(range(256)) * 4096
    for number in range(mib):
        yield b"block %09d\n" % number + filling[16:]


def digest(mib):
    total = hashlib.sha256()
    for block in blocks(mib):
        total.update(block)
    return total.hexdigest()


class Worker(socketserver.StreamRequestHandler):
    """Says how long it was busy with each kind of request, in the file `tally` of its directory."""

    tally, lock = {}, threading.Lock()

    def handle(self):
        while line := self.rfile.readline():
            began = time.monotonic()
            method, path = line.decode().split(" ")[:2]
            fields = {}
            while (field := self.rfile.readline()) not in (b"\r\n", b""):
                name, value = field.decode().split(":", 1)
                fields[name.lower()] = value.strip()
            if path.startswith("/large/"):
                mib = int(path.rsplit("/", 1)[1])
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (mib * MIB))
                for block in blocks(mib):
                    self.wfile.write(block)
            else:
                total, left = hashlib.sha256(), int(fields.get("content-length", 0))
                while left:
                    piece = self.rfile.read(min(left, 256 * 1024))
                    if not piece:
                        return
                    total.update(piece)
                    left -= len(piece)
                text = total.hexdigest().encode()
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            kind = path.split("/")[1]
            with self.lock:
                count, seconds = self.tally.get(kind, (0, 0.0))
                self.tally[kind] = (count + 1, seconds + time.monotonic() - began)
                if kind != "fast":
                    with open("tally.new", "w") as file:
                        json.dump(self.tally, file)
                    os.rename("tally.new", "tally")


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads, request_queue_size = True, 64


def worker(path):
    if os.path.exists(path):
        os.unlink(path)
    Server(path, Worker).serve_forever()


async def fast(port, seconds):
    """Clients that ask every 100 ms: what they had to wait, and how many did not get their answer."""
    waited, failed, end = [], 0, time.monotonic() + seconds

    async def one():
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < end:
            began = time.monotonic()
            writer.write(b"GET /fast HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(64)
            failed += not head.startswith(b"HTTP/1.1 200 ")
            waited.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        writer.close()

    await asyncio.gather(*(one() for _ in range(FAST)))
    waited.sort()
    print(json.dumps({"requests": len(waited), "failed": failed, "p50": waited[len(waited) // 2], "p99": waited[len(waited) * 99 // 100]}))


async def read(port, mib, slow_until):
    """A large answer, 10 KB a second until then: its digest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
    writer.write(b"GET /large/%d HTTP/1.1\r\nHost: a\r\n\r\n" % mib)
    await reader.readuntil(b"\r\n\r\n")
    total, left = hashlib.sha256(), mib * MIB
    while left:
        slow = time.monotonic() < slow_until
        piece = await reader.read(10_000 if slow else MIB)
        if not piece:
            break
        total.update(piece)
        left -= len(piece)
        if slow:
            await asyncio.sleep(1)
    writer.close()
    return total.hexdigest()


async def upload(port, mib, slow_until):
    """A large body, 100 KB a second until then: the digest that the worker has made of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (mib * MIB))
    for block in blocks(mib):
        at = 0
        while at < len(block):
            slow = time.monotonic() < slow_until
            count = 100_000 if slow else MIB
            writer.write(block[at:at + count])
            at += count
            await writer.drain()
            if slow:
                await asyncio.sleep(1)
    await reader.readuntil(b"\r\n\r\n")
    answer = (await reader.readexactly(64)).decode()
    writer.close()
    return answer


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--readers", type=int, default=200, help="0 to 1000 (default: %(default)s)")
    flags.add_argument("--uploads", type=int, default=200, help="0 to 1000 (default: %(default)s)")
    flags.add_argument("--mib", type=int, default=64, help="of each answer and body, 16 to 256 (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=30, help="for which they are slow, 5 to 600 (default: %(default)s)")
    options = flags.parse_args()
    if not (0 <= options.readers <= 1000 and 0 <= options.uploads <= 1000 and 16 <= options.mib <= 256 and 5 <= options.seconds <= 600):
        flags.error("a number is out of range; see --help")
    results = common.Results()
    for backend in common.backends(options):
        print(f"\n{backend}: {options.readers} readers and {options.uploads} uploads of {options.mib} MiB")
        spool = os.path.join(home, f"spool-{backend}")
        os.mkdir(spool)
        most = 2 * max(options.readers + options.uploads, 4) * options.mib * MIB
        given = [*PATIENT, "--spool-dir", spool, "--spool-bytes", str(most)]
        place = os.path.join(home, f"worker-{backend}")
        os.mkdir(place)
        command = [sys.executable, os.path.abspath(__file__), "--worker", "{socket}"]
        with common.serving(home, options.server, backend, given, command, workers=1, path="/fast/ping", directory=place) as server:
            play(server, place, spool, most, backend, options, results)
    return results.exit_code()


def play(server, place, spool, most, backend, options, results):
    expected = digest(options.mib)
    for alone in (read, upload):
        asyncio.run(alone(server.port, options.mib, 0))
    peace = tally(place)
    before = processes.resident_bytes(server.pid)
    seconds = options.seconds
    line = [sys.executable, os.path.abspath(__file__), "--fast", str(server.port), str(seconds)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as others:
        looks = Looks(server)
        digests = asyncio.run(all_of_them(server.port, options, looks))
        others_say = json.loads(others.stdout.read())
    wrong = sum(digest != expected for digest in digests)
    results.add(f"{backend}: bytes are equal", not wrong, f"{len(digests) - wrong} of {len(digests)}")
    results.add(f"{backend}: fast clients are served", not others_say["failed"] and others_say["requests"] > 0,
                f"{others_say['requests']} requests, p50 {others_say['p50'] * 1000:.1f} ms, p99 {others_say['p99'] * 1000:.1f} ms")
    after = tally(place)
    for kind in ("large", "upload"):
        count, spent = after[kind][0] - peace[kind][0], after[kind][1] - peace[kind][1]
        if count:
            results.add(f"{backend}: the worker is busy with its own work ({kind})", spent / count <= 3 * peace[kind][1] / peace[kind][0],
                        f"{spent / count * 1000:.0f} ms each, alone {peace[kind][1] / peace[kind][0] * 1000:.0f} ms")
    grown = (looks.peak() - before) / MIB
    results.add(f"{backend}: memory stays bounded", grown <= 256 + 64, f"grew by {grown:.0f} MiB at most")
    results.add(f"{backend}: the disk has its bound", 0 < looks.spooled <= most, f"{looks.spooled / MIB:.0f} of {most / MIB:.0f} MiB")
    asyncio.run(killed(server, options.mib))
    results.add(f"{backend}: no file is left", not os.listdir(spool), " ".join(os.listdir(spool)))


def tally(place):
    with open(os.path.join(place, "tally")) as file:
        return json.load(file)


class Looks:
    """Looks at the server now and then."""

    def __init__(self, server):
        self.server, self.spooled = server, 0

    def look(self):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(os.path.join(self.server.run, "control.sock"))
            control.sendall(b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: control.recv(65536), b"")).decode()
        found = re.search(r'"spool_bytes":\s*(\d+)', text)
        self.spooled = max(self.spooled, int(found.group(1)) if found else 0)

    def peak(self):
        with open(f"/proc/{self.server.pid}/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) * 1024


async def all_of_them(port, options, looks):
    slow_until = time.monotonic() + options.seconds
    peers = [read(port, options.mib, slow_until) for _ in range(options.readers)]
    peers += [upload(port, options.mib, slow_until) for _ in range(options.uploads)]

    async def watch():
        while True:
            await asyncio.to_thread(looks.look)
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    digests = await asyncio.gather(*peers)
    watching.cancel()
    return digests


async def killed(server, mib):
    """Answers wait in files as the server is killed."""
    readers = [asyncio.create_task(read(server.port, mib, time.monotonic() + 600)) for _ in range(8)]
    await asyncio.sleep(3)
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.sleep(1)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    elif sys.argv[1:2] == ["--fast"]:
        asyncio.run(fast(int(sys.argv[2]), int(sys.argv[3])))
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import common
        import processes
        common.run(main)
