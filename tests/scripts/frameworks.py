#!/usr/bin/env python3
"""Runs the frameworks' examples behind the server, end to end, and prints a table.

    tests/scripts/frameworks.py [--server target/release/production_server] [--only gunicorn,node] [--longest-idle 100]

Each of gunicorn (sync and gthread), uvicorn, Node, Express, Fastify, Bun, Puma and Go is fetched by name from its registry into a
directory that is kept (`--cache`), and runs two workers of the app in examples/. The checks:

`contract`  `production_server conformance` finds no fault
`bodies`    1,000 requests with bodies both ways over 16 connections, some chunked, some streamed, come back byte by byte; bodies that the
            app does not read are answered
`roll`      rolling restarts (USR2, then two at once) under load: no request fails, all workers are new, as many as before
`kill`      a worker is killed by -9 under load: 502 only for what it had in flight, and a new one takes its place
`idle`      requests behind an idle time just past the framework's keep-alive time: none fails; GETs sent while it runs out: none fails
`stop`      TERM with requests in flight: all are answered, the exit code is 0, and no process and no socket is left

Exit codes: 0, 1 a check failed, 64 wrong flags.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sys
import threading
import time

import common
import processes
from common import ROOT, Trouble

CHECKS = ("contract", "bodies", "roll", "kill", "idle", "stop")
CLIENTS = 8
WORKERS = 2
SIZES = (0, 1, 100, 4_000, 16_384, 70_000, 300_000)
# A body that the server does not gather before it asks for a worker, in bytes.
STREAMED = 2_500_000
# How much later than the framework's keep-alive time the requests come, in seconds.
JUST_PAST = 0.3
# The longest keep-alive time that is waited for twice, in seconds.
RACED = 6.0


@dataclasses.dataclass
class Framework:
    """One framework: how it is fetched, what its worker runs, and what is known of its keep-alive."""

    name: str
    fetch: object  # called with the cache's path; returns the command
    flags: tuple = ()  # of the server
    idle: float = None  # seconds after which it closes an idle connection; None: never, or after each answer


def example(*parts):
    return os.path.join(ROOT, "examples", *parts)


def from_pypi(cache, program):
    place = os.path.join(cache, "venv", "bin")
    if not all(os.access(os.path.join(place, name), os.X_OK) for name in ("gunicorn", "uvicorn")):
        common.python_with(cache, "gunicorn", "uvicorn")
    return os.path.join(place, program)


def gunicorn(*flags):
    return lambda cache: [from_pypi(cache, "gunicorn"), *flags, "-b", "unix:{socket}", "--chdir", example("gunicorn"), "app:application"]


def uvicorn(cache):
    return [from_pypi(cache, "uvicorn"), "--uds", "{socket}", "--app-dir", example("uvicorn"), "app:application"]


def from_npm(name):
    """The example with its packages beside it, as `npm install` in its directory leaves it."""

    def fetch(cache):
        place = os.path.join(cache, name)
        os.makedirs(place, exist_ok=True)
        for file in ("package.json", "server.js"):
            shutil.copy(example(name, file), place)
        if not os.path.isdir(os.path.join(place, "node_modules", name)):
            install(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", place])
        return ["node", os.path.join(place, "server.js")]

    return fetch


def bun(cache):
    place = os.path.join(cache, "bun")
    program = os.path.join(place, "node_modules", ".bin", "bun")
    if not os.path.exists(program):
        os.makedirs(place, exist_ok=True)
        install(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", place, "bun"])
    return [program, example("bun", "server.js")]


def puma(_cache):
    from_debian("puma", "puma")
    return ["puma", "-t", "4:4", "-b", "unix://{socket}", example("puma", "config.ru")]


def go(cache):
    from_debian("go", "golang-go")
    place = os.path.join(cache, "go")
    os.makedirs(place, exist_ok=True)
    program = os.path.join(place, "app")
    environment = {**os.environ, "GOCACHE": os.path.join(place, "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    status, output = processes.run_to_end(["go", "build", "-o", program, example("go", "main.go")], 300, env=environment)
    if status != 0:
        raise Trouble(f"go build failed:\n{output}")
    return [program]


def from_debian(program, package):
    if processes.find(program):
        return
    if os.geteuid() != 0 or not processes.find("apt-get"):
        raise Trouble(f"{program} is not installed; on Debian: apt-get install {package}")
    install(["apt-get", "update", "-qq"])
    install(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package])


def install(line):
    print(f"  {' '.join(line)}", flush=True)
    status, output = processes.run_to_end(line, 600)
    if status != 0:
        raise Trouble(f"{' '.join(line)} failed:\n{output[-2000:]}")


FRAMEWORKS = (
    Framework("gunicorn", gunicorn()),
    Framework("gthread", gunicorn("-k", "gthread", "--threads", "4"), ("-c", "4"), 2.0),
    Framework("uvicorn", uvicorn, ("-c", "64"), 5.0),
    # Node closes a second later than it says.
    Framework("node", lambda _cache: ["node", example("node", "server.js")], ("-c", "64"), 6.0),
    Framework("express", from_npm("express"), ("-c", "64"), 6.0),
    Framework("fastify", from_npm("fastify"), ("-c", "64"), 73.0),
    Framework("bun", bun, ("-c", "64"), 12.0),
    Framework("puma", puma, ("-c", "4"), 20.0),
    Framework("go", go, ("-c", "64")),
)


class Client(threading.Thread):
    """One client: does its requests, each a (method, path, body), over one connection or over one each, and keeps what came of them."""

    def __init__(self, port, requests, keep=True, chunked=False):
        super().__init__(daemon=True)
        self.port, self.requests, self.keep, self.chunked = port, requests, keep, chunked
        self.stream, self.pending = None, b""
        self.outcomes = []

    def run(self):
        for method, path, body in self.requests:
            self.outcomes.append(self.ask(method, path, body))
        self.leave()

    def ask(self, method, path, body):
        """"ok", or what was wrong."""
        try:
            self.stream = self.stream or processes.connect(self.port, timeout=20.0)
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n" + ("" if self.keep else "Connection: close\r\n")
            if method == "POST":
                framing = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(body)}"
                head += f"Content-Type: test/bytes\r\n{framing}\r\n"
            self.stream.sendall(head.encode() + b"\r\n" + (in_chunks(body) if self.chunked else body))
            status, head, answer, self.pending = processes.read_answer(self.stream, self.pending)
            if b"connection: close" in head.lower():
                self.leave()
        except OSError as error:
            self.leave()
            return f"{method} {path}: {error}"
        if status != 200:
            return f"{method} {path}: {status}"
        if path == "/echo" and answer != body:
            return f"{method} {path}: {len(answer)} other bytes for {len(body)}"
        return "ok"

    def leave(self):
        if self.stream:
            self.stream.close()
        self.stream, self.pending = None, b""


def in_chunks(body, size=30_000):
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def finite(count, seed):
    """Requests with bodies of many sizes; the same ones for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        yield "POST", "/echo", chance.randbytes(chance.choice(SIZES))


def mixed(stop, seed):
    """Requests until told to stop."""
    chance = random.Random(seed)
    while not stop.is_set():
        yield chance.choice((("GET", "/", b""), ("GET", "/slow?ms=20", b""), ("POST", "/echo", chance.randbytes(2_000))))


def together(clients, patience=120):
    """Runs clients to their end; returns the outcomes."""
    for client in clients:
        client.start()
    return joined(clients, patience)


def joined(clients, patience=120):
    end = time.monotonic() + patience
    for client in clients:
        client.join(max(0.1, end - time.monotonic()))
    if any(client.is_alive() for client in clients):
        raise Trouble(f"clients are not done within {patience} s")
    return [outcome for client in clients for outcome in client.outcomes]


def faults(outcomes):
    """How often each fault was seen."""
    seen = {}
    for outcome in outcomes:
        if outcome != "ok":
            seen[outcome] = seen.get(outcome, 0) + 1
    return seen


@contextlib.contextmanager
def load(port, requests=mixed):
    """Eight clients that go on until the block is left, every other one with a connection for each request; yields the list that
    holds all outcomes then."""
    stop, outcomes = threading.Event(), []
    clients = [Client(port, requests(stop, number), keep=number % 2 == 0) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield outcomes
    finally:
        stop.set()
        outcomes.extend(joined(clients))


def leaders(server):
    """The first process of each worker: the server's children with a worker's environment. (The guard has none.)"""
    found = set()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if entry.isdigit() and int(processes.stat_fields(int(entry))[1]) == server.pid:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if b"\0WORKER_ID=" in b"\0" + file.read() and processes.stat_fields(int(entry))[0] != b"Z":
                        found.add(int(entry))
    return found


def wait_for(condition, patience):
    """Whether the condition held within the time."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def contract(options, framework, command, add):
    line = [os.path.abspath(options.server), "conformance", "--slow-path", "/slow?ms=500", "--", *command]
    status, output = processes.run_to_end(line, 120)
    add("contract", status == 0, output.splitlines()[-1] if status == 0 else "\n" + output)


def page(home, options, results):
    """The smallest workers, as docs/worker.md has them."""
    with open(os.path.join(ROOT, "docs", "worker.md")) as file:
        text = file.read()
    for language, program in (("python", "python3"), ("js", "node")):
        script = os.path.join(home, f"worker.{language}")
        with open(script, "w") as file:
            file.write(text.split(f"```{language}\n")[1].split("```")[0])
        line = [os.path.abspath(options.server), "conformance", "--", program, script]
        status, output = processes.run_to_end(line, 120)
        results.add(f"docs/worker.md, {language}", status == 0, output.splitlines()[-1] if status == 0 else "\n" + output)


def bodies(server, add):
    outcomes = together([Client(server.port, finite(1_000 // 16, number), chunked=number % 4 == 0) for number in range(16)])
    large = [("POST", "/echo", os.urandom(STREAMED))]
    outcomes += together([Client(server.port, iter(large), chunked=number % 2 == 0) for number in range(1_000 % 16)])
    unread = [Client(server.port, iter([("POST", "/", os.urandom(600_000))])) for _ in range(4)]
    # An app may refuse such a request with its 404; what counts is that the client gets to see it.
    cut = [outcome for outcome in together(unread) if outcome not in ("ok", "POST /: 404", "POST /: 405")]
    wrong = faults([*outcomes, *cut])
    add("bodies", len(outcomes) == 1_000 and not wrong, str(wrong or f"{len(outcomes)} requests"))


def roll(server, count, add, requests=mixed):
    """Rolling restarts. Every second time there are two signals at once: the second joins the first or is done behind it."""
    with load(server.port, requests) as outcomes:
        replaced = True
        for signals in ((1, 2) * count)[:count]:
            before = leaders(server)
            for _ in range(signals):
                os.kill(server.pid, signal.SIGUSR2)
            replaced = replaced and wait_for(lambda: is_replaced(server, before), 40)
    # The second signal of two may have begun a restart of its own; the number is told when that is over, too.
    settled = wait_for(lambda: len(leaders(server)) == WORKERS, 20)
    wrong = faults(outcomes)
    detail = str(wrong) if wrong else f"{len(outcomes)} requests"
    if not replaced:
        detail += "; not all workers were replaced"
    if not settled:
        detail += f"; {len(leaders(server))} workers, not {WORKERS}"
    add("roll", bool(outcomes) and not wrong and replaced and settled, detail)


def is_replaced(server, before):
    now = leaders(server)
    return len(now) == WORKERS and not now & before


def kill(server, concurrency, add):
    with load(server.port) as outcomes:
        time.sleep(0.3)  # the load is under way
        victim = random.Random(server.port).choice(sorted(leaders(server)))
        os.kill(victim, signal.SIGKILL)
        back = wait_for(lambda: len(leaders(server) - {victim}) == WORKERS, 15)
        time.sleep(0.3)  # and goes on with the new one
    wrong = faults(outcomes)
    # What was inside the worker ends with 502, or visibly cut where its answer had begun.
    inside = (": 502", ": the connection ended inside an answer")
    lost = sum(count for fault, count in wrong.items() if fault.endswith(inside))
    others = {fault: count for fault, count in wrong.items() if not fault.endswith(inside)}
    detail = f"{len(outcomes)} requests, {lost} inside the killed worker {others or ''}"
    add("kill", back and not others and lost <= min(CLIENTS, concurrency), detail)


class Idle:
    """The idle check of one framework, in steps, so that all of them share the waiting."""

    def __init__(self, framework, server, add):
        self.framework, self.server, self.add = framework, server, add
        self.outcomes, self.due = [], 0.0
        self.steps = [self.behind]
        # Where that takes seconds only, requests are sent while it runs out as well.
        if framework.idle is not None and framework.idle <= RACED:
            self.steps.append(self.while_it_runs_out)

    def warm(self):
        """Fills the server's store of connections to the workers; the clock starts at the end of that."""
        self.outcomes += together([Client(self.server.port, iter([("GET", "/slow?ms=20", b"")])) for _ in range(16)])
        early = 0.15 if self.steps[0] == self.while_it_runs_out else -JUST_PAST
        self.due = time.monotonic() + (self.framework.idle or 3.0) - early

    def step(self):
        """Does what is due. True: there is more to come."""
        self.steps.pop(0)()
        if self.steps:
            self.warm()
            return True
        wrong = faults(self.outcomes)
        self.add("idle", not wrong, str(wrong) if wrong else f"{len(self.outcomes)} requests around {self.framework.idle or 'no'} s")
        return False

    def behind(self):
        post = [("POST", "/echo", b"x" * 2_000)]
        self.outcomes += together([Client(self.server.port, iter(post * 2)) for _ in range(16)])

    def while_it_runs_out(self):
        for _ in range(30):
            self.outcomes += together([Client(self.server.port, iter([("GET", "/", b"")]))])
            time.sleep(0.01)


def stop(server, add):
    """TERM while eight requests run for half a second."""
    below = [(pid, born) for pid, born in processes.descendants(server.pid)]
    clients = [Client(server.port, iter([("GET", "/slow?ms=500", b"")])) for _ in range(WORKERS)]
    for client in clients:
        client.start()
    time.sleep(0.2)  # they are under way
    below += processes.descendants(server.pid)
    os.kill(server.pid, signal.SIGTERM)
    wrong = faults(joined(clients, 30))
    try:
        code = server.process.wait(20)
    except Exception:  # noqa: BLE001  (still there: said by the code below)
        code = None
    gone = wait_for(lambda: not any(processes.is_running(pid, born) for pid, born in below), 3)
    place = os.path.join(os.path.dirname(server.log), "run")
    ok = not wrong and code == 0 and gone and not os.path.exists(place)
    add("stop", ok, "" if ok else f"{wrong or ''} exit code {code}, processes gone: {gone}, directory gone: {not os.path.exists(place)}")


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    names = [framework.name for framework in FRAMEWORKS]
    flags.add_argument("--only", default=",".join(names), help="separated by commas (default: all)")
    flags.add_argument("--checks", default=",".join(CHECKS), help="separated by commas (default: all)")
    flags.add_argument("--cache", default=os.path.join(ROOT, "target", "frameworks"), help="kept between runs (default: %(default)s)")
    flags.add_argument("--rolls", type=int, default=2, help="rolling restarts, 1 to 1000 (default: %(default)s)")
    flags.add_argument("--longest-idle", type=float, default=100.0, help="seconds; longer idle checks are left out (default: %(default)s)")
    flags.set_defaults(backends="epoll")
    options = flags.parse_args()
    chosen, checks = options.only.split(","), options.checks.split(",")
    for name, known in [(name, names) for name in chosen] + [(check, CHECKS) for check in checks]:
        if name not in known:
            flags.error(f"{name!r} is none of {', '.join(known)}")
    if not 1 <= options.rolls <= 1000 or not 0 <= options.longest_idle <= 3600:
        flags.error("a number is out of range; see --help")
    os.makedirs(options.cache, exist_ok=True)
    results, table = common.Results(), {}
    frameworks = [framework for framework in FRAMEWORKS if framework.name in chosen]
    if "contract" in checks:
        page(home, options, results)
    for backend in common.backends(options):
        with contextlib.ExitStack() as stack:
            go_through(stack, home, options, backend, frameworks, checks, results, table)
    print_table(table, checks)
    return results.exit_code()


def go_through(stack, home, options, backend, frameworks, checks, results, table):
    """All checks: one framework after the other, but for the idle times, which all have together."""
    servers = []
    for framework in frameworks:
        name = f"{backend} {framework.name}"
        print(f"\n{name}", flush=True)

        def add(check, ok, detail="", name=name):
            table.setdefault(name, {})[check] = "ok" if ok else "FAIL"
            results.add(f"{name} {check}", ok, detail)

        command = framework.fetch(options.cache)
        if "contract" in checks:
            contract(options, framework, command, add)
        more = ("--json-logging", *framework.flags)
        server = stack.enter_context(common.serving(home, options.server, backend, more, command, WORKERS, "/"))
        servers.append((framework, server, add))
        if "bodies" in checks:
            bodies(server, add)
        if "roll" in checks:
            roll(server, options.rolls, add)
        if "kill" in checks:
            kill(server, int(framework.flags[1]) if framework.flags else 1, add)
    if "idle" in checks:
        print(f"\n{backend} idle", flush=True)
        waiting = [Idle(*one) for one in servers if (one[0].idle or 0) <= options.longest_idle]
        share_the_waiting(waiting)
    if "stop" in checks:
        print(f"\n{backend} stop", flush=True)
        for _, server, add in servers:
            stop(server, add)


def share_the_waiting(waiting):
    for idle in waiting:
        idle.warm()
    while waiting:
        idle = min(waiting, key=lambda one: one.due)
        time.sleep(max(0.0, idle.due - time.monotonic()))
        if not idle.step():
            waiting.remove(idle)


def print_table(table, checks):
    width = max(map(len, table), default=0)
    print(f"\n{'':{width}}  {'  '.join(f'{check:8}' for check in checks)}")
    for name, row in table.items():
        print(f"{name:{width}}  {'  '.join(f'{row.get(check, chr(45)):8}' for check in checks)}")


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
