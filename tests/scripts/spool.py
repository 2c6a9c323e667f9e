#!/usr/bin/env python3
"""Slow readers of large answers and slow uploads beside fast clients: the spool keeps the worker free, and the others do not notice.

    tests/scripts/spool.py [--server target/release/production_server] [--backends epoll,io_uring] [--readers 200] [--uploads 200]
                           [--mib 64] [--seconds 40] [--rate 640] [--windows 5]

Two apps, each with one worker that takes one request at a time: one for what is large, and one in C for 64 fast clients, whose latency is timed from
when each request was due. Readers take 10 KB a second and uploads send 100 KB a second for the given time; then both go on as fast as they can. A second
server with the same apps and no crowd is asked in turn with the first one while the crowd stands: it shows what the load of the machine alone does, for
Python's clients and worker take the cores from all.

Held to: all bytes are equal; p99 of the fast clients, as the median of its windows, is within twice that without the crowd, or that of the second server
beside it; the worker is busy with a large request for no longer than three times what it is for one client that is fast, without the crowd or at the
second server beside it; the server's memory grows by no more than --buffer-bytes (256 MiB) and 64 MiB, the files take no more than --spool-bytes, and after a
kill -9 none is left. Exit codes: 0, 1 a bound was passed, 64 wrong flags.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import socketserver
import sys
import threading
import time

MIB = 1 << 20
FAST = 64
PATH = "/small"
# How many times what it is in peace, or at the other server, p99 may be, and the time of the worker.
P99_FACTOR, BUSY_FACTOR = 2, 3
PATIENT = ["--write-timeout", "300s", "--body-timeout", "300s", "--max-body", "1GiB", "--buffer-bytes", "256MiB"]
SITE = """
[[routes]]
match.path = "/small"
app = "fast"
[[routes]]
match.path = "/*"
app = "large"

[apps.fast]
command = ["{fast}", "{{socket}}"]
workers = 1
[apps.large]
command = ["{python}", "{script}", "--worker", "{{socket}}"]
workers = 1
queue.timeout = "900s"
timeouts = {{ read = "120s", request = "300s" }}
"""


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
                with open("tally.new", "w") as file:
                    json.dump(self.tally, file)
                os.rename("tally.new", "tally")


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads, request_queue_size = True, 64


def worker(path):
    if os.path.exists(path):
        os.unlink(path)
    Server(path, Worker).serve_forever()


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
    flags.add_argument("--seconds", type=int, default=40, help="for which they are slow, 10 to 600 (default: %(default)s)")
    flags.add_argument("--rate", type=int, default=640, help="requests a second of the fast ones together, 64 to 10000 (default: %(default)s)")
    flags.add_argument("--windows", type=int, default=5, help="in which they are timed without the crowd, 3 to 20 (default: %(default)s)")
    options = flags.parse_args()
    if not (0 <= options.readers <= 1000 and 0 <= options.uploads <= 1000 and 16 <= options.mib <= 256 and 10 <= options.seconds <= 600
            and 64 <= options.rate <= 10_000 and 3 <= options.windows <= 20):
        flags.error("a number is out of range; see --help")
    if options.server == "nginx":
        flags.error("nginx supervises nothing: there is no control")
    programs = {name: fast.program(home, name) for name in ("worker", "constant_rate")}
    results = common.Results()
    for backend in common.backends(options):
        print(f"\n{backend}: {options.readers} readers and {options.uploads} uploads of {options.mib} MiB")
        with contextlib.ExitStack() as stack:
            sides = [stack.enter_context(Side.serving(home, name, options, backend, programs)) for name in ("crowded", "control")]
            play(*sides, options, backend, results)
    return results.exit_code()


class Side:
    """One of the two servers, its spool, and what the fast clients saw of it."""

    def __init__(self, server, place, spool, most, options, program):
        self.server, self.place, self.spool, self.most, self.options = server, place, spool, most, options
        self.clients, self.asked = fast.Clients(program, server.port, (PATH,), options.rate, FAST, 2), {"large": 0, "upload": 0}

    @staticmethod
    @contextlib.contextmanager
    def serving(home, name, options, backend, programs):
        place = os.path.join(home, f"{name}-{backend}")
        spool = os.path.join(place, "spool")
        os.makedirs(spool)
        site = os.path.join(place, "site.toml")
        with open(site, "w") as file:
            file.write(SITE.format(fast=programs["worker"], python=sys.executable, script=os.path.abspath(__file__)))
        most = 2 * max(options.readers + options.uploads, 4) * options.mib * MIB
        given = ["-f", site, *PATIENT, "--spool-dir", spool, "--spool-bytes", str(most)]
        with common.serving(home, options.server, backend, given, workers=None, path="/small", directory=place) as server:
            processes.wait_until_it_answers(server.process, server.log, server.port, "/ping")
            yield Side(server, place, spool, most, options, programs["constant_rate"])

    def busy(self):
        """How often, and for how many seconds, its worker was busy with each kind; waits until it has told of all that were asked for."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError), open(os.path.join(self.place, "tally")) as file:
                tally = {"large": (0, 0.0), "upload": (0, 0.0), **json.load(file)}
                if all(tally[kind][0] >= count for kind, count in self.asked.items()):
                    return tally
            time.sleep(0.02)
        raise common.Trouble(f"the worker in {self.place} did not say that it has answered {self.asked}")

    async def alone(self):
        """One fast client of each kind."""
        for kind, one in (("large", read), ("upload", upload)):
            await one(self.server.port, self.options.mib, 0)
            self.asked[kind] += 1


def play(crowded, control, options, backend, results):
    expected = digest(options.mib)
    for side in (crowded, control):
        asyncio.run(side.alone())
    peace, at_first = crowded.busy(), control.busy()
    without = crowded.clients.windows(options.windows)
    looks = Looks(crowded.server)
    before = looks.resident("VmRSS")
    digests, windows = asyncio.run(all_of_them(crowded, control, options, looks))
    crowded.asked["large"] += options.readers
    crowded.asked["upload"] += options.uploads
    wrong = sum(digest != expected for digest in digests)
    results.add(f"{backend}: bytes are equal", not wrong, f"{len(digests) - wrong} of {len(digests)}")
    beside, quiet = windows
    failed = without.failed + beside.failed + quiet.failed
    results.add(f"{backend}: fast clients are served", not failed, "; ".join(failed[:3]))
    results.add(f"{backend}: p99 of fast clients is within {P99_FACTOR} x", not beside.slow(P99_FACTOR, without, quiet), str(beside))
    print(f"        without: {without}\n        the other server at the same time: {quiet}", flush=True)
    for kind in ("large", "upload"):
        judge_busy(kind, peace, crowded.busy(), at_first, control.busy(), backend, results)
    grown = (looks.resident("VmHWM") - before) / MIB
    results.add(f"{backend}: memory stays bounded", grown <= 256 + 64, f"grew by {grown:.0f} MiB at most")
    results.add(f"{backend}: the disk has its bound", 0 < looks.spooled <= crowded.most, f"{looks.spooled / MIB:.0f} of {crowded.most / MIB:.0f} MiB")
    asyncio.run(killed(crowded.server, options.mib))
    left = os.listdir(crowded.spool)
    results.add(f"{backend}: no file is left", not left, " ".join(left))


def judge_busy(kind, peace, after, at_first, at_last, backend, results):
    """The seconds of the worker per request of that kind: alone, beside the crowd, and at the other server at the same time."""

    def each(first, last):
        count = last[kind][0] - first[kind][0]
        return (last[kind][1] - first[kind][1]) / count if count else 0

    nothing = {kind: (0, 0)}
    alone, beside, control = each(nothing, peace), each(peace, after), each(at_first, at_last)
    if beside:
        results.add(f"{backend}: the worker is busy with its own work ({kind})", beside <= BUSY_FACTOR * max(alone, control),
                    f"{beside * 1000:.0f} ms each, alone {alone * 1000:.0f} ms, control beside {control * 1000:.0f} ms")


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

    def resident(self, which):
        """Bytes of the server itself, now (VmRSS) or at most (VmHWM)."""
        with open(f"/proc/{self.server.pid}/status") as file:
            return int(re.search(rf"{which}:\s+(\d+)", file.read()).group(1)) * 1024


async def all_of_them(crowded, control, options, looks):
    """The crowd: the digests of what it got, and the windows of both servers beside it, while it is slow."""
    port, slow_until = crowded.server.port, time.monotonic() + options.seconds
    peers = [read(port, options.mib, slow_until) for _ in range(options.readers)]
    peers += [upload(port, options.mib, slow_until) for _ in range(options.uploads)]

    async def watch():
        while True:
            await asyncio.to_thread(looks.look)
            await asyncio.sleep(1)

    async def compare():
        sides, count = [(side.clients, fast.Windows((PATH,))) for side in (crowded, control)], 0
        # All have come.
        await asyncio.sleep(1)
        while not count or time.monotonic() < slow_until - 6:
            for clients, seen in sides:
                await asyncio.to_thread(clients.window, seen)
            count += 1
            if count % 3 == 0:
                await control.alone()
        return [seen for _, seen in sides]

    watching, comparing = asyncio.create_task(watch()), asyncio.create_task(compare())
    digests = await asyncio.gather(*peers)
    watching.cancel()
    return digests, await comparing


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
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import common
        import fast
        import processes
        common.run(main)
