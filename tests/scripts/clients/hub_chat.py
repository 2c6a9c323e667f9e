"""Two pages of examples/chat that talk through a rolling restart, for tests/scripts/hub.py.

    hub_chat.py chromium|python PORT HOME PROGRAM RUN-DIRECTORY

Prints `ok CASE` or `FAIL CASE: why`, and `end` when done. Needs `websockets`. Chromium is steered over its DevTools protocol.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request

from websockets.sync.client import connect

PATIENCE = 30


def wait(what, condition):
    end = time.monotonic() + PATIENCE
    while True:
        came = condition()
        if came:
            return came
        if time.monotonic() > end:
            raise SystemExit(f"FAIL in vain: {what}")
        time.sleep(0.05)


class Page:
    """A page of the chat in Chromium: what it shows is read, and its form is used."""

    def __init__(self, stack, debugger, port, name):
        url = f"http://127.0.0.1:{port}/?name={name}"
        asked = urllib.request.Request(f"http://127.0.0.1:{debugger}/json/new?{url}", method="PUT")
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            made = json.load(answer)
        self.end, target = f"http://127.0.0.1:{debugger}/json/close/{made['id']}", made["webSocketDebuggerUrl"]
        self.steering, self.number = stack.enter_context(connect(target, max_size=None)), 0

    def run(self, expression):
        self.number += 1
        self.steering.send(json.dumps({"id": self.number, "method": "Runtime.evaluate", "params": {"expression": expression}}))
        while True:
            came = json.loads(self.steering.recv(PATIENCE))
            if came.get("id") == self.number:
                return came["result"].get("result", {}).get("value")

    def say(self, text):
        self.run(f"document.getElementById('text').value = {json.dumps(text)}; document.getElementById('form').requestSubmit()")

    def said(self):
        return (self.run("[...document.querySelectorAll('#said li')].map((line) => line.textContent).join('\\n')") or "").splitlines()

    def state(self):
        return self.run("document.getElementById('state')?.textContent") or ""

    def close(self):
        urllib.request.urlopen(self.end, timeout=PATIENCE).close()


class Client:
    """The same without a browser."""

    def __init__(self, stack, port, name):
        self.socket = stack.enter_context(connect(f"ws://127.0.0.1:{port}/api/v1/listen?topic=chat&name={name}", subprotocols=["hub.v1"]))
        self.lines, self.shown = [], f"connected as {name}, 1 time"
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for came in self.socket:
            told = json.loads(came)
            if told["type"] == "subscribed":  # the app has it join the topic of its own
                continue
            said = told.get("data", {})
            doing = " is here" if said.get("came") else " has left" if said.get("left") else f": {said.get('text')}"
            self.lines.append(f"{said.get('name')}{doing} (release {said.get('release')})")
        self.shown = "not connected"

    def say(self, text):
        self.socket.send(text)

    def said(self):
        return list(self.lines)

    def state(self):
        return self.shown

    def close(self):
        self.socket.close()


@contextlib.contextmanager
def browser(home):
    """Chromium: the port where it is steered."""
    profile = os.path.join(home, "profile")
    line = ["chromium", "--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--remote-debugging-port=0",
            *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        told = os.path.join(profile, "DevToolsActivePort")
        wait("Chromium", lambda: os.path.exists(told) and open(told).read().count("\n") >= 1)
        yield int(open(told).read().splitlines()[0])
    finally:
        process.terminate()
        process.wait(PATIENCE)


def talk(make, port, program, run):
    def check(name, ok, why=""):
        print(f"ok {name}" if ok else f"FAIL {name}: {why}", flush=True)

    anna = make("anna")
    wait("anna is there", lambda: any(line.startswith("anna is here") for line in anna.said()))
    bert = make("bert")
    wait("anna sees bert", lambda: any(line.startswith("bert is here") for line in anna.said()))
    said = []

    def say(page, name, text):
        page.say(text)
        said.append(f"{name}: {text}")
        for other in (anna, bert):
            wait(f"all see {text!r}", lambda other=other: any(line.startswith(f"{name}: {text} (") for line in other.said()))

    say(anna, "anna", "hello")
    say(bert, "bert", "hello <anna>")
    deploy = subprocess.Popen([program, "restart", "--wait", "--run-dir", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    meanwhile = 0
    while deploy.poll() is None or meanwhile < 4:
        page, name = ((anna, "anna"), (bert, "bert"))[meanwhile % 2]
        say(page, name, f"meanwhile {meanwhile}")
        meanwhile += 1
    check("the deploy succeeds", deploy.returncode == 0, deploy.returncode)
    say(anna, "anna", "are you still there?")
    say(bert, "bert", "yes")
    lines = [line for line in anna.said() if ": " in line]
    check("each has what was said, once and in order", all([line.rsplit(" (", 1)[0] for line in page.said() if ": " in line] == said for page in (anna, bert)), lines)
    check("the new release has spoken", lines[0].endswith("(release 1)") and lines[-1].endswith("(release 2)"), lines)
    check("nobody was closed", all(page.state() == f"connected as {name}, 1 time" for page, name in ((anna, "anna"), (bert, "bert"))), anna.state())
    bert.close()
    wait("anna sees that bert has left", lambda: any(line.startswith("bert has left") for line in anna.said()))
    check("the end of one is told to the other", True)
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/announce", data=b"the shop opens", method="POST")
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        published = answer.status == 200
    wait("the announcement", lambda: any(line.startswith("announcement: the shop opens") for line in anna.said()))
    check("the app publishes", published)
    anna.close()
    print("end")


def main(kind, port, home, program, run):
    with contextlib.ExitStack() as stack:
        if kind == "python":
            return talk(lambda name: Client(stack, port, name), port, program, run)
        debugger = stack.enter_context(browser(home))
        return talk(lambda name: Page(stack, debugger, port, name), port, program, run)


if __name__ == "__main__":
    main(*sys.argv[1:])
