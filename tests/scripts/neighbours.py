#!/usr/bin/env python3
"""What happens to one app of a site is nothing to the others: three apps from one file, and the latency of two beside trouble of the third.

    tests/scripts/neighbours.py [--server target/release/production_server] [--backends epoll,io_uring] [--rounds 5] [--seconds 2] [--rate 500]

The site has Node, gunicorn (fetched from PyPI) and the built-in worker behind four routes on two hosts. In each round gunicorn's app and the
built-in one are asked at a constant rate, timed from when each request was due, first in peace and then while Node's is rolled again and
again, crashes whenever it is started, and has a full queue. Held to: no request of the others fails, and the trouble was there. Printed: the
medians over the rounds of p50 and p99 in peace and beside each trouble; how far they are apart is said and not judged, for Node's starts take a core that the others
share. Exit codes: 0, 1 something did not hold, 64 wrong flags.
"""

import contextlib
import json
import os
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request

import common
import processes
from processes import Trouble

SITE = """
[[routes]]
match = {{ host = "localhost", path = "/python/*" }}
app = "python"
rewrite.strip = "/python"
[[routes]]
match = {{ host = "localhost", path = "/plain/*" }}
app = "plain"
rewrite.strip = "/plain"
[[routes]]
match = {{ host = "localhost", path = "/node/*" }}
app = "node"
rewrite.strip = "/node"
[[routes]]
match.host = "other.example"
redirect = "http://localhost{{path}}{{query}}"

[apps.node]
concurrency = 4
command = ["sh", "-c", "test ! -e {home}/crash && exec node {root}/examples/node/server.js $SOCKET_PATH"]
workers = 1
required = false
queue = {{ size = 1, timeout = "30s" }}
restart = {{ base = "50ms", max = "100ms", give_up = "1000/60s" }}
[apps.python]
concurrency = 4
command = ["{gunicorn}", "--chdir", "{root}/examples/gunicorn", "--bind", "unix:{{socket}}", "--workers", "1", "--keep-alive", "60", "-k", "gthread", "--threads", "4", "app:application"]
workers = 2
[apps.plain]
workers = 2
concurrency = 4
"""

QUIET, TROUBLES = "peace", ("roll", "crash loop", "full queue")
APPS = ("python", "plain")


def main(home):
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="1 to 20 (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement, 1 to 30 (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=500, help="requests a second of each app (default: %(default)s)")
    options = parser.parse_args()
    if not (1 <= options.rounds <= 20 and 1 <= options.seconds <= 30 and 1 <= options.rate <= 5000):
        parser.error("a number is out of range; see --help")
    if options.server == "nginx":
        parser.error("nginx supervises nothing: there is no control")
    processes.need("node", "gcc", "sh")
    program = os.path.join(home, "constant_rate")
    source = os.path.join(common.ROOT, "benches/load/constant_rate.c")
    status, output = processes.run_to_end(["gcc", "-O2", "-o", program, source], timeout=60)
    if status != 0:
        raise Trouble(f"gcc could not compile {source}:\n{output}")
    gunicorn = os.path.join(common.python_with(home, "gunicorn"), "gunicorn")
    results = common.Results()
    for backend in common.backends(options):
        print(backend, flush=True)
        site(home, options, backend, program, gunicorn, results)
    return results.exit_code()


def site(home, options, backend, program, gunicorn, results):
    place = os.path.join(home, f"site-{backend}")
    os.mkdir(place)
    file = os.path.join(place, "site.toml")
    with open(file, "w") as out:
        out.write(SITE.format(home=place, root=common.ROOT, gunicorn=gunicorn))
    port, log = processes.free_port(), os.path.join(place, "log")
    run = os.path.join(place, "run")
    line = [os.path.abspath(options.server), "-f", file, "--backend", backend, "--listen", f"127.0.0.1:{port}", "--run-dir", run,
            "--no-access-log", "--stats-interval", "0s"]
    with processes.running(line, log, cwd=place) as process:
        for app in (*APPS, "node"):
            processes.wait_until_it_answers(process, log, port, f"/{app}/ping", deadline=30.0)
        measured = {(what, app): [] for what in (QUIET, *TROUBLES) for app in APPS}
        told = dict.fromkeys(TROUBLES, 0)
        failures = []
        for _ in range(options.rounds):
            for what in (QUIET, *TROUBLES):
                with trouble(what, options.server, place, run, port, log, process) as count:
                    measure(program, port, options, {app: measured[what, app] for app in APPS}, failures)
                if what != QUIET:
                    told[what] += count()
        results.add("no request of the others failed", not failures, "; ".join(failures[:3]))
        for what, number in told.items():
            results.add(f"there was trouble: {what}", number > 0, f"{number} times")
        for app in APPS:
            for what in (QUIET, *TROUBLES):
                p50, p99 = (statistics.median(run[key] for run in measured[what, app]) for key in ("p50_us", "p99_us"))
                print(f"        {app:<8}{what:<12}p50 {p50:>7.0f} µs  p99 {p99:>7.0f} µs", flush=True)


def measure(program, port, options, into, failures):
    """Asks all apps at once, each at the rate."""
    lines = {app: [program, str(port), f"/{app}/ping", str(options.rate), str(options.seconds), "8"] for app in into}
    running = {app: subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for app, line in lines.items()}
    for app, process in running.items():
        output, _ = process.communicate(timeout=options.seconds + 30)
        if process.returncode:
            failures.append(f"{app}: {output.strip()}")
        with contextlib.suppress(ValueError):
            into[app].append(json.loads(output))


@contextlib.contextmanager
def trouble(what, server, place, run, port, log, process):
    """Makes trouble until the block is left; yields a function that tells, afterwards, how often it was there."""
    over, count = threading.Event(), [0]

    def word(*words):
        done = subprocess.run([server, *words, "--run-dir", run], capture_output=True, timeout=60)
        return done.returncode == 0

    def rolls():
        while not over.is_set():
            count[0] += word("restart", "node", "--wait")

    def refusals():
        while not over.wait(0.005):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/node/ping", timeout=10):
                    pass
            except urllib.error.HTTPError as error:
                count[0] += error.code == 503

    threads, crash = [], os.path.join(place, "crash")
    if what == "roll":
        threads = [threading.Thread(target=rolls)]
    elif what == "crash loop":
        before = crashes(server, run)
        with open(crash, "w"):
            pass
        word("signal", "node", "KILL")
    elif what == "full queue":
        slow = f"http://localhost:{port}/node/sleep?ms=60000"
        stack = contextlib.ExitStack()
        # More than may be at work and wait together; whoever is refused has made way for the others.
        connections = [stack.enter_context(processes.connect(port)) for _ in range(8)]
        for connection in connections:
            connection.sendall(f"GET {slow.partition(str(port))[2]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        threads = [threading.Thread(target=refusals)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: count[0]
    finally:
        over.set()
        for thread in threads:
            thread.join()
        if what == "crash loop":
            count[0] = crashes(server, run) - before
            os.unlink(crash)
        elif what == "full queue":
            stack.close()
        if what != QUIET:
            processes.wait_until_it_answers(process, log, port, "/node/ping", deadline=30.0)
            time.sleep(0.2)


def crashes(server, run):
    """How often workers of Node's app have crashed."""
    done = subprocess.run([server, "status", "--json", "--run-dir", run], capture_output=True, text=True, timeout=30)
    apps = json.loads(done.stdout)["apps"]
    return next(app for app in apps if app["name"] == "node")["lives"]["crashes"]


if __name__ == "__main__":
    common.run(main)
