#!/usr/bin/env python3
"""Certificates by ACME from pebble, the authority that others have written to test clients with.

    tests/scripts/acme.py --server target/release/production_server [--only first,renewal,failing,account,restart,...]

Nine of ten nonces are refused. Needs Debian's pebble, openssl and wrk, and root for `user`; where an attempt has failed or was cut, the next one waits for
a minute, as the server does. What pebble does not know of suggested renewals (RFC 9773) stands in front of it. Exit codes: 0 all hold, 1 something does
not, 64 wrong flags.
"""

import base64
import contextlib
import functools
import http.server
import json
import os
import pwd
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
import urllib.error
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


class Passed(Exception):
    """The authority has validated before it was seen to: it waits for none to seven seconds, by chance."""


def mid_order(server, authority):
    """Waits until the authority is about to validate, and not at once."""
    until("a validation has begun", lambda: (brakes := server.brakes())["validations"] or brakes["orders"], server.log)
    if 0 in until("the authority says how long it waits", authority.waits):
        raise Passed


def until_not_passed(check):
    """Plays a check in mid-order anew where there was no middle."""
    @functools.wraps(check)
    def play(*arguments):
        for _ in range(20):
            with contextlib.suppress(Passed):
                return check(*arguments)
        raise Trouble("the authority has validated at once, twenty times")

    return play


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
        # Another number each time, for what it draws below that is always the same.
        pace = {"PEBBLE_VA_SLEEPTIME": str(random.randint(5, 8))} if slow else {"PEBBLE_VA_NOSLEEP": "1"}
        environment = {**os.environ, "PEBBLE_WFE_NONCEREJECT": "90", "PEBBLE_AUTHZREUSE": "0", **pace}
        stack.enter_context(processes.running(
            ["pebble", "-strict", "-config", os.path.join(self.home, "config.json"), "-dnsserver", f"127.0.0.1:{dns}"], self.log, env=environment))
        self.context = ssl.create_default_context(cafile=self.ca)
        until("pebble answers", lambda: self.fetch(f"https://localhost:{self.port}/dir"), self.log)
        until("the name server answers", lambda: not processes.connect(dns).close())

    def waits(self):
        """For how many seconds it has waited, or waits, before each validation."""
        with open(self.log) as log:
            return [int(seconds) for seconds in re.findall(r"Sleeping for (\d+)s", log.read())]

    def fetch(self, url):
        with urllib.request.urlopen(url, timeout=5, context=self.context) as answer:
            return answer.read().decode()

    def post(self, key, account, url, payload):
        """Posts what an account signs with its key (PKCS#8) until the nonce is taken; the answer."""
        path = os.path.join(self.home, "posted.der")
        with open(path, "wb") as file:
            file.write(bytes(key))
        plain = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
        while True:
            with urllib.request.urlopen(f"https://localhost:{self.port}/nonce-plz", timeout=5, context=self.context) as answer:
                protected = {"alg": "ES256", "kid": account, "nonce": answer.headers["Replay-Nonce"], "url": url}
            parts = [plain(json.dumps(part).encode()) for part in (protected, payload)]
            signed = subprocess.run(["openssl", "dgst", "-sha256", "-keyform", "DER", "-sign", path], input=".".join(parts).encode(), capture_output=True, check=True).stdout
            # A sequence of two whole numbers, of which JOSE wants 32 bytes each.
            first = signed[4:4 + signed[3]]
            numbers = [first, signed[6 + len(first):]]
            raw = b"".join(int.from_bytes(number, "big").to_bytes(32, "big") for number in numbers)
            body = json.dumps({"protected": parts[0], "payload": parts[1], "signature": plain(raw)}).encode()
            request = urllib.request.Request(url, body, {"Content-Type": "application/jose+json"})
            try:
                with urllib.request.urlopen(request, timeout=5, context=self.context) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                problem = json.loads(error.read())
                if not problem["type"].endswith("badNonce"):
                    raise Trouble(f"{url}: {problem}") from error

    def root(self):
        return self.fetch(f"https://localhost:{self.management}/roots/0")


class Suggesting:
    """What stands before a pebble and suggests renewals besides (RFC 9773): of the first certificate that it is asked for at once, of others in a month."""

    def __init__(self, stack, authority):
        self.port, self.ca, self.asked, self.replaced = processes.free_port(), authority.ca, [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(handler):
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                if handler.path.startswith("/renewal-info/"):
                    return handler.answer(200, {"Content-Type": "application/json", "Retry-After": "21600"}, self.window(handler.path.rpartition("/")[2]))
                if handler.path == "/order-plz" and body:
                    payload = json.loads(body)["payload"]
                    self.replaced.append(json.loads(base64.urlsafe_b64decode(payload + "=="[:-len(payload) % 4])).get("replaces"))
                fields = {name: value for name, value in handler.headers.items() if name.lower() in ("host", "content-type", "user-agent")}
                request = urllib.request.Request(f"https://localhost:{authority.port}{handler.path}", body or None, fields, method=handler.command)
                try:
                    answer = urllib.request.urlopen(request, timeout=10, context=authority.context)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    text, fields = answer.read(), {name: value for name, value in answer.headers.items() if name in ("Content-Type", "Replay-Nonce", "Location", "Retry-After", "Link")}
                if handler.path == "/dir":
                    text = json.dumps({**json.loads(text), "renewalInfo": f"https://localhost:{self.port}/renewal-info"}).encode()
                handler.answer(answer.status, fields, text)

            do_GET = do_HEAD = do_POST = serve

            def answer(handler, status, fields, text):
                handler.send_response(status)
                for name, value in {**fields, "Content-Length": str(len(text))}.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(b"" if handler.command == "HEAD" else text)

            def log_message(handler, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(authority.home, "cert.pem"), os.path.join(authority.home, "key.pem"))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)

    def window(self, name):
        self.asked.append(name)
        start = time.time() + (-3600 if name == self.asked[0] else 86400 * 30)
        word = lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
        return json.dumps({"suggestedWindow": {"start": word(start), "end": word(start + 1800)}}).encode()


class Server:
    """The server with ACME, and what it shows. Its state outlives the process."""

    def __init__(self, home, options, backend, http_port, tls_port, authority, names=NAMES, challenge="http-01", more=""):
        self.home = os.path.join(home, f"server-{processes.free_port()}")
        os.mkdir(self.home)
        self.http_port, self.tls_port, self.program = http_port, tls_port, os.path.abspath(options.server)
        self.state, self.run, self.log = (os.path.join(self.home, name) for name in ("state", "run", "log"))
        self.file = os.path.join(self.home, "server.toml")
        self.configure = lambda names, user="": self.write(backend, authority, names, challenge, more, user)
        self.configure(names)

    def write(self, backend, authority, names, challenge, more, user):
        http_port, tls_port = self.http_port, self.tls_port
        with open(self.file, "w") as file:
            file.write(f"""
[server]
{user}
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
    def running(self, before=()):
        with processes.running([*before, self.program, "-f", self.file], self.log, cwd=self.home) as process:
            processes.wait_until_it_answers(process, self.log, self.http_port, "/ping")
            yield process

    def word(self, *words):
        done = subprocess.run([self.program, *words, "--run-dir", self.run], capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout

    def status(self):
        return self.document()["acme"]

    def document(self):
        return json.loads(self.word("status", "--json"))

    def shown(self, name):
        """The certificate that a client is shown who asks for that name, in PEM."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.tls_port), 5) as plain, context.wrap_socket(plain, server_hostname=name) as stream:
            return ssl.DER_cert_to_PEM_cert(stream.getpeercert(True))

    def issuer(self, name):
        return openssl("x509", "-noout", "-issuer", input=self.shown(name))

    def await_certificate(self, name=NAMES[0], patience=PATIENCE):
        until("a certificate has come", lambda: "Pebble" in self.issuer(name), self.log, patience=patience)

    def await_failure(self, words):
        return until(f"an attempt has failed with {words!r}", lambda: (now := self.status())["failed"] and words in now["last_error"] and now, self.log)

    def get(self, name, root, path):
        """GET over TLS by a client that verifies what it is shown."""
        context = ssl.create_default_context(cadata=root)
        with socket.create_connection(("127.0.0.1", self.tls_port), 5) as plain, context.wrap_socket(plain, server_hostname=name) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return processes.read_answer(stream)[0]

    def brakes_file(self):
        return next(os.path.join(self.state, name) for name in os.listdir(self.state) if name.endswith(".brakes.json"))

    def brakes(self):
        with open(self.brakes_file()) as file:
            return json.load(file)

    def age(self, seconds=3600, **more):
        """Of a server that does not run: as if its last attempt were that much older."""
        brakes = {**self.brakes(), **more}
        brakes["tried"] -= seconds
        with open(self.brakes_file(), "w") as file:
            json.dump(brakes, file)

    def kept(self, ending):
        return [os.path.join(self.state, name) for name in os.listdir(self.state) if name.endswith(ending)]


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
        # As after an hour of failures: two more, and the last attempt an hour ago.
        server.age(validations=server.brakes()["validations"] * 3)
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


@until_not_passed
def restart(home, options, results):
    """The server is killed in mid-order, and the next one goes on after a minute."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port, slow=True)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority, names=NAMES[:1])
        with server.running() as process:
            mid_order(server, authority)
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        before = server.brakes()
        with server.running():
            until("a certificate has come", lambda: "Pebble" in server.issuer(NAMES[0]), server.log, patience=90.0)
            after = server.brakes()
            counted = len(before["validations"]) == 1 and len(after["orders"]) == 1
            results.add("an order is begun anew after a restart", counted, f"{before} {after}")


def full(home, options, results):
    """The disk is full when the certificate has come: it is fetched by the next server, and not demanded again. Then the directory goes under a running server."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        # Enough for what is kept before the certificate, and for the log.
        with server.running(before=["prlimit", "--fsize=1500:unlimited"]) as process:
            found = server.await_failure("cannot write")
            results.add("a full disk is said with its place", server.state in found["last_error"], found["last_error"])
            results.add("the temporary certificate is shown meanwhile", "Pebble" not in server.issuer(NAMES[0]))
            results.add("nothing of it is left", not server.kept(".pem") and not server.kept(".new"), str(os.listdir(server.state)))
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        before = server.brakes()
        server.age(failures=0)
        with server.running(before=["prlimit", "--fsize=1500:unlimited"]) as process:
            server.await_failure("cannot write")
            results.add("what is demanded once is fetched", before["orders"] == server.brakes()["orders"] and len(before["orders"]) == 1, str(server.brakes()))
            shutil.rmtree(server.state)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            server.await_certificate(patience=90.0)
            results.add("a directory that was removed is made anew", server.get(NAMES[0], authority.root(), "/ping") == 200)
            orders = server.brakes()["orders"]
            results.add("brakes outlive it", len(orders) == 2 and orders[0] == before["orders"][0], str(orders))


def fetched(home, options, results):
    """A server that is killed when the certificate was demanded and before it has come: the next one fetches it. What cannot be kept is not demanded."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        with server.running():
            until("the server has begun", lambda: server.brakes_file(), server.log)
            os.mkdir(server.brakes_file().replace(".brakes.json", ".order.json.new"))
            server.await_failure("cannot write")
            until("it does not count", lambda: server.brakes()["orders"] == [], server.log)
            results.add("an order that cannot be kept is not demanded, and does not count", not server.kept(".order.json"), str(server.brakes()))
        os.rmdir(server.kept(".order.json.new")[0])
        server.age()
        with server.running() as process:
            # In the place of the file, so that it is never there.
            until("the server has begun", lambda: server.brakes_file(), server.log)
            os.mkdir(server.brakes_file().replace(".brakes.json", ".pem.new"))
            server.await_failure("cannot write")
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        os.rmdir(server.kept(".pem.new")[0])
        server.age()
        with server.running():
            server.await_certificate()
            orders = server.brakes()["orders"]
            results.add("a certificate that was demanded before a restart is fetched", len(orders) == 1 and not server.kept(".order.json"), str(orders))


def deactivated(home, options, results):
    """An account that was deactivated is forgotten, and another one made."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        with server.running():
            server.await_certificate()
        [path] = (path for path in server.kept(".json") if os.path.basename(path).startswith("account-"))
        with open(path) as file:
            old = json.load(file)
        gone = authority.post(old["key"], old["url"], old["url"], {"status": "deactivated"})
        results.add("the account is deactivated", gone["status"] == "deactivated", str(gone))
        [os.remove(path) for path in server.kept(".pem")]
        with server.running():
            found = server.await_failure("")
            results.add("that it is, is said, and what follows", "deactivated" in found["last_error"] and "another account" in found["last_error"], found["last_error"])
        server.age()
        with server.running():
            server.await_certificate()
        with open(path) as file:
            new = json.load(file)
        results.add("there is another account", new["url"] not in (None, old["url"]) and new["key"] != old["key"], f"{old['url']} {new['url']}")


@until_not_passed
def reload(home, options, results):
    """A domain comes and one goes while an order is under way."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port, slow=True)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority, names=NAMES[:1])
        process = stack.enter_context(server.running())
        mid_order(server, authority)
        for names in (NAMES, NAMES[1:]):
            server.configure(names)
            process.send_signal(signal.SIGHUP)
            until("the names are others", lambda: server.status()["names"] == names, server.log)
            until("an order for them has begun", lambda: len(server.kept(".brakes.json")) == 3 - len(names) + 1, server.log)
        server.await_certificate(NAMES[1])
        if 0 in authority.waits()[:-1]:
            raise Passed
        names = openssl("x509", "-noout", "-ext", "subjectAltName", input=server.shown(NAMES[1]))
        results.add("the last ones that were said have a certificate", NAMES[0] not in names.replace(NAMES[1], ""), " ".join(names.split()))
        results.add("clients get answers over it", server.get(NAMES[1], authority.root(), "/ping") == 200)
        counted = [json.load(open(path)) for path in server.kept(".brakes.json")]
        results.add("each order was begun once", sorted(len(one["validations"]) for one in counted) == [0, 1, 1] and sum(len(one["orders"]) for one in counted) == 1, str(counted))


@until_not_passed
def upgrade(home, options, results):
    """An upgrade in mid-order, while the old server is busy for a while: the new one has the directory at once, and orders after a minute."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port, slow=True)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority, names=NAMES[:1])
        with server.running() as process:
            busy = stack.enter_context(processes.connect(http_port))
            busy.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1")
            mid_order(server, authority)
            server.word("upgrade", "--wait")
            pid = until("another serves", lambda: (found := server.document()["pid"]) != process.pid and found, server.log)
            try:
                until("it has the directory", lambda: server.status()["next_attempt"], server.log, patience=12.0)
                results.add("the new server has the directory while the old one is busy", process.poll() is None)
                server.await_certificate(patience=90.0)
                found = server.brakes()
                results.add("an upgrade in mid-order costs one validation", len(found["validations"]) == 1 and len(found["orders"]) == 1, str(found))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            until("it has ended", lambda: not os.path.exists(f"/proc/{pid}"), server.log)


def user(home, options, results):
    """A server that becomes another user: what it keeps is that user's."""
    if os.geteuid() != 0:
        return print("        user: only root can become another", flush=True)
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Authority(stack, home, http_port, tls_port)
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        os.chmod(home, 0o755)
        # It finds a place where it may make its run directory, and none for its state, whose parents are root's.
        os.mkdir(server.run)
        nobody = pwd.getpwnam("nobody")
        os.chown(server.run, nobody.pw_uid, nobody.pw_gid)
        server.state = os.path.join(server.home, "lib", "acme")
        server.configure(NAMES, 'user = "nobody"')
        with server.running() as process:
            server.await_certificate()
            owners = {os.stat(path).st_uid for path in (server.state, *server.kept(""))}
            results.add("files are those of the user that it has become", owners == {nobody.pw_uid} and os.stat(f"/proc/{process.pid}").st_uid == nobody.pw_uid, str(owners))
            before = server.shown(NAMES[0])
        with server.running():
            until("the same is shown after a restart", lambda: server.shown(NAMES[0]) == before, server.log)
        # What was root's before it had a user.
        for path in (server.state, *server.kept("")):
            os.chown(path, 0, 0)
        with server.running():
            found = until("it is told", lambda: (now := server.status())["last_error"] and now, server.log)
            results.add("a directory of somebody else's is said with its place", server.state in found["last_error"] and "belong" in found["last_error"], found["last_error"])


def suggested(home, options, results):
    """The authority suggests to renew at once: by its certificate's name, once."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        authority = Suggesting(stack, Authority(stack, home, http_port, tls_port))
        server = Server(home, options, common.backends(options)[0], http_port, tls_port, authority)
        stack.enter_context(server.running())
        until("two certificates have come", lambda: server.status()["issued"] == 2, server.log)
        found = until("the next order is decided by the authority", lambda: (now := server.status())["decided_by"] == "renewal_information" and now, server.log)
        results.add("the next one is suggested for in a month", 86400 * 29 < found["next_attempt"] - time.time() < 86400 * 31, str(found))
        results.add("it was asked once for each", len(authority.asked) == 2 and len(set(authority.asked)) == 2, str(authority.asked))
        results.add("the order says which one it replaces", authority.asked[0] in authority.replaced and None in authority.replaced, str(authority.replaced))
        serial = openssl("x509", "-noout", "-serial", input=server.shown(NAMES[0])).strip().partition("=")[2]
        named = base64.urlsafe_b64decode(authority.asked[1].partition(".")[2] + "==").hex().upper()
        results.add("it is named by its serial number", named.lstrip("0") == serial.lstrip("0"), f"{named} {serial}")


def switched(home, options, results):
    """Another authority is configured: the certificate of the first is shown until that of the second has come, and by it again at once. The names in another order are the same."""
    with contextlib.ExitStack() as stack:
        http_port, tls_port = processes.free_port(), processes.free_port()
        first, second = (Authority(stack, home, http_port, tls_port) for _ in range(2))
        backend = common.backends(options)[0]
        server = Server(home, options, backend, http_port, tls_port, first)
        process = stack.enter_context(server.running())
        server.await_certificate()
        before = server.shown(NAMES[0])

        def turn_to(authority, names):
            server.write(backend, authority, names, "http-01", "", "")
            process.send_signal(signal.SIGHUP)
            until("the authority is another", lambda: str(authority.port) in (now := server.status())["authority"] and now["names"] == names and now["next_attempt"], server.log)

        turn_to(second, NAMES)
        until("the other's certificate is shown", lambda: server.shown(NAMES[0]) != before, server.log)
        results.add("the other authority's certificate is shown", server.get(NAMES[0], second.root(), "/ping") == 200)
        turn_to(first, NAMES[::-1])
        until("the first one is shown again", lambda: server.shown(NAMES[0]) == before, server.log)
        until("the next order is months away", lambda: server.status()["next_attempt"] > time.time() + 86400 * 60, server.log)
        results.add("what is held is not ordered anew, in whatever order the names are", server.status()["issued"] == 2, str(server.status()))


CHECKS = {check.__name__: check for check in (first, renewal, failing, account, restart, fetched, full, deactivated, reload, upgrade, user, suggested, switched)}


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
