#!/usr/bin/env python3
"""The hub with clients and apps that people use: nobody loses a message, nobody is closed.

    tests/scripts/hub.py [--server target/release/production_server] [--backends epoll,io_uring] [--parts autobahn,clients,deploys,chat]
                         [--over plain,tls] [--cases 1.*,12.*] [--sockets 1000] [--seconds 50] [--quick]

    autobahn  Autobahn's own case files, run by kosoku, against the hub's WebSocket and an app that echoes: the core cases, those of limits up to
              64 KiB, and all of permessage-deflate. EXEMPT has what is not asked of it, and why
    clients   Node's `ws` and `eventsource`, Bun, Python's `websockets` with compression and without, httpx-sse and long polls: each gets 200 messages in
              order, is killed in between and comes back with the last id it has seen; what WebSockets say is echoed
    deploys   so many sockets on `broadcast` and 200 messages a second to them, while the app's four workers are rolled, killed and reloaded: each gets
              every message once and in order, none is closed, and what is said to the app has one answer
    chat      examples/chat, Node's and Python's, in two pages of Chromium, where it is installed, and else by two clients of Python: a conversation
              that goes on through a rolling restart; and examples/notify

`--quick` takes a few cases, one backend over TLS and the other without, and 200 sockets for ten seconds: less than a minute. Needs node, openssl, npm and
PyPI. Exit codes: 0, 1 something did not hold, 64 wrong flags.
"""

import collections
import contextlib
import http.client
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time

import common
import processes
from processes import Trouble

HERE = os.path.join(common.ROOT, "tests", "scripts", "clients")
CASES = "1.*,2.*,3.*,4.*,5.*,6.*,7.*,9.1.1,9.2.1,9.7.*,9.8.*,10.*,12.*,13.*"
QUICK_CASES = "1.1.*,2.*,3.*,5.*,6.4.*,7.1.*,7.9.*,12.1.1,12.2.5,12.4.13,13.5.1,13.7.11"
# What is not asked of the server, each with its reason.
EXEMPT = {
    # After a violation and after a close it ends the connection itself; kosoku gives it no time to when its own clock (1 s) is first.
}
CLIENTS = ("ws", "eventsource", "bun", "websockets", "websockets-plain", "httpx-sse", "poll")
MESSAGES = 200

# Prints a line for each case: its number, whether it passed, how it behaved, how it closed, and why. The cases of compression compare what they have sent, which
# is bytes, with what came, which kosoku gives them as a string, as Python 2 did: they are given bytes.
RUN = """
import asyncio, os, pathlib, sys, kosoku
from kosoku import FailureError, run_fuzzingclient

file = pathlib.Path(kosoku.__file__).parent / "cases" / "case12_x_x.py"
begin, more = "def onMessage(self, msg, binary):\\n", "   msg = msg.encode('latin-1' if binary else 'utf-8') if isinstance(msg, str) else msg\\n"
text = file.read_text()
if more not in text:
    assert text.count(begin) == 1
    file.write_text(text.replace(begin, begin + more))

async def main():
    try:
        results = await run_fuzzingclient(sys.argv[1], sys.argv[2].split(","), None, concurrency=4)
    except FailureError as failure:
        results = failure.results
    for result in results:
        verdict = "passed" if result.passed else "FAILED"
        print("CASE", result.case_id, f"{verdict}/{result.behavior.value}/{result.behavior_close.value}", str(result.result)[:150].replace("\\n", " "))

asyncio.run(main())
# Not by the interpreter's own end, which its threads now and then abort (SIGABRT) when all is done.
sys.stdout.flush()
os._exit(0)
"""

# Carries connections to a port where TLS is spoken, for clients that cannot: prints its own port.
CARRY = """
import asyncio, ssl, sys

async def pump(source, sink):
    try:
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()

async def carry(reader, writer):
    context = ssl.create_default_context(cafile=sys.argv[2])
    try:
        there, back = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]), ssl=context)
    except OSError:
        return writer.close()
    await asyncio.gather(pump(reader, back), pump(there, writer))

async def main():
    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

# Publishes 200 messages a second, one after the other, for so many seconds: prints how many and how long it has taken.
PUBLISH = """
import http.client, json, sys, time
connection, most = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20), float(sys.argv[2])
begin, count = time.monotonic(), 0
while time.monotonic() - begin < most and count < most * 200:
    connection.request("POST", "/api/v1/notify", json.dumps({"data": f"message {count} of many"}))
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 202, (answer.status, body)
    count += 1
    time.sleep(max(0, begin + count / 200 - time.monotonic()))
print(count, time.monotonic() - begin)
"""


class Hub:
    """A server with a hub, and an app of Node's that takes part in it."""

    def __init__(self, port, plain, process, log, options, folder):
        self.port, self.plain, self.process, self.log, self.options, self.folder = port, plain, process, log, options, folder
        self.publisher = None

    def command(self, *words):
        """Says something to the server's control socket by its own command."""
        line = [os.path.abspath(self.options.server), *words, "--run-dir", os.path.join(self.folder, "run")]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Trouble(f"{' '.join(words)}: {done.returncode} {done.stdout} {done.stderr}")
        return done.stdout

    def status(self):
        return json.loads(self.command("status", "--json"))

    def publish(self, data, topic="broadcast"):
        """Publishes: the answer."""
        if self.publisher is None:
            self.publisher = http.client.HTTPConnection("127.0.0.1", self.plain, timeout=20)
        self.publisher.request("POST", "/api/v1/notify", json.dumps({"topic": topic, "data": data}, separators=(",", ":")))
        answer = self.publisher.getresponse()
        body = answer.read()
        if answer.status != 202:
            raise Trouble(f"notify: {answer.status} {body!r}")
        return json.loads(body)


@contextlib.contextmanager
def hub(home, options, backend, secure=None, more="", workers=2):
    """Runs the server until the block is left; it listens without TLS on one port, and with it, where there is a certificate, on another."""
    port, plain = processes.free_port(), processes.free_port()
    folder = os.path.join(home, f"hub-{plain}")
    os.mkdir(folder)
    tls = f'[[listen]]\naddress = "127.0.0.1:{port}"\n[tls]\ncertificates = [{{ cert = "{secure[0]}", key = "{secure[1]}" }}]\n' if secure else ""
    off = 'tls = { speak = "off" }' if secure else ""
    text = (f'[server]\nbackend = "{backend}"\nloops = 2\nrun_dir = "{folder}/run"\nstats_interval = "0s"\n[log]\naccess = false\n'
            f'[[listen]]\naddress = "127.0.0.1:{plain}"\n{off}\n{tls}'
            f'[hub.hub]\napp = "web"\nmessage = "1MiB"\nping = "10m"\n{more}\n[[routes]]\napp = "web"\n'
            f'[apps.web]\ncommand = ["node", "{HERE}/hub_echo.mjs"]\nworkers = {workers}\nconcurrency = 64\n'
            f'environment = {{ HUB = "http://127.0.0.1:{plain}/api/v1/notify" }}\n')
    with open(os.path.join(folder, "site.toml"), "w") as file:
        file.write(text)
    log = os.path.join(folder, "log")
    with processes.running([os.path.abspath(options.server), "-f", os.path.join(folder, "site.toml")], log) as process:
        processes.wait_until_it_answers(process, log, plain)
        yield Hub(port if secure else plain, plain, process, log, options, folder)


# ---------------------------------------------------------------------------------------------------------------------- autobahn

def autobahn(home, options, backend, over, python, secure, results):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(hub(home, options, backend, secure))
        port = server.port
        if secure:
            carrier = stack.enter_context(subprocess.Popen([sys.executable, "-c", CARRY, str(port), secure[0]], stdout=subprocess.PIPE, text=True))
            stack.callback(carrier.terminate)
            port = int(carrier.stdout.readline())
        line = [python, "-c", RUN, f"127.0.0.1:{port}/api/v1/listen?topic=none", options.cases]
        status, output = processes.run_to_end(line, timeout=900)
        if status != 0:
            raise Trouble(f"kosoku ended with {status}:\n{output[-1500:]}")
    found = [line.split(" ", 3)[1:] for line in output.splitlines() if line.startswith("CASE ")]
    passed = collections.Counter(verdict for _, verdict, _ in found)
    for case, verdict, why in found:
        if not verdict.startswith("passed/") and case not in EXEMPT:
            results.add(f"{backend} {over} case {case}", False, f"{verdict}: {why}")
        elif verdict.startswith("passed/") and case in EXEMPT:
            print(f"  note  {case} is exempted, and passes")
    good = sum(count for verdict, count in passed.items() if verdict.startswith("passed/"))
    results.add(f"{backend} {over} autobahn: {good} of {len(found)} cases", good > 0, ", ".join(f"{count} {verdict}" for verdict, count in sorted(passed.items())))


# ----------------------------------------------------------------------------------------------------------------------- clients

class Listener:
    """A client's program, which prints `open`, `message ID DATA`, `echoed COUNT` and what has gone wrong."""

    def __init__(self, line, environment):
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        self.lines, self.said = queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def until(self, enough, seconds=30):
        """Reads until `enough` says so of a line."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise Trouble(f"nothing more came within {seconds} s: {self.said[-3:]}") from None
            if line is None:
                raise Trouble(f"it has ended: {self.said[-5:]}")
            self.said.append(line)
            if enough(line):
                return line

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def clients(server, backend, over, tools, secure, results):
    environment = {**os.environ, **({"TRUSTED": secure[0], "NODE_EXTRA_CA_CERTS": secure[0]} if secure else {}), "MODULES": tools["npm"]}
    for name in CLIENTS:
        programs = {"ws": ["node"], "eventsource": ["node"], "bun": [os.path.join(tools["npm"], "node_modules", ".bin", "bun")]}
        program = programs.get(name, [tools["python"]])
        line = [*program, os.path.join(HERE, "hub_clients.mjs" if name in programs else "hub_clients.py"), name]
        base = f"{'https' if secure else 'http'}://localhost:{server.port}/api/v1/listen"
        listeners, numbers = [], []
        try:
            listeners.append(Listener([*line, base, ""], environment))
            listeners[0].until(lambda text: text == "open")
            for number in range(MESSAGES // 2):
                server.publish({"number": number, "client": name})
            listeners[0].until(lambda text: text.startswith("message ") and f'"number":{MESSAGES // 4},' in text)
            listeners[0].end()
            seen = [text.split(" ", 2) for text in listeners[0].said if text.startswith("message ")]
            for number in range(MESSAGES // 2, MESSAGES):
                server.publish({"number": number, "client": name})
            listeners.append(Listener([*line, base, seen[-1][1]], environment))
            listeners[1].until(lambda text: text.startswith("message ") and f'"number":{MESSAGES - 1},' in text)
            if name in ("ws", "bun", "websockets", "websockets-plain"):
                listeners[1].until(lambda text: text == "echoed 20") if "echoed 20" not in listeners[1].said else None
            seen += [text.split(" ", 2) for text in listeners[1].said if text.startswith("message ")]
            numbers = [json.loads(data)["number"] for _, _, data in seen]
            wrong = "" if numbers == list(range(MESSAGES)) else f"{len(numbers)} messages, of them {len(set(numbers))} different"
        except Trouble as trouble:
            wrong = str(trouble)
        finally:
            for listener in listeners:
                listener.end()
        results.add(f"{backend} {over} {name}", not wrong, wrong or f"{len(numbers)} messages in order, through a kill and back")


# ----------------------------------------------------------------------------------------------------------------------- deploys

class Crowd(threading.Thread):
    """Bare sockets, of which each is to get the same bytes: what it has got is compared with what was published."""

    def __init__(self, port, count, messages):
        super().__init__(daemon=True)
        self.expected = b"".join(frame(text_of(number)) for number in range(messages))
        self.closed, self.wrong, self.over = 0, 0, False
        self.events, self.places = selectors.DefaultSelector(), []
        for _ in range(count):
            peer, rest = open_socket(port)
            place = [peer, 0]
            if rest:
                raise Trouble(f"a socket was told something: {rest!r}")
            peer.setblocking(False)
            self.events.register(peer, selectors.EVENT_READ, place)
            self.places.append(place)

    def run(self):
        while not self.over:
            # Much at once, for it is much that comes.
            time.sleep(0.02)
            for key, _ in self.events.select(0.1):
                place = key.data
                try:
                    got = key.fileobj.recv(1 << 20)
                except BlockingIOError:
                    continue
                except OSError:
                    got = b""
                at = place[1]
                place[1] += len(got)
                if not got or self.expected[at:place[1]] != got:
                    self.closed, self.wrong = self.closed + (not got), self.wrong + bool(got)
                    self.events.unregister(key.fileobj)

    def behind(self, count):
        """How many have not got so many messages."""
        whole = sum(len(frame(text_of(number))) for number in range(count))
        return sum(place[1] != whole for place in self.places)

    def close(self):
        self.over = True
        self.join(5)
        for peer, _ in self.places:
            peer.close()


def open_socket(port, target="/api/v1/listen"):
    peer = processes.connect(port, 20)
    peer.sendall((f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
    got = b""
    while b"\r\n\r\n" not in got:
        part = peer.recv(4096)
        if not part:
            raise Trouble(f"a socket was not opened: {got!r}")
        got += part
    head, rest = got.split(b"\r\n\r\n", 1)
    if b" 101 " not in head:
        raise Trouble(f"a socket was not opened: {head!r}")
    return peer, rest


def text_of(number):
    return f"message {number} of many".encode()


def frame(data, masked=False):
    """A text's frame; who masks with zeroes need not do anything."""
    short = len(data) if len(data) < 126 else 126
    return bytes([0x81, short | (0x80 if masked else 0)]) + (len(data).to_bytes(2, "big") if short == 126 else b"") + (bytes(4) if masked else b"") + data


class Talker(threading.Thread):
    """Says numbers to the app, one after the other: each has to be answered by itself, or by an error where its worker was killed."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.peer, self.rest = open_socket(port, "/api/v1/listen?topic=talk")
        self.said, self.errors, self.wrong, self.over = 0, 0, "", False

    def run(self):
        try:
            while not self.over:
                text = str(self.said).encode()
                self.peer.sendall(frame(text, masked=True))
                came = self.next()
                self.said += 1
                if came != text:
                    self.errors += 1
                    if b'"type":"error"' not in came:
                        self.wrong = f"{text!r} was answered {came[:100]!r}"
                        return
                time.sleep(0.005)
        except (OSError, Trouble) as error:
            self.wrong = f"closed: {error}"

    def next(self):
        while True:
            if len(self.rest) >= 2:
                short = self.rest[1] & 0x7F
                begin = 2 if short < 126 else 4
                length = short if short < 126 else int.from_bytes(self.rest[2:4], "big")
                if len(self.rest) >= begin + length:
                    if self.rest[0] != 0x81:
                        raise Trouble(f"a frame {self.rest[:60]!r}")
                    came, self.rest = self.rest[begin:begin + length], self.rest[begin + length:]
                    return came
            part = self.peer.recv(65536)
            if not part:
                raise Trouble("its end")
            self.rest += part


def deploys(home, options, backend, results):
    name = f"{backend} deploys"
    # What is kept covers the time in which this script's reader may be behind.
    more = 'history = { count = 100000, bytes = "32MiB" }'
    with hub(home, options, backend, more=more, workers=4) as server:
        crowd = Crowd(server.plain, options.sockets, int(options.seconds * 200) + 200)
        talkers = [Talker(server.plain) for _ in range(4)]
        for thread in (crowd, *talkers):
            thread.start()
        trouble, done, stop = [], collections.Counter(), threading.Event()

        def disturb():
            try:
                turn = 0
                while not stop.is_set():
                    kind = ("restart", "kill", "reload", "kill", "restart")[turn % 5]
                    turn += 1
                    if kind == "restart":
                        server.command("restart", "--wait")
                    elif kind == "reload":
                        with open(os.path.join(server.folder, "site.toml"), "a") as file:
                            file.write(f"# reload {turn}\n")
                        server.command("reload", "--wait")
                    else:
                        pids = [worker["pid"] for app in server.status()["apps"] for worker in app["workers"] if worker["pid"]]
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pids[turn % len(pids)], signal.SIGKILL)
                    done[kind] += 1
                    stop.wait(0.5)
            except (Trouble, OSError, KeyError, subprocess.SubprocessError) as error:
                trouble.append(f"{kind}: {error!r}")

        disturber = threading.Thread(target=disturb, daemon=True)
        disturber.start()
        # From a process of its own: this one has its hands full.
        status, output = processes.run_to_end([sys.executable, "-c", PUBLISH, str(server.plain), str(options.seconds)], timeout=options.seconds + 60)
        if status != 0:
            raise Trouble(f"the publisher has failed:\n{output[-1000:]}")
        count, seconds = int(output.split()[0]), float(output.split()[1])
        stop.set()
        disturber.join(60)
        end = time.monotonic() + 60
        while crowd.behind(count) and not crowd.closed and not crowd.wrong and time.monotonic() < end:
            time.sleep(0.05)
        for talker in talkers:
            talker.over = True
            talker.join(30)
        behind, status = crowd.behind(count), server.status()["counters"]
        crowd.close()
    said, errors = sum(talker.said for talker in talkers), sum(talker.errors for talker in talkers)
    deed = f"{done['restart']} rolls, {done['kill']} kills and {done['reload']} reloads"
    results.add(f"{name}: {options.sockets} sockets get {count} messages each, {count / seconds:.0f} a second, through {deed}",
                not (crowd.closed or crowd.wrong or behind or trouble) and min(done[kind] for kind in ("restart", "kill", "reload")) > 0,
                f"{crowd.closed} closed, {crowd.wrong} with another order, {behind} without all" + "".join(f"; {text}" for text in trouble))
    wrong = [talker.wrong for talker in talkers if talker.wrong]
    # A worker that is killed has at most one event of each.
    results.add(f"{name}: {said} events have one answer each", not wrong and errors <= done["kill"] * len(talkers), "; ".join(wrong) or f"{errors} by an error")
    results.add(f"{name}: nothing is missing", status["hub_gaps"] == 0, f"{status['hub_gaps']} gaps, {status['hub_events_failed']} events without an answer")


# -------------------------------------------------------------------------------------------------------------------------- chat

def chat(home, options, backend, kind, python, results):
    """The example as its README says it, but with ports and a directory of its own."""
    port, folder = processes.free_port(), os.path.join(home, f"chat-{processes.free_port()}")
    os.mkdir(folder)
    with open(os.path.join(common.ROOT, "examples", "chat", f"{kind}.toml")) as file:
        text = file.read().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    file = os.path.join(folder, "site.toml")
    with open(file, "w") as out:
        out.write(text)
    log, run, program = os.path.join(folder, "log"), os.path.join(folder, "run"), os.path.abspath(options.server)
    line = [program, "-f", file, "--run-dir", run, "--backend", backend]
    has = common.have("chromium")
    if not has:
        print("        chromium is not installed: two clients of Python talk in its place", flush=True)
    with processes.running(line, log, cwd=common.ROOT) as process:
        processes.wait_until_it_answers(process, log, port)
        talk = [python, os.path.join(HERE, "hub_chat.py"), "chromium" if has else "python", str(port), folder, program, run]
        status, output = processes.run_to_end(talk, timeout=120)
    said = [text.partition(" ") for text in output.splitlines()]
    for verdict, _, case in said:
        if verdict in ("ok", "FAIL"):
            results.add(f"{backend} chat, {kind}, {'chromium' if has else 'python'}: {case}", verdict == "ok")
    if status != 0 or ("end", "", "") not in said:
        results.add(f"{backend} chat, {kind}, to its end", False, output[-800:])


def notify(home, options, backend, results):
    """The example without an app, as its README starts it, but for the port and the directory."""
    port, folder = processes.free_port(), os.path.join(home, f"notify-{processes.free_port()}")
    os.mkdir(folder)
    log = os.path.join(folder, "log")
    line = [os.path.abspath(options.server), "--listen", f"127.0.0.1:{port}", "--hub", "--static", "examples/notify", "--run-dir", os.path.join(folder, "run"), "--backend", backend]
    with processes.running(line, log, cwd=common.ROOT) as process:
        processes.wait_until_it_answers(process, log, port)
        page = processes.request(port, "/")[1]
        stream = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        stream.request("GET", "/api/v1/listen?topic=notices", headers={"Accept": "text/event-stream"})
        events = stream.getresponse()
        events.readline(), events.readline(), events.readline()
        # What curl -d sends, twice with the same id.
        notices = [{"data": "one"}, {"data": "two", "id": "2"}, {"data": "two", "id": "2"}, {"data": "three"}]
        for notice in notices:
            publisher = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            body = json.dumps({"topic": "notices", **notice})
            publisher.request("POST", "/api/v1/notify", body, {"Content-Type": "application/x-www-form-urlencoded"})
            if publisher.getresponse().status != 202:
                raise Trouble(f"notify: {body} was refused")
            publisher.close()
        came = []
        while len(came) < 3:
            text = events.readline().decode()
            if text.startswith("data: "):
                came.append(text[6:].strip())
        stream.close()
    results.add(f"{backend} notify: page and notices", b"EventSource" in page and came == ["one", "two", "three"], str(came))


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    parts = ("autobahn", "clients", "deploys", "chat")
    flags.add_argument("--parts", default=",".join(parts), help="separated by commas (default: all)")
    flags.add_argument("--over", default="plain,tls", help="separated by commas (default: %(default)s)")
    flags.add_argument("--cases", default=None, help=f"globs of Autobahn's cases, separated by commas (default: {CASES})")
    flags.add_argument("--sockets", type=int, default=1000, help="of the deploys, at most 5000 (default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=50, help="of the deploys (default: %(default)s)")
    flags.add_argument("--quick", action="store_true", help="a few of all: less than a minute")
    options = flags.parse_args()
    chosen, over = options.parts.split(","), options.over.split(",")
    for word, known in [*((part, parts) for part in chosen), *((word, ("plain", "tls")) for word in over)]:
        if word not in known:
            flags.error(f"{word!r} is none of {', '.join(known)}")
    if options.server == "nginx":
        flags.error("nginx has no hub")
    if not 1 <= options.sockets <= 5000:
        flags.error("--sockets: expected 1 to 5000")
    options.cases = options.cases or (QUICK_CASES if options.quick else CASES)
    if options.quick:
        options.sockets, options.seconds = min(options.sockets, 200), min(options.seconds, 10)
    processes.need("node", "openssl")
    results, tools = common.Results(), {}
    bin_directory = common.python_with(home, "kosoku", "websockets", "httpx-sse", "httpx")
    tools["python"] = os.path.join(bin_directory, "python")
    tools["npm"] = common.npm(home, "ws@8", "eventsource@4", "bun@1") if "clients" in chosen else ""
    certificate = common.certificate(home)
    backends = common.backends(options)
    for number, backend in enumerate(backends):
        for kind in over:
            if options.quick and kind != ("plain", "tls")[number % 2] and len(over) > 1:
                continue
            secure = certificate if kind == "tls" else None
            print(f"\n{backend} {kind}", flush=True)
            if "autobahn" in chosen:
                autobahn(home, options, backend, kind, tools["python"], secure, results)
            if "clients" in chosen:
                with hub(home, options, backend, secure, 'history = { count = 1000 }') as server:
                    clients(server, backend, kind, tools, secure, results)
        if "deploys" in chosen and not (options.quick and number):
            deploys(home, options, backend, results)
        if "chat" in chosen:
            notify(home, options, backend, results)
        for kind in ("node", "python") if "chat" in chosen else ():
            if not options.quick or ("node", "python")[number % 2] == kind:
                chat(home, options, backend, kind, tools["python"], results)
    return results.exit_code()


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    common.run(main)
