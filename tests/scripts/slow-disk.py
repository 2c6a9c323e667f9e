#!/usr/bin/env python3
"""A slow disk holds up those who need it, and nobody else: files and the spool on a file system whose every answer takes 50 ms.

    tests/scripts/slow-disk.py [--server target/release/production_server] [--backends epoll,io_uring] [--parts cached,direct,spool]
                               [--milliseconds 50] [--windows 5] [--seconds 2]

cached, direct  64 clients fetch files of 300 KB from it, with the kernel's cache and without
spool           four clients send 4 MiB each, which go through the spool there before a worker is asked for

Beside each, 64 fast clients ask at a constant rate, half of them a worker and half of them a fixed answer. Held to: all bytes are right; no fast request fails; their
p99 is at most twice what it is without, or at another server at the same time (see fast.py). By hand, on a machine that does nothing
else; it mounts, and so it needs to be root. Exit codes: 0, 1 a bound was missed, 64 wrong flags.
"""

import contextlib
import hashlib
import os
import subprocess
import threading
import time

import common
import fast
import processes
from processes import Trouble

PARTS = ("cached", "direct", "spool")
FILES, FILE_BYTES = 300, 300_000
UPLOAD_BYTES = 4 << 20
PATHS = ("/ping", "/fixed")
FACTOR = 2

SITE = """
[server]
spool_dir = "{spool}"
max_body = "64MiB"
[[routes]]
match.path = "/files/*"
static = {{ root = "{files}", prefix = "/files" }}
[[routes]]
match.path = "/fixed"
respond = "always the same"
[[routes]]
match.path = "/echo"
app = "slow"
[[routes]]
app = "web"
[apps.slow]
workers = 1
queue.timeout = "2m"
[apps.web]
workers = 2
"""


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    flags.add_argument("--milliseconds", type=int, default=50, help="of each answer of the disk, 1 to 1000 (default: %(default)s)")
    flags.add_argument("--windows", type=int, default=5, help="of each measurement, 1 to 20 (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=2, help="of each window, 1 to 60 (default: %(default)s)")
    options = flags.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS) or options.server == "nginx":
        flags.error("--parts are of " + ", ".join(PARTS) + "; there is no control")
    if not (1 <= options.milliseconds <= 1000 and 1 <= options.windows <= 20 and 1 <= options.seconds <= 60):
        flags.error("a number is out of range; see --help")
    processes.need("fusermount")
    options.constant_rate = fast.program(home, "constant_rate")
    python = os.path.join(common.python_with(home, "fusepy"), "python")
    results = common.Results()
    for backend in common.backends(options):
        for part in parts:
            print(f"\n{backend}: {part}", flush=True)
            place = os.path.join(home, f"{backend}-{part}")
            os.mkdir(place)
            with contextlib.ExitStack() as stack:
                disk = stack.enter_context(slow_disk(place, python, options.milliseconds, "cached" if part == "spool" else part))
                quick = os.path.join(place, "quick")
                os.mkdir(quick)
                texts = SITE.format(files=disk, spool=disk if part == "spool" else quick), SITE.format(files=quick, spool=quick)
                server, other = (stack.enter_context(common.site(place, options.server, backend, text)) for text in texts)
                {"spool": uploads}.get(part, files)(f"{backend} {part}", server, other, options, results)
    return results.exit_code()


@contextlib.contextmanager
def slow_disk(place, python, milliseconds, how):
    """A directory on a slow disk, with the files."""
    behind, mounted, log = (os.path.join(place, name) for name in ("behind", "disk", "disk.log"))
    os.mkdir(behind)
    os.mkdir(mounted)
    for number in range(FILES):
        with open(os.path.join(behind, f"{number}.bin"), "wb") as out:
            out.write(content(number))
    program = os.path.join(common.ROOT, "tests", "scripts", "clients", "slow_disk.py")
    with processes.running([python, program, behind, mounted, str(milliseconds), how], log) as process:
        try:
            end = time.monotonic() + 20
            while not os.path.ismount(mounted):
                if process.poll() is not None or time.monotonic() > end:
                    raise Trouble(f"no slow disk was mounted; is libfuse2 there, and is this root?\n{processes.tail(log)}")
                time.sleep(0.05)
            yield mounted
        finally:
            subprocess.run([processes.find("fusermount"), "-u", "-z", mounted], capture_output=True, timeout=20)


def content(number):
    return hashlib.sha256(str(number).encode()).digest() * (FILE_BYTES // 32)


def files(name, server, other, options, results):
    """Clients that fetch files."""
    def fetch(number, count):
        which = (number * 37 + count) % FILES
        status, body = processes.request(server.port, f"/files/{which}.bin", timeout=120)
        return status == 200 and body == content(which)

    beside(name, server, other, fetch, 64, options, results)


def uploads(name, server, other, options, results):
    """Clients whose bodies go through the spool."""
    body = os.urandom(UPLOAD_BYTES)
    asked = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()

    def send(*_):
        with processes.connect(server.port, timeout=120) as stream:
            stream.sendall(asked + body)
            status, head, answer, _ = processes.read_answer(stream)
        if status != 200:
            raise Trouble(f"{head.decode()}\n{answer.decode()}")
        return answer == body

    beside(name, server, other, send, 4, options, results)


def beside(name, server, other, act, number, options, results):
    """What the fast clients notice of so many that act again and again."""
    here, control = (fast.Clients(options.constant_rate, one.port, PATHS, 2000, 64, options.seconds) for one in (server, other))
    without = here.windows(options.windows)
    over, told = threading.Event(), {"right": 0, "wrong": 0}

    def again(index):
        count = 0
        while not over.is_set():
            try:
                right = act(index, count)
            except (OSError, Trouble) as error:
                right, told["error"] = False, str(error)
            told["right" if right else "wrong"] += 1
            count += 1

    threads = [threading.Thread(target=again, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while told["right"] < 3 and time.monotonic() < end:
        time.sleep(0.05)
    during, quiet = fast.in_turns(here, control, options.windows)
    over.set()
    for thread in threads:
        thread.join()
    failed = without.failed + during.failed + quiet.failed
    results.add(f"{name}: all bytes are right", told["right"] > 2 and not told["wrong"], str(told))
    results.add(f"{name}: no fast request fails", not failed, str(failed or ""))
    results.add(f"{name}: the fast ones do not notice it", not during.slow(FACTOR, without, quiet), str(during))
    print(f"        without: {without}\n        another server at the same time: {quiet}", flush=True)


if __name__ == "__main__":
    common.run(main)
