#!/usr/bin/env python3
"""Guards the instructions per request: counts them under callgrind, fails above where they stood, and tells the targets.

    benches/instructions.py --server target/release/production_server [--peer nginx]

Build without AVX-512, which valgrind does not know: RUSTFLAGS="-C target-cpu=x86-64-v2" cargo build --release.
The counts repeat on a noisy machine to some tenths of a per cent. Takes less than a minute.
It counts with routes, too, and fails where their number matters.
Exit codes: 0 none has grown, 1 one is above its guard or could not be counted, 64 wrong flags.
"""

import argparse
import concurrent.futures
import itertools
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "load"))

import callgrind  # noqa: E402  (found by the line above)
import processes  # noqa: E402
import rows  # noqa: E402
import servers  # noqa: E402

# The targets stand beside the others, so that the table of the load script shows the same ones.
TARGETS = rows.INSTRUCTION_TARGETS
# Where the counts stood when they were measured last, and half a per cent for what differs from run to run: above it something has
# grown. To be lowered with every gain.
GUARDS = {"direct": 2380, "forwarded": 7300, "direct, browser": 5010, "forwarded, browser": 10010}
# How far a request of 500 routes, which takes the last of them, may be from one of a single route.
ROUTES, ROUTES_APART = (1, 500), 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="target/release/production_server", help="default: %(default)s")
    parser.add_argument("--peer", choices=("nginx", "haproxy"), help="count this one, too, for comparison")
    parser.add_argument("--requests", type=int, default=500, help="counted from N and 3 N of them (default: %(default)s)")
    parser.add_argument("--fields", default="forwarded", choices=("none", "forwarded", "all"), help="what a peer adds")
    try:
        options = parser.parse_args()
    except SystemExit as leaving:
        return 64 if leaving.code else 0
    if not 50 <= options.requests <= 100_000:
        print("instructions.py: --requests must lie in 50 to 100000", file=sys.stderr)
        return 64
    kinds = ["ours:epoll"] + ([options.peer] if options.peer else [])
    try:
        with servers.bench(options.server, fields=options.fields) as bench:
            return guard(bench, kinds, options.requests)
    except processes.Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1


def guard(bench, kinds, requests):
    """Counts every case, two at a time, prints each and returns the exit code."""
    bench.worker()  # Before the threads, of which each could otherwise start one.
    above = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        counting = {
            (kind, case): pool.submit(callgrind.instructions, bench, kind, forwarding, browser, requests)
            for kind in kinds
            for case, forwarding, browser in callgrind.CASES
        }
        for (kind, case), count in counting.items():
            counted, target, limit = count.result(), TARGETS[case], GUARDS[case]
            ours = kind.startswith("ours")
            verdict = f"target {target:>6} {'met' if counted <= target else 'MISSED'}" if ours else ""
            if ours and counted > limit:
                verdict += f", and ABOVE the guard of {limit}: something has grown"
                above += 1
            print(f"{kind:<12} {case:<20} {counted:>8.0f} instructions a request   {verdict}", flush=True)
        above += guard_routes(bench, pool, requests)
    return 1 if above else 0


def guard_routes(bench, pool, requests):
    """Counts with few and with many routes, prints it, and returns in how many cases their number matters."""
    apart = 0
    counting = {
        (case, routes): pool.submit(callgrind.instructions, bench, "ours:epoll", forwarding, browser, requests, routes)
        for (case, forwarding, browser), routes in itertools.product(callgrind.CASES[:2], ROUTES)
    }
    for case, _, _ in callgrind.CASES[:2]:
        few, many = (counting[case, routes].result() for routes in ROUTES)
        verdict = "met"
        if abs(many / few - 1) > ROUTES_APART:
            verdict, apart = "MISSED: their number matters", apart + 1
        for routes, counted in zip(ROUTES, (few, many)):
            words = f"   within {ROUTES_APART:.0%}: {verdict}" if routes == ROUTES[-1] else ""
            print(f"{'ours:epoll':<12} {case + ',':<10} routes: {routes:>3} {counted:>8.0f} instructions a request{words}", flush=True)
    return apart


if __name__ == "__main__":
    sys.exit(main())
