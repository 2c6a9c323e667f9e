#!/usr/bin/env python3
"""Speaks to the server with the clients that people use, through both backends, and fails when one of them does.

    tests/scripts/real-clients.py [--server target/release/production_server] [--backends epoll,io_uring] [--clients curl,ab] [--over plain,tls]

curl, ab, wrk, Python's http.client, requests, httpx and aiohttp, Node's http, fetch and undici: GET, HEAD, POST, 2 MB bodies both
ways, keep-alive, chunked uploads, Expect: 100-continue, streamed answers, pipelining; Python's websockets with a worker that echoes; Go and Java,
where they are installed, GET and POST 2 MB both ways on one connection. All of them over TLS, too, curl with both versions. Chromium, where it is installed,
before a server that has made its certificate itself: it trusts nobody, and then that one; GET, POST 2 MB, a WebSocket, an event stream. Needs PyPI and
npm. Exit codes: 0, 1 a failure, 64 wrong flags.
"""

import os
import sys

import common
import processes

HERE = os.path.join(common.ROOT, "tests", "scripts", "clients")
PYTHON = ("http.client", "requests", "httpx", "aiohttp", "websockets")
NODE = ("http", "fetch", "undici")
COMPILED = {"go": ["go", "run", "client.go"], "java": ["java", "Client.java"]}
ECHO = os.path.join(common.ROOT, "examples", "websocket", "echo.py")
CLIENTS = ("curl", "ab", "wrk", *PYTHON, *(f"node:{name}" for name in NODE), *COMPILED, "chromium")
SIZE = 2_000_000


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--clients", default=",".join(CLIENTS), help="separated by commas (default: all)")
    flags.add_argument("--over", default="plain,tls", help="separated by commas (default: %(default)s; the control: plain)")
    options = flags.parse_args()
    chosen, over = options.clients.split(","), ["plain"] if options.server == "nginx" else options.over.split(",")
    for word, known in [*((client, CLIENTS) for client in chosen), *((word, ("plain", "tls")) for word in over)]:
        if word not in known:
            flags.error(f"{word!r} is none of {', '.join(known)}")
    python = common.python_with(home, "requests", "httpx", "aiohttp", "websockets") if set(chosen) & {*PYTHON, "chromium"} else None
    modules = common.npm(home, "undici@7") if "node:undici" in chosen else None
    results = common.Results()
    trusted, key = common.certificate(home)
    for backend in common.backends(options):
        for kind in over:
            secure = kind == "tls"
            name = f"{backend} {kind}" if len(over) > 1 else backend
            print(f"\n{name}")
            more = {"flags": ["--tls-cert", trusted, "--tls-key", key], "secure": True} if secure else {}
            environment = {**os.environ, **({"TRUSTED": trusted, "NODE_EXTRA_CA_CERTS": trusted} if secure else {})}
            with common.serving(home, options.server, backend, **more) as server:
                for client in chosen:
                    if client == "curl":
                        curl(home, server.port, name, results, trusted if secure else None)
                    elif client == "ab":
                        load_ab(server.port, name, results, "https" if secure else "http")
                    elif client == "wrk":
                        load_wrk(server.port, name, results, "https" if secure else "http")
                    elif client in COMPILED:
                        if not common.have(client):
                            print(f"        {client} is not installed", flush=True)
                            continue
                        suite([*COMPILED[client], str(server.port)], f"{name} {client}", results, environment)
                    elif client in PYTHON and client != "websockets":
                        suite([f"{python}/python", "python_clients.py", client, str(server.port)], f"{name} {client}", results, environment)
                    elif client not in ("websockets", "chromium"):
                        line = ["node", "node_clients.js", client.removeprefix("node:"), str(server.port), modules or ""]
                        suite(line, f"{name} {client}", results, environment)
            if "websockets" in chosen:
                with common.serving(home, options.server, backend, command=[f"{python}/python", ECHO], path="/", **more) as server:
                    suite([f"{python}/python", "python_clients.py", "websockets", str(server.port)], f"{name} websockets", results, environment)
            if "chromium" in chosen and secure:
                chromium(home, options.server, backend, f"{python}/python", results)
    return results.exit_code()


def suite(line, name, results, environment):
    """Runs a client's program, which prints `ok CASE` or `FAIL CASE: why` for each of its cases, and `end` when done."""
    _, output = processes.run_to_end(line, timeout=120, env=environment, cwd=HERE)
    ended = False
    for text in output.splitlines():
        verdict, _, case = text.partition(" ")
        if verdict in ("ok", "FAIL"):
            results.add(f"{name} {case.partition(':')[0]}", verdict == "ok", case.partition(":")[2].strip())
        elif text == "end":
            ended = True
    if not ended:
        results.add(f"{name} to its end", False, output[-500:])


def chromium(home, program, backend, python, results):
    if not common.have("chromium"):
        return print("        chromium is not installed", flush=True)
    place = os.path.join(home, f"chromium-{processes.free_port()}")
    os.mkdir(place)
    report = os.path.join(place, "report")
    command = [python, os.path.join(HERE, "browser.py"), "app", "{socket}", report]
    with common.serving(home, program, backend, command=command, path="/word", flags=["--tls", "self-signed"], secure=True) as server:
        made = os.path.join(os.path.dirname(server.log), "run", "self-signed.pem")
        suite([python, "browser.py", "drive", str(server.port), made, report, place], f"{backend} chromium", results, os.environ)
    with open(os.path.join(place, "net.json")) as file:
        log = file.read()
    results.add(f"{backend} chromium speaks TLS 1.3 with X25519MLKEM768, and resumes", '"key_exchange_group":4588' in log and '"is_resumed":true' in log)


def curl(home, port, backend, results, trusted):
    """curl's cases: each is a command line and what its -w line has to say."""
    body, came = os.path.join(home, "body"), os.path.join(home, "came")
    with open(body, "wb") as file:
        file.write(os.urandom(SIZE))
    url = f"{'https' if trusted else 'http'}://127.0.0.1:{port}"
    trust = ["--cacert", trusted] if trusted else []
    say = "%{http_code} %{size_download} %{num_connects}"

    def case(name, arguments, wanted, same=False, times=1):
        if os.path.exists(came):
            os.unlink(came)
        line = ["curl", "-sS", "--max-time", "20", *trust, "-w", say + "\n"]
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
    for version in ("1.2", "1.3") if trusted else ():
        case(f"TLS {version}", ["--tls-max", version, f"--tlsv{version}", f"{url}/bytes?n=1000"], "200 1000 1")
    case("stream", ["-w", "%{http_code}\n", f"{url}/stream"], "200")


def load_ab(port, backend, results, scheme):
    for keep_alive in (False, True):
        done = common.ab(port, 5000, 50, keep_alive, scheme=scheme)
        ok = done["complete"] == 5000 and not done["failed"] and not done["non_2xx"]
        results.add(f"{backend} ab{' -k' if keep_alive else ''}", ok, str(done))


def load_wrk(port, backend, results, scheme):
    done = common.wrk(port, seconds=2, scheme=scheme)
    results.add(f"{backend} wrk", done["requests"] > 0 and not done["non_2xx"] and not done["errors"], str(done))


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    common.run(main)
