#!/usr/bin/env python3
"""Crowds that wait, beside 64 fast clients: nobody else may notice them, and the memory for them has its bound.

    tests/scripts/crowds.py [--server target/release/production_server] [--backends epoll,io_uring] [--peers 5000] [--door readers|all]

For each door (what each peer of it does is in benches/load/crowd.c): the server with its defaults but for the deadlines, which are
far off, before one worker that takes all of the crowd at once. 64 fast clients ask at a constant rate, half of them through the worker and half of
them for /server, first without the crowd, then while it comes, then beside it. Held to: no fast request fails; their p99 beside the crowd is at most
twice of what it was without (the medians of some windows, of which each is timed from when a request was due); the most resident memory
of the server stays within --buffer-bytes and 64 MiB; the crowd gets whole answers when it reads on; and when it has left, connections and
memory are given back, so that another round is as the first. Exit codes: 0, 1 a bound was missed, 64 wrong flags.

A crowd costs the kernel something that no server can spare it: it asks the window of each peer that has closed it, at growing distances, for
thousands at the same moment. So a second server stands beside the first, without any crowd, and the bound is twice the larger of what its
clients notice at the same time and what the first one's noticed before (see fast.py).

It judges by times, and so it is run by hand, on a machine that does nothing else. tests/crowds holds the same doors to what needs no
time.
"""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time

import common
import crowd
import fast
import processes
from crowd import PATIENCE

MIB = 1 << 20
# What the program itself may take beside what it holds for others.
MARGIN = 64 * MIB
FAST = 64
# What they ask for, half of them each.
PATHS = ("/small", "/server")
# The clocks are not what this is about: whoever waits here waits until it is told to go on.
PATIENT = ["--header-timeout", "10m", "--body-timeout", "10m", "--write-timeout", "10m", "--read-timeout-ms", "600000",
           "--request-timeout", "10m"]


@dataclasses.dataclass(frozen=True)
class Door:
    """How one kind of crowd is known to be in its place, and how it ends."""

    name: str
    title: str
    # The peers are there when so many of them are in this state of the crowd's own, or of the worker's.
    placed: str
    at_worker: str = ""
    # When the worker goes on: "read", before the crowd reads its answers, or "left", when it has left.
    go: str = ""
    # Whether there are whole answers to be read.
    whole: bool = False


DOORS = [
    Door("readers", "slow readers of 400 KB", "good", whole=True),
    Door("streams", "event streams with 10 KB of cookies that are not read", "good"),
    Door("listeners", "event streams with 10 KB of cookies that are read", "good"),
    Door("posts", "POSTs of 17 KB that wait for a slow endpoint", "sent", at_worker="wait", go="read", whole=True),
    Door("poured", "WebSockets that are not read", "good"),
    Door("deaf", "WebSockets whose worker does not read", "good", go="left"),
    Door("uploads", "uploads of 2 MiB to a worker that does not read", "open", at_worker="upload", go="read", whole=True),
    Door("idle", "idle connections up to --max-connections", "good"),
    Door("heads", "heads of 30 KB that stop in the middle", "sent"),
]


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--backend", help="one backend; the same as --backends with one")
    flags.add_argument("--peers", type=int, default=5000, help="of each crowd, 1 to what the descriptors allow (default: %(default)s)")
    flags.add_argument("--door", default="all", help=f"of {', '.join(door.name for door in DOORS)} (default: all)")
    flags.add_argument("--rate", type=int, default=2000, help="requests a second of the fast clients together (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=2, help="of each window, 1 to 60 (default: %(default)s)")
    flags.add_argument("--windows", type=int, default=5, help="before and beside the crowd, 1 to 20 (default: %(default)s)")
    flags.add_argument("--factor", type=float, default=2.0, help="how many times the p99 may be (default: %(default)s)")
    flags.add_argument("--buffer-mib", type=int, default=256, help="--buffer-bytes of the server (default: %(default)s)")
    options = flags.parse_args()
    known = {door.name: door for door in DOORS}
    chosen = list(known) if options.door == "all" else options.door.split(",")
    if options.backend:
        options.backends = options.backend
    if options.server == "nginx" or any(name not in known for name in chosen):
        flags.error("see --help for --door; nginx has a row of its own in benches/load/run.py")
    if not (1 <= options.seconds <= 60 and 1 <= options.windows <= 20 and 10 <= options.rate <= 100_000 and options.peers >= 1):
        flags.error("a number is out of range; see --help")
    options.peers = crowd.room(options.peers)
    programs = {name: fast.program(home, name) for name in ("crowd", "crowd_worker", "constant_rate")}
    results = common.Results()
    for backend in common.backends(options):
        for name in chosen:
            print(f"\n{backend}, {options.peers} peers: {known[name].title}")
            with Scene(home, programs, backend, known[name], options) as scene:
                scene.play(results)
    return results.exit_code()


class Site:
    """One server with its defaults, and its worker."""

    def __init__(self, stack, place, programs, line):
        self.place, self.port = place, processes.free_port()
        self.socket, log = os.path.join(place, "worker.sock"), os.path.join(place, "worker.log")
        worker = stack.enter_context(processes.running([programs["crowd_worker"], self.socket], log))
        processes.wait_until_it_answers(worker, log, self.socket, "/small")
        line = [*line, "--listen", f"127.0.0.1:{self.port}", "--run-dir", os.path.join(place, "run"), "--upstream", f"unix:{self.socket}"]
        log = os.path.join(place, "log")
        self.server = stack.enter_context(processes.running(line, log, cwd=place))
        processes.wait_until_it_answers(self.server, log, self.port, "/small")

    def processor_time(self):
        """Seconds that the server has computed."""
        with open(f"/proc/{self.server.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Scene:
    """One server with a crowd, one without, and the fast clients of each."""

    def __init__(self, home, programs, backend, door, options):
        self.home, self.programs, self.backend, self.door, self.options = home, programs, backend, door, options
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            peers = self.options.peers
            # The line for workers is not what this is about: the one worker takes all of them at once.
            line = [os.path.abspath(self.options.server), "--backend", self.backend, "--stats-interval", "0s",
                    "-c", str(peers + 1000), "--buffer-bytes", f"{self.options.buffer_mib}MiB", *PATIENT]
            if self.door.name == "idle":
                line += ["--max-connections", str(peers)]
            sites = [Site(self.stack, tempfile.mkdtemp(prefix="site-", dir=self.home), self.programs, line) for _ in range(2)]
            self.crowded, self.control = sites
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_):
        self.stack.close()

    def play(self, results):
        name = f"{self.backend} {self.door.name}"
        here, control = (self.fast(site) for site in (self.crowded, self.control))
        without = here.windows(self.options.windows)
        results.add(f"{name}: the fast ones without the crowd", not without.failed, str(without))
        with crowd.standing(self.programs["crowd"], self.crowded.port, self.door.name, self.options.peers, peers=self.options.peers) as peers:
            coming = here.windows(1)
            results.add(f"{name}: no fast request fails while it comes", not coming.failed, str(coming.failed or coming))
            at_worker = (lambda: self.worker_counts()[self.door.at_worker]) if self.door.at_worker else None
            state, placed = peers.until(self.door.placed, at_worker)
            if not placed:
                print(f"        only so far comes the crowd: {state}, the worker has {self.worker_counts()}", flush=True)
            results.add(f"{name}: then the server rests", self.rests())
            beside, quiet = fast.in_turns(here, control, self.options.windows)
            failed = beside.failed + quiet.failed
            results.add(f"{name}: no fast request fails beside it", not failed, str(failed or ""))
            results.add(f"{name}: the fast ones do not notice it", not failed and not beside.slow(self.options.factor, without, quiet), str(beside))
            print(f"        those of the server without a crowd, in turns with them: {quiet}", flush=True)
            now, _ = self.memory()
            self.judge_end(name, peers, placed, results)
            most, bound = self.memory()[1], self.options.buffer_mib * MIB + MARGIN
            say = f"VmRSS {now / MIB:.0f} MiB beside it, at most {most / MIB:.0f} of {bound / MIB:.0f}"
            results.add(f"{name}: memory keeps its bound", most <= bound, say)
        self.judge_after(name, results)

    def fast(self, site):
        """The fast clients of one of the two."""
        options = self.options
        return fast.Clients(self.programs["constant_rate"], site.port, PATHS, options.rate, FAST, options.seconds)

    def rests(self):
        """Waits until whoever has come has been served as far as it lets itself be: less than a twentieth of a processor is used."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            before = self.crowded.processor_time()
            time.sleep(1)
            if self.crowded.processor_time() - before < 0.05:
                return True
        return False

    def worker_counts(self):
        _, body = processes.request(self.crowded.socket, "/count", timeout=PATIENCE)
        return json.loads(body)

    def memory(self):
        """The server's resident bytes, and the most that they have been."""
        with open(f"/proc/{self.crowded.server.pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))

    def judge_end(self, name, peers, placed, results):
        """Lets those go that wait, and all read what is theirs."""
        if self.door.name == "idle":
            state = peers.say("state")
            # A sixteenth of the limit is kept free, and the fast ones come once for each window and path.
            most = peers.peers // 16 + 3 * FAST
            results.add(f"{name}: the longest idle ones made room", FAST <= state["ended"] <= most, str(state))
        else:
            results.add(f"{name}: all have their places", placed)
        if self.door.go == "read":
            processes.request(self.crowded.socket, "/go", timeout=PATIENCE)
        if self.door.whole:
            peers.say("read")
            state, whole = peers.until("whole", lambda: peers.peers)
            results.add(f"{name}: all get whole answers", whole, str(state))
        peers.say("leave")
        if self.door.go == "left":
            processes.request(self.crowded.socket, "/go", timeout=PATIENCE)

    def judge_after(self, name, results):
        end, left = time.monotonic() + PATIENCE, -1
        while left != 0 and time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                left = self.connections()
            time.sleep(0.05)
        results.add(f"{name}: nothing is left of it", left == 0, f"{left} connections")
        after = self.fast(self.crowded).windows(self.options.windows)
        results.add(f"{name}: after it all is as before", not after.failed, str(after.failed or ""))

    def connections(self):
        """Open connections of clients. Servers of before tell it on their port alone, over one more connection."""
        control = os.path.join(self.crowded.place, "run", "control.sock")
        counters = json.loads(processes.request(control, "/status")[1]).get("counters")
        if counters:
            return counters["active_connections"]
        return json.loads(processes.request(self.crowded.port, "/status")[1])["active_connections"] - 1


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
