#!/usr/bin/env python3
"""Compares the hub with Bun's server.publish, nchan and soketi: one topic, many WebSockets, messages of 1 KB. See benches/README.md.

    benches/load/deliveries.py --server target/release/production_server [--sockets 10000] [--quick] [--json FILE]

Exit codes: 0 done (missed targets are marked), 1 something could not be measured, or a message did not reach who reads, 64 wrong flags.
"""

import contextlib
import hashlib
import hmac
import json
import os
import random
import statistics
import sys
import time

import crowd
import processes
import run
import servers
from processes import Trouble

PEERS = ("bun", "nchan", "soketi")
MESSAGE_BYTES = 1024
# How many times less CPU time per delivery than the best of the peers; bytes per idle socket; × the p99 without slow ones.
CPU_TARGET, MEMORY_TARGET, SLOW_FACTOR = 1.3, 600, 2.0
# Beside the slow ones: so many windows of so many seconds with so many messages a second, when so many messages have filled what the kernel
# holds for each of them (about 230 KB); together with these more than a hub's history of 100 messages holds.
SLOW_WINDOWS, SLOW_SECONDS, SLOW_RATE, FILLING, FILLING_RATE = 3, 3.0, 25, 250, 50
# Seconds until what was published must be with those who read, and until a server has come to rest.
PATIENCE, REST = 60.0, 1.0

# Nobody pings while it is measured.
OURS = '[hub.hub]\nping = "10m"\n'

BUN = """
Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  async fetch(request, server) {
    const { pathname } = new URL(request.url);
    if (pathname === "/listen") return server.upgrade(request) ? undefined : new Response("no upgrade", { status: 400 });
    if (pathname === "/publish") server.publish("broadcast", await request.text());
    return new Response("ok");
  },
  websocket: { sendPings: false, idleTimeout: 900, open: (socket) => socket.subscribe("broadcast"), message() {} },
});
"""

NCHAN = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    send_timeout 600s;
    nchan_message_buffer_length 100;
    nchan_message_timeout 5m;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 200 "ok"; }}
        location = /listen {{ nchan_subscriber websocket; nchan_channel_id broadcast; nchan_subscriber_first_message newest; }}
        location = /publish {{ nchan_publisher; nchan_channel_id broadcast; }}
    }}
}}
"""

SOKETI = {"SOKETI_HOST": "127.0.0.1", "SOKETI_METRICS_HOST": "127.0.0.1", "NODE_NO_WARNINGS": "1"}
SOKETI_SUBSCRIBES = json.dumps({"event": "pusher:subscribe", "data": {"channel": "broadcast"}})

# soketi takes µWebSockets.js from its repository, at a version without a build for Node 20; a registry has a later one with it.
PACKAGES = {
    "bun": {"dependencies": {"bun": "1.4.5"}},
    "soketi": {
        "dependencies": {"@soketi/soketi": "1.6.1"},
        "overrides": {"uWebSockets.js": "npm:@trufflesuite/uws-js-unofficial@20.30.0-unofficial.0"},
    },
}


def main():
    options = arguments()
    try:
        with servers.bench(options.server, server_core=options.server_core, client_core=options.client_core) as bench:
            processes.need("taskset")
            cache = os.path.abspath(options.cache)
            for peer in options.peers:
                install(peer, cache)
            return compare(bench, cache, options)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def compare(bench, cache, options):
    kinds = [f"ours:{backend}" for backend in options.backends] + options.peers
    results = {"machine": run.machine(), "options": vars(options)}
    failures = []
    if "fan-out" in options.rows:
        results["fan-out"] = fan_out(bench, cache, kinds, options, failures)
    if "slow" in options.rows:
        results["slow"] = {}
        print(f"\nslow: {options.slow} that read beside as many that do not, {SLOW_RATE}/s for {SLOW_WINDOWS} x {SLOW_SECONDS:g} s; µs", flush=True)
        for kind in kinds:
            results["slow"][kind] = beside_slow_ones(bench, cache, kind, options, failures)
    results["load_at_the_end"] = os.getloadavg()
    return run.conclude(results, options, failures)


def fan_out(bench, cache, kinds, options, failures):
    """All servers with all their sockets at once; in each round each has its turn to publish. CPU time and p99 of a delivery, memory of a socket."""
    few = options.sockets // 5
    print(f"fan-out: {options.sockets} sockets, one topic, {MESSAGE_BYTES} bytes, {options.rate:g} messages a second for {options.seconds:g} s, "
          f"{options.rounds} rounds; load {os.getloadavg()[0]:.1f}", flush=True)
    with contextlib.ExitStack() as stack:
        hubs, found = {}, {}
        for kind in kinds:
            hub = hubs[kind] = Hub(bench, cache, kind, stack)
            sizes = [hub.resident()]
            for wanted in (few, options.sockets - few):
                for at in range(0, wanted, 1000):
                    hub.more(f"more {min(1000, wanted - at)}", min(1000, wanted - at))
                sizes.append(hub.resident())
            found[kind] = {"bytes_per_socket": (sizes[2] - sizes[1]) / (options.sockets - few), "resident": sizes, "rounds": []}
            hub.window(2, 4, failures)
        shuffled = random.Random("hub")
        for _ in range(options.rounds):
            for kind in shuffled.sample(kinds, len(kinds)):
                found[kind]["rounds"].append(hubs[kind].window(options.rate * options.seconds, options.rate, failures))
        for kind, hub in hubs.items():
            entry = found[kind]
            entry["bytes_per_socket_after"] = (hub.resident() - entry["resident"][0]) / options.sockets
    peers = [kind for kind in kinds if not kind.startswith("ours")]
    for kind in kinds:
        entry = found[kind]
        turns = entry["rounds"]
        cpu = [turn["cpu_us"] for turn in turns]
        entry["cpu_us_median"], entry["p99_us_median"] = (statistics.median(turn[key] for turn in turns) for key in ("cpu_us", "p99_us"))
        late = sum(turn["late"] for turn in turns)
        softirqs = statistics.median(turn["softirqs_us"] for turn in turns)
        line = (f"  {kind:<14}{entry['cpu_us_median']:>7.2f} µs ({min(cpu):.2f} to {max(cpu):.2f}; {softirqs:.2f} of it ksoftirqd) = {1e6 / entry['cpu_us_median']:>7.0f}/s of a core   "
                f"p50 {statistics.median(turn['p50_us'] for turn in turns) / 1000:>6.1f} p99 {entry['p99_us_median'] / 1000:>6.1f} ms "
                f"({min(turn['p99_us'] for turn in turns) / 1000:.1f} to {max(turn['p99_us'] for turn in turns) / 1000:.1f})   "
                f"{entry['bytes_per_socket']:>6.0f} bytes a socket, {entry['bytes_per_socket_after']:.0f} after all")
        if kind not in peers:
            line += f" (target {MEMORY_TARGET} {verdict(entry['bytes_per_socket'] <= MEMORY_TARGET)})"
            if peers:
                ratios = [min(found[peer]["rounds"][at]["cpu_us"] for peer in peers) / turn["cpu_us"] for at, turn in enumerate(turns)]
                entry["better"] = statistics.median(ratios)
                line += (f"   {entry['better']:.2f} x better than the best ({min(ratios):.2f} to {max(ratios):.2f}; "
                         f"target {CPU_TARGET} {verdict(entry['better'] >= CPU_TARGET)})")
        if late:
            line += f"   {late} of {len(turns) * int(options.rate * options.seconds)} messages took longer than until the next was due"
        print(line, flush=True)
    return found


def beside_slow_ones(bench, cache, kind, options, failures):
    """The p99 of those who read without and beside those who do not, what the server holds for these, and what becomes of them."""
    with contextlib.ExitStack() as stack:
        hub = Hub(bench, cache, kind, stack)
        hub.more(f"more {options.slow}", options.slow)
        messages = int(SLOW_RATE * SLOW_SECONDS)
        without, beside = [], []
        hub.window(2, 4, failures)
        for _ in range(SLOW_WINDOWS):
            without.append(hub.window(messages, SLOW_RATE, failures))
        # Half of ours can be told of a gap, and half has to be closed.
        told = options.slow // 2 if kind.startswith("ours") else 0
        hub.more(f"slow {options.slow - told}", options.slow - told, "slow")
        if told:
            hub.more(f"slow {told} hub.v1", options.slow, "slow")
        before = hub.resident()
        filling = hub.window(FILLING, FILLING_RATE, failures)
        for _ in range(SLOW_WINDOWS):
            beside.append(hub.window(messages, SLOW_RATE, failures))
        held = processes.resident_bytes(hub.server.pid) - before
        hub.crowd.say("read")
        end = time.monotonic() + PATIENCE
        while (state := hub.crowd.say("look"))["silent"] and time.monotonic() < end:
            time.sleep(0.1)
    found = {"held_bytes": held, "filling": filling, "told": {key: state[key] for key in ("whole", "gap", "code", "closed", "cut", "silent")}}
    for name, windows in (("without", without), ("beside", beside)):
        found[name] = {key: statistics.median(window[key] for window in windows) for key in ("p50_us", "p99_us", "cpu_us")}
        found[f"{name}_windows"] = windows
    factor = found["factor"] = found["beside"]["p99_us"] / max(1, found["without"]["p99_us"])
    line = "".join(f"{name} p50 {found[name]['p50_us']:>6.0f} p99 {found[name]['p99_us']:>7.0f}   " for name in ("without", "beside"))
    line += f"p99 x {factor:.2f}"
    if kind.startswith("ours"):
        line += f" (target {SLOW_FACTOR} {verdict(factor <= SLOW_FACTOR)})"
        if state["silent"] or state["closed"] or state["cut"]:
            failures.append(f"slow, {kind}: not all were told: {found['told']}")
    told = ", ".join(f"{key} {value}" for key, value in found["told"].items() if value)
    print(f"  {kind:<14}{line}   {held / 1048576:.1f} MiB more resident; the slow ones: {told}", flush=True)
    return found


def verdict(met):
    return "met" if met else "MISSED"


class Hub:
    """One server with those who listen to it."""

    def __init__(self, bench, cache, kind, stack):
        self.kind, self.published, self.places = kind, 0, 0
        self.server = start(bench, cache, kind, stack)
        self.ksoftirqd = ksoftirqd(bench.server_core)
        target, first = {"bun": ("/listen", ()), "nchan": ("/listen", ()), "soketi": ("/app/app-key?protocol=7", (SOKETI_SUBSCRIBES,))}.get(
            kind, ("/api/v1/listen", ()))
        listeners = crowd.standing(bench.compile("listeners.c"), self.server.port, target, *first, core=bench.client_core)
        self.crowd = stack.enter_context(listeners)

    def more(self, command, wanted, member="placed"):
        """More come: waits until so many are there of that kind."""
        self.crowd.say(command)
        self.places = wanted if member == "slow" else self.places + wanted
        end = time.monotonic() + PATIENCE
        while (state := self.crowd.say("look"))[member] < self.places and time.monotonic() < end:
            time.sleep(0.02)
        if state[member] < self.places:
            raise Trouble(f"{self.kind}: only so far came the listeners: {state}")
        if member == "slow":
            self.places = state["placed"]

    def resident(self):
        time.sleep(REST)
        return processes.resident_bytes(self.server.pid)

    def window(self, messages, rate, failures):
        """Publishes so many messages at that rate, or as fast as each has reached all who read before the next."""
        self.crowd.say("count")
        late, begun = 0, time.monotonic()
        before, softirqs = processes.cpu_nanoseconds(self.server.pid), processes.cpu_nanoseconds(self.ksoftirqd)
        for number in range(1, int(messages) + 1):
            # On a connection of its own, as soketi keeps none.
            with processes.connect(self.server.port, timeout=PATIENCE) as stream:
                self.publish(stream)
            due = begun + number / rate
            # Two messages that leave together would cost less than one each.
            self.reached(number * self.places)
            late += time.monotonic() > due
            time.sleep(max(0.0, due - time.monotonic()))
        wanted = int(messages) * self.places
        spent = processes.cpu_nanoseconds(self.server.pid) - before
        softirqs = processes.cpu_nanoseconds(self.ksoftirqd) - softirqs
        state = self.crowd.say("state")
        if state["deliveries"] != wanted or state["missing"] or state["ended"]:
            failures.append(f"{self.kind}: {wanted} deliveries were due: {state}")
        each = 1000 * max(1, state["deliveries"])
        return {"cpu_us": (spent + softirqs) / each, "softirqs_us": softirqs / each, "late": late, **{key: state[key] for key in ("p50_us", "p99_us", "most_us")}}

    def reached(self, wanted):
        """Waits until so many deliveries have been made since they are counted."""
        end = time.monotonic() + PATIENCE
        while self.crowd.say("look")["deliveries"] < wanted and time.monotonic() < end:
            time.sleep(0.01)

    def publish(self, stream):
        self.published += 1
        message = f"@{time.monotonic_ns()} {self.published}#".ljust(MESSAGE_BYTES, "x")
        path, kind = {"bun": "/publish", "nchan": "/publish"}.get(self.kind, "/api/v1/notify?topic=broadcast"), "text/plain"
        if self.kind == "soketi":
            message, kind = json.dumps({"name": "m", "channels": ["broadcast"], "data": message}), "application/json"
            path = signed("/apps/app-id/events", message)
        stream.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                            f"Content-Length: {len(message)}\r\n\r\n{message}".encode())
        status, _, body, _ = processes.read_answer(stream)
        if status not in (200, 201, 202):
            raise Trouble(f"{self.kind}: publishing was answered with {status}: {body[:200]!r}")


def ksoftirqd(core):
    """The kernel's thread that does what sends have left to it on that core, which is in no server's time."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                with open(f"/proc/{entry}/comm") as file:
                    if file.read().strip() == f"ksoftirqd/{core}":
                        return int(entry)
    raise Trouble(f"there is no ksoftirqd/{core}")


def signed(path, body):
    """The target of a request to Pusher's HTTP interface, which soketi speaks."""
    query = (f"auth_key=app-key&auth_timestamp={int(time.time())}&auth_version=1.0"
             f"&body_md5={hashlib.md5(body.encode()).hexdigest()}")
    signature = hmac.new(b"app-secret", f"POST\n{path}\n{query}".encode(), "sha256").hexdigest()
    return f"{path}?{query}&auth_signature={signature}"


def start(bench, cache, kind, stack):
    """Starts one server on its core; it ends with `stack`."""
    home = os.path.join(bench.home, f"hub-{next(bench.numbers)}")
    os.mkdir(home)

    def written(name, text):
        path = os.path.join(home, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    if kind.startswith("ours"):
        return bench.start(kind, False, stack=stack, flags=["-f", written("hub.toml", OURS), "--max-connections", "12000"])
    port, modules = processes.free_port(), os.path.join(cache, kind, "node_modules")
    log, environment = os.path.join(home, "log"), None
    if kind == "bun":
        command = [os.path.join(modules, ".bin", "bun"), "run", written("server.js", BUN), str(port)]
    elif kind == "soketi":
        command = ["node", os.path.join(modules, "@soketi", "soketi", "bin", "server.js"), "start"]
        environment = {**os.environ, **SOKETI, "SOKETI_PORT": str(port), "SOKETI_METRICS_SERVER_PORT": str(processes.free_port())}
    else:
        configuration = written("nginx.conf", NCHAN.format(
            module=module_of_nchan(cache), home=home, port=port, descriptors=processes.raise_descriptor_limit()))
        command = [processes.find("nginx"), "-c", configuration, "-p", home, "-e", os.path.join(home, "error.log"),
                   *(["-g", "user root;"] if os.geteuid() == 0 else [])]
    process = stack.enter_context(processes.running(command, log, bench.server_core, env=environment, cwd=home))
    processes.wait_until_it_answers(process, log, port, deadline=240.0)
    return servers.Server(kind, port, process)


def module_of_nchan(cache):
    return os.path.join(cache, "nchan", "usr", "lib", "nginx", "modules", "ngx_nchan_module.so")


def install(peer, cache):
    """Puts a peer below the cache, unless it is there. Nothing is installed into the system but nginx itself, which has to be there."""
    home = os.path.join(cache, peer)
    if peer == "nchan":
        processes.need("nginx", "apt-get", "dpkg")
        if not os.path.exists(module_of_nchan(cache)):
            os.makedirs(home, exist_ok=True)
            done(["apt-get", "download", "libnginx-mod-nchan"], home)
            package = next(name for name in os.listdir(home) if name.endswith(".deb"))
            done(["dpkg", "-x", package, "."], home)
    elif not os.path.exists(os.path.join(home, "node_modules", ".package-lock.json")):
        processes.need("npm", "node")
        os.makedirs(home, exist_ok=True)
        with open(os.path.join(home, "package.json"), "w") as file:
            json.dump({"private": True, **PACKAGES[peer]}, file)
        done(["npm", "install", "--omit=dev", "--no-audit", "--no-fund"], home)


def done(command, home):
    status, output = processes.run_to_end(command, timeout=900, cwd=home)
    if status != 0:
        raise Trouble(f"{' '.join(command)}:\n{output}")


def arguments():
    parser = run.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--server", default="target/release/production_server", help="our program (default: %(default)s)")
    parser.add_argument("--backends", default="epoll,io_uring", help="of ours, separated by commas (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--cache", default="target/peers", help="where the peers are installed (default: %(default)s)")
    parser.add_argument("--rows", default="fan-out,slow", help="separated by commas (default: %(default)s)")
    parser.add_argument("--sockets", type=int, default=10000, help="100 to 18000 (default: %(default)s)")
    parser.add_argument("--slow", type=int, default=1000, help="that do not read, and that do; 10 to 5000 (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5.0, help="messages a second of fan-out (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="1 to 101 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, 1 to 60 (default: %(default)s)")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="500 sockets, 1 round of 1 s: checks that all of it works")
    parser.add_argument("--json", metavar="FILE", help="also write every figure there")
    options = parser.parse_args()
    for name, known in (("backends", ("epoll", "io_uring")), ("peers", PEERS), ("rows", ("fan-out", "slow"))):
        chosen = [word for word in getattr(options, name).split(",") if word]
        setattr(options, name, chosen)
        for word in chosen:
            if word not in known:
                parser.error(f"{word!r} is none of {', '.join(known)}")
    if options.quick:
        options.sockets, options.slow, options.rounds, options.seconds = 500, 100, 1, 1.0
    if not (100 <= options.sockets <= 18000 and 10 <= options.slow <= 5000 and 0.1 <= options.rate <= 1000
            and 1 <= options.rounds <= 101 and 1 <= options.seconds <= 60):
        parser.error("a number is out of range; see --help")
    if not {options.server_core, options.client_core} <= os.sched_getaffinity(0):
        parser.error(f"the cores {options.server_core} and {options.client_core} are not both there")
    return options


if __name__ == "__main__":
    sys.exit(main())
