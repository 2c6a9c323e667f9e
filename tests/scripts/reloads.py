#!/usr/bin/env python3
"""Fifty reloads of the configuration under load: nobody notices them.

    tests/scripts/reloads.py [--server target/release/production_server] [--backends epoll,io_uring] [--reloads 50] [--peers 1000]

`wrk -c64` asks all the time while the file is reloaded again and again, with a wrong text at every second time; the right ones add and remove
listeners, routes, limits and apps, change fields of answers, and replace workers. Beside that, half of the peers are WebSockets and half event streams, through all of
them. Held to: every reload ends as its text deserves; wrk has no socket error and no status but 200; each WebSocket still echoes and each
stream still gets events when all is over, none was closed, and the server has counted neither an error nor a panic. The server has its defaults and two loops.
Exit codes: 0, 1 something did not hold, 64 wrong flags.
"""

import os
import re
import selectors
import socket
import subprocess
import sys
import threading
import time

import common
import processes
from processes import Trouble

# What one worker of the app behind the peers does: WebSockets echo, everything else is an event stream that never ends.
WORKER = r'''
import os, selectors, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(4096)
listener.setblocking(False)
events = selectors.DefaultSelector()
events.register(listener, selectors.EVENT_READ)
streams, heads, next_event, number = set(), {}, time.monotonic(), 0
while True:
    for key, _ in events.select(max(0, next_event - time.monotonic())):
        peer = key.fileobj
        if peer is listener:
            peer, _ = listener.accept()
            peer.setblocking(True)
            events.register(peer, selectors.EVENT_READ)
            heads[peer] = b""
            continue
        got = peer.recv(65536)
        if not got:
            events.unregister(peer)
            streams.discard(peer)
            heads.pop(peer, None)
            peer.close()
        elif peer in heads:
            heads[peer] += got
            if b"\r\n\r\n" in heads[peer]:
                if b"websocket" in heads.pop(peer).lower():
                    peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                else:
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    streams.add(peer)
        elif peer not in streams:
            peer.sendall(got)
    if time.monotonic() >= next_event:
        next_event, number = time.monotonic() + 1, number + 1
        text = b"data: %06d\n\n" % number
        for peer in list(streams):
            try:
                peer.sendall(b"%x\r\n%s\r\n" % (len(text), text))
            except OSError:
                streams.discard(peer)
'''


def texts(folder, backend, ports):
    """Right and wrong texts by turns."""
    def site(listeners=(), limits="", routes="", apps="", web=""):
        more = "".join(f'[[listen]]\naddress = "127.0.0.1:{port}"\n' for port in listeners)
        return (f'[server]\nloops = 2\nbackend = "{backend}"\nrun_dir = "{folder}/run"\nstats_interval = "0s"\n{limits}\n'
                f'[log]\naccess = false\n[[listen]]\naddress = "127.0.0.1:{ports[0]}"\n{more}'
                f'[[routes]]\nmatch = {{ path = "/live/*" }}\napp = "live"\n{routes}[[routes]]\napp = "web"\n'
                f'[apps.web]\nworkers = 2\n{web}\n[apps.live]\nupstream = "unix:{folder}/live.sock"\nconcurrency = 5000\n{apps}')
    route = '[[routes]]\nmatch = { path = "/more/*" }\napp = "more"\nrewrite = { strip = "/more" }\n'
    field = '[[routes]]\nmatch = { path = "/ping" }\napp = "web"\nresponse_fields = { set = { X-Reloaded = "yes" } }\n'
    right = [
        site(),
        site(listeners=ports[1:2], limits='max_head = "16KiB"\nmax_body = "1MiB"\ntimeouts = { header = "5s", idle = "40s" }'),
        site(routes=field, web='queue = { size = 100, timeout = "10s" }\nbalance = "least"'),
        site(listeners=ports[1:3], routes=route, apps="[apps.more]\nworkers = 1\n"),
        site(listeners=ports[2:3], routes=field, web='environment = { ROUND = "more" }'),
    ]
    wrong = [
        site().replace("workers = 2", 'workers = "two"'),
        site().replace('app = "web"', 'app = "nobody"'),
        site(apps='[apps.extra]\ncommand = ["no-such-program-at-all"]\n[[routes]]\nmatch = { path = "/x" }\napp = "extra"\n'),
        "[server\n",
        site(limits="max_hed = 1"),
    ]
    return right, wrong


def head(peer):
    got = b""
    while b"\r\n\r\n" not in got:
        part = peer.recv(1)
        if not part:
            raise Trouble(f"a peer was sent away: {got!r}")
        got += part
    return got


def open_peers(port, count):
    """WebSockets and event streams by turns."""
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    peers = []
    for index in range(count):
        peer = processes.connect(port, 10)
        more, status = (upgrade, b"101") if index % 2 else ("", b"200")
        peer.sendall(f"GET /live/{index} HTTP/1.1\r\nHost: a\r\n{more}\r\n".encode())
        got = head(peer)
        if got.split(b" ")[1] != status:
            raise Trouble(f"peer {index}: {got!r}")
        peers.append(peer)
    return peers


class Readers(threading.Thread):
    """Reads what the streams get, and sees who is closed."""

    def __init__(self, streams):
        super().__init__(daemon=True)
        self.events = selectors.DefaultSelector()
        self.seen, self.closed, self.over = {}, 0, False
        for stream in streams:
            stream.setblocking(False)
            self.events.register(stream, selectors.EVENT_READ)

    def run(self):
        while not self.over:
            for key, _ in self.events.select(0.2):
                try:
                    got = key.fileobj.recv(65536)
                except BlockingIOError:
                    continue
                except OSError:
                    got = b""
                if got:
                    self.seen[key.fileobj] = time.monotonic()
                else:
                    self.closed += 1
                    self.events.unregister(key.fileobj)


def echoes(sockets):
    """How many WebSockets do not give back what they get."""
    lost = 0
    for peer in sockets:
        try:
            peer.settimeout(10)
            peer.sendall(b"still here")
            got = b""
            while len(got) < 10:
                part = peer.recv(10 - len(got))
                if not part:
                    break
                got += part
            lost += got != b"still here"
        except OSError:
            lost += 1
    return lost


def reload_all(options, folder, right, wrong, failures):
    """All reloads, one after the other; how many have succeeded."""
    done, path = 0, os.path.join(folder, "site.toml")
    for number in range(options.reloads):
        bad = number % 2 == 1
        text = wrong[number // 2 % len(wrong)] if bad else right[(number // 2 + 1) % len(right)]
        with open(path, "w") as file:
            file.write(text)
        line = [options.server, "reload", "--wait", "--run-dir", os.path.join(folder, "run")]
        result = subprocess.run(line, capture_output=True, text=True, timeout=60)
        done += result.returncode == 0
        if result.returncode != (78 if bad else 0):
            failures.append(f"reload {number}: {result.returncode} {result.stdout} {result.stderr}")
        time.sleep(0.1)
    return done


def run(options, backend):
    failures = []
    with processes.temporary_directory("reloads") as folder:
        ports = [processes.free_port() for _ in range(3)]
        right, wrong = texts(folder, backend, ports)
        with open(os.path.join(folder, "worker.py"), "w") as file:
            file.write(WORKER)
        with open(os.path.join(folder, "site.toml"), "w") as file:
            file.write(right[0])
        log = os.path.join(folder, "log")
        worker = [sys.executable, os.path.join(folder, "worker.py"), os.path.join(folder, "live.sock")]
        with processes.running(worker, log), processes.running([options.server, "-f", os.path.join(folder, "site.toml")], log) as server:
            processes.wait_until_it_answers(server, log, ports[0], "/ping")
            peers = open_peers(ports[0], options.peers)
            readers = Readers(peers[::2])
            readers.start()
            url = f"http://127.0.0.1:{ports[0]}/ping"
            wrk = subprocess.Popen(["wrk", "-t1", "-c64", "-d600s", url], stdout=subprocess.PIPE, text=True)
            begin = time.monotonic()
            try:
                done = reload_all(options, folder, right, wrong, failures)
            finally:
                wrk.send_signal(2)
                told = wrk.communicate()[0]
            seconds, last = time.monotonic() - begin, time.monotonic()
            lost = echoes(peers[1::2])
            while time.monotonic() < last + 15 and sum(seen > last for seen in readers.seen.values()) < len(peers[::2]):
                time.sleep(0.1)
            alive = sum(seen > last for seen in readers.seen.values())
            readers.over = True
            status = subprocess.run([options.server, "status", "--json", "--run-dir", os.path.join(folder, "run")], capture_output=True, text=True)
            counters = dict(re.findall(r'"(errors|panics)": *(\d+)', status.stdout))
            for peer in peers:
                peer.close()
        requests = re.search(r"(\d+) requests in", told)
        for line in told.splitlines():
            if "Socket errors" in line or "Non-2xx" in line:
                failures.append(f"wrk: {line.strip()}")
        if requests is None:
            failures.append(f"wrk says nothing: {told}")
        if lost or readers.closed or alive != len(peers[::2]):
            failures.append(f"{lost} WebSockets lost, {readers.closed} streams closed, {alive} of {len(peers[::2])} get events")
        if counters.get("errors") != "0" or counters.get("panics") != "0":
            failures.append(f"the server counts {counters}: {status.stdout[-500:]}")
        if failures:
            failures.append(processes.tail(log))
        print(f"{backend}: {options.reloads} reloads ({done} valid) in {seconds:.0f} s, wrk {requests and requests.group(1)} requests, "
              f"{len(peers)} WebSockets and event streams: " + ("; ".join(failures) or "no error, none closed"), flush=True)
    return not failures


def main():
    parser = common.parser(__doc__.split("\n")[0])
    parser.add_argument("--reloads", type=int, default=50, help="how many (default: %(default)s)")
    parser.add_argument("--peers", type=int, default=1000, help="WebSockets and event streams together (default: %(default)s)")
    options = parser.parse_args()
    options.server = os.path.abspath(options.server)
    processes.need("wrk")
    processes.raise_descriptor_limit()
    sys.exit(0 if all([run(options, backend) for backend in common.backends(options)]) else 1)


if __name__ == "__main__":
    try:
        main()
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        sys.exit(1)
