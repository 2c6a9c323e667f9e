#!/usr/bin/env python3
"""Has the answers that the server makes or changes judged by httplint: files, parts, 304s, redirects, errors, compressed answers.

    tests/scripts/lint.py [--server PATH] [--backends epoll,io_uring]

Every body that was compressed is read back by the modules brotli, zstandard and gzip, and by curl; plain and over TLS. What httplint
finds bad or doubtful and is as it should be stands in EXPLAINED, each with its reason. Needs curl and openssl, and fetches httplint, brotli
and zstandard from PyPI. Exit codes: 0 nothing was found, 1 something was, 64 wrong flags.
"""

import contextlib
import gzip
import http.server
import itertools
import json
import os
import socketserver
import ssl
import subprocess
import sys

import common
from common import Trouble, processes

# What httplint says of an answer, and why it is as it should be.
EXPLAINED = {
    "FRESHNESS_HEURISTIC": "how long an answer is fresh is the site's to say, and the files and the app here say nothing",
    "PARTIAL_WITHOUT_RANGE": "an answer of several parts must not have the field in its head (RFC 9110 15.3.7.2): each part has its own",
}
PAGE = "".join(f"line {number} of a page\n" for number in range(2000)).encode()
FILES = {"index.html": PAGE, "app.js": b"let a = 1;\n" * 500, "a.bin": bytes(range(256)) * 40}
# The judge runs in the Python that has the modules.
JUDGE = r"""
import gzip, json, sys
import brotli, zstandard
from httplint import HttpResponseLinter
found = []
for case in json.load(open(sys.argv[1])):
    head, body = bytes.fromhex(case["head"]), bytes.fromhex(case["body"])
    lines = head.split(b"\r\n")
    linter = HttpResponseLinter(no_content=case["bodiless"])
    version, status, phrase = lines[0].split(b" ", 2)
    linter.process_response_topline(version.split(b"/")[1], status, phrase)
    fields = [tuple(line.split(b": ", 1)) for line in lines[1:] if line]
    linter.process_headers([(name, value) for name, value in fields if name.lower() != b"transfer-encoding"])
    linter.feed_content(body)
    linter.finish_content(True)
    for note in linter.notes:
        if note.level.name in ("BAD", "WARN"):
            found.append((case["name"], type(note).__name__, str(note.summary)))
    coding = dict((name.lower(), value) for name, value in fields).get(b"content-encoding")
    plain = {
        None: lambda: body, b"gzip": lambda: gzip.decompress(body), b"br": lambda: brotli.decompress(body),
        b"zstd": lambda: zstandard.ZstdDecompressor().decompressobj().decompress(body),
    }[coding if body else None]()
    if case["expected"] is not None and plain != bytes.fromhex(case["expected"]):
        found.append((case["name"], "BODY", f"{len(plain)} bytes, and others than were sent"))
    if case["coding"] is not None and coding != case["coding"].encode():
        found.append((case["name"], "CODING", f"{coding}, and {case['coding']} was to come"))
json.dump(found, sys.stdout)
"""


class App(http.server.BaseHTTPRequestHandler):
    """What is behind the server: a page by its length or in chunks, with an entity tag."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers["If-None-Match"] == '"v1"':
            self.send_response(304)
            self.send_header("ETag", '"v1"')
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("ETag", '"v1"')
        chunked = self.path.endswith("chunks")
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(PAGE)))))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if not chunked:
            return self.wfile.write(PAGE)
        for at in range(0, len(PAGE), 5000):
            piece = PAGE[at:at + 5000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        return self.wfile.write(b"0\r\n\r\n")

    do_HEAD = do_GET

    def log_message(self, *words):
        pass

    def address_string(self):
        return "unix"


def serve():
    class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    Unix(os.environ["SOCKET_PATH"], App).serve_forever()


def ask(port, context, path, fields, method="GET"):
    """The head, and the body without its framing."""
    with processes.connect(port, timeout=20.0) as plain:
        stream = context.wrap_socket(plain, server_hostname="localhost") if context else plain
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode())
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        whole = b""
        while True:
            size, _, body = body.partition(b"\r\n")
            if int(size, 16) == 0:
                break
            whole, body = whole + body[:int(size, 16)], body[int(size, 16) + 2:]
        body = whole
    # The connection is closed because this client asks for it.
    return head.replace(b"\r\nConnection: close", b""), body


def cases(port, context):
    """Each answer: its name, whether it has no body, what the body is, the coding that was to come."""
    def case(name, path, fields=(), method="GET", expected=None, coding=None):
        head, body = ask(port, context, path, list(fields), method)
        bodiless = method == "HEAD" or head.split(b" ")[1] in (b"304", b"204")
        return {"name": name, "head": head.hex(), "body": body.hex(), "bodiless": bodiless, "coding": coding,
                "expected": expected.hex() if expected is not None else None}, head

    def tag(head):
        return next(line.split(b": ")[1].decode() for line in head.split(b"\r\n") if line.lower().startswith(b"etag:"))

    for path, coding in itertools.product(("/app/length", "/app/chunks"), ("gzip", "br", "zstd")):
        accept = ("Accept-Encoding", coding)
        made, head = case(f"{path} {coding}", path, [accept], expected=PAGE, coding=coding)
        yield made
        yield case(f"{path} {coding}, 304", path, [accept, ("If-None-Match", tag(head))])[0]
        yield case(f"{path} {coding}, HEAD", path, [accept], method="HEAD")[0]
    yield case("/app/length", "/app/length", expected=PAGE)[0]
    for name, bytes_ in FILES.items():
        made, head = case(name, f"/{name}", expected=bytes_)
        yield made
        yield case(f"{name}, HEAD", f"/{name}", method="HEAD")[0]
        yield case(f"{name}, 304", f"/{name}", [("If-None-Match", tag(head))])[0]
        yield case(f"{name}, a part", f"/{name}", [("Range", "bytes=10-99")], expected=bytes_[10:100])[0]
        yield case(f"{name}, parts", f"/{name}", [("Range", "bytes=0-9,20-29")])[0]
        yield case(f"{name}, no part", f"/{name}", [("Range", "bytes=999999-")])[0]
        yield case(f"{name}, none of both", f"/{name}", [("If-Match", '"other"')])[0]
    yield case("app.js, compressed before", "/app.js", [("Accept-Encoding", "gzip")], expected=FILES["app.js"], coding="gzip")[0]
    yield case("a directory", "/folder")[0]
    yield case("missing", "/missing.html")[0]
    yield case("another method", "/index.html", [("Content-Length", "0")], method="POST")[0]
    yield case("options", "/index.html", method="OPTIONS")[0]


def curl(port, paths, results, name):
    """curl takes what it knows of codings."""
    scheme, trust = ("https", ["--cacert", paths[0]]) if paths else ("http", [])
    line = ["curl", "-sS", "--compressed", *trust, f"{scheme}://localhost:{port}/app/chunks"]
    done = subprocess.run(line, capture_output=True, timeout=30)
    results.add(f"{name} curl --compressed", done.stdout == PAGE, done.stderr.decode())


@contextlib.contextmanager
def site(home, line, secure):
    """Runs a server on a port of its own until the block is left."""
    place, port = os.path.join(home, f"run-{processes.free_port()}"), processes.free_port()
    os.mkdir(place)
    log = os.path.join(place, "log")
    line += ["--listen", f"127.0.0.1:{port}", "--run-dir", os.path.join(place, "run"), "--no-access-log", "--stats-interval", "0s"]
    with processes.running(line, log, cwd=place) as process:
        processes.wait_until_it_answers(process, log, port, "/app/length", secure=secure)
        yield port


def main(home):
    options = common.parser(__doc__.splitlines()[0]).parse_args()
    python = os.path.join(common.python_with(home, "httplint", "brotli", "zstandard"), "python")
    root = os.path.join(home, "www")
    os.makedirs(os.path.join(root, "folder"))
    for name, bytes_ in FILES.items():
        with open(os.path.join(root, name), "wb") as file:
            file.write(bytes_)
    with open(os.path.join(root, "app.js.gz"), "wb") as file:
        file.write(gzip.compress(FILES["app.js"]))
    config = os.path.join(home, "site.toml")
    with open(config, "w") as file:
        file.write(f"[[routes]]\nmatch = {{ path = '/app/*' }}\napp = 'app'\n[[routes]]\nstatic = {json.dumps(root)}\n"
                   f"[apps.app]\ncommand = [{json.dumps(sys.executable)}, {json.dumps(os.path.abspath(__file__))}, '--serve']\n"
                   "workers = 2\nconcurrency = 8\ncompress = 'on'\n")
    results = common.Results()
    for backend, secure in itertools.product(common.backends(options), (False, True)):
        paths = common.certificate(home) if secure else None
        flags = ["--tls-cert", paths[0], "--tls-key", paths[1]] if secure else []
        context = ssl.create_default_context(cafile=paths[0]) if secure else None
        name = f"{backend}{' TLS' if secure else ''}"
        with site(home, [os.path.abspath(options.server), "--config", config, "--backend", backend, *flags], secure) as port:
            answers = os.path.join(home, "answers.json")
            made = list(cases(port, context))
            with open(answers, "w") as file:
                json.dump(made, file)
            judged = subprocess.run([python, "-c", JUDGE, answers], capture_output=True, timeout=120)
            if judged.returncode != 0:
                raise Trouble(judged.stderr.decode())
            judged = json.loads(judged.stdout)
            found = [one for one in judged if one[1] not in EXPLAINED]
            results.add(f"{name}, what is explained is found", {one[1] for one in judged} >= set(EXPLAINED))
            results.add(f"{name}, {len(made)} answers", not found, "; ".join(": ".join(one) for one in found))
            curl(port, paths, results, name)
    return results.exit_code()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        common.run(main)
