"""What the scripts of this directory share: starting the server, flags, tools from PyPI and npm, and a table of results.

Rules: everything runs on loopback, in a temporary directory, bounded in time, and is ended by its own process id. The server is given by
`--server PATH`; `--server nginx` puts nginx before the Node example in its place: the control, which shows what the client or tool
itself makes of a server that is known to work.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "benches", "load"))

import processes  # noqa: E402  (found by the line above)
from processes import Trouble  # noqa: E402,F401

NODE_EXAMPLE = ["node", os.path.join(ROOT, "examples", "node", "server.js")]

NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    map $http_upgrade $to_worker {{ default upgrade; "" ""; }}
    upstream workers {{ {workers} keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $to_worker;
        }}
    }}
}}
"""


class Running:
    """A server that answers: its port, process and log, and its run directory."""

    def __init__(self, port, process, log):
        self.port, self.process, self.pid, self.log = port, process, process.pid, log
        self.run = os.path.join(os.path.dirname(log), "run")


class Parser(argparse.ArgumentParser):
    """Wrong flags exit with 64, as the server's own do."""

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(64)


def parser(description):
    """The flags that every script takes."""
    made = Parser(description=description, allow_abbrev=False)
    made.add_argument("--server", default=os.path.join(ROOT, "target/release/production_server"),
                      help='the program, or "nginx" for the control (default: %(default)s)')
    made.add_argument("--backends", default="epoll,io_uring", help="separated by commas (default: %(default)s)")
    return made


def backends(options):
    """The backends to go through; the control has none."""
    return ["control"] if options.server == "nginx" else options.backends.split(",")


@contextlib.contextmanager
def serving(home, server, backend, flags=(), command=None, workers=2, path="/ping", directory=None, environment=None, secure=False):
    """Runs the server until the block is left, in front of its built-in workers or of `command` (with {socket} in it), which starts in
    `directory`, else in an empty one; `secure`: flags say that it speaks TLS. `workers=None`: a file says it, app by app."""
    with contextlib.ExitStack() as stack:
        place = os.path.join(home, f"run-{processes.free_port()}")
        os.mkdir(place)
        port, log = processes.free_port(), os.path.join(place, "log")
        if server == "nginx":
            line = control(stack, place, port, command or NODE_EXAMPLE, workers)
        else:
            if not os.access(server, os.X_OK):
                raise Trouble(f"--server {server}: no such program; `cargo build --release` makes it")
            line = [os.path.abspath(server), "--backend", backend, "--listen", f"127.0.0.1:{port}", *(["--workers", str(workers)] if workers else []),
                    "--run-dir", os.path.join(place, "run"), "--no-access-log", "--stats-interval", "0s", *flags]
            line += ["--", *command] if command else []
        process = stack.enter_context(processes.running(line, log, env=environment, cwd=directory or place))
        processes.wait_until_it_answers(process, log, port, path, secure=secure)
        yield Running(port, process, log)


@contextlib.contextmanager
def site(home, server, backend, text, path="/ping"):
    """Runs the server with a configuration file of that text until the block is left."""
    place = tempfile.mkdtemp(prefix="site-", dir=home)
    file = os.path.join(place, "site.toml")
    with open(file, "w") as out:
        out.write(text)
    with serving(place, server, backend, ["-f", file], workers=None, path=path, directory=place) as running:
        yield running


def control(stack, place, port, command, workers):
    """Starts the workers of the control and writes nginx's configuration; returns nginx's command."""
    lines = []
    for number in range(workers):
        path = os.path.join(place, f"{number}.sock")
        log = os.path.join(place, f"worker-{number}.log")
        line = [part.replace("{socket}", path) for part in command]
        environment = {**os.environ, "PORT": path, "SOCKET_PATH": path, "WORKER_ID": str(number)}
        worker = stack.enter_context(processes.running(line, log, env=environment))
        processes.wait_until_it_answers(worker, log, path)
        lines.append(f"server unix:{path};")
    configuration = os.path.join(place, "nginx.conf")
    with open(configuration, "w") as file:
        file.write(NGINX.format(home=place, port=port, workers=" ".join(lines)))
    processes.need("nginx")
    # Started as root, nginx gives its worker to "nobody", who has to reach the sockets in our 0700 directory.
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    return [processes.find("nginx"), "-c", configuration, "-p", place, "-e", os.path.join(place, "error.log"), *user]


def python_with(home, *packages):
    """A Python with packages from PyPI, in a virtual environment under `home`."""
    place = os.path.join(home, "venv")
    print(f"fetching {', '.join(packages)} from PyPI", flush=True)
    for line in ([sys.executable, "-m", "venv", place], [os.path.join(place, "bin/pip"), "install", "-q", *packages]):
        status, output = processes.run_to_end(line, timeout=300)
        if status != 0:
            raise Trouble(f"{' '.join(line)} failed:\n{output}")
    return os.path.join(place, "bin")


def npm(home, *packages):
    """A directory with packages from npm under node_modules."""
    place = os.path.join(home, "npm")
    os.makedirs(place, exist_ok=True)
    print(f"fetching {', '.join(packages)} from npm", flush=True)
    processes.need("npm", "node")
    line = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", place, *packages]
    status, output = processes.run_to_end(line, timeout=300)
    if status != 0:
        raise Trouble(f"{' '.join(line)} failed:\n{output}")
    return place


def certificate(home, name="localhost"):
    """Makes a certificate for localhost and 127.0.0.1 that clients can trust as it is: the paths of it and of its key."""
    paths = os.path.join(home, f"{name}.pem"), os.path.join(home, f"{name}.key")
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-out", paths[0], "-keyout", paths[1],
            "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    status, output = processes.run_to_end(line, timeout=60)
    if status != 0:
        raise Trouble(f"{' '.join(line)}:\n{output}")
    return paths


class Results:
    """Collects what passed and failed, prints each as it comes, and knows the exit code."""

    def __init__(self):
        self.passed, self.failed = 0, []

    def add(self, name, ok, detail=""):
        print(f"  {'ok  ' if ok else 'FAIL'}  {name}{'  ' + detail if detail else ''}", flush=True)
        if ok:
            self.passed += 1
        else:
            self.failed.append(name)

    def bar(self, name, kept, detail):
        """A bar of time: said whether it is kept, and never a failure, for that hangs on the machine."""
        print(f"  {'kept' if kept else 'MISS'}  {name}  {detail}", flush=True)

    def exit_code(self):
        print(f"{self.passed} passed, {len(self.failed)} failed{': ' if self.failed else ''}{', '.join(self.failed)}")
        return 1 if self.failed or not self.passed else 0


def wrk(port, path="/ping", threads=2, connections=64, seconds=10, fields=(), scheme="http"):
    """One run of wrk: a dict of requests, rate, non-2xx and socket errors (connect, read, write, timeout)."""
    processes.need("wrk")
    line = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    for field in fields:
        line += ["-H", field]
    return wrk_figures(*processes.run_to_end([*line, f"{scheme}://127.0.0.1:{port}{path}"], timeout=seconds + 30))


def wrk_figures(status, output):
    """What wrk has printed at its end."""
    done = re.search(r"(\d+) requests in", output)
    if status != 0 or not done:
        raise Trouble(f"wrk failed:\n{output}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    return {
        "requests": int(done.group(1)),
        "rate": float(rate.group(1)),
        "non_2xx": int(bad.group(1)) if bad else 0,
        "errors": dict(zip(("connect", "read", "write", "timeout"), map(int, errors.groups()))) if errors else {},
    }


def ab(port, requests, connections, keep_alive, path="/ping", scheme="http"):
    """One run of ab: a dict of complete, failed and non-2xx requests and the rate."""
    processes.need("ab")
    line = ["ab", "-q", "-l", "-s", "30", "-n", str(requests), "-c", str(connections), *(["-k"] if keep_alive else [])]
    status, output = processes.run_to_end([*line, f"{scheme}://127.0.0.1:{port}{path}"], timeout=300)

    def number(label):
        found = re.search(rf"^{label}:\s+([0-9.]+)", output, re.MULTILINE)
        return float(found.group(1)) if found else 0

    if status != 0 or not number("Complete requests"):
        raise Trouble(f"ab failed:\n{output}")
    return {"complete": int(number("Complete requests")), "failed": int(number("Failed requests")),
            "non_2xx": int(number("Non-2xx responses")), "rate": number("Requests per second")}


def run(main):
    """Runs a script's main(home) in a temporary directory; ends the process with its exit code."""
    processes.end_on_signals()
    processes.raise_descriptor_limit()
    try:
        with processes.temporary_directory("ps-check-") as home:
            code = main(home)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def have(program):
    """Whether a program is there."""
    return shutil.which(program) is not None
