"""Rows in which somebody waits: in a line that two loops share, or as a crowd beside fast clients.

`queue` holds ours with two loops against itself with one, on the same two cores, in the same rounds: what it costs that a permit
changes loops. The crowds' rows give the latency of 64 fast clients at a constant rate, from when each request was due, without
and beside the crowd; each server has its turn with its own crowd, as crowds of several at once would disturb each other.
"""

import contextlib
import json
import random
import re
import statistics

import crowd
import processes
import rows
from processes import Trouble

FAST = 64


def queue_rows(bench, ours, options, failures):
    """CPU per request and throughput with two loops and with one; the ratio is that within a round."""
    print(f"\nqueue: {rows.QUEUE_CLIENTS} clients, {rows.QUEUE_PERMITS} permits, forwarded; both cores are everybody's")
    cores = f"{bench.server_core},{bench.client_core}"
    sockets = [bench.worker(name=f"queue-{number}") for number in range(rows.QUEUE_PERMITS)]
    more = [word for path in sockets[1:] for word in ("--upstream", f"unix:{path}")]
    found = {}
    for kind in ours:
        if kind.endswith(":nginx"):
            continue
        with contextlib.ExitStack() as stack:
            running = {
                loops: bench.start(kind, True, stack=stack, worker=sockets[0], cores=cores,
                                   flags=["--concurrency", "1", "--loops", str(loops), "--pin", "off", "--queue-timeout-ms", "60000", *more])
                for loops in (1, 2)
            }
            figures = {loops: [] for loops in running}
            shuffled = random.Random(f"queue-{kind}")
            for _ in range(options.rounds):
                for loops in shuffled.sample(list(running), len(running)):
                    figures[loops].append(load(bench, running[loops], options.seconds, cores, failures))
        found[kind] = summary(figures)
        print(f"  {kind:<14}one loop {found[kind]['cpu_us'][1]:>7.2f} µs {found[kind]['rate'][1]:>8.0f}/s   "
              f"two loops {found[kind]['cpu_us'][2]:>7.2f} µs {found[kind]['rate'][2]:>8.0f}/s   "
              f"{found[kind]['ratio']:.3f} x the CPU, {found[kind]['rate_ratio']:.3f} x the rate", flush=True)
    return found


def summary(figures):
    one, two = figures[1], figures[2]
    return {
        "cpu_us": {loops: statistics.median(cpu for cpu, _ in runs) for loops, runs in figures.items()},
        "rate": {loops: statistics.median(rate for _, rate in runs) for loops, runs in figures.items()},
        "ratio": statistics.median(second[0] / first[0] for first, second in zip(one, two)),
        "rate_ratio": statistics.median(second[1] / first[1] for first, second in zip(one, two)),
    }


def load(bench, server, seconds, cores, failures):
    """One run of wrk: (µs of the server's CPU per request, requests per second)."""
    command = ["wrk", "-t1", f"-c{rows.QUEUE_CLIENTS}", f"-d{max(1, round(seconds))}", "--timeout", "10s", f"http://127.0.0.1:{server.port}/small"]
    before = processes.cpu_nanoseconds(server.pid)
    status, output = processes.run_to_end(command, timeout=seconds + 30, core=cores)
    spent = processes.cpu_nanoseconds(server.pid) - before
    done = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    if status != 0 or not done or not rate or int(done.group(1)) == 0:
        raise Trouble(f"queue, {server.name}: wrk failed\n{output}")
    failures += [f"queue, {server.name}: {line.strip()}" for line in output.splitlines() if "Non-2xx" in line or "Socket errors" in line]
    return spent / 1000 / int(done.group(1)), float(rate.group(1))


def crowd_rows(bench, name, ours, options, failures):
    """p50 and p99 of the fast ones without and beside one crowd."""
    door, wanted = rows.CROWDS[name]
    peers = crowd.room(wanted // 10 if options.quick else wanted)
    rate = rows.CROWD_RATE
    print(f"\n{name}: {rows.OTHER[name]} ({peers} of them), {rate}/s over {FAST} connections, µs from the due time")
    found = {}
    for kind in [*ours, *(peer for peer in options.peers if peer == "nginx")]:
        with contextlib.ExitStack() as stack:
            worker = bench.worker("crowd_worker.c", "crowd")
            flags = ["--concurrency", str(peers + 1000), "--write-timeout", "10m"]
            server = bench.start(kind, True, stack=stack, worker=worker, flags=flags)
            without = windows(bench, server, options, f"{name} without, {kind}", failures)
            before = processes.resident_bytes(server.pid)
            standing = crowd.standing(bench.compile("crowd.c"), server.port, door, peers, peers=peers, core=bench.client_core)
            state, placed = stack.enter_context(standing).until("good")
            if not placed:
                failures.append(f"{name}, {kind}: only so far came the crowd: {state}")
            beside = windows(bench, server, options, f"{name} beside, {kind}", failures)
            held = processes.resident_bytes(server.pid) - before
        found[kind] = {"without": without, "beside": beside, "resident_bytes_more": held, "peers": peers}
        print_row(kind, found[kind])
    return found


def print_row(kind, found):
    without, beside = found["without"], found["beside"]
    line = f"  {kind:<14}"
    for when, run in (("without", without), ("beside it", beside)):
        line += f"{when} p50 {run['p50_us']:>6.0f} p99 {run['p99_us']:>7.0f}   " if run else f"{when} requests failed   "
    if without and beside:
        factor = beside["p99_us"] / max(1, without["p99_us"])
        line += f"p99 x {factor:.2f}"
        line += "" if kind == "nginx" else f" (target {rows.CROWD_FACTOR:.1f} {'met' if factor <= rows.CROWD_FACTOR else 'MISSED'})"
    print(f"{line}   {found['resident_bytes_more'] / 1048576:.0f} MiB more resident", flush=True)


def windows(bench, server, options, what, failures):
    """The medians over the rounds in which all was answered; nothing when there was none."""
    program, runs = bench.compile("constant_rate.c"), []
    for _ in range(options.rounds):
        status, output = processes.run_to_end(
            [program, str(server.port), "/small", str(rows.CROWD_RATE), str(options.seconds), str(FAST)],
            timeout=options.seconds + 30, core=bench.client_core,
        )
        if status == 0:
            runs.append(json.loads(output))
        else:
            failures.append(f"{what}: {output.strip()}")
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} if runs else None
