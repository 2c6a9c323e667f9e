#!/usr/bin/env python3
"""Load on the built-in workers: nothing may fail, not even while workers are recycled; and only what must while they are killed.

    tests/scripts/load-checks.py [--server target/release/production_server] [--backends epoll,io_uring] [--checks ab,kill] [--seconds 10]

`ab`: 100,000 requests over 100 connections, without and with -k; `wrk`: 100 connections. No request fails.
`recycle`: wrk -c64 with r:5 and with r:1000, workers being replaced all the while. No non-2xx, no socket error.
`kill`: a worker is killed by -9 each second under load. Each request is numbered; each is answered by 200 or, when it had
reached the killed worker, by 502, and the workers' own record shows that none ran twice.

With wrk -c64 (kept connections) and ab (a connection for each request) at the same time, and no non-2xx and no socket error:
`roll`: 20 rolling restarts in a row, some asked for twice, one by `restart --wait`; the built-in worker, Node and gunicorn.
`scale`: 2, 8, 1, 4 workers by `scale`, then TTIN and TTOU.
`lives`: r:50, and a lifetime of two seconds.
`leak`: workers that leak are replaced under --max-memory.

`dead`: all workers are killed at once; those inside get 502, all others are held, and the first of them is answered within 50 ms of the
first worker that is ready. `idle`: with four workers and no traffic the server sleeps, and takes less than 0.1 % of a core.
`crashloop`: a command that exits at once is started by the schedule, then given up; the server stays, does nothing, and comes back by
a restart. Bars of time are printed as kept or missed, and fail nothing: they hang on the machine.
Exit codes: 0, 1 a check failed, 64 wrong flags.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time

import common
import lives
import processes

CHECKS = ("ab", "wrk", "recycle", "kill", *lives.CHECKS)
RECORDER = os.path.join(common.ROOT, "tests", "scripts", "clients", "recording_worker.js")


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--checks", default=",".join(CHECKS), help="separated by commas (default: all)")
    flags.add_argument("--seconds", type=int, default=10, help="of each timed load, 1 to 120 (default: %(default)s)")
    flags.add_argument("--requests", type=int, default=100_000, help="of ab, up to 1000000 (default: %(default)s)")
    flags.add_argument("--apps", default=",".join(lives.APPS), help="of roll; left out where not installed (default: %(default)s)")
    flags.add_argument("--rolls", type=int, default=20, help="rolling restarts in a row, 1 to 1000 (default: %(default)s)")
    flags.add_argument("--idle", type=int, default=20, help="seconds without traffic, 1 to 600 (default: %(default)s)")
    options = flags.parse_args()
    chosen = options.checks.split(",")
    for name, known in [*((check, CHECKS) for check in chosen), *((app, lives.APPS) for app in options.apps.split(","))]:
        if name not in known:
            flags.error(f"{name!r} is none of {', '.join(known)}")
    bounds = ((options.seconds, 1, 120), (options.requests, 100, 1_000_000), (options.rolls, 1, 1000), (options.idle, 1, 600))
    if any(not least <= number <= most for number, least, most in bounds):
        flags.error("a number is out of range; see --help")
    results = common.Results()
    mine = [check for check in chosen if check in lives.CHECKS]
    for backend in common.backends(options) if len(mine) < len(chosen) else ():
        print(f"\n{backend}")
        if "ab" in chosen or "wrk" in chosen:
            steady(home, options, backend, chosen, results)
        if "recycle" in chosen and backend != "control":
            recycle(home, options, backend, results)
        if "kill" in chosen and backend != "control":
            kill(home, options, backend, results)
    if mine and options.server != "nginx":
        lives.go_through(home, options, mine, common.backends(options), results)
    return results.exit_code()


def steady(home, options, backend, chosen, results):
    with common.serving(home, options.server, backend) as server:
        for keep_alive in (False, True) if "ab" in chosen else ():
            done = common.ab(server.port, options.requests, 100, keep_alive)
            ok = done["complete"] == options.requests and not done["failed"] and not done["non_2xx"]
            results.add(f"{backend} ab{' -k' if keep_alive else ''}", ok, str(done))
        if "wrk" in chosen:
            clean(common.wrk(server.port, connections=100, seconds=options.seconds), f"{backend} wrk", results)


def clean(done, name, results):
    results.add(name, done["requests"] > 0 and not done["non_2xx"] and not done["errors"], str(done))


def recycle(home, options, backend, results):
    for threshold in (5, 1000):
        with common.serving(home, options.server, backend, flags=[f"r:{threshold}"]) as server:
            before = workers_of(server)
            done = common.wrk(server.port, seconds=options.seconds)
            clean(done, f"{backend} r:{threshold}", results)
            # With few requests the threshold may not have been reached; then the check would have shown nothing.
            if done["requests"] > 4 * threshold:
                results.add(f"{backend} r:{threshold} replaced its workers", not before & workers_of(server))


def workers_of(server):
    """The process ids of the server's workers: its descendants that have a worker number in their environment."""
    found = set()
    for pid, _ in processes.descendants(server.pid)[1:]:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if b"WORKER_ID=" in file.read():
                found.add(pid)
    return found


class Asker(threading.Thread):
    """One client: numbered POSTs over a connection, again and again; remembers each number's outcome."""

    def __init__(self, number, port, until):
        super().__init__(daemon=True)
        self.number, self.port, self.until = number, port, until
        self.outcomes = {}  # id: status, or 0 when the connection broke

    def run(self):
        stream, pending, count = None, b"", 0
        while time.monotonic() < self.until:
            count += 1
            name = f"{self.number}-{count}"
            try:
                stream = stream or processes.connect(self.port, timeout=20.0)
                stream.sendall(f"POST /{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello".encode())
                status, head, _, pending = processes.read_answer(stream, pending)
                self.outcomes[name] = status
                leaving = b"connection: close" in head.lower()
            except OSError:
                self.outcomes[name], leaving = 0, True
            if leaving:
                stream, pending = stream.close() if stream else None, b""
        if stream:
            stream.close()


def kill(home, options, backend, results):
    """Workers that write down each request before they answer it are killed, one each second, under 32 clients."""
    record = os.path.join(home, f"record-{backend}")
    os.mkdir(record)
    command = ["node", RECORDER, "{socket}", record]
    with common.serving(home, options.server, backend, command=command, workers=4) as server:
        until = time.monotonic() + options.seconds
        askers = [Asker(number, server.port, until) for number in range(32)]
        for asker in askers:
            asker.start()
        killed, chance = 0, random.Random(backend)
        while time.monotonic() + 1 < until:
            time.sleep(1)  # the pace that the check is about, and not a wait for something
            alive = sorted(workers_of(server))
            if alive:
                pid = chance.choice(alive)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        for asker in askers:
            asker.join(30)
        outcomes = {name: status for asker in askers for name, status in asker.outcomes.items()}
        judge(outcomes, record, killed, backend, results)


def judge(outcomes, record, killed, backend, results):
    """Holds the outcomes that the clients saw against what the workers wrote down."""
    runs = {}
    for name in os.listdir(record):
        with open(os.path.join(record, name)) as file:
            for line in file.read().split("\n"):
                if line:
                    runs[line] = runs.get(line, 0) + 1
    counts = {}
    for status in outcomes.values():
        counts[status] = counts.get(status, 0) + 1
    twice = [name for name, times in runs.items() if times > 1]
    unseen = [name for name, status in outcomes.items() if status == 200 and name not in runs]
    odd = {status: count for status, count in counts.items() if status not in (200, 502)}
    say = f"{killed} kills, {counts.get(200, 0)} answered, {counts.get(502, 0)} x 502"
    results.add(f"{backend} kill -9: only 200 and 502", killed > 0 and counts.get(200, 0) > 0 and not odd, f"{say} {odd or ''}")
    # One request runs in a worker at a time, so a kill costs one request at most.
    results.add(f"{backend} kill -9: at most one 502 a kill", counts.get(502, 0) <= killed, say)
    results.add(f"{backend} kill -9: none ran twice", not twice and not unseen, f"{len(runs)} ran, twice: {twice[:5]}")


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
