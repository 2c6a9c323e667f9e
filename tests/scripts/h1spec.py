#!/usr/bin/env python3
"""Runs h1spec (uNetworking/h1spec, 33 cases of HTTP/1.1) against the server, through both backends.

    git clone https://github.com/uNetworking/h1spec /somewhere/else
    tests/scripts/h1spec.py --h1spec /somewhere/else/http_test.ts [--server target/release/production_server]

The suite is brought for the run and is no part of this project: keep it outside of the tree. It runs under Deno, which comes from npm
into a temporary directory. It wants a server that sends every body back at "/" under every method, so the workers are a small echo app, and an
answer that arrives in one read. Exit codes: 0 all 33, 1 fewer, 64 wrong flags.
"""

import os
import re
import sys

import common
import processes

ECHO = os.path.join(common.ROOT, "tests", "scripts", "clients", "echo_worker.js")
CASES = 33


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--h1spec", required=True, metavar="FILE", help="http_test.ts of a clone of uNetworking/h1spec")
    flags.add_argument("--deno", help="the program, when it is there already (default: from npm)")
    options = flags.parse_args()
    suite = os.path.abspath(options.h1spec)
    if not os.path.isfile(suite):
        flags.error(f"--h1spec {options.h1spec}: no such file; git clone https://github.com/uNetworking/h1spec brings it")
    if suite.startswith(common.ROOT + os.sep):
        flags.error("--h1spec: keep the suite outside of this project")
    deno = options.deno or os.path.join(common.npm(home, "deno"), "node_modules", ".bin", "deno")
    results = common.Results()
    for backend in common.backends(options):
        print(f"\n{backend}")
        with common.serving(home, options.server, backend, command=["node", ECHO, "{socket}"], path="/") as server:
            line = [deno, "run", "--no-check", "--allow-net=127.0.0.1", suite, "127.0.0.1", str(server.port)]
            environment = {**os.environ, "DENO_DIR": os.path.join(home, "deno"), "NO_COLOR": "1"}
            _, output = processes.run_to_end(line, timeout=120, env=environment, cwd=home)
        for text in output.splitlines():
            found = re.match(r"(✅|❌) ([^:]+): (.*)", text)
            if found:
                results.add(f"{backend} {found[2]}", found[1] == "✅", found[3])
        total = re.search(r"(\d+) out of (\d+) tests passed", output)
        whole = bool(total) and total[1] == total[2] and int(total[2]) >= CASES
        results.add(f"{backend} all of the suite", whole, total[0] if total else output[-500:])
    return results.exit_code()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
