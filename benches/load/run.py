#!/usr/bin/env python3
"""Compares the server with nginx and haproxy in interleaved rounds on the same machine. See benches/README.md.

    benches/load/run.py --server target/release/production_server [--rows direct-64,64k] [--quick] [--json FILE]

The figure of a load row is the user and system time of the server's process per request, as a ratio to nginx's in the
same round; the median over the rounds is given. Exit codes: 0 done (missed targets are marked in the table), 1 a
request failed or something could not be measured, 64 wrong flags.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import random
import re
import statistics
import sys

import callgrind
import processes
import rows
import servers
import waiting
from processes import Trouble


def main():
    options = arguments()
    try:
        with servers.bench(
            options.server, server_core=options.server_core, client_core=options.client_core,
            concurrency=options.concurrency, fields=options.fields,
        ) as bench:
            processes.need("wrk", "taskset")
            return compare(bench, options)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def compare(bench, options):
    """All the chosen rows; prints the tables, writes the JSON, returns the exit code."""
    print(f"server core {options.server_core}, clients' core {options.client_core}, {options.rounds} rounds of "
          f"{options.seconds:g} s a server; µs is CPU time per request, ratios are to nginx in the same round")
    ours = ours_of(options)
    results = {"machine": machine(), "options": vars(options), "rows": {}, "latency": {}, "instructions": {},
               "queue": {}, "crowds": {}}
    failures = []
    chosen = [row for row in rows.LOAD if row.name in options.rows]
    if chosen:
        running = start_all(bench, chosen, ours, options.peers)
        for row in chosen:
            results["rows"][row.name] = measure_row(bench, row, running, ours, options, failures)
            print_row(row, results["rows"][row.name], ours, able(options.peers, row.forwarding))
        results["geometric_means"] = print_geometric_means(results["rows"], ours)
    for name in ("memory", "tls-memory"):
        if name in options.rows:
            results[name] = memory_rows(bench, name, ours, options)
    for name in rows.HANDSHAKE_TARGETS:
        if name in options.rows:
            results[name] = handshake_rows(bench, name, ours, options)
    if "latency" in options.rows:
        results["latency"] = latency_rows(bench, ours, options, failures)
    if "queue" in options.rows:
        results["queue"] = waiting.queue_rows(bench, ours, options, failures)
    for name in rows.CROWDS:
        if name in options.rows:
            results["crowds"][name] = waiting.crowd_rows(bench, name, ours, options, failures)
    if "access-log" in options.rows:
        results["access-log"] = access_log_rows(bench, ours, options, failures)
    if "instructions" in options.rows:
        results["instructions"] = instruction_rows(bench, ours, options)
    return conclude(results, options, failures)


def conclude(results, options, failures):
    """Writes what was found where that was asked for, tells what has failed, and returns the exit code."""
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def ours_of(options):
    """The kinds of our server that take part: one a backend."""
    if options.server == "nginx":
        return ["ours:nginx"]
    return [f"ours:{backend}" for backend in options.backends]


def start_all(bench, chosen, ours, peers):
    """Starts each server once for direct answers and once for forwarding, as the rows need; an idle one costs nothing."""
    running = {}
    for row in chosen:
        for kind in [*ours, *able(peers, row.forwarding)]:
            if row.server(kind) not in running:
                running[row.server(kind)] = bench.start(kind, row.forwarding, secure=row.secure, gzip=row.gzip)
    return running


def able(peers, forwarding):
    """Those that can do it: haproxy serves no files."""
    return [peer for peer in peers if peer != "haproxy" or forwarding != servers.FILES]


def measure_row(bench, row, running, ours, options, failures):
    """The rounds of one row. Each of ours runs twice a round, so that its spread against itself is known."""
    peers = able(options.peers, row.forwarding)
    turns = [(kind, 0) for kind in [*ours, *peers]] + [(kind, 1) for kind in ours]
    shuffled = random.Random(row.name)
    figures = {turn: [] for turn in turns}
    rates = {turn: [] for turn in turns}
    for kind in [*ours, *peers]:
        load(bench, row, running[row.server(kind)], min(0.5, options.seconds), failures)
    for _ in range(options.rounds):
        order = turns[:]
        shuffled.shuffle(order)
        for turn in order:
            server = running[row.server(turn[0])]
            figure, rate = load(bench, row, server, options.seconds, failures)
            figures[turn].append(figure)
            rates[turn].append(rate)
    return summary(figures, rates, ours, peers)


def summary(figures, rates, ours, peers):
    """Medians of the figures, of the ratios to nginx within each round, and the spread of each of ours."""
    found = {}
    reference = figures.get(("nginx", 0))
    for kind in [*ours, *peers]:
        mine = figures[kind, 0]
        entry = {
            "cpu_us": [round(figure, 4) for figure in mine],
            "cpu_us_median": statistics.median(mine),
            "requests_per_second_median": statistics.median(rates[kind, 0]),
        }
        if kind in ours:
            again = figures[kind, 1]
            spread = [second / first for first, second in zip(mine, again)]
            entry["cpu_us_again"] = [round(figure, 4) for figure in again]
            entry["spread_median"] = statistics.median(abs(ratio - 1) for ratio in spread)
            entry["spread_worst"] = max(abs(ratio - 1) for ratio in spread)
            # Both runs of a round are ours: their mean is the better estimate of it.
            mine = [(first + second) / 2 for first, second in zip(mine, again)]
        if reference:
            ratios = [figure / theirs for figure, theirs in zip(mine, reference)]
            entry["ratios"] = [round(ratio, 4) for ratio in ratios]
            entry["ratio"] = statistics.median(ratios)
        found[kind] = entry
    return found


def load(bench, row, server, seconds, failures):
    """One run of wrk: (µs of the server's CPU per request, requests per second)."""
    command = ["wrk", "-t1", f"-c{row.connections}", f"-d{seconds_for_wrk(seconds)}", "--timeout", "10s"]
    if row.script:
        script = os.path.join(bench.home, f"{row.name}.lua")
        with open(script, "w") as file:
            file.write(row.script)
        command += ["-s", script]
    for field in row.fields:
        command += ["-H", field]
    command.append(f"http{'s' * row.secure}://127.0.0.1:{server.port}{row.path}")
    before = processes.cpu_nanoseconds(server.pid)
    status, output = processes.run_to_end(command, timeout=seconds + 30, core=bench.client_core)
    spent = processes.cpu_nanoseconds(server.pid) - before
    done = re.search(r"(\d+) requests in ([0-9.]+)(ms|s|m)", output)
    if status != 0 or not done or int(done.group(1)) == 0 or spent <= 0:
        raise Trouble(f"{row.name}, {server.name}: wrk failed\n{output}")
    for line in output.splitlines():
        if "Non-2xx" in line or "Socket errors" in line:
            failures.append(f"{row.name}, {server.name}: {line.strip()}")
    requests = int(done.group(1))
    lasted = float(done.group(2)) * {"ms": 0.001, "s": 1, "m": 60}[done.group(3)]
    return spent / 1000 / requests, requests / lasted


def seconds_for_wrk(seconds):
    """wrk takes whole seconds only."""
    return max(1, round(seconds))


def print_row(row, found, ours, peers):
    print(f"\n{row.name}: {row.title}")
    for kind in [*ours, *peers]:
        entry = found[kind]
        text = f"  {kind:<14}{entry['cpu_us_median']:>10.2f} µs {entry['requests_per_second_median']:>10.0f}/s"
        if "ratio" in entry:
            text += f"  {entry['ratio']:.3f} x nginx"
        if kind in ours:
            target = row.target_io_uring if kind.endswith("io_uring") else row.target_epoll
            text += f"  ± {entry['spread_median']:.1%} against itself (worst {entry['spread_worst']:.1%})"
            if "ratio" in entry and not kind.endswith(":nginx"):
                text += f"  target {target:.2f} {'met' if entry['ratio'] <= target else 'MISSED'}"
        print(text, flush=True)


def print_geometric_means(found, ours):
    """Over the rows that decide which backend `auto` takes; nothing when one of them was not measured."""
    means = {}
    if all(name in found for name in rows.DECISIVE):
        print(f"\ngeometric mean over {', '.join(rows.DECISIVE)} (`--backend auto` takes the lower one):")
        for kind in ours:
            key = "ratio" if "ratio" in found[rows.DECISIVE[0]][kind] else "cpu_us_median"
            logs = [math.log(found[name][kind][key]) for name in rows.DECISIVE]
            means[kind] = math.exp(sum(logs) / len(logs))
            print(f"  {kind:<14}{means[kind]:>10.3f} {'x nginx' if key == 'ratio' else 'µs'}")
    return means


def memory_rows(bench, name, ours, options):
    """Resident bytes per idle keep-alive connection: the slope between two counts, each connection after one request."""
    few, many = (500, 2500) if options.quick else (2000, 9000)
    secure = name == "tls-memory"
    target = f"{rows.TLS_MEMORY_TARGET} x nginx" if secure else rows.MEMORY_TARGET
    print(f"\n{name}: {rows.OTHER[name]}, from {few} to {many} (target {target})")
    found = {}
    for kind in [*ours, *options.peers]:
        with contextlib.ExitStack() as stack:
            server = bench.start(kind, False, stack=stack, secure=secure)
            held = stack.enter_context(contextlib.ExitStack())
            request = callgrind.request_bytes(browser=False)
            sizes = []
            for wanted, already in ((few, 0), (many, few)):
                for _ in range(wanted - already):
                    stream = held.enter_context(processes.connect(server.port, secure=secure))
                    stream.sendall(request)
                    processes.read_answer(stream)
                sizes.append(processes.resident_bytes(server.pid))
            found[kind] = (sizes[1] - sizes[0]) / (many - few)
            print(f"  {kind:<14}{found[kind]:>10.0f} bytes   (resident at {many}: {sizes[1] / 1048576:.1f} MiB)", flush=True)
    return found


def handshake_rows(bench, name, ours, options):
    """CPU time per handshake of the server, in rounds as the load rows."""
    target, script = rows.HANDSHAKE_TARGETS[name], os.path.join(servers.HERE, "handshakes.py")
    print(f"\n{name}: {rows.OTHER[name]}")
    kinds = [*ours, *options.peers]
    figures = {kind: [] for kind in kinds}
    with contextlib.ExitStack() as stack:
        running = {kind: bench.start(kind, False, stack=stack, secure=True) for kind in kinds}
        for at in range(options.rounds):
            for kind in kinds[at % len(kinds):] + kinds[:at % len(kinds)]:
                before = processes.cpu_nanoseconds(running[kind].pid)
                status, output = processes.run_to_end(
                    [sys.executable, script, str(running[kind].port), name.removeprefix("tls-"), str(options.seconds)],
                    timeout=options.seconds + 30, core=bench.client_core,
                )
                if status != 0:
                    raise Trouble(f"{name}, {kind}: {output.strip()}")
                figures[kind].append((processes.cpu_nanoseconds(running[kind].pid) - before) / 1000 / int(output))
    for kind in kinds:
        line = f"  {kind:<14}{statistics.median(figures[kind]):>10.1f} µs"
        if "nginx" in figures:
            ratio = statistics.median(mine / theirs for mine, theirs in zip(figures[kind], figures["nginx"]))
            line += f"  {ratio:.3f} x nginx"
            if kind in ours:
                line += f"  target {target:.2f} {'met' if ratio <= target else 'MISSED'}"
        print(line, flush=True)
    return figures


def latency_rows(bench, ours, options, failures):
    """Latency from the due time at a constant rate, forwarded; the median over the rounds of each percentile."""
    print(f"\nlatency: forwarded, {options.rate}/s over 64 connections, µs from the due time")
    program = bench.compile("constant_rate.c")
    kinds = [*ours, *options.peers]
    running = {kind: bench.start(kind, True) for kind in kinds}
    figures = {kind: [] for kind in kinds}
    shuffled = random.Random("latency")
    for _ in range(options.rounds):
        shuffled.shuffle(kinds)
        for kind in kinds:
            status, output = processes.run_to_end(
                [program, str(running[kind].port), "/small", str(options.rate), str(options.seconds), "64"],
                timeout=options.seconds + 30, core=bench.client_core,
            )
            if status != 0:
                failures.append(f"latency, {kind}: {output.strip()}")
            with contextlib.suppress(ValueError):
                figures[kind].append(json.loads(output))
    found = {}
    for kind in [*ours, *options.peers]:
        if not figures[kind]:
            continue
        found[kind] = {key: statistics.median(run[key] for run in figures[kind]) for key in figures[kind][0]}
        line = "".join(f"  {name} {found[kind][key]:>7.0f}"
                       for name, key in (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us")))
        print(f"  {kind:<14}{line}   ({found[kind]['rate']:.0f}/s)", flush=True)
    return found


def access_log_rows(bench, ours, options, failures):
    """CPU per request with an access log in JSON against none, in the same round: the median of the ratios, and what it costs."""
    print(f"\naccess-log: {rows.OTHER['access-log']}")
    found = {}
    for row in (row for row in rows.LOAD if row.name in rows.LOGGED):
        for kind in ours:
            with contextlib.ExitStack() as stack:
                running = {log: bench.start(kind, row.forwarding, stack=stack, log=log) for log in (None, "json")}
                rounds = []
                for at in range(options.rounds):
                    order = (None, "json") if at % 2 else ("json", None)
                    figures = {log: load(bench, row, running[log], options.seconds, failures)[0] for log in order}
                    rounds.append((figures[None], figures["json"]))
            ratio = statistics.median(logged / bare for bare, logged in rounds)
            found[f"{row.name}, {kind}"] = {"rounds": rounds, "ratio": ratio}
            bare, logged = (statistics.median(figures) for figures in zip(*rounds))
            print(f"  {row.name:<14}{kind:<14}{bare:>8.2f} µs without {logged:>8.2f} µs with  {ratio - 1:+.1%}  "
                  f"target {rows.LOG_TARGET:+.0%} {'met' if ratio - 1 <= rows.LOG_TARGET else 'MISSED'}", flush=True)
    return found


def instruction_rows(bench, ours, options):
    """Instructions per request; under valgrind ours runs on the readiness backend."""
    print("\ninstructions per request, user space, one connection (callgrind)")
    kinds = [kind for kind in ours if not kind.endswith("io_uring")] or ours
    kinds += [peer for peer in options.peers if peer == "nginx"]
    found = {}
    for case, forwarding, browser in callgrind.CASES:
        counts = {kind: callgrind.instructions(bench, kind, forwarding, browser) for kind in kinds}
        found[case] = counts
        print(f"  {case:<20}" + "".join(f"{kind} {value:>8.0f}   " for kind, value in counts.items())
              + f"target {rows.INSTRUCTION_TARGETS[case]}", flush=True)
    return found


def machine():
    """What the figures were measured on."""
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return {"kernel": platform.release(), "processor": model, "cores": os.cpu_count(), "load": os.getloadavg()}


def arguments():
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--server", default="target/release/production_server",
                        help='our program; "nginx" measures nginx against itself (default: %(default)s)')
    parser.add_argument("--backends", default="epoll,io_uring", help="of ours, separated by commas (default: %(default)s)")
    parser.add_argument("--peers", default="nginx,haproxy", help="separated by commas (default: %(default)s)")
    parser.add_argument("--rows", default="all", help=f"of {', '.join(rows.NAMES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="1 to 101 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run, whole ones, 1 to 60 (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=512,
                        help="requests in flight at the worker, and idle connections kept to it (default: %(default)s)")
    parser.add_argument("--fields", default="forwarded", choices=("none", "forwarded", "all"),
                        help="what the peers add to a forwarded request: nothing, the X-Forwarded-* fields as ours does, or "
                             "also X-Request-Id and the rest (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=15000, help="requests per second of the latency row (default: %(default)s)")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="1 round of 1 s and fewer connections: checks that all of it works")
    parser.add_argument("--json", metavar="FILE", help="also write every figure there")
    options = parser.parse_args()
    options.backends, options.peers = options.backends.split(","), [peer for peer in options.peers.split(",") if peer]
    options.rows = rows.NAMES if options.rows == "all" else options.rows.split(",")
    for given, known in ((options.rows, rows.NAMES), (options.peers, ["nginx", "haproxy"]),
                         (options.backends, ["auto", "epoll", "io_uring"])):
        for name in given:
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if not (1 <= options.rounds <= 101 and 1 <= options.seconds <= 60 and 1 <= options.concurrency <= 4096
            and 1 <= options.rate <= 200000):
        parser.error("a number is out of range; see --help")
    if not {options.server_core, options.client_core} <= os.sched_getaffinity(0):
        parser.error(f"the cores {options.server_core} and {options.client_core} are not both there")
    return options


class Parser(argparse.ArgumentParser):
    """Wrong flags exit with 64, as the server's own do, and not with argparse's 2."""

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(64)


if __name__ == "__main__":
    sys.exit(main())
