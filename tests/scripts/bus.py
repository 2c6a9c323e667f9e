#!/usr/bin/env python3
"""Hubs that share their messages: nobody loses a message, nobody is closed, whatever becomes of workers, replicas and Redis.

    tests/scripts/bus.py [--server target/release/production_server] [--backends epoll,io_uring] [--parts deploys,kill,redis,machines]
                         [--sockets 200] [--seconds 20] [--away 10] [--quick]

    deploys   two replicas with two workers each, so many sockets on `broadcast`, and 200 messages a second, by turns to either replica, while workers are
              rolled and killed and both servers reload: each socket gets every message once and in order, and none is closed
    kill      the replica that numbers is killed by -9 in the middle: clients of it come back at the other one with the last id that they have seen, and
              have all of it, or are told of a gap
    redis     two servers over Redis, which is stopped for so long (--away) and started: streams of both get every message once and in order, without a gap
    machines  three servers over Redis, each in a network namespace of its own, as on three machines; all publish, one is cut off for so long and comes back:
              streams of all get every message of each publisher once and in order, without a gap. Needs root

`--quick`: one backend, 50 sockets, five seconds, Redis away for two. 5,000 sockets and 10 rolls: `--sockets 5000 --seconds 60`. Needs redis-server.
Exit codes: 0, 1 something did not hold, 64 wrong flags.
"""

import collections
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import common
import processes
from hub import Crowd
from processes import Trouble

# sched.h: a namespace of networks.
CLONE_NEWNET = 0x40000000

# Publishes 200 messages a second, by turns at these ports, for so many seconds: prints how many and how long it has taken. A port that is gone is left out, and
# what was under way is published again by its id.
PUBLISH = """
import http.client, json, sys, time
ports, most, name = [int(port) for port in sys.argv[1].split(",")], float(sys.argv[2]), sys.argv[3]
connections = {port: http.client.HTTPConnection("127.0.0.1", port, timeout=20) for port in ports}
begin, count = time.monotonic(), 0
while time.monotonic() - begin < most and count < most * 200:
    port = ports[count % len(ports)]
    try:
        connections[port].request("POST", "/api/v1/notify", json.dumps({"data": f"message {count} of {name}", "id": f"{name} {count}"}))
        answer = connections[port].getresponse()
        body = answer.read()
    except OSError:
        ports.remove(port)
        continue
    assert answer.status == 202, (answer.status, body)
    count += 1
    time.sleep(max(0, begin + count / 200 - time.monotonic()))
print(count, time.monotonic() - begin)
"""


@contextlib.contextmanager
def inside(namespace):
    """What this thread opens and starts within the block is in that network namespace."""
    if namespace is None:
        yield
        return
    with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{namespace}") as other:
        enter(other)
        try:
            yield
        finally:
            enter(own)


def enter(file):
    if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def some(home, options, backend, bus, namespaces=(None, None)):
    """Servers whose hubs have that bus, in these network namespaces: two in the one that there is."""
    with contextlib.ExitStack() as stack:
        servers = []
        for namespace in namespaces:
            file = os.path.join(home, f"{processes.free_port()}.toml")
            with open(file, "w") as out:
                out.write(f'[hub.hub]\nping = "10m"\nhistory = {{ count = 100000, bytes = "32MiB" }}\nbus = {bus}\n')
            with inside(namespace):
                server = stack.enter_context(common.serving(home, options.server, backend, flags=["-f", file]))
            server.file, server.namespace = file, namespace
            servers.append(server)
        wait("the hubs find each other", lambda: all(state(options, server) in ("leads", "follows", "connected") for server in servers))
        yield servers


def command(options, server, *words):
    done = subprocess.run([os.path.abspath(options.server), *words, "--run-dir", server.run], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Trouble(f"{' '.join(words)}: {done.returncode} {done.stdout} {done.stderr}")
    return done.stdout


def status(options, server):
    return json.loads(command(options, server, "status", "--json"))


def state(options, server):
    return status(options, server)["hubs"][0]["bus"]["state"]


def wait(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Trouble(f"in vain: {what}")
        time.sleep(0.05)


def publishing(servers, seconds, name="many"):
    line = [sys.executable, "-c", PUBLISH, ",".join(str(server.port) for server in servers), str(seconds), name]
    with inside(servers[0].namespace):
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def published(publisher, seconds):
    output, _ = publisher.communicate(timeout=seconds + 60)
    if publisher.returncode != 0:
        raise Trouble(f"the publisher has failed:\n{output[-1000:]}")
    return int(output.split()[0]), float(output.split()[1])


def deploys(home, options, backend, results):
    with some(home, options, backend, json.dumps(os.path.join(home, f"bus-{processes.free_port()}")).join(("{ directory = ", " }"))) as servers:
        crowds = [Crowd(server.port, options.sockets // 2, int(options.seconds * 200) + 200) for server in servers]
        for crowd in crowds:
            crowd.start()
        trouble, done, stop = [], collections.Counter(), threading.Event()

        def disturb():
            try:
                turn = 0
                while not stop.is_set():
                    kind, server = ("restart", "kill", "kill", "restart", "reload")[turn % 5], servers[turn % 2]
                    turn += 1
                    if kind == "restart":
                        command(options, server, "restart", "--wait")
                    elif kind == "reload":
                        with open(server.file, "a") as file:
                            file.write(f"# reload {turn}\n")
                        command(options, server, "reload", "--wait")
                    else:
                        pids = [worker["pid"] for app in status(options, server)["apps"] for worker in app["workers"] if worker["pid"]]
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pids[turn % len(pids)], signal.SIGKILL)
                    done[kind] += 1
                    stop.wait(0.2)
            except (Trouble, OSError, KeyError, subprocess.SubprocessError) as error:
                trouble.append(repr(error))

        disturber = threading.Thread(target=disturb, daemon=True)
        disturber.start()
        count, seconds = published(publishing(servers, options.seconds), options.seconds)
        stop.set()
        disturber.join(60)
        judge(results, f"{backend} deploys: {options.sockets} sockets of two replicas get {count} messages each, {count / seconds:.0f} a second, through "
              f"{done['restart']} rolls, {done['kill']} kills and {done['reload']} reloads", crowds, count, trouble)
        gaps = sum(status(options, server)["counters"]["hub_gaps"] for server in servers)
        results.add(f"{backend} deploys: nothing is missing", gaps == 0, f"{gaps} gaps")


def judge(results, name, crowds, count, trouble=()):
    def behind():
        return sum(crowd.behind(count) for crowd in crowds)
    end = time.monotonic() + 60
    while behind() and not any(crowd.closed or crowd.wrong for crowd in crowds) and time.monotonic() < end:
        time.sleep(0.05)
    closed, wrong, left = sum(crowd.closed for crowd in crowds), sum(crowd.wrong for crowd in crowds), behind()
    for crowd in crowds:
        crowd.close()
    results.add(name, not (closed or wrong or left or trouble),
                f"{closed} closed, {wrong} with another order, {left} without all" + "".join(f"; {text}" for text in trouble))


class Reader(threading.Thread):
    """A stream of events that comes back, with its last id, wherever somebody answers."""

    def __init__(self, ports, namespace=None):
        super().__init__(daemon=True)
        self.ports, self.namespace, self.last, self.gaps, self.resumed, self.over, self.wrong = list(ports), namespace, None, 0, 0, False, None
        # How many it has had of each publisher.
        self.had = collections.Counter()
        self.ready = threading.Event()

    def run(self):
        while not self.over and not self.wrong:
            try:
                with inside(self.namespace), socket.create_connection(("127.0.0.1", self.ports[0]), 20) as peer:
                    self.listen(peer)
            except OSError:
                pass
            self.ports.append(self.ports.pop(0))
            self.resumed += 1
            time.sleep(0.02)

    def listen(self, peer):
        last = f"Last-Event-ID: {self.last}\r\n" if self.last else ""
        # HTTP/1.0: no chunks.
        peer.sendall(f"GET /api/v1/listen HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last}\r\n".encode())
        lines, kind = peer.makefile("rb"), "message"
        for line in lines:
            line = line.decode().rstrip("\r\n")
            if line.startswith("id: "):
                self.last = line[4:]
                self.ready.set()
            elif line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind == "gap":
                self.gaps += 1
            elif line.startswith("data: message "):
                _, _, number, _, name = line.split()
                number, had = int(number), self.had[name]
                if number != had and not (self.gaps and number > had):
                    self.wrong = f"message {number} of {name} behind {had - 1}"
                    return
                self.had[name] = number + 1
            elif not line:
                kind = "message"


def kill(home, options, backend, results):
    with some(home, options, backend, json.dumps(os.path.join(home, f"bus-{processes.free_port()}")).join(("{ directory = ", " }"))) as servers:
        leader, other = sorted(servers, key=lambda server: state(options, server) != "leads")
        readers = [Reader([leader.port, other.port] if number % 2 else [other.port, leader.port]) for number in range(min(options.sockets, 100))]
        for reader in readers:
            reader.start()
        wait("all listen", lambda: all(reader.ready.is_set() for reader in readers))
        seconds = options.seconds / 2
        publisher = publishing([leader, other], seconds)
        time.sleep(seconds / 2)
        os.kill(leader.pid, signal.SIGKILL)
        count, _ = published(publisher, seconds)
        wait("all have the last one", lambda: all(reader.had["many"] == count or reader.wrong for reader in readers))
        for reader in readers:
            reader.over = True
        wrong = [reader.wrong for reader in readers if reader.wrong]
        resumed, gaps = sum(reader.resumed > 0 for reader in readers), sum(reader.gaps for reader in readers)
        results.add(f"{backend} kill: {len(readers)} streams get {count} messages though the replica that numbers is killed", not wrong and resumed > 0,
                    "; ".join(wrong[:3]) or f"{resumed} came back, {gaps} gaps")


def redis(home, options, backend, results):
    port, folder = processes.free_port(), os.path.join(home, f"redis-{processes.free_port()}")
    os.mkdir(folder)
    line = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--appendonly", "yes"]

    def start():
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait("redis-server listens", lambda: subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True).stdout == b"PONG\n")
        return process

    process = start()
    try:
        with some(home, options, backend, f'{{ url = "redis://127.0.0.1:{port}" }}') as servers:
            seconds = options.away + options.seconds / 2
            readers = [Reader([servers[number % 2].port]) for number in range(min(options.sockets, 100))]
            for reader in readers:
                reader.start()
            wait("all listen", lambda: all(reader.ready.is_set() for reader in readers))
            publisher = publishing(servers[:1], seconds)
            time.sleep(options.seconds / 4)
            process.terminate()
            process.wait()
            time.sleep(options.away)
            away = state(options, servers[0])
            process = start()
            count, _ = published(publisher, seconds)
            results.add(f"{backend} redis: it is said to be away", away == "away", away)
            wait("all have the last one", lambda: all(reader.had["many"] == count or reader.wrong for reader in readers))
            for reader in readers:
                reader.over = True
            wrong, gaps = [reader.wrong for reader in readers if reader.wrong], sum(reader.gaps for reader in readers)
            results.add(f"{backend} redis: {len(readers)} streams of two servers get {count} messages, though Redis is away for {options.away:g} s",
                        not wrong and not gaps, "; ".join(wrong[:3]) or f"{gaps} gaps")
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def network(count):
    """So many network namespaces, and one more, the last: each has 10.213.0.N, and the bridge in the host's ties them together."""
    def ip(*words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise Trouble(f"ip {' '.join(words)}: {done.stderr.strip()}; it needs root, and iproute2")

    mark = f"{os.getpid() % 100000}"
    bridge, names = f"bus{mark}", [f"bus{mark}-{number}" for number in range(count + 1)]
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{bridge}v{number}", "type", "veth", "peer", "name", "bus0", "netns", name)
            ip("link", "set", f"{bridge}v{number}", "master", bridge, "up")
            ip("-n", name, "address", "add", f"10.213.0.{number + 1}/24", "dev", "bus0")
            for device in ("bus0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names, lambda number, way: ip("link", "set", f"{bridge}v{number}", way)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True)


def machines(home, options, backend, results):
    if os.geteuid() != 0:
        raise Trouble("--parts machines: only root makes network namespaces")
    with network(3) as (names, link), contextlib.ExitStack() as stack:
        with inside(names[3]):
            line = ["redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", home]
            stack.enter_context(processes.running(line, os.path.join(home, "redis.log")))
        servers = stack.enter_context(some(home, options, backend, '{ url = "redis://10.213.0.4" }', names[:3]))
        readers = [Reader([server.port], server.namespace) for server in servers for _ in range(min(options.sockets, 100) // 3)]
        for reader in readers:
            reader.start()
        wait("all listen", lambda: all(reader.ready.is_set() for reader in readers))
        seconds = options.away + options.seconds / 2
        publishers = {f"server{number}": publishing([server], seconds, f"server{number}") for number, server in enumerate(servers)}
        time.sleep(options.seconds / 4)
        link(2, "down")
        time.sleep(options.away)
        away = state(options, servers[2])
        link(2, "up")
        counts = {name: published(publisher, seconds)[0] for name, publisher in publishers.items()}
        wait("all have all", lambda: all(reader.had == counts or reader.wrong for reader in readers), 60)
        for reader in readers:
            reader.over = True
        wrong, gaps = [reader.wrong for reader in readers if reader.wrong], sum(reader.gaps for reader in readers)
        results.add(f"{backend} machines: one of three is cut off", away == "away", away)
        results.add(f"{backend} machines: {len(readers)} streams at three machines get {sum(counts.values())} messages, though one is cut off for {options.away:g} s",
                    not wrong and not gaps, "; ".join(wrong[:3]) or f"{gaps} gaps")


PARTS = {"deploys": deploys, "kill": kill, "redis": redis, "machines": machines}


def main(home):
    parser = common.parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--away", type=float, default=10)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.backends, options.sockets, options.seconds, options.away = options.backends.split(",")[0], 50, 5, 2
    parts = options.parts.split(",")
    if any(part not in PARTS for part in parts):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}")
    results = common.Results()
    for backend in common.backends(options):
        for part in parts:
            PARTS[part](home, options, backend, results)
    return results.exit_code()


if __name__ == "__main__":
    common.run(main)
