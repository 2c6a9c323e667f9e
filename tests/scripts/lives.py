"""The checks of workers' lives under load that `load-checks.py` runs: rolls, scaling, recycling, sudden death and crash loops.

Owns what they need: a load that goes on until it is told to stop, words to the control socket, and the events in the server's log.
Rules: a check waits for what the server says, with a deadline; only loads and measurements last for a time that was asked for.
"""

import concurrent.futures
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time

import common
import processes
from common import ROOT, Trouble

CHECKS = ("roll", "scale", "lives", "dead", "idle", "leak", "crashloop")
# These mostly wait: they are run for all backends at the same time.
WAITING = ("idle", "leak", "crashloop")
APPS = ("built-in", "node", "gunicorn")
LEAKING = os.path.join(ROOT, "tests", "scripts", "clients", "leaking_worker.js")
GUNICORN = os.path.join(ROOT, "target", "frameworks", "venv", "bin", "gunicorn")
# A server with nothing to do may use so much of a core.
IDLE_SHARE = 0.001
# Its timers may wake all of its threads together so often a second.
IDLE_WAKEUPS = 5
# So soon after the first worker is ready the first answer that was held has to leave, in seconds.
PROMPT = 0.050


class Load:
    """wrk over kept connections and ab with a connection for each request, at the same time, until the block is left."""

    def __init__(self, port, path="/ping", kept=64, fresh=16):
        self.port, self.path, self.kept, self.fresh = port, path, kept, fresh
        self.wrk, self.ab = None, {"complete": 0, "failed": 0, "non_2xx": 0}
        self.stop, self.trouble = threading.Event(), None

    def __enter__(self):
        processes.need("wrk", "ab")
        line = ["wrk", "-t2", f"-c{self.kept}", "-d600s", "--timeout", "10s", f"http://127.0.0.1:{self.port}{self.path}"]
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True)
        self.thread = threading.Thread(target=self.fresh_ones, daemon=True)
        self.thread.start()
        return self

    def fresh_ones(self):
        try:
            while not self.stop.is_set():
                done = common.ab(self.port, 50 * self.fresh, self.fresh, False, self.path)
                for key in self.ab:
                    self.ab[key] += done[key]
                # Each leaves a port behind that rests for a minute: the many thousands there are have to last.
                self.stop.wait(0.05)
        except Trouble as trouble:
            self.trouble = trouble

    def __exit__(self, *_):
        self.stop.set()
        # wrk prints its figures when it is interrupted.
        self.process.send_signal(signal.SIGINT)
        try:
            output = self.process.communicate(timeout=15)[0].decode(errors="replace")
        finally:
            self.process.kill()
            self.process.wait()
        self.thread.join(60)
        self.wrk = common.wrk_figures(self.process.returncode, output)

    def judge(self, name, results):
        """No answer but 2xx, no error on any connection, and there was something that could have failed."""
        wrk, ab = self.wrk, self.ab
        wrong = wrk["non_2xx"] or any(wrk["errors"].values()) or ab["failed"] or ab["non_2xx"] or self.trouble
        say = f"wrk {wrk['requests']} requests, {wrk['non_2xx']} non-2xx, {wrk['errors'] or 'no'} errors; ab {ab} {self.trouble or ''}"
        results.add(f"{name}: no request fails", not wrong and wrk["requests"] > 0 and ab["complete"] > 0, say)


def until(what, condition, patience=30.0):
    """Waits until the condition gives something, and returns it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise Trouble(f"not within {patience:.0f} s: {what}")


def app_of(server):
    """The app in the status document."""
    path = os.path.join(server.run, "control.sock")
    status, body = processes.request(path, "/status", timeout=5.0)
    if status != 200:
        raise Trouble(f"the control socket answers {status}: {body.decode(errors='replace')}")
    return json.loads(body)["apps"][0]


def word(options, server, *words):
    """One word of the command line for that server; its exit code and output."""
    return processes.run_to_end([os.path.abspath(options.server), *words, "--run-dir", server.run], 120)


def settled(app, count):
    """So many workers, and all of them serve."""
    return len(app["workers"]) == count and all(worker["state"] == "running" for worker in app["workers"])


def until_settled(server, count, patience=60.0):
    return until(f"{count} workers", lambda: (app := app_of(server)) and settled(app, count) and app, patience)


def pids(app):
    return {worker["pid"] for worker in app["workers"]}


def leaders(server):
    """The server's own children that are workers, as /proc has them."""
    found = set()
    for pid, _ in processes.descendants(server.pid)[1:]:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            ours = int(processes.stat_fields(pid)[1]) == server.pid and processes.stat_fields(pid)[0] != b"Z"
            if ours and b"\0WORKER_ID=" in b"\0" + file.read():
                found.add(pid)
    return found


def events(server, name):
    """The events of that name in the server's log, in their order, with `at` in seconds since the epoch."""
    found = []
    with open(server.log, errors="replace") as file:
        for line in file:
            if f'"{name}"' in line and line.startswith("{") and line.endswith("\n"):
                event = json.loads(line)
                if event.get("event") == name:
                    event["at"] = datetime.datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp()
                    found.append(event)
    return found


def apps(options):
    """(name, command, flags) of the apps that were asked for and are there."""
    node = ["node", os.path.join(ROOT, "examples", "node", "server.js")]
    program = processes.find("gunicorn") or (GUNICORN if os.access(GUNICORN, os.X_OK) else None)
    gunicorn = [program, "-b", "unix:{socket}", "--chdir", os.path.join(ROOT, "examples", "gunicorn"), "app:application"]
    known = {"built-in": (None, ()), "node": (processes.find("node") and node, ("-c", "16")),
             "gunicorn": (program and gunicorn, ())}
    for name in options.apps.split(","):
        command, flags = known[name]
        if name == "built-in" or command:
            yield name, command, flags
        else:
            print(f"  -     {name} is not installed: left out", flush=True)


def roll(home, options, backend, results):
    """Rolling restarts in a row, some asked for twice, one waited for."""
    for name, command, flags in apps(options):
        title, workers = f"{backend} {options.rolls} rolls, {name}", 2
        with common.serving(home, options.server, backend, flags, command, workers) as server:
            first = until_settled(server, workers)
            with Load(server.port) as load:
                replaced, count = roll_again_and_again(options, server)
            load.judge(title, results)
            last = until_settled(server, workers)
            results.add(f"{title}: all workers are new, as many as before",
                        replaced and not pids(first) & pids(last) and leaders(server) == pids(last),
                        f"{count} restarts, generation {last['generation']}")


def roll_again_and_again(options, server):
    """Whether every restart has replaced every worker; and how many restarts there were."""
    count, replaced = 0, True
    for number in range(options.rolls):
        before = (app_of(server)["roll"] or {"id": 0})["id"]
        if number == options.rolls // 2:
            code, output = word(options, server, "restart", "--wait")
            if code != 0:
                raise Trouble(f"restart --wait: exit code {code}: {output}")
        else:
            os.kill(server.pid, signal.SIGUSR2)
        if number % 4 == 1:  # the same again at once: it joins the first, or goes behind it
            os.kill(server.pid, signal.SIGUSR2)
        if number % 4 == 3:  # and while the first is under way
            until("a restart under way", lambda before=before: (app_of(server)["roll"] or {"id": 0})["id"] > before)
            os.kill(server.pid, signal.SIGUSR2)
        last = until("the restart to end", lambda before=before: ended(server, before), 90)
        count += last["id"] - before
        replaced = replaced and last["replaced"] == last["total"] > 0
    return replaced and count >= options.rolls, count


def ended(server, before):
    last = app_of(server)["roll"]
    if last and last["state"] == "aborted":
        raise Trouble(f"a restart was aborted: {last}\n{processes.tail(server.log)}")
    return last if last and last["id"] > before and last["state"] == "done" else None


def scale(home, options, backend, results):
    """2, 8, 1 and 4 workers by the word, then one more and two fewer by signals."""
    with common.serving(home, options.server, backend, workers=2) as server:
        until_settled(server, 2)
        with Load(server.port, "/sleep?ms=2") as load:
            for count in (8, 1, 4):
                code, output = word(options, server, "scale", str(count))
                if code != 0:
                    raise Trouble(f"scale {count}: exit code {code}: {output}")
                until_settled(server, count)
                time.sleep(options.seconds / 6)  # the load with so many
            for number, count in ((signal.SIGTTIN, 5), (signal.SIGTTOU, 4), (signal.SIGTTOU, 3)):
                os.kill(server.pid, number)
                until_settled(server, count)
        load.judge(f"{backend} scale", results)
        results.add(f"{backend} scale: as many processes as workers", len(leaders(server)) == 3)


def lives(home, options, backend, results):
    """Workers that end after 50 requests, and others that end after two seconds."""
    by_count, by_time = ["r:50"], ["r:0", "--max-lifetime", "2s"]
    with (common.serving(home, options.server, backend, by_count) as first,
          common.serving(home, options.server, backend, by_time) as second):
        with Load(first.port, kept=32, fresh=8) as one, Load(second.port, kept=32, fresh=8) as other:
            time.sleep(options.seconds)  # the load's length
        for name, load, server, reason in (("r:50", one, first, "requests"), ("--max-lifetime 2s", other, second, "lived")):
            load.judge(f"{backend} {name}", results)
            replaced = [event for event in events(server, "worker-exit") if f"recycle: {reason}" in reason_of(event)]
            others = [event["reason"] for event in events(server, "worker-exit") if "recycle" not in event["reason"]]
            results.add(f"{backend} {name}: replaced for that reason alone", bool(replaced) and not others,
                        f"{len(replaced)} replaced {others[:5] or ''}")
            until_settled(server, 2)


def reason_of(event):
    """`recycle: 50 requests` with its word before the number, so that all reasons read alike."""
    head, _, rest = event["reason"].partition(": ")
    words = rest.split(" ")
    return f"{head}: {words[1] if words[0].isdigit() and len(words) > 1 else words[0]}"


class Arrivals:
    """Clients that ask without an end: some again and again over one connection, and one more every few milliseconds.

    `outcomes` holds (sent, answered, status) of each request, in seconds since the epoch; the status is 0 for a broken connection.
    """

    def __init__(self, port, steady=16, pause=0.01):
        self.port, self.pause, self.outcomes = port, pause, []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.again_and_again, daemon=True) for _ in range(steady)]
        self.coming = threading.Thread(target=self.come, daemon=True)

    def __enter__(self):
        for thread in (*self.threads, self.coming):
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.coming.join(30)
        for thread in self.threads:
            thread.join(30)
        if any(thread.is_alive() for thread in self.threads):
            raise Trouble("a request was never answered")

    def ask(self, stream, last):
        sent = time.time()
        try:
            end = "Connection: close\r\n" if last else ""
            stream.sendall(f"POST /ping HTTP/1.1\r\nHost: localhost\r\n{end}Content-Length: 0\r\n\r\n".encode())
            status = processes.read_answer(stream)[0]
        except OSError:
            status = 0
        self.outcomes.append((sent, time.time(), status))
        return status != 0

    def again_and_again(self):
        with processes.connect(self.port, timeout=25.0) as stream:
            while not self.stop.is_set() and self.ask(stream, False):
                pass

    def once(self):
        with processes.connect(self.port, timeout=25.0) as stream:
            self.ask(stream, True)

    def come(self):
        while not self.stop.wait(self.pause):
            self.threads.append(threading.Thread(target=self.once, daemon=True))
            self.threads[-1].start()


def dead(home, options, backend, results):
    """All workers are killed at once, again and again, while requests keep coming."""
    # Slow to start, so that there is a time without any worker.
    command = ["sh", "-c", 'sleep 0.4; exec "$0" worker', os.path.abspath(options.server)]
    delays, count, lost, held = [], 4, 0, 0
    with common.serving(home, options.server, backend, command=command, workers=count) as server:
        with Arrivals(server.port) as arrivals:
            for _ in range(3):
                app = until_settled(server, count)
                killed = time.time()
                for pid in pids(app):
                    os.kill(pid, signal.SIGKILL)
                # By time, and not by count: the log may be behind what the server says of itself.
                ready = until("a new worker", lambda killed=killed: [
                    event["at"] for event in events(server, "worker-ready") if event["at"] > killed])[0]
                # Those who came when no worker was left; an answer to one who came later may well be the first.
                ours = until("an answer to one that was held", lambda killed=killed, ready=ready: [
                    (answered, status) for sent, answered, status in list(arrivals.outcomes) if killed <= sent < ready <= answered])
                held += len(ours)
                delays += [min(answered for answered, status in ours if status == 200) - ready]
        lost = sum(status == 502 for _, _, status in arrivals.outcomes)
        wrong = sorted({status for _, _, status in arrivals.outcomes} - {200, 502})
        longest = max(answered - sent for sent, answered, _ in arrivals.outcomes)
    say = f"{len(arrivals.outcomes)} requests, {lost} x 502, the longest took {longest * 1000:.0f} ms"
    results.add(f"{backend} dead: only those inside fail, by 502", not wrong and lost <= 3 * count, f"{say} {wrong or ''}")
    results.add(f"{backend} dead: held until there is a worker", held >= 3 and longest < 10, f"{held} held")
    shown = ", ".join(f"{delay * 1000:.0f}" for delay in delays)
    results.bar(f"{backend} dead: the first held answer follows the first ready worker within {PROMPT * 1000:.0f} ms",
                max(delays) <= PROMPT, f"after {shown} ms")


def share(pid, seconds):
    """The share of a core that one process (without its children) takes during so many seconds."""
    before = own_nanoseconds(pid)
    time.sleep(seconds)  # what is measured
    return (own_nanoseconds(pid) - before) / 1e9 / seconds


def wakeups(pid):
    """How often the threads of one process have gone to sleep."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total


def own_nanoseconds(pid):
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total


def idle(home, options, backend, results):
    """Four workers and nobody who asks."""
    # Statistics are printed as they are without the flags of these scripts.
    with common.serving(home, options.server, backend, ["--stats-interval", "10s"], workers=4) as server:
        until_settled(server, 4)
        before = wakeups(server.pid)
        used = share(server.pid, options.idle)
        woken = (wakeups(server.pid) - before) / options.idle
        results.add(f"{backend} idle: it sleeps", woken <= IDLE_WAKEUPS, f"{woken:.1f} wake-ups a second over {options.idle} s")
        results.bar(f"{backend} idle: below {IDLE_SHARE:.1%} of a core", used < IDLE_SHARE, f"{used:.4%} over {options.idle} s")


def leak(home, options, backend, results):
    """Workers that hold more and more memory."""
    with common.serving(home, options.server, backend, ["--max-memory", "90MiB"], ["node", LEAKING]) as server:
        first = until_settled(server, 2)
        with Load(server.port, kept=4, fresh=2) as load:
            def gone():
                return not pids(first) & pids(app_of(server)) and settled(app_of(server), 2)

            until("both workers to be replaced", gone, 90)
        load.judge(f"{backend} leak", results)
        reasons = {event["pid"]: event["reason"] for event in events(server, "worker-exit")}
        ok = pids(first) <= reasons.keys() and all(reason.startswith("recycle: memory ") for reason in reasons.values())
        results.add(f"{backend} leak: replaced for their memory", ok, str(sorted(reasons.values())))


def crashloop(home, options, backend, results):
    """A command that was ready once, and exits at once from then on."""
    place = os.path.join(home, f"crash-{backend}")
    command = ["sh", "-c", '[ ! -e "$1" ] || { echo no database >&2; exit 3; }; exec "$0" worker', os.path.abspath(options.server), place]
    base, flags = 0.5, ["--restart-base", "500ms", "--restart-max", "8s", "--give-up", "5/60s"]
    with common.serving(home, options.server, backend, flags, command) as server:
        until_settled(server, 2)
        lived = lambda: [worker for worker in app_of(server)["workers"] if worker["uptime_seconds"] > 2 * base]
        workers = until("the workers to have lived", lambda: len(lived()) == 2 and lived())
        with open(place, "w"):
            pass
        for worker in workers:
            os.kill(worker["pid"], signal.SIGKILL)
        began = time.monotonic(), own_nanoseconds(server.pid)
        # The log is read, for to ask the server would keep it busy.
        until("the app to fail", lambda: events(server, "app-failed"), 60)
        busy = (own_nanoseconds(server.pid) - began[1]) / 1e9 / (time.monotonic() - began[0])
        for worker in workers:
            keeps_schedule(server, f"{backend} crashloop", worker, base, results)
        starts = len(events(server, "worker-spawn"))
        results.bar(f"{backend} crashloop: little work while it lasts", busy < 0.02, f"{busy:.2%} of a core")
        state = app_of(server)["state"]
        results.add(f"{backend} crashloop: failed", state == "failed", state)
        before = wakeups(server.pid)
        time.sleep(2)  # what is measured
        woken, still = (wakeups(server.pid) - before) / 2, len(events(server, "worker-spawn")) == starts
        results.add(f"{backend} crashloop: nothing to do once it has failed", still and woken <= IDLE_WAKEUPS, f"{woken:.1f} wake-ups a second")
        begin = time.monotonic()
        status, _ = processes.request(server.port, "/ping")
        results.add(f"{backend} crashloop: 503 at once", status == 503 and time.monotonic() - begin < 1, str(status))
        os.unlink(place)
        code, output = word(options, server, "restart", "--wait")
        until_settled(server, 2)
        results.add(f"{backend} crashloop: a restart brings it back", code == 0 and processes.request(server.port, "/ping")[0] == 200, output.strip())


def keeps_schedule(server, name, worker, base, results):
    """The pauses between an end and the next start: none behind the first crash, then base, 2 base and so on, up to a quarter longer."""
    ours = f".{worker['id']}"
    starts = [event["at"] for event in events(server, "worker-spawn") if event["worker"].endswith(ours)]
    ends = [event["at"] for event in events(server, "worker-exit") if event["worker"].endswith(ours)]
    pauses = [start - end for start, end in zip(starts[1:], ends)]
    # The first worker had answered, or not: then its death is the first of the five.
    crashes = len(ends) - (len(pauses) == 5)
    plan = [0.0] * (1 + (len(pauses) == 5)) + [base, 2 * base, 4 * base]
    # Times are written in milliseconds; a machine that is busy may be late.
    kept = len(pauses) == len(plan) and all(least - 0.002 <= pause <= least * 1.25 + 0.5 for pause, least in zip(pauses, plan))
    results.add(f"{name}: worker {worker['id']} keeps the schedule, and is given up after five crashes", kept and crashes == 5,
                " ".join(f"{pause:.2f}" for pause in pauses))


def go_through(home, options, chosen, backends, results):
    """Runs the chosen checks of this file."""
    for backend in backends:
        for check in chosen:
            if check not in WAITING:
                globals()[check](home, options, backend, results)
    waiting = [(globals()[check], backend) for check in WAITING if check in chosen for backend in backends]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(waiting))) as pool:
        for done in [pool.submit(check, home, options, backend, results) for check, backend in waiting]:
            done.result()


if __name__ == "__main__":
    sys.exit("error: this is a part of load-checks.py; run that")
