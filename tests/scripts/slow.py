#!/usr/bin/env python3
"""slowhttptest against the server (slowloris, slow body, slow read) while a second client measures what others notice.

    tests/scripts/slow.py [--server target/release/production_server] [--backends epoll,io_uring] [--connections 200] [--seconds 20]

One worker. A client asks for /ping every 20 ms, first in peace and then under each attack: all its requests have to get a 200, and the
99th percentile may not pass the bound (50 ms, or 10 times what it was in peace). The server's memory may not grow by more than the
bound. Exit codes: 0, 1 a bound was passed, 64 wrong flags.
"""

import os
import subprocess
import sys
import time

import common
import processes

ATTACKS = {
    # Heads and bodies in pieces, a piece every second; answers of 1 MB read 5 bytes at a time through a tiny window:
    # 200 of them fit in the default buffer_bytes (256 MiB); what does not fit holds its worker, as it must.
    "slowloris": (["-H", "-i", "1", "-x", "24"], "/ping"),
    "slow body": (["-B", "-i", "1", "-x", "24", "-s", "8192", "-t", "POST"], "/echo"),
    "slow read": (["-X", "-w", "256", "-y", "512", "-n", "1", "-z", "5"], "/bytes?n=1000000"),
}


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--connections", type=int, default=200, help="of each attack, 1 to 1000 (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=20, help="of each attack, 3 to 120 (default: %(default)s)")
    flags.add_argument("--memory-mib", type=int, default=320,
                       help="how much the server may grow: buffer_bytes and a margin (default: %(default)s)")
    options = flags.parse_args()
    if not 1 <= options.connections <= 1000 or not 3 <= options.seconds <= 120:
        flags.error("a number is out of range; see --help")
    processes.need("slowhttptest")
    results = common.Results()
    for backend in common.backends(options):
        print(f"\n{backend}")
        for name, (arguments, path) in ATTACKS.items():
            with common.serving(home, options.server, backend, workers=1) as server:
                attack(home, server, f"{backend} {name}", arguments, path, options, results)
    return results.exit_code()


def attack(home, server, name, arguments, path, options, results):
    """One attack on a fresh server: latency before and during it, and the growth of the server's own memory."""
    peace, failed_in_peace = probe(server.port, 2)
    before = own_memory(server)
    line = ["slowhttptest", *arguments, "-c", str(options.connections), "-r", str(options.connections), "-p", "5",
            "-l", str(options.seconds), "-u", f"http://127.0.0.1:{server.port}{path}"]
    log = os.path.join(home, "slowhttptest.log")
    with processes.running(line, log) as attacker:
        time.sleep(1)  # lets the attack build up; what follows does not depend on how far it has come
        during, failed = probe(server.port, options.seconds - 2)
        grown = (own_memory(server) - before) / 1048576
        try:
            attacker.wait(options.seconds + 15)
        except subprocess.TimeoutExpired:
            results.add(f"{name}: slowhttptest ends", False, processes.tail(log))
    bound = max(0.05, 10 * percentile(peace, 0.99))
    say = (f"p50 {percentile(during, 0.5) * 1000:.1f} ms, p99 {percentile(during, 0.99) * 1000:.1f} ms "
           f"(in peace {percentile(peace, 0.5) * 1000:.1f} and {percentile(peace, 0.99) * 1000:.1f}) over {len(during)}")
    results.add(f"{name}: others are served", not failed and not failed_in_peace and len(during) > 10, f"{failed or ''}")
    results.add(f"{name}: others are not slowed", percentile(during, 0.99) <= bound, say)
    results.add(f"{name}: memory stays bounded", grown <= options.memory_mib, f"grew by {grown:.1f} MiB")


def own_memory(server):
    """Resident bytes of the server without its workers."""
    total = processes.resident_bytes(server.pid)
    for pid, _ in processes.descendants(server.pid)[1:]:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if b"WORKER_ID=" in file.read():
                    total -= processes.resident_bytes(pid)
        except OSError:
            continue  # it has ended meanwhile
    return total


def probe(port, seconds):
    """Asks every 20 ms on a connection of its own: (latencies in seconds, what went wrong)."""
    latencies, wrong, end = [], [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            status, _ = processes.request(port, "/ping", timeout=5.0)
            if status != 200:
                wrong.append(f"status {status}")
        except OSError as error:
            wrong.append(str(error))
        latencies.append(time.monotonic() - began)
        time.sleep(0.02)
    return latencies, wrong


def percentile(values, share):
    return sorted(values)[int(share * (len(values) - 1) + 0.5)] if values else float("inf")


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
