#!/usr/bin/env python3
"""The core cases of the Autobahn suite (1 to 7 and 10) against a WebSocket echo worker: alone, and behind the server's tunnel.

    tests/scripts/autobahn.py [--server target/release/production_server] [--backends epoll,io_uring] [--cases 1.*,2.*]

kosoku from PyPI runs Autobahn's own case files; the worker is examples/websocket/echo.py with `websockets` from PyPI. Behind the
server each case must pass that passes alone (case 7.1.5 fails alone, too: `websockets` answers with another close code). Exit
codes: 0, 1 a case differs, 64 wrong flags.
"""

import contextlib
import os
import socket
import sys
import threading

import common
import processes

ECHO = os.path.join(common.ROOT, "examples", "websocket", "echo.py")
CASES = "1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*"

# Prints a line for each case: its number, whether it passed, how it behaved and how it closed.
RUN = """
import asyncio, sys
from kosoku import FailureError, run_fuzzingclient

async def main():
    try:
        results = await run_fuzzingclient(sys.argv[1], sys.argv[2].split(","), None, concurrency=4)
    except FailureError as failure:
        results = failure.results
    for result in results:
        verdict = "passed" if result.passed else "FAILED"
        print("CASE", result.case_id, f"{verdict}/{result.behavior.value}/{result.behavior_close.value}")

asyncio.run(main())
"""


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--cases", default=CASES, help="globs, separated by commas (default: %(default)s)")
    options = flags.parse_args()
    python = os.path.join(common.python_with(home, "websockets", "kosoku"), "python")
    results = common.Results()
    with alone(home, python) as port:
        reference = run_cases(python, port, options.cases)
    print(f"\nalone: {len(reference)} cases, {tally(reference)}")
    results.add("alone runs the cases", len(reference) > 0)
    for backend in common.backends(options):
        command = [python, ECHO, "{socket}"]
        # Every case is a tunnel; the default limits allow far more than run at once.
        with common.serving(home, options.server, backend, command=command, workers=2, path="/") as server:
            behind = run_cases(python, server.port, options.cases)
        print(f"\n{backend}: {len(behind)} cases, {tally(behind)}")
        for case in sorted(set(reference) | set(behind), key=lambda name: [int(part) for part in name.split(".")]):
            first, second = reference.get(case, "absent"), behind.get(case, "absent")
            if verdict(first) != verdict(second):
                results.add(f"{backend} {case}", False, f"alone {first}, behind {second}")
            elif first != second:
                # OK or NON-STRICT: whether an echo left before the error behind it was seen, which is a matter of timing.
                print(f"  note  {backend} {case}: alone {first}, behind {second}")
        same = {case: verdict(text) for case, text in reference.items()} == {case: verdict(text) for case, text in behind.items()}
        results.add(f"{backend} as alone", same, tally(behind))
    return results.exit_code()


def verdict(text):
    """"passed" or "FAILED" of a case's line."""
    return text.partition("/")[0]


def tally(cases):
    counts = {}
    for behaviour in cases.values():
        counts[behaviour] = counts.get(behaviour, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def run_cases(python, port, cases):
    status, output = processes.run_to_end([python, "-c", RUN, f"127.0.0.1:{port}", cases], timeout=400)
    if status != 0:
        raise common.Trouble(f"kosoku failed:\n{output[-1500:]}")
    found = {}
    for line in output.splitlines():
        if line.startswith("CASE "):
            _, case, behaviour = line.split(" ", 2)
            found[case] = behaviour
    return found


@contextlib.contextmanager
def alone(home, python):
    """The echo worker without a server: kosoku speaks TCP only, so bytes are carried from a loopback port to its socket."""
    path = os.path.join(home, "alone.sock")
    log = os.path.join(home, "alone.log")
    with processes.running([python, ECHO, path], log) as worker, socket.create_server(("127.0.0.1", 0)) as listener:
        processes.wait_until_it_answers(worker, log, path)
        threading.Thread(target=carry_all, args=(listener, path), daemon=True).start()
        yield listener.getsockname()[1]


def carry_all(listener, path):
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the listener was closed: done
        worker = processes.connect(path, timeout=60)
        client.settimeout(60)
        for source, sink in ((client, worker), (worker, client)):
            threading.Thread(target=carry, args=(source, sink), daemon=True).start()


def carry(source, sink):
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
