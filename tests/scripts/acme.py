#!/usr/bin/env python3
"""Certificates by ACME from pebble, the authority that others have written to test clients with.

    tests/scripts/acme.py --server target/release/production_server [--only first,renewal,failing,account,restart]

Nine of ten nonces are refused. Needs Debian's pebble, openssl and wrk; the restart waits for a minute, as a server does that had an order
under way when it ended. Exit codes: 0 all hold, 1 something does not, 64 wrong flags.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
import urllib.request

import common
import processes
from common import Trouble

PATIENCE = 60.0
NAMES = ["shop.example", "www.shop.example"]
KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


def until(what, condition, log=None, patience=PATIENCE):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise Trouble(f"in vain was waited until {what}\n{processes.tail(log, 30) if log else ''}")


def openssl(*words, **more):
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=PATIENCE, **more)
    if done.returncode:
        raise Trouble(f"openssl {' '.join(words)}: {done.stderr}")
    return done.stdout


class Authority:
    """A running pebble, with a name server for which every name is 127.0.0.1."""

    def __init__(self, stack, home, http_port, tls_port, validity=None, external=False, slow=False):
        self.home = os.path.join(home, f"pebble-{processes.free_port()}")
        os.mkdir(self.home)
        self.port, self.management, dns, dns_management = (processes.free_port() for _ in range(4))
        self.ca, key, certificate = (os.path.join(self.home, name) for name in ("ca.pem", "key.pem", "cert.pem"))
        ca_key = os.path.join(self.home, "ca.key")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        openssl("req", "-x509", *curve, "-keyout", ca_key, "-out", self.ca, "-subj", "/CN=authority of a test")
        openssl("req", "-x509", *curve, "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-CA", self.ca, "-CAkey", ca_key,
                "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")
        pebble = {"listenAddress": f"127.0.0.1:{self.port}", "managementListenAddress": f"127.0.0.1:{self.management}",
                  "certificate": certificate, "privateKey": key, "httpPort": http_port, "tlsPort": tls_port,
                  "externalAccountBindingRequired": external, "externalAccountMACKeys": {"kid-1": KEY} if external else {}}
        if validity:
            pebble["certificateValidityPeriod"] = validity
        with open(os.path.join(self.home, "config.json"), "w") as file:
            json.dump({"pebble": pebble}, file)
        self.log = os.path.join(self.home, "log")
        nothing = ["-http01", "", "-https01", "", "-tlsalpn01", ""]
        stack.enter_context(processes.running(
            ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", f"127.0.0.1:{dns}",
             "-management", f"127.0.0.1:{dns_management}", *nothing], os.path.join(self.home, "dns.log")))
        pace = {"PEBBLE_VA_SLEEPTIME": "4"} if slow else {"PEBBLE_VA_NOSLEEP": "1"}
        environment = {**os.environ, "PEBBLE_WFE_NONCEREJECT": "90", "PEBBLE_AUTHZREUSE": "0", **pace}
        stack.enter_context(processes.running(
            ["pebble", "-strict", "-config", os.path.join(self.home, "config.json"), "-dnsserver", f"127.0.0.1:{dns}"], self.log, env=environment))
        self.context = ssl.create_default_context(cafile=self.ca)
        until("pebble answers", lambda: self.fetch(f"https://localhost:{self.port}/dir"), self.log)
        until("the name server answers", lambda: not processes.connect(dns).close())

    def fetch(self, url):
        with urllib.request.urlopen(url, timeout=5, context=self.context) as answer:
            return answer.read().decode()

    def root(self):
        return self.fetch(f"https://localhost:{self.management}/roots/0")


class Server:
    """The server with ACME, and what it shows. Its state outlives the process."""

    def __init__(self, home, options, backend, http_port, tls_port, authority, names=NAMES, challenge="http-01", more=""):
        self.home = os.path.join(home, f"server-{processes.free_port()}")
        os.mkdir(self.home)
        self.http_port, self.tls_port, self.program = http_port, tls_port, os.path.abspath(options.server)
        self.state, self.run, self.log = (os.path.join(self.home, name) for name in ("state", "run", "log"))
        self.file = os.path.join(self.home, "server.toml")
        with open(self.file, "w") as file:
            file.write(f"""
[server]
backend = "{backend}"
run_dir = "{self.run}"
stats_interval = 0
[log]
access = false
[[listen]]
address = "127.0.0.1:{http_port}"
tls = "off"
[[listen]]
address = "127.0.0.1:{tls_port}"
[acme]
email = "you@example.org"
domains = {json.dumps(names)}
directory = "{self.state}"
url = "https://localhost:{authority.port}/dir"
ca_file = "{authority.ca}"
challenge = "{challenge}"
{more}
[apps.web]
workers = 1
""")

    @contextlib.contextmanager
    def running(self):
        with processes.running([self.program, "-f", self.file], self.log, cwd=self.home) as process:
            processes.wait_until_it_answers(process, self.log, self.http_port, "/ping")
            yield process

    def status(self):
        line = [self.program, "status", "--json", "--run-dir", self.run]
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
        return json.loads(done.stdout)["acme"]

    def shown(self, name):
        """The certificate that a client is shown who asks for that name, in PEM."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.tls_port), 5) as plain, context.wrap_socket(plain, server_hostname=name) as stream:
            return ssl.DER_cert_to_PEM_cert(stream.getpeercert(True))

    def issuer(self, name):
        return openssl("x509", "-noout", "-issuer", input=self.shown(name))

    def await_certificate(self, name=NAMES[0]):
        until("a certificate has come", lambda: "Pebble" in self.issuer(name), self.log)

    def get(self, name, root, path):
        """GET over TLS by a client that verifies what it is shown."""
        context = ssl.create_default_context(cadata=root)
        with socket.create_connection(("127.0.0.1", self.tls_port), 5) as plain, context.wrap_socket(plain, server_hostname=name) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return processes.read_answer(stream)[0]

    def brakes(self):
        name = next(name for name in os.listdir(self.state) if name.endswith(".brakes.json"))
        with open(os.path.join(self.state, name)) as file:
            return json.load(file)


def first(home, options, results):
    """The first certificate, by both challenges, on each backend."""
    for backend in common.backends(options):
        for challenge in ("http-01", "tls-alpn-01"):
            with contextlib.ExitStack() as stack:
                http_port, tls_port = processes.free_port(), processes.free_port()
                authority = Authority(stack, home, http_port, tls_port)
                server = Server(home, options, backend, http_port, tls_port, authority, challenge=challenge)
                stack.enter_context(server.running())
                server.await_certificate()
                root = authority.root()
                statuses = [server.get(name, root, "/ping") for name in NAMES]
                results.add(f"first certificate by {challenge}, {backend}", statuses == [200, 200], str(statuses))
                modes = {oct(stat.S_IMODE(os.stat(os.path.join(server.state, name)).st_mode)) for name in os.listdir(server.state)}
                results.add(f"files are the owner's alone, {challenge}, {backend}", modes == {"0o600"}, str(modes))
                place = "/.well-known/acme-challenge/"
                asked = [processes.request(http_port, path)[0] for path in (place + "unknown", "/no-such-path")]
                results.add(f"unknown tokens are the app's, {challenge}, {backend}", asked[0] == asked[1], str(asked))
                until("the status tells of it", lambda: server.status()["issued"] == 1, server.log)
                until("the next order is months away", lambda: server.status()["next_attempt"] > time.time() + 86400 * 60, server.log)


def renewal(home, options, results):
    """A renewal under load fails nothing, connections live on, and there is no third order on that day."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port, validity=24)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        stack.enter_context(server.running())
        server.await_certificate()
        before = server.shown(NAMES[0])
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", tls_port), 5))
        kept = stack.enter_context(context.wrap_socket(plain, server_hostname=NAMES[0]))
        figures = {}

        def load(name, *fields):
            line = ["wrk", "-t1", "-c8", "-d22s", "--timeout", "10s", *fields, f"https://127.0.0.1:{tls_port}/ping"]
            figures[name] = common.wrk_figures(*processes.run_to_end(line, timeout=60))

        loads = [threading.Thread(target=load, args=one) for one in (("kept",), ("new", "-H", "Connection: close"))]
        [one.start() for one in loads]

        def ask():
            kept.sendall(b"GET /ping HTTP/1.1\r\nHost: shop.example\r\n\r\n")
            return processes.read_answer(kept)[0] == 200

        until("the certificate is another", lambda: ask() and server.shown(NAMES[0]) != before, server.log)
        results.add("a connection from before the renewal lives on", ask())
        [one.join() for one in loads]
        for name, found in figures.items():
            whole = found["requests"] > 0 and not found["non_2xx"] and not any(found["errors"].values())
            results.add(f"renewal under load, {name} connections", whole, str(found))
        until("the brakes hold", lambda: server.status()["next_attempt"] > time.time() + 80000, server.log)
        found = server.status()
        results.add("no third order on a day", found["issued"] == 2 and len(server.brakes()["orders"]) == 2, str(found))


def failing(home, options, results):
    """A challenge that fails: the temporary certificate, the ladder, the brake of three an hour."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port, nobody = (processes.free_port() for _ in range(3))
        authority = Authority(stack, home, nobody, nobody)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        with server.running():
            found = until("an attempt has failed", lambda: (now := server.status())["failed"] and now, server.log)
            names = openssl("x509", "-noout", "-ext", "subjectAltName", input=server.shown(NAMES[0]))
            results.add("a temporary certificate is shown meanwhile", all(name in names for name in NAMES), " ".join(names.split()))
            waits = found["next_attempt"] - time.time()
            results.add("the next attempt waits for a minute", 30 < waits <= 60 and "http-01" in found["last_error"], str(found))
            results.add("one validation was tried", len(server.brakes()["validations"]) == 1)
        path = next(os.path.join(server.state, name) for name in os.listdir(server.state) if name.endswith(".brakes.json"))
        brakes = server.brakes()
        # As after an hour of failures: two more, and the last attempt an hour ago.
        brakes["validations"] *= 3
        brakes["tried"] -= 3600
        with open(path, "w") as file:
            json.dump(brakes, file)
        with server.running():
            found = until("the status tells of it", lambda: (now := server.status())["next_attempt"] and now, server.log)
            waits = found["next_attempt"] - time.time()
            results.add("after three that failed there is none for an hour", 3000 < waits <= 3600, f"{waits:.0f} s")


def account(home, options, results):
    """Accounts that are bound to another, and those that are refused."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port, external=True)
        backend = common.backends(options)[0]
        server = Server(home, options, backend, http_port, tls_port, authority)
        with server.running():
            found = until("an attempt has failed", lambda: (now := server.status())["failed"] and now, server.log)
            results.add("an account without a binding is refused", "acme.eab.kid" in found["last_error"], found["last_error"])
        key = os.path.join(home, "eab.key")
        with open(key, "w") as file:
            file.write(KEY + "\n")
        more = f'eab = {{ kid = "kid-1", key_file = "{key}" }}'
        server = Server(home, options, backend, http_port, tls_port, authority, more=more)
        with server.running():
            server.await_certificate()
            results.add("an account that is bound gets a certificate", server.get(NAMES[0], authority.root(), "/ping") == 200)


def restart(home, options, results):
    """The server is killed in mid-order, and the next one goes on after a minute."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port, slow=True)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority, names=NAMES[:1])
        with server.running() as process:
            until("a validation has begun", lambda: server.brakes()["validations"], server.log)
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        before = server.brakes()
        with server.running():
            until("a certificate has come", lambda: "Pebble" in server.issuer(NAMES[0]), server.log, patience=90.0)
            after = server.brakes()
            counted = len(before["validations"]) == 1 and len(after["orders"]) == 1
            results.add("an order is begun anew after a restart", counted, f"{before} {after}")


CHECKS = {check.__name__: check for check in (first, renewal, failing, account, restart)}


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--only", default=",".join(CHECKS), help="of %(default)s")
    options = flags.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(CHECKS):
        flags.error(f"--only: {', '.join(sorted(unknown))}: expected some of {', '.join(CHECKS)}")
    processes.need("pebble", "pebble-challtestsrv", "openssl", "wrk")
    results = common.Results()
    for name in wanted:
        CHECKS[name](home, options, results)
    return results.exit_code()


if __name__ == "__main__":
    common.run(main)
