#!/usr/bin/env python3
"""Who floods hurts itself alone: a million addresses against a limit, one client that takes the whole waiting line, wrong passwords by the hundred.

    tests/scripts/floods.py [--server target/release/production_server] [--backends epoll,io_uring] [--parts addresses,turns,passwords]
                            [--windows 5] [--seconds 3] [--addresses 1000000]

addresses  a limit of 100 requests a second for each client address; a million addresses come, some of them often, beside four honest clients
           that ask five times as often as they may. The server's memory does not grow by more than the limit's own and some; each honest one
           gets what the limit says, within a hundredth.
turns      four workers that take 10 ms for each request; one client asks 20 times a second, another keeps 200 requests waiting, which is fifty
           times what the first one has under way. With `queue.fair = "client_ip"` the p99 of the first is at most twice what it is alone.
passwords  64 connections send wrong passwords for a hash of bcrypt at cost 12, each from an address of its own. The p99 of other routes, of a worker and of
           a fixed answer, is at most twice what it is without, or at another server at the same time (see fast.py); and uploads of 32 MiB,
           which the same helpers spool, take at most four times as long.

It judges by times, and so it is run by hand, on a machine that does nothing else. Exit codes: 0, 1 a bound was missed, 64 wrong flags.
"""

import contextlib
import os
import statistics
import subprocess
import threading
import time

import common
import fast
import processes
from processes import Trouble

PARTS = ("addresses", "turns", "passwords")
RATE, BURST, HONEST = 100, 10, 4
FLOOD_CONNECTIONS = 200
FACTOR = 2
UPLOAD_BYTES, UPLOAD_FACTOR, UPLOADS = 32 << 20, 4, 5
GROWTH = 8 << 20

SITE = """
[server]
trusted_proxies = ["loopback"]
max_body = "64MiB"
[limits.each]
rate = "{rate}/s"
burst = {burst}
[[routes]]
match.path = "/limited"
respond = "as often as you may"
limits = "each"
[[routes]]
match.path = "/staff/*"
app = "web"
auth = {{ basic = "{users}" }}
[[routes]]
match.path = "/fixed"
respond = "always the same"
[[routes]]
app = "web"
[apps.web]
workers = 4
queue.fair = "client_ip"
"""


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    flags.add_argument("--windows", type=int, default=5, help="of each measurement, 1 to 20 (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=3, help="of each window, 1 to 60 (default: %(default)s)")
    flags.add_argument("--addresses", type=int, default=1_000_000, help="that flood, 1000 to 10 million (default: %(default)s)")
    options = flags.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS) or options.server == "nginx":
        flags.error("--parts are of " + ", ".join(PARTS) + "; there is no control")
    if not (1 <= options.windows <= 20 and 1 <= options.seconds <= 60 and 1000 <= options.addresses <= 10_000_000):
        flags.error("a number is out of range; see --help")
    options.constant_rate = fast.program(home, "constant_rate")
    text = SITE.format(rate=RATE, burst=BURST, users=users(home, options.server))
    results = common.Results()
    for backend in common.backends(options):
        for part in parts:
            print(f"\n{backend}: {part}", flush=True)
            with (common.site(home, options.server, backend, text) as one, common.site(home, options.server, backend, text) as other):
                {"addresses": addresses, "turns": turns, "passwords": passwords}[part](backend, one, other, options, results)
    return results.exit_code()


def users(home, server):
    """The path of a file of users, with one whose hash is bcrypt's at cost 12."""
    done = subprocess.run([server, "hash-password", "--bcrypt", "staff"], input="right\n", capture_output=True, text=True, timeout=60)
    if done.returncode != 0 or "$12$" not in done.stdout:
        raise Trouble(f"hash-password made no line with bcrypt at cost 12:\n{done.stdout}{done.stderr}")
    file = os.path.join(home, "users")
    with open(file, "w") as out:
        out.write(done.stdout)
    os.chmod(file, 0o600)
    return file


def request(path, address, *fields):
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", f"X-Forwarded-For: {address}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def statuses(stream, count):
    """So many answers of requests in a row; how many there are of each status."""
    told, pending = {}, b""
    for _ in range(count):
        status, _, _, pending = processes.read_answer(stream, pending)
        told[status] = told.get(status, 0) + 1
    return told


def addresses(backend, server, _, options, results):
    """A million addresses, and four that ask five times as often as they may."""
    over, honest = threading.Event(), [None] * HONEST

    def ask(number):
        passed, refused = 0, 0
        with processes.connect(server.port) as stream:
            line = request("/limited", f"198.51.100.{number + 1}")
            begun = due = time.monotonic()
            while not over.is_set():
                stream.sendall(line)
                status = processes.read_answer(stream)[0]
                passed, refused = passed + (status == 200), refused + (status == 429)
                due += 1 / (5 * RATE)
                time.sleep(max(0, due - time.monotonic()))
            honest[number] = (passed, refused, time.monotonic() - begun)

    flood(server, 0, 10_000)
    before = processes.resident_bytes(server.pid)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(HONEST)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    told = flood(server, 10_000, options.addresses)
    while time.monotonic() < end:
        # Those of the end come again and again: they are what there is no room to forget.
        told[429] = told.get(429, 0) + flood(server, options.addresses - 1000, options.addresses).get(429, 0)
    over.set()
    for thread in threads:
        thread.join()
    grown = processes.resident_bytes(server.pid) - before
    results.add(f"{backend}: every address was answered", set(told) <= {200, 429} and told.get(200, 0) > 0.9 * (options.addresses - 10_000), str(told))
    results.add(f"{backend}: memory stays as it is", grown <= GROWTH, f"{grown / (1 << 20):.1f} MiB more")
    for number, (passed, refused, seconds) in enumerate(honest):
        right = BURST + RATE * seconds
        results.add(f"{backend}: honest client {number} gets what it may", abs(passed / right - 1) <= 0.01 and refused > passed,
                    f"{passed} of {right:.0f} in {seconds:.1f} s, {refused} refused")


def flood(server, first, end):
    """One request of each of those addresses, many in a row."""
    told = {}
    with processes.connect(server.port, timeout=30.0) as stream:
        for start in range(first, end, 500):
            batch = range(start, min(start + 500, end))
            stream.sendall(b"".join(request("/limited", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}") for number in batch))
            for status, count in statuses(stream, len(batch)).items():
                told[status] = told.get(status, 0) + count
    return told


@contextlib.contextmanager
def crowd(server, connections, lines):
    """So many connections, each of which asks again as soon as it is answered, until the block is left; yields how many there were of each status."""
    over, told, lock = threading.Event(), {}, threading.Lock()

    def ask(number):
        with contextlib.suppress(OSError, Trouble):
            stream = processes.connect(server.port, timeout=60.0)
            with stream:
                count = 0
                while not over.is_set():
                    stream.sendall(lines(number, count))
                    status = processes.read_answer(stream)[0]
                    count += 1
                    with lock:
                        told[status] = told.get(status, 0) + 1
                    if status == 503:
                        over.wait(0.1)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        over.set()
        for thread in threads:
            thread.join()


def until(condition, what):
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            raise Trouble(f"within 30 s there was not: {what}")
        time.sleep(0.05)


def turns(backend, server, other, options, results):
    """One client that keeps the line full, and one that asks now and then."""
    path = "/sleep?ms=10"
    here, control = (fast.Clients(options.constant_rate, one.port, (path,), 20, 4, max(options.seconds, 5)) for one in (server, other))
    without = here.windows(options.windows)
    with crowd(server, FLOOD_CONNECTIONS, lambda *_: request(path, "203.0.113.7")) as told:
        until(lambda: told.get(200, 0) > FLOOD_CONNECTIONS, "answers for who floods")
        beside, quiet = fast.in_turns(here, control, options.windows)
    judge(f"{backend} turns", told, without, beside, quiet, results)


def passwords(backend, server, other, options, results):
    """Wrong passwords by the hundred, beside clients who need none."""
    wrong = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def line(number, count):
        # staff:wrongXYZ in base64: whole groups of three bytes, so that any three letters at their end are another password.
        code = wrong[number % 62] + wrong[count % 62] + wrong[count // 62 % 62] + "A"
        return request("/staff/", f"10.1.{number}.{count // 8 % 250}", f"Authorization: Basic c3RhZmY6d3Jvbmdf{code}")

    paths = ("/ping", "/fixed")
    here, control = (fast.Clients(options.constant_rate, one.port, paths, 2000, 64, options.seconds) for one in (server, other))
    without, alone = here.windows(options.windows), uploads(server)
    with crowd(server, 64, line) as told:
        until(lambda: told.get(401, 0) > 2, "a wrong password that was compared")
        beside, quiet = fast.in_turns(here, control, options.windows)
        took, elsewhere = uploads(server), uploads(other)
    judge(f"{backend} passwords", told, without, beside, quiet, results)
    say = f"{took:.2f} s; without {alone:.2f} s, at another server at the same time {elsewhere:.2f} s"
    results.add(f"{backend} passwords: uploads go on", took <= UPLOAD_FACTOR * max(alone, elsewhere), say)


def uploads(server):
    """How long an upload takes, in seconds: the median of some."""
    taken = []
    asked = f"POST /status/204 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n".encode()
    with processes.connect(server.port, timeout=120) as stream:
        for _ in range(UPLOADS):
            begun = time.monotonic()
            stream.sendall(asked + bytes(UPLOAD_BYTES))
            if processes.read_answer(stream)[0] != 204:
                raise Trouble("an upload was not taken")
            taken.append(time.monotonic() - begun)
    return statistics.median(taken)


def judge(name, told, without, beside, quiet, results):
    failed = without.failed + beside.failed + quiet.failed
    results.add(f"{name}: no request of others fails", not failed, str(failed or ""))
    results.add(f"{name}: the others do not notice it", not beside.slow(FACTOR, without, quiet), str(beside))
    print(f"        without: {without}\n        another server at the same time: {quiet}\n        of who floods: {told}", flush=True)


if __name__ == "__main__":
    common.run(main)
