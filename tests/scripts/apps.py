#!/usr/bin/env python3
"""Apps as people start them: each through start, load, roll, crash and stop.

    tests/scripts/apps.py [--server target/release/production_server] [--only express-npm,django] [--backends epoll]

The apps are made as their own documentation has them, with a port or a socket of their own choice where they have one, and are started by
the line that docs/apps.md shows: `npm start`, `pnpm start`, `yarn start`, `sh -c`, `python manage.py runserver`, `flask run`, a gunicorn and a
uvicorn that fork, Puma, `php -S`, a Go program, Bun. What is needed comes from npm, PyPI and Debian into a directory that is kept (`--cache`).

`start`   two workers come, and one of them answers
`load`    clients ask for two seconds, every other one with a connection for each request: all get 200
`roll`    rolling restarts (USR2, then two at once) under that load: no request fails, all workers are new
`crash`   a worker's innermost process, then a worker's first one, is killed by -9 under load: 502 only for what was inside, two workers again
`stop`    TERM: exit code 0, and no process and no socket is left

Exit codes: 0, 1 a check failed, 64 wrong flags.
"""

import contextlib
import dataclasses
import os
import random
import signal
import sys
import time

import common
import frameworks
import processes
from common import ROOT, Trouble
from frameworks import WORKERS, Client, faults, from_debian, install, leaders, wait_for

CHECKS = ("start", "load", "roll", "crash", "stop")


@dataclasses.dataclass
class App:
    """One app: how it is made, and the line that starts it, in its directory."""

    name: str
    make: object  # called with the cache's path; returns (directory, command, directories for PATH)
    flags: tuple = ()  # of the server


def written(place, files):
    os.makedirs(place, exist_ok=True)
    for name, text in files.items():
        os.makedirs(os.path.dirname(os.path.join(place, name)), exist_ok=True)
        with open(os.path.join(place, name), "w") as file:
            file.write(text)
    return place


EXPRESS = """const express = require('express')
const app = express()
const port = process.env.PORT || 3000

app.get('/', (req, res) => {
  res.send('Hello World!')
})

app.listen(port, () => {
  console.log(`Example app listening on port ${port}`)
})
"""

FASTIFY = """const fastify = require('fastify')({ logger: false })

fastify.get('/', async () => ({ hello: 'world' }))

fastify.listen({ port: Number(process.env.PORT || 3000) }, (err) => {
  if (err) { console.error(err); process.exit(1) }
})
"""

PLAIN = """const http = require('http')
http.createServer((req, res) => res.end('Hello World!')).listen(process.env.PORT || 3000)
"""


def package(name, start="node server.js", **dependencies):
    listed = ", ".join(f'"{one}": "{version}"' for one, version in dependencies.items())
    return f'{{ "name": "{name}", "private": true, "scripts": {{ "start": "{start}", "build": "next build" }}, "dependencies": {{ {listed} }} }}\n'


def npm_install(place, needed):
    if not os.path.isdir(os.path.join(place, "node_modules", needed)):
        install(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", place])


def node(name, source, command, dependency=None, version="*", manager=None):
    """A Node app with a package.json, started by `command`; `manager` is fetched from npm, too."""

    def make(cache):
        place = os.path.join(cache, "apps", name)
        dependencies = {dependency: version} if dependency else {}
        written(place, {"package.json": package(name, **dependencies), "server.js": source})
        if dependency:
            npm_install(place, dependency)
        path = []
        if manager:
            tools = written(os.path.join(cache, "apps", f"{manager}-tool"), {"package.json": package("tool", **{manager: "*"})})
            npm_install(tools, manager)
            path = [os.path.join(tools, "node_modules", ".bin")]
        return place, command, path

    return make


def next_js(cache):
    place = os.path.join(cache, "apps", "next")
    page = "export const dynamic = 'force-dynamic';\nexport default function Page() { return <h1>Hello, Next.js!</h1>; }\n"
    layout = "export default function Layout({ children }) { return <html lang=\"en\"><body>{children}</body></html>; }\n"
    versions = {"next": "15", "react": "19", "react-dom": "19"}
    written(place, {"package.json": package("next-app", "next start", **versions), "app/page.js": page, "app/layout.js": layout})
    npm_install(place, "next")
    if not os.path.exists(os.path.join(place, ".next", "BUILD_ID")):
        environment = {**os.environ, "NEXT_TELEMETRY_DISABLED": "1"}
        status, output = processes.run_to_end(["npm", "run", "build"], 300, cwd=place, env=environment)
        if status != 0:
            raise Trouble(f"next build failed:\n{output[-2000:]}")
    return place, ["npm", "start"], []


def python(cache, *packages):
    """The directory of a virtual environment's programs that has these packages."""
    place = os.path.join(cache, "apps", "venv", "bin")
    if not all(os.path.exists(os.path.join(place, f".{name}")) for name in packages):
        common.python_with(os.path.join(cache, "apps"), *packages)
        for name in packages:
            written(place, {f".{name}": ""})
    return place


def django(cache):
    programs = python(cache, "django", "flask", "gunicorn", "uvicorn")
    place = os.path.join(cache, "apps", "django")
    if not os.path.exists(os.path.join(place, "manage.py")):
        os.makedirs(place, exist_ok=True)
        install([os.path.join(programs, "django-admin"), "startproject", "mysite", place])
    return place, ["python", "manage.py", "runserver", "--noreload", "127.0.0.1:{port}"], [programs]


def in_python(name, files, command):
    def make(cache):
        programs = python(cache, "django", "flask", "gunicorn", "uvicorn")
        return written(os.path.join(cache, "apps", name), files), command, [programs]

    return make


FLASK = {"app.py": "from flask import Flask\n\napp = Flask(__name__)\n\n\n@app.route('/')\ndef hello():\n    return 'Hello, World!'\n"}
ASGI = {"main.py": """async def app(scope, receive, send):
    assert scope['type'] == 'http'
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': b'Hello, world!'})
"""}
RACK = {"config.ru": "run ->(env) { [200, { 'content-type' => 'text/plain' }, ['Hello, World!']] }\n"}
GO = {"main.go": """package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "Hello, World!") })
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
"""}
BUN = {"server.js": "Bun.serve({ port: process.env.PORT || 3000, fetch: () => new Response('Hello, World!') });\n"}


def puma(cache):
    from_debian("puma", "puma")
    return written(os.path.join(cache, "apps", "rack"), RACK), ["puma", "-b", "unix://{socket}"], []


def php(cache):
    from_debian("php", "php-cli")
    place = written(os.path.join(cache, "apps", "php"), {"index.php": "<?php echo 'Hello, World!';\n"})
    return place, ["php", "-S", "127.0.0.1:{port}"], []


def go(cache):
    from_debian("go", "golang-go")
    place = written(os.path.join(cache, "apps", "go"), GO)
    if not os.path.exists(os.path.join(place, "app")):
        environment = {**os.environ, "GOCACHE": os.path.join(place, "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        status, output = processes.run_to_end(["go", "build", "-o", os.path.join(place, "app"), os.path.join(place, "main.go")], 300,
                                              env=environment)
        if status != 0:
            raise Trouble(f"go build failed:\n{output}")
    return place, ["./app"], []


def bun(cache):
    frameworks.bun(cache)
    programs = os.path.join(cache, "bun", "node_modules", ".bin")
    return written(os.path.join(cache, "apps", "bun"), BUN), ["bun", "server.js"], [programs]


APPS = (
    App("express-npm", node("express", EXPRESS, ["npm", "start"], "express", "5"), ("-c", "64")),
    App("express-pnpm", node("express-pnpm", EXPRESS, ["pnpm", "start"], "express", "5", "pnpm"), ("-c", "64")),
    App("express-yarn", node("express-yarn", EXPRESS, ["yarn", "start"], "express", "5", "yarn"), ("-c", "64")),
    App("fastify-npm", node("fastify-app", FASTIFY, ["npm", "start"], "fastify", "5"), ("-c", "64")),
    App("next-npm", next_js, ("-c", "64")),
    App("node", node("plain", PLAIN, ["node", "server.js"]), ("-c", "64")),
    App("sh-cd", node("plain", PLAIN, ["sh", "-c", "cd . && node server.js"]), ("-c", "64")),
    App("sh-true", node("plain", PLAIN, ["sh", "-c", "node server.js; true"]), ("-c", "64")),
    App("django", django),
    App("flask", in_python("flask", FLASK, ["flask", "run", "--port", "{port}"])),
    App("gunicorn-4", in_python("flask", FLASK, ["gunicorn", "-w", "4", "-b", "unix:{socket}", "app:app"]), ("-c", "4")),
    App("uvicorn-2", in_python("asgi", ASGI, ["uvicorn", "--workers", "2", "--uds", "{socket}", "main:app"]), ("-c", "64")),
    App("puma", puma, ("-c", "5")),
    App("php", php),
    App("go", go, ("-c", "64")),
    App("bun", bun, ("-c", "64")),
)


def asking(stop, _seed):
    """Requests for the first page until told to stop."""
    while not stop.is_set():
        yield "GET", "/", b""


def innermost(leader):
    """The process furthest from a worker's first one; None if the worker is over."""
    family = processes.descendants(leader)
    return family[-1][0] if family else None


def load(server, add):
    with frameworks.load(server.port, asking) as outcomes:
        time.sleep(2)
    wrong = faults(outcomes)
    add("load", len(outcomes) > 20 and not wrong, str(wrong or f"{len(outcomes)} requests"))


def crash(server, concurrency, add):
    with frameworks.load(server.port, asking) as outcomes:
        back = True
        for victim_of in (innermost, lambda leader: leader):
            time.sleep(0.3)  # the load is under way
            # One of the two that stay: what a roll has replaced may still be on its way out.
            back = wait_for(lambda: len(leaders(server)) == WORKERS, 30) and back
            leader = random.Random(server.port).choice(sorted(leaders(server)))
            # Package managers start short-lived processes of their own.
            back = wait_for(lambda of=victim_of, leader=leader: killed(of(leader)), 5) and back
            # A manager that keeps processes of its own replaces the inner one by itself, and stays.
            back = wait_for(lambda gone=leader: len(leaders(server) - {gone}) == WORKERS or replaced_inside(gone, server), 30) and back
        time.sleep(0.3)  # and goes on with the new ones
    wrong = faults(outcomes)
    inside = (": 502", ": the connection ended inside an answer")
    lost = sum(count for fault, count in wrong.items() if fault.endswith(inside))
    others = {fault: count for fault, count in wrong.items() if not fault.endswith(inside)}
    ok = back and not others and lost <= 2 * min(frameworks.CLIENTS, concurrency)
    add("crash", ok, f"{len(outcomes)} requests, {lost} inside the killed ones {others or ''}{'' if back else '; not two workers again'}")


def killed(process):
    with contextlib.suppress(ProcessLookupError):
        if process is not None:
            os.kill(process, signal.SIGKILL)
            return True
    return False


def replaced_inside(leader, server):
    return leader in leaders(server) and len(leaders(server)) == WORKERS and len(processes.descendants(leader)) > 1


def stop(server, add):
    below = processes.descendants(server.pid)
    os.kill(server.pid, signal.SIGTERM)
    try:
        code = server.process.wait(30)
    except Exception:  # noqa: BLE001  (still there: said by the code below)
        code = None
    gone = wait_for(lambda: not any(processes.is_running(pid, born) for pid, born in below), 3)
    place = os.path.join(os.path.dirname(server.log), "run")
    ok = code == 0 and gone and not os.path.exists(place)
    add("stop", ok, "" if ok else f"exit code {code}, processes gone: {gone}, directory gone: {not os.path.exists(place)}")


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    names = [app.name for app in APPS]
    flags.add_argument("--only", default=",".join(names), help="separated by commas (default: all)")
    flags.add_argument("--cache", default=os.path.join(ROOT, "target", "frameworks"), help="kept between runs (default: %(default)s)")
    flags.add_argument("--rolls", type=int, default=2, help="rolling restarts, 1 to 1000 (default: %(default)s)")
    flags.set_defaults(backends="epoll")
    options = flags.parse_args()
    chosen = options.only.split(",")
    if set(chosen) - set(names) or not 1 <= options.rolls <= 1000:
        flags.error("see --help for --only and --rolls")
    os.makedirs(options.cache, exist_ok=True)
    results, table = common.Results(), {}
    for backend in common.backends(options):
        for app in APPS:
            if app.name in chosen:
                go_through(home, options, backend, app, results, table)
    frameworks.print_table(table, CHECKS)
    return results.exit_code()


def go_through(home, options, backend, app, results, table):
    name = f"{backend} {app.name}"
    print(f"\n{name}", flush=True)

    def add(check, ok, detail=""):
        table.setdefault(name, {})[check] = "ok" if ok else "FAIL"
        results.add(f"{name} {check}", ok, detail)

    directory, command, path = app.make(options.cache)
    environment = {**os.environ, "PATH": ":".join([*path, os.environ["PATH"]])}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(
                common.serving(home, options.server, backend, ("--json-logging", *app.flags), command, WORKERS, "/", directory, environment)
            )
        except Trouble as trouble:
            return add("start", False, str(trouble))
        came = wait_for(lambda: len(leaders(server)) == WORKERS, 30)
        add("start", came, "" if came else f"{len(leaders(server))} workers")
        load(server, add)
        frameworks.roll(server, options.rolls, add, asking)
        crash(server, int(app.flags[1]) if app.flags else 1, add)
        stop(server, add)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
