#!/usr/bin/env python3
"""Attacks the server's TLS beside 64 fast clients: nobody else may notice it, and what it costs has its bound.

    tests/scripts/tls-attacks.py [--server target/release/production_server] [--backends epoll,io_uring] [--loops 2,1] [--attacks half|all]

For each attack (what a client of it does is in clients/tls_peers.py): the server with its defaults, a plain listener and one with TLS on
the same loops, in front of one worker. 64 fast clients ask the plain one at a constant rate, half of them through the worker, and 8 ask over TLS;
first without, then beside the attack. Attackers are niced, so that what they cost themselves is not what is measured, and bounded in number.
Held to: no fast request fails; their p99 beside the attack is at most twice of what it was without; the most resident memory stays within
--buffer-bytes (256 MiB), 64 MiB and 24 KiB for each connection of the attack, and of 5,000 long ClientHellos 18 KiB instead of --buffer-bytes; one that only waits costs next to nothing; it is counted where it
should be; the log does not grow with it; and when it is over all places and memory are given back.

Beside a flood the cores are busy with the attackers themselves. What that alone is to the fast ones is told, too: `decoy` is the same flood
at another server on the same cores. A time that misses its bar beside both is the machine's, and is told and not judged.

It judges by times, and so it is run by hand, on a machine that does nothing else. Exit codes: 0, 1 a bound was missed, 64 wrong flags.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import time

import common
import processes
from crowd import PATIENCE
from processes import Trouble

crowds = importlib.import_module("crowds")
MIB, MARGIN, FAST = crowds.MIB, crowds.MARGIN, crowds.FAST
PEERS = os.path.join(common.ROOT, "tests", "scripts", "clients", "tls_peers.py")
BUFFERS = 256 * MIB
# A connection with its session, its place and what has come of a record.
EACH = 24 * 1024
# Lines of a log for one attack, of whatever length: a warning, and that it is over.
LINES = 10
# Seconds of CPU in a second that a crowd which waits may cost.
IDLE = 0.02


@dataclasses.dataclass(frozen=True)
class Attack:
    name: str
    title: str
    # One of these counts it; none where it breaks no rule.
    counters: tuple = ()
    # It makes its connections and waits, so many of them in each process.
    stands: int = 0
    # Of a flood: what each connection sends, where it is about records.
    records: int = 1000
    flags: tuple = ()
    # It does nothing once it stands.
    idle: bool = False
    # Bytes that each connection may hold besides, where that is less than what all connections may.
    held: int = 0


ATTACKS = [
    Attack("half", "half a ClientHello and silence", ("tls_late", "tls_left"), stands=5000, idle=True),
    Attack("long", "most of a ClientHello of 17,000 bytes and silence", ("tls_late", "tls_left"), stands=5000, idle=True, held=18 * 1024),
    Attack("cut-record", "a handshake, most of a record of 16 KiB, and silence", ("tls_handshakes",), stands=5000, idle=True),
    Attack("unread", "answers of 400 KB that nobody reads", stands=2000),
    Attack("streams", "event streams that nobody reads", stands=2000),
    Attack("handshakes", "full handshakes, one after the other", ("tls_handshakes",)),
    Attack("handshakes-1.2", "full handshakes of TLS 1.2", ("tls_handshakes",)),
    Attack("one-byte", "handshakes and requests in records of one byte", ("tls_handshakes",)),
    Attack("one-byte-upload", "a body in records of one byte", ("tls_handshakes",), records=20_000),
    Attack("dripped", "a ClientHello of 65,280 bytes, a byte a record, a record a segment", ("tls_failed", "tls_left"), records=8000),
    Attack("renegotiation", "client renegotiation in TLS 1.2", ("tls_broken",), records=20),
    Attack("key-updates", "key updates that ask for one", ("tls_broken",), records=200),
    Attack("key-updates-between", "key updates with a byte of a body after every 30", ("tls_handshakes",), records=620),
    Attack("empty-records", "empty records", ("tls_handshakes",), records=20_000),
    Attack("alerts", "warnings in TLS 1.2", ("tls_broken",), records=100),
    Attack("hello-alerts", "warnings in mid-handshake", ("tls_failed",)),
    Attack("too-long", "the beginning of a ClientHello of 60,000 bytes", ("tls_failed",)),
    Attack("left", "half a ClientHello and the end of it", ("tls_left",)),
    Attack("after-end", "data behind close_notify", ("tls_handshakes",)),
    Attack("garbage", "a record of garbage", ("tls_failed",)),
    Attack("plain", "plain HTTP", ("tls_plain",)),
    Attack("name", "names that no certificate has", ("tls_unknown_name",), flags=("--tls-strict-sni", "on")),
    Attack("protocol", "no protocol in common (ALPN)", ("tls_nothing_in_common",)),
    Attack("certificate", "client certificates of 60 KB that nobody trusts", ("tls_client_certificate", "tls_failed"), flags=("CLIENT_CA",)),
]


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--attacks", default="all", help=f"of {', '.join(attack.name for attack in ATTACKS)} (default: all)")
    flags.add_argument("--loops", default="2,1", help="separated by commas (default: %(default)s)")
    flags.add_argument("--rate", type=int, default=1000, help="requests a second of the fast clients together (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=2, help="of each window, 1 to 60 (default: %(default)s)")
    flags.add_argument("--windows", type=int, default=5, help="without and beside the attack, 1 to 20 (default: %(default)s)")
    flags.add_argument("--factor", type=float, default=2.0, help="how many times the p99 may be (default: %(default)s)")
    flags.add_argument("--share", type=float, default=1.0, help="of the connections of an attack that waits (default: %(default)s)")
    flags.add_argument("--attackers", type=int, default=4, help="processes of a flood, 1 to 16 (default: %(default)s)")
    flags.add_argument("--venv", help="a virtual environment that has tlslite-ng and cryptography (default: from PyPI)")
    options = flags.parse_args()
    known = {attack.name: attack for attack in ATTACKS}
    chosen = list(known) if options.attacks == "all" else options.attacks.split(",")
    if options.server == "nginx" or any(name not in known for name in chosen):
        flags.error("see --help for --attacks; there is no control")
    if not (1 <= options.seconds <= 60 and 1 <= options.windows <= 20 and 10 <= options.rate <= 100_000 and 1 <= options.attackers <= 16):
        flags.error("a number is out of range; see --help")
    place = os.path.join(os.path.abspath(options.venv), "bin") if options.venv else common.python_with(home, "tlslite-ng>=0.9.0b2", "cryptography")
    options.python = os.path.join(place, "python")
    options.certificates = certificates(home)
    programs = {name: crowds.compiled(home, name) for name in ("crowd_worker", "constant_rate")}
    results = common.Results()
    for backend in common.backends(options):
        for loops in options.loops.split(","):
            for name in chosen:
                print(f"\n{backend}, {loops} loops: {known[name].title}", flush=True)
                with Scene(home, programs, backend, loops, known[name], options) as scene:
                    scene.play(results)
    return results.exit_code()


def certificates(home):
    """Paths without their ends: of localhost's certificate, and of an enormous one of a client."""
    paths = {}
    for name, more in (("localhost", ["-addext", "subjectAltName=DNS:localhost"]), ("huge", [])):
        paths[name] = os.path.join(home, name)
        configuration = os.path.join(home, f"{name}.cnf")
        with open(configuration, "w") as file:
            file.write("[req]\ndistinguished_name = of\nprompt = no\n[of]\nCN = client\n")
            if name == "huge":
                file.write("[more]\nsubjectAltName = @names\n[names]\n" + "".join(f"DNS.{n} = {n:05}.{'a' * 60}.example\n" for n in range(750)))
                more = ["-extensions", "more"]
        line = ["openssl", "req", "-x509", "-config", configuration, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-keyout", f"{paths[name]}.key", "-out", f"{paths[name]}.crt", *more]
        status, output = processes.run_to_end(line, timeout=60)
        if status != 0:
            raise Trouble(f"{' '.join(line)}:\n{output}")
        with open(f"{paths[name]}.pem", "w") as file:
            for end in ("crt", "key"):
                with open(f"{paths[name]}.{end}") as part:
                    file.write(part.read())
    return paths


class Scene(crowds.Scene):
    """One server, its worker, one attack and the fast clients."""

    def __init__(self, home, programs, backend, loops, attack, options):
        options.peers = 5000
        super().__init__(home, programs, backend, None, options)
        self.loops, self.attack = loops, attack

    def start(self):
        self.server, self.port, self.tls_port, self.log = self.one("server")

    def one(self, name):
        """Starts a server."""
        place = os.path.join(self.place, name)
        os.mkdir(place)
        port, tls_port = processes.free_port(), processes.free_port()
        own = self.options.certificates["localhost"]
        flags = [flag for flag in self.attack.flags if flag != "CLIENT_CA"]
        if "CLIENT_CA" in self.attack.flags:
            flags += ["--tls-client-ca", f"{own}.crt"]
        file = os.path.join(place, "server.toml")
        with open(file, "w") as text:
            text.write(f'[[listen]]\naddress = "127.0.0.1:{port}"\ntls = "off"\n[[listen]]\naddress = "127.0.0.1:{tls_port}"\n')
        log = os.path.join(place, "log")
        line = [os.path.abspath(self.options.server), "-f", file, "--backend", self.backend, "--loops", self.loops, "--no-access-log",
                "--tls-cert", f"{own}.crt", "--tls-key", f"{own}.key", "--run-dir", os.path.join(place, "run"), "--stats-interval", "0s",
                "--upstream", f"unix:{self.socket}", "-c", "6000", *flags]
        process = self.stack.enter_context(processes.running(line, log, cwd=place))
        processes.wait_until_it_answers(process, log, port, "/small")
        return process, port, tls_port, log

    def windows(self):
        """With those that ask over TLS, where they may."""
        if "CLIENT_CA" in self.attack.flags:
            return super().windows()
        found, failed, runs = {}, [], []
        for _ in range(self.options.windows):
            with contextlib.ExitStack() as stack:
                line = [self.options.python, PEERS, "calm", str(self.tls_port), "/small", "100", str(self.options.seconds)]
                process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
                stack.callback(processes.stop, process)
                figures, bad = self.window()
                output, _ = process.communicate(timeout=PATIENCE)
                if process.returncode != 0 or bad:
                    failed += [*bad, output.decode()[-300:]]
                else:
                    runs.append({**figures, "tls": json.loads(output)})
        keys = ("p50_us", "p99_us", "max_us")
        for path in ("/small", "/server", "tls"):
            found[path] = {key: statistics.median(run[path][key] for run in runs) if runs else float("inf") for key in keys}
        return found, failed

    def window(self):
        windows, self.options.windows = self.options.windows, 1
        try:
            return super().windows()
        finally:
            self.options.windows = windows

    @contextlib.contextmanager
    def attacked(self, tls_port):
        """The attack, until the block is left; yields its processes. What a flood came to is in `self.came`."""
        count = int(self.attack.stands * self.options.share) // self.options.attackers if self.attack.stands else self.attack.records
        long = (self.options.windows * (self.options.seconds + 3) + 10) * 3
        line = ["nice", "-n", "19", self.options.python, PEERS, self.attack.name, str(tls_port), str(count), str(long)]
        environment = {**os.environ, "CLIENT_CERTIFICATE": f"{self.options.certificates['huge']}.pem"}
        running = []
        try:
            for _ in range(self.options.attackers):
                running.append(subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True))
            placed = 0
            for process in running if self.attack.stands else []:
                placed += json.loads(process.stdout.readline() or "{}").get("placed", 0)
            self.placed = placed, count * len(running)
            yield running
        finally:
            for process in running:
                process.kill()
                process.wait()
                process.stdin.close()
                process.stdout.close()

    def counters(self):
        control = os.path.join(self.place, "server", "run", "control.sock")
        return json.loads(processes.request(control, "/status")[1])["counters"]

    def connections(self):
        return self.counters()["active_connections"]

    def lines(self):
        with open(self.log, "rb") as file:
            return file.read().count(b"\n")

    def play(self, results):
        name = f"{self.backend}/{self.loops} {self.attack.name}"
        without, failed = self.windows()
        results.add(f"{name}: the fast ones without it", not failed, crowds.show(without) + " ".join(failed))
        decoy = None
        if not self.attack.stands:
            _, _, tls_port, _ = self.one("decoy")
            with self.attacked(tls_port):
                decoy, _ = self.windows()
            print(f"        beside the decoy: {crowds.show(decoy)}", flush=True)
        before, lines = self.counters(), self.lines()
        start = self.memory()[0]
        with self.attacked(self.tls_port):
            if self.attack.stands:
                results.add(f"{name}: it stands", self.placed[0] == self.placed[1], f"{self.placed[0]} of {self.placed[1]}")
            if self.attack.idle:
                # The first look is behind whatever the last handshakes left to do.
                time.sleep(0.5)
                spent, since = processes.cpu_nanoseconds(self.server.pid), time.monotonic()
                time.sleep(2)
                spent = (processes.cpu_nanoseconds(self.server.pid) - spent) / 1e9 / (time.monotonic() - since)
                results.add(f"{name}: it costs nothing to wait", spent <= IDLE, f"{spent:.4f} s of CPU a second")
            beside, failed = self.windows()
            if not self.attack.stands:
                self.wait_for(before)
        results.add(f"{name}: no fast request fails beside it", not failed, " ".join(failed))
        slow = [path for path in without if beside[path]["p99_us"] > self.options.factor * without[path]["p99_us"]]
        ours = [path for path in slow if not decoy or beside[path]["p99_us"] > self.options.factor * decoy[path]["p99_us"]]
        results.add(f"{name}: the fast ones do not notice it", not ours and not failed, crowds.show(beside) + (f"; slow: {', '.join(slow)}" if slow else ""))
        if self.attack.counters:
            counted = self.wait_for(before)
            results.add(f"{name}: it is counted", bool(counted), str(counted))
        end, left = time.monotonic() + PATIENCE, -1
        while left != 0 and time.monotonic() < end:
            left = self.connections()
            time.sleep(0.05)
        results.add(f"{name}: nothing is left of it", left == 0, f"{left} connections")
        most, now = self.memory()[1], self.memory()[0]
        held = self.placed[1] * self.attack.held if self.attack.held else BUFFERS
        bound = start + held + MARGIN + self.placed[1] * EACH if self.attack.stands else start + MARGIN
        say = f"VmRSS {start / MIB:.0f} MiB before, at most {most / MIB:.0f} of {bound / MIB:.0f}, {now / MIB:.0f} after"
        results.add(f"{name}: memory keeps its bound", most <= bound, say)
        new = self.lines() - lines
        results.add(f"{name}: the log does not grow with it", new <= LINES, f"{new} lines")
        after, failed = self.window()
        results.add(f"{name}: after it all is as before", not failed, crowds.show(after) + " ".join(failed))

    def wait_for(self, before):
        """By how much the counters of the attack have grown, once one has."""
        end, grown = time.monotonic() + PATIENCE, {}
        while self.attack.counters and not grown and time.monotonic() < end:
            now = self.counters()
            grown = {key: now[key] - before[key] for key in self.attack.counters if now[key] > before[key]}
            time.sleep(0.05)
        return grown


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
