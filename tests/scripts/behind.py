#!/usr/bin/env python3
"""Apps behind a proxy that ends TLS: what they take for the scheme, the host and the client's address is the browser's.

    tests/scripts/behind.py [--server target/release/production_server] [--only django,rack,express] [--backends epoll]

curl is the browser: it comes from 127.0.0.5 over TLS, asks for a host of its own, and lies in every field that a proxy writes. Between it and the
server stand Debian's nginx and haproxy, over TCP and over a Unix socket, with `--trusted-proxies`; and haproxy as a mere TLS terminator, and curl
itself, with `--proxy-protocol` (send-proxy, send-proxy-v2-ssl, `curl --haproxy-protocol`). The apps are Django (uvicorn), Rack (Puma) and Express,
each set up as its own documentation has it for an app behind a proxy. What is needed comes from PyPI, npm and Debian into a directory that is kept.

Exit codes: 0, 1 a check failed, 64 wrong flags.
"""

import contextlib
import json
import os
import time

import common
import processes
from apps import npm_install, package, python, written
from common import ROOT, Trouble
from frameworks import from_debian

BROWSER = "127.0.0.5"
HOST = "shop.example"

DJANGO = {"site_app.py": """import os
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=['*'], ROOT_URLCONF=__name__, SECRET_KEY='test', USE_X_FORWARDED_HOST=True, USE_X_FORWARDED_PORT=True,
    SECURE_PROXY_SSL_HEADER=('HTTP_X_FORWARDED_PROTO', 'https'),
)
django.setup()


def whoami(request):
    return JsonResponse({'scheme': request.scheme, 'host': request.get_host(), 'address': request.META['REMOTE_ADDR']})


urlpatterns = [path('', whoami)]
application = get_asgi_application()
"""}
RACK = {"config.ru": """require 'json'
require 'rack'
run ->(env) {
  request = Rack::Request.new(env)
  body = JSON.generate(scheme: request.scheme, host: request.host_with_port, address: request.ip)
  [200, { 'content-type' => 'application/json' }, [body]]
}
"""}
EXPRESS = """const app = require('express')()
app.set('trust proxy', true)
app.get('/', (req, res) => res.json({ scheme: req.protocol, host: req.get('x-forwarded-host') && req.host, address: req.ip }))
app.listen(process.env.SOCKET_PATH)
"""


def django(cache):
    programs = python(cache, "django", "flask", "gunicorn", "uvicorn")
    place = written(os.path.join(cache, "behind", "django"), DJANGO)
    line = [os.path.join(programs, "uvicorn"), "--uds", "{socket}", "--proxy-headers", "--forwarded-allow-ips", "*", "site_app:application"]
    return place, line


def rack(cache):
    from_debian("puma", "puma")
    if processes.run_to_end(["ruby", "-e", "require 'rack'"], 20)[0] != 0:
        from_debian("rackup", "ruby-rack")
    return written(os.path.join(cache, "behind", "rack"), RACK), ["puma", "-q", "-b", "unix://{socket}", "config.ru"]


def express(cache):
    place = os.path.join(cache, "behind", "express")
    written(place, {"package.json": package("behind", express="*"), "server.js": EXPRESS})
    npm_install(place, "express")
    return place, ["node", "server.js"]


APPS = {"django": django, "rack": rack, "express": express}

NGINX = """
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log {home}/nginx.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    ssl_certificate {home}/front.pem; ssl_certificate_key {home}/front.pem;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Request-Id $request_id;
    proxy_set_header X-Forwarded-Port "";
    server {{ listen 127.0.0.1:{tcp} ssl; location / {{ proxy_pass http://127.0.0.1:{port}; }} }}
    server {{ listen 127.0.0.1:{unix} ssl; location / {{ proxy_pass http://unix:{socket}; }} }}
}}
"""

HAPROXY = """
global
    log stderr local0
defaults
    timeout connect 5s
    timeout client 20s
    timeout server 20s
{fronts}
"""
# An address in brackets is how haproxy writes a Unix socket's.
BALANCED = """
frontend front-{name}
    mode http
    bind 127.0.0.1:{front} ssl crt {home}/front.pem
    option forwardfor
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request del-header X-Forwarded-Port
    default_backend back-{name}
backend back-{name}
    mode http
    server one {to}
"""
TERMINATED = """
frontend front-{name}
    mode tcp
    bind 127.0.0.1:{front} ssl crt {home}/front.pem
    default_backend back-{name}
backend back-{name}
    mode tcp
    server one {to}
"""


def certificate(home):
    key, chain = os.path.join(home, "key.pem"), os.path.join(home, "chain.pem")
    status, output = processes.run_to_end(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={HOST}", "-keyout", key, "-out", chain], 30)
    if status != 0:
        raise Trouble(f"openssl failed:\n{output}")
    with open(os.path.join(home, "front.pem"), "w") as both:
        for part in (chain, key):
            with open(part) as file:
                both.write(file.read())


def curl(url, scheme, *flags):
    """The answer's JSON, or what curl says. It claims whatever is not so: `scheme` is what the app is to see."""
    wrong, switch = ("http", "off") if scheme == "https" else ("https", "on")
    lies = ["X-Forwarded-For: 6.6.6.6", f"X-Forwarded-Proto: {wrong}", "X-Forwarded-Host: evil.example", "X-Real-IP: 6.6.6.6",
            f"X-Forwarded-Ssl: {switch}", f"X-Forwarded-Scheme: {wrong}", f"X-Forwarded-Protocol: {wrong}", "X-Forwarded-Port: 66",
            f"Forwarded: for=6.6.6.6;proto={wrong};host=evil.example", f"Host: {HOST}"]
    fields = [word for line in lies for word in ("-H", line)]
    status, output = processes.run_to_end(["curl", "-sS", "-k", "--max-time", "10", "--interface", BROWSER, *fields, *flags, url], 15)
    try:
        return json.loads(output) if status == 0 else {"curl": output.strip()}
    except ValueError:
        return {"answer": output}


def expect(results, name, url, scheme, *flags):
    deadline = time.monotonic() + 20
    while True:
        seen = curl(url, scheme, *flags)
        if "scheme" in seen or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    host = seen.get("host")
    # Some name the port that goes with the scheme, and some do not.
    fine = seen.get("scheme") == scheme and seen.get("address") == BROWSER and host in (HOST, f"{HOST}:{443 if scheme == 'https' else 80}")
    results.add(name, fine, "" if fine else json.dumps(seen))


@contextlib.contextmanager
def server(home, options, backend, flags, directory, command):
    """The server, whose listeners `flags` name; ends with the block."""
    run, log = os.path.join(home, "run"), os.path.join(home, "log")
    line = [os.path.abspath(options.server), "--backend", backend, "--workers", "1", "-c", "8", "--run-dir", run, "--no-access-log",
            "--stats-interval", "0s", *flags, "--", *command]
    with processes.running(line, log, cwd=directory) as process:
        yield process


def proxies(stack, home, port, socket, proxy_port):
    """Starts nginx and haproxy before the server's listeners; the ports of theirs by name."""
    certificate(home)
    fronts = {name: processes.free_port() for name in ("nginx-tcp", "nginx-unix", "haproxy-tcp", "haproxy-unix", "send-proxy", "send-proxy-v2-ssl")}
    with open(os.path.join(home, "nginx.conf"), "w") as file:
        file.write(NGINX.format(home=home, tcp=fronts["nginx-tcp"], unix=fronts["nginx-unix"], port=port, socket=socket))
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    line = [processes.find("nginx"), "-c", os.path.join(home, "nginx.conf"), "-p", home, "-e", os.path.join(home, "nginx.log"), *user]
    stack.enter_context(processes.running(line, os.path.join(home, "nginx.out")))
    parts = [BALANCED.format(name=name, front=fronts[name], home=home, to=to)
             for name, to in (("haproxy-tcp", f"127.0.0.1:{port}"), ("haproxy-unix", f"unix@{socket}"))]
    parts += [TERMINATED.format(name=name, front=fronts[name], home=home, to=f"127.0.0.1:{proxy_port} {name}")
              for name in ("send-proxy", "send-proxy-v2-ssl")]
    with open(os.path.join(home, "haproxy.cfg"), "w") as file:
        file.write(HAPROXY.format(fronts="".join(parts)))
    line = [processes.find("haproxy"), "-db", "-f", os.path.join(home, "haproxy.cfg")]
    stack.enter_context(processes.running(line, os.path.join(home, "haproxy.log")))
    return fronts


def check(home, options, backend, name, app, results):
    directory, command = app(options.cache)
    place = os.path.join(home, f"{name}-{backend}")
    os.mkdir(place)
    socket, port, proxy_port = os.path.join(place, "app.sock"), processes.free_port(), processes.free_port()
    with contextlib.ExitStack() as stack:
        trusting, required = os.path.join(place, "trusting"), os.path.join(place, "required")
        os.mkdir(trusting)
        os.mkdir(required)
        flags = ["--trusted-proxies", "127.0.0.1,unix", "--listen", f"127.0.0.1:{port}", "--listen", f"unix:{socket}"]
        stack.enter_context(server(trusting, options, backend, flags, directory, command))
        flags = ["--proxy-protocol", "127.0.0.0/8", "--listen", f"127.0.0.1:{proxy_port}"]
        stack.enter_context(server(required, options, backend, flags, directory, command))
        fronts = proxies(stack, place, port, socket, proxy_port)
        for front, at in fronts.items():
            # Version 1 of the protocol cannot tell that TLS was ended.
            scheme = "http" if front == "send-proxy" else "https"
            expect(results, f"{name} behind {front}, {backend}", f"https://127.0.0.1:{at}/", scheme)
        direct = f"http://127.0.0.1:{proxy_port}/"
        expect(results, f"{name}, curl --haproxy-protocol, {backend}", direct, "http", "--haproxy-protocol")


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--only", default=",".join(APPS), help="of %(default)s")
    flags.add_argument("--cache", default=os.path.join(ROOT, "target", "frameworks"), help="kept between runs (default: %(default)s)")
    options = flags.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(APPS):
        flags.error(f"--only: {', '.join(sorted(unknown))}: expected some of {', '.join(APPS)}")
    for program, of in (("nginx", "nginx"), ("haproxy", "haproxy"), ("curl", "curl"), ("openssl", "openssl")):
        from_debian(program, of)
    os.makedirs(options.cache, exist_ok=True)
    results = common.Results()
    for backend in common.backends(options):
        for name in wanted:
            check(home, options, backend, name, APPS[name], results)
    return results.exit_code()


if __name__ == "__main__":
    common.run(main)
