#!/usr/bin/env python3
"""Speaks to the server with the clients that people use, through both backends, and fails when one of them does.

    tests/scripts/real-clients.py [--server target/release/production_server] [--backends epoll,io_uring] [--clients curl,ab]

curl, ab, wrk, Python's http.client, requests, httpx and aiohttp, Node's http, fetch and undici: GET, HEAD, POST, 2 MB bodies both
ways, keep-alive, chunked uploads, Expect: 100-continue, streamed answers, pipelining. Needs PyPI and npm. Exit codes: 0, 1 a
failure, 64 wrong flags.
"""

import os
import sys

import common
import processes

HERE = os.path.join(common.ROOT, "tests", "scripts", "clients")
PYTHON = ("http.client", "requests", "httpx", "aiohttp")
NODE = ("http", "fetch", "undici")
CLIENTS = ("curl", "ab", "wrk", *PYTHON, *(f"node:{name}" for name in NODE))
SIZE = 2_000_000


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--clients", default=",".join(CLIENTS), help="separated by commas (default: all)")
    options = flags.parse_args()
    chosen = options.clients.split(",")
    for client in chosen:
        if client not in CLIENTS:
            flags.error(f"{client!r} is none of {', '.join(CLIENTS)}")
    python = common.python_with(home, "requests", "httpx", "aiohttp") if set(chosen) & set(PYTHON) else None
    modules = common.npm(home, "undici@7") if "node:undici" in chosen else None
    results = common.Results()
    for backend in common.backends(options):
        print(f"\n{backend}")
        with common.serving(home, options.server, backend) as server:
            for client in chosen:
                if client == "curl":
                    curl(home, server.port, backend, results)
                elif client == "ab":
                    load_ab(server.port, backend, results)
                elif client == "wrk":
                    load_wrk(server.port, backend, results)
                elif client in PYTHON:
                    line = [f"{python}/python", os.path.join(HERE, "python_clients.py"), client, str(server.port)]
                    suite(line, f"{backend} {client}", results)
                else:
                    name = client.removeprefix("node:")
                    line = ["node", os.path.join(HERE, "node_clients.js"), name, str(server.port), modules or ""]
                    suite(line, f"{backend} {client}", results)
    return results.exit_code()


def suite(line, name, results):
    """Runs a client's program, which prints `ok CASE` or `FAIL CASE: why` for each of its cases, and `end` when done."""
    _, output = processes.run_to_end(line, timeout=120)
    ended = False
    for text in output.splitlines():
        verdict, _, case = text.partition(" ")
        if verdict in ("ok", "FAIL"):
            results.add(f"{name} {case.partition(':')[0]}", verdict == "ok", case.partition(":")[2].strip())
        elif text == "end":
            ended = True
    if not ended:
        results.add(f"{name} to its end", False, output[-500:])


def curl(home, port, backend, results):
    """curl's cases: each is a command line and what its -w line has to say."""
    body, came = os.path.join(home, "body"), os.path.join(home, "came")
    with open(body, "wb") as file:
        file.write(os.urandom(SIZE))
    url = f"http://127.0.0.1:{port}"
    say = "%{http_code} %{size_download} %{num_connects}"

    def case(name, arguments, wanted, same=False, times=1):
        if os.path.exists(came):
            os.unlink(came)
        line = ["curl", "-sS", "--max-time", "20", "-w", say + "\n"]
        for _ in range(times):
            line += ["-o", came]
        status, output = processes.run_to_end([*line, *arguments], timeout=40)
        ok = status == 0 and output.splitlines()[-1:] == [wanted]
        if ok and same:
            with open(body, "rb") as sent, open(came, "rb") as got:
                ok = sent.read() == got.read()
        results.add(f"{backend} curl {name}", ok, "" if ok else f"curl {status}: {output.strip()!r}, not {wanted!r}")

    case("GET 2 MB", [f"{url}/bytes?n={SIZE}"], f"200 {SIZE} 1")
    case("HEAD", ["-I", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n", f"{url}/ping"], "200 1")
    case("POST 2 MB", ["--data-binary", f"@{body}", "-H", "Expect:", f"{url}/echo"], f"200 {SIZE} 1", same=True)
    case("POST 2 MB, Expect: 100-continue", ["--data-binary", f"@{body}", "-H", "Expect: 100-continue", f"{url}/echo"],
         f"200 {SIZE} 1", same=True)
    case("POST 2 MB chunked", ["--data-binary", f"@{body}", "-H", "Transfer-Encoding: chunked", f"{url}/echo"],
         f"200 {SIZE} 1", same=True)
    case("PUT 2 MB, file", ["-T", body, f"{url}/echo"], f"200 {SIZE} 1", same=True)
    case("keep-alive, 10 requests", [f"{url}/bytes?n=10"] * 10, "200 10 0", times=10)
    case("HTTP/1.0", ["--http1.0", f"{url}/bytes?n=1000"], "200 1000 1")
    case("stream", ["-w", "%{http_code}\n", f"{url}/stream"], "200")


def load_ab(port, backend, results):
    for keep_alive in (False, True):
        done = common.ab(port, 5000, 50, keep_alive)
        ok = done["complete"] == 5000 and not done["failed"] and not done["non_2xx"]
        results.add(f"{backend} ab{' -k' if keep_alive else ''}", ok, str(done))


def load_wrk(port, backend, results):
    done = common.wrk(port, seconds=2)
    results.add(f"{backend} wrk", done["requests"] > 0 and not done["non_2xx"] and not done["errors"], str(done))


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    common.run(main)
