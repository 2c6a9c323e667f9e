#!/usr/bin/env python3
"""Whole stacks side by side: an app behind ours, behind nginx, and behind its own process manager.

    benches/stacks/run.py [--server target/release/production_server] [--only node,gunicorn,uvicorn] [--rounds 5] [--seconds 5]

| app | ours | nginx | alone |
|---|---|---|---|
| Node's http | `-w 2 -c 64` | in front of two processes | node:cluster with two |
| Flask in gunicorn (sync) | `-w 2` | in front of two `gunicorn -w 1` | `gunicorn -w 2` |
| uvicorn | `-w 2 -c 64` | in front of two processes | `uvicorn --workers 2` |

Ours is started with the line that the README recommends for the app, and all else default: recycling, access log (to a file, as a service
manager would have it) and all. nginx has a process per core, keep-alive to the workers where they keep it, an access log, and writes no
temporary files. wrk asks over 64 keep-alive connections. In each round every stack has its turn, in shuffled order; the figures are medians over
the rounds: requests a second, the 50th and 99th percentile of wrk's latencies, CPU time per request of the whole tree, ended children
included, and errors. Everything shares the same cores, as it does on a small machine: what a stack spends, its app does not get.

gunicorn, uvicorn and Flask are fetched from PyPI into a directory that is kept (`--cache`). Exit codes: 0, 1 an error was seen, 64 wrong flags.
"""

import argparse
import contextlib
import json
import os
import random
import re
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[1:1] = [os.path.join(ROOT, "benches", "load"), os.path.join(ROOT, "tests", "scripts")]

import common  # noqa: E402
import processes  # noqa: E402
from processes import Trouble  # noqa: E402

STACKS = ("ours", "nginx", "alone")
WORKERS = 2
CONNECTIONS = 64
TICKS = os.sysconf("SC_CLK_TCK")

NGINX = """
daemon off;
user root;
worker_processes auto;
worker_rlimit_nofile 16384;
pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log {home}/access.log;
    server_tokens off;
    keepalive_requests 1000000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    upstream app {{
        {workers}
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
        }}
    }}
}}
"""


class App:
    """One app: `worker` is the command of one process at `{socket}`, `alone` that of its own manager at `{port}`."""

    def __init__(self, worker, alone, flags=(), environment=None):
        self.worker, self.alone, self.flags, self.environment = worker, alone, flags, environment or {}


def apps(cache, chosen):
    """The chosen apps by name, with what they need installed."""
    place = os.path.join(cache, "venv", "bin")
    if set(chosen) & {"gunicorn", "uvicorn"}:
        if not all(os.access(os.path.join(place, name), os.X_OK) for name in ("gunicorn", "uvicorn", "flask")):
            common.python_with(cache, "gunicorn", "uvicorn", "flask")
    node = ["node", os.path.join(HERE, "app.js")]
    gunicorn = [os.path.join(place, "gunicorn"), "--chdir", HERE]
    uvicorn = [os.path.join(place, "uvicorn"), "--app-dir", HERE, "--no-access-log", "--log-level", "warning"]
    known = {
        "node": App(node, node, ("-c", "64"), {"CLUSTER": str(WORKERS)}),
        "gunicorn": App([*gunicorn, "-b", "unix:{socket}", "flask_app:app"],
                        [*gunicorn, "-w", str(WORKERS), "-b", "127.0.0.1:{port}", "flask_app:app"]),
        "uvicorn": App([*uvicorn, "--uds", "{socket}", "asgi_app:app"],
                       [*uvicorn, "--workers", str(WORKERS), "--port", "{port}", "asgi_app:app"], ("-c", "64")),
    }
    return {name: known[name] for name in chosen}


class Stack:
    """A running stack: where it answers, and the processes at the roots of its trees."""

    def __init__(self, port, roots):
        self.port, self.roots = port, roots

    def cpu_seconds(self):
        """User and system time of all its processes, those that have ended included."""
        total = 0
        for root in self.roots:
            for pid, _ in processes.descendants(root):
                with contextlib.suppress(OSError):
                    total += sum(int(field) for field in processes.stat_fields(pid)[11:15])
        return total / TICKS


def start(kind, app, home, server, stack):
    """Starts one stack; it ends with `stack`."""
    place = os.path.join(home, kind)
    os.mkdir(place)
    port, log = processes.free_port(), os.path.join(place, "log")

    def run(command, **extra):
        return stack.enter_context(processes.running(command, log, cwd=place, **extra))

    if kind == "alone":
        environment = {**os.environ, **app.environment, "PORT": str(port)}
        process = run([part.replace("{port}", str(port)) for part in app.alone], env=environment)
        roots = [process]
    elif kind == "ours":
        process = run([os.path.abspath(server), "--listen", f"127.0.0.1:{port}", "--run-dir", os.path.join(place, "run"),
                       "-w", str(WORKERS), *app.flags, "--", *app.worker])
        roots = [process]
    else:
        roots = []
        for number in range(WORKERS):
            path = os.path.join(place, f"{number}.sock")
            worker = run([part.replace("{socket}", path) for part in app.worker], env={**os.environ, "PORT": path})
            processes.wait_until_it_answers(worker, log, path)
            roots.append(worker)
        configuration = os.path.join(place, "nginx.conf")
        sockets = "\n        ".join(f"server unix:{os.path.join(place, f'{number}.sock')};" for number in range(WORKERS))
        with open(configuration, "w") as file:
            file.write(NGINX.format(home=place, port=port, workers=sockets))
        processes.need("nginx")
        process = run([processes.find("nginx"), "-c", configuration, "-p", place, "-e", os.path.join(place, "error.log")])
        roots.append(process)
    processes.wait_until_it_answers(process, log, port)
    return Stack(port, [root.pid for root in roots])


def load(stack, seconds):
    """One run of wrk: a dict of rate, p50_ms, p99_ms, cpu_us and errors."""
    processes.need("wrk")
    before = stack.cpu_seconds()
    line = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "--latency", f"http://127.0.0.1:{stack.port}/"]
    status, output = processes.run_to_end(line, timeout=seconds + 30)
    figures = common.wrk_figures(status, output)
    spent = stack.cpu_seconds() - before
    return {"rate": figures["rate"], "p50_ms": percentile(output, 50), "p99_ms": percentile(output, 99),
            "cpu_us": spent * 1e6 / max(1, figures["requests"]),
            "errors": figures["non_2xx"] + sum(figures["errors"].values())}


def percentile(output, which):
    found = re.search(rf"^\s+{which}%\s+([0-9.]+)(us|ms|s)$", output, re.MULTILINE)
    if not found:
        raise Trouble(f"wrk prints no percentiles:\n{output}")
    return float(found.group(1)) * {"us": 0.001, "ms": 1, "s": 1000}[found.group(2)]


def compare(name, app, home, options):
    """Rounds of all stacks of one app: the medians of each."""
    shuffled, figures = random.Random(name), {kind: [] for kind in options.stacks}
    with contextlib.ExitStack() as stack:
        place = os.path.join(home, name)
        os.mkdir(place)
        running = {kind: start(kind, app, place, options.server, stack) for kind in options.stacks}
        for one in running.values():
            load(one, 1)
        for _ in range(options.rounds):
            order = list(running)
            shuffled.shuffle(order)
            for kind in order:
                figures[kind].append(load(running[kind], options.seconds))
    found = {}
    for kind, runs in figures.items():
        found[kind] = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "errors"}
        found[kind]["errors"] = sum(run["errors"] for run in runs)
        found[kind]["rates"] = [round(run["rate"]) for run in runs]
    if "nginx" in found:
        for kind in found:
            ratios = [mine["rate"] / theirs["rate"] for mine, theirs in zip(figures[kind], figures["nginx"])]
            found[kind]["to_nginx"] = statistics.median(ratios)
    return found


def show(name, found):
    print(f"\n{name}\n  {'':8}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'CPU µs':>10}{'errors':>8}  to nginx")
    for kind, run in found.items():
        ratio = f"{run['to_nginx']:.2f}" if "to_nginx" in run else ""
        print(f"  {kind:8}{run['rate']:>12,.0f}{run['p50_ms']:>10.2f}{run['p99_ms']:>10.2f}{run['cpu_us']:>10.1f}{run['errors']:>8}  {ratio:>6}"
              f"  ({min(run['rates']):,} to {max(run['rates']):,})", flush=True)


def main(home):
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--server", default=os.path.join(ROOT, "target/release/production_server"), help="the program (default: %(default)s)")
    flags.add_argument("--only", default="node,gunicorn,uvicorn", help="apps, separated by commas (default: %(default)s)")
    flags.add_argument("--stacks", default=",".join(STACKS), help="which (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=5, help="1 to 50 (default: %(default)s)")
    flags.add_argument("--seconds", type=int, default=5, help="of each run, 1 to 60 (default: %(default)s)")
    flags.add_argument("--cache", default=os.path.join(ROOT, "target", "frameworks"), help="where packages are kept (default: %(default)s)")
    flags.add_argument("--json", help="write the figures there, too")
    options = flags.parse_args()
    chosen, options.stacks = options.only.split(","), options.stacks.split(",")
    if set(chosen) - {"node", "gunicorn", "uvicorn"} or set(options.stacks) - set(STACKS):
        flags.error("see --help for --only and --stacks")
    if not (1 <= options.rounds <= 50 and 1 <= options.seconds <= 60):
        flags.error("a number is out of range; see --help")
    os.makedirs(options.cache, exist_ok=True)
    results = {}
    for name, app in apps(options.cache, chosen).items():
        results[name] = compare(name, app, home, options)
        show(name, results[name])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
    return 1 if any(run["errors"] for found in results.values() for run in found.values()) else 0


if __name__ == "__main__":
    common.run(main)
