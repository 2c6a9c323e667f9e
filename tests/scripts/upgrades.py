#!/usr/bin/env python3
"""Upgrades under load: `wrk` and `ab` through ten upgrades of the binary, with both backends.

Usage: upgrades.py [PROGRAM] [--upgrades N] [--seconds S]

Holds when no request fails (wrk: no socket error and no status but 200; ab: no failed request), every upgrade succeeds, the counters of the
status document only grow and count every answer, and pid file and process follow. Between the upgrades come broken binaries: one that
exits, one that is no server, one that speaks another version; each must be refused with 75 and change nothing.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "benches", "load"))

from processes import free_port  # noqa: E402  (found by the line above)


def control(run, path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(os.path.join(run, "control.sock"))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


def wait_for(what, condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        if time.time() > end:
            sys.exit(f"in vain: {what}")
        time.sleep(0.02)


def script(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w") as file:
        file.write("#!/bin/sh\n" + text + "\n")
    os.chmod(path, 0o755)
    return path


def listens(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def run(program, backend, upgrades, seconds):
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        rundir, pidfile, port = os.path.join(folder, "run"), os.path.join(folder, "pid"), free_port()
        errors = open(os.path.join(folder, "stderr"), "w")
        command = [program, "--listen", f"127.0.0.1:{port}", "--run-dir", rundir, "--pid-file", pidfile, "--backend", backend,
                   "--loops", "2", "-w", "2", "-c", "4", "--no-access-log", "--stats-interval", "0s", "--json-logging",
                   "--upgrade-timeout", "20s"]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        broken = [script(folder, "exits", "exit 1"),
                  script(folder, "other-version", "printf '{\"hello\":{\"protocol\":999,\"version\":\"9\"}}\\n' >&0; sleep 60")]
        try:
            wait_for("the server listens", lambda: listens(port))
            wait_for("it can be asked", lambda: os.path.exists(os.path.join(rundir, "control.sock")))
            wait_for("its workers are ready", lambda: control(rundir, "/status")["apps"][0]["workers_ready"] == 2)
            url = f"http://127.0.0.1:{port}/"
            loads = [subprocess.Popen(["wrk", "-t1", "-c64", f"-d{seconds}s", url], stdout=subprocess.PIPE, text=True),
                     subprocess.Popen(["ab", "-q", "-r", "-c8", "-n10000000", f"-t{seconds}", url], stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True)]
            begin, requests, processes = time.time(), 0, set()
            for number in range(upgrades):
                time.sleep(max(0, begin + (number + 0.5) * (seconds - 3) / upgrades - time.time()))
                document = control(rundir, "/status")
                if document["counters"]["requests"] < requests:
                    failures.append(f"upgrade {number}: requests fell from {requests} to {document['counters']['requests']}")
                requests = document["counters"]["requests"]
                bad = broken[number % len(broken)]
                refused = subprocess.run([program, "upgrade", bad, "--wait", "--run-dir", rundir], capture_output=True, text=True)
                if refused.returncode != 75 or control(rundir, "/status")["pid"] != document["pid"]:
                    failures.append(f"{bad}: {refused.returncode} {refused.stderr}")
                done = subprocess.run([program, "upgrade", "--wait", "--run-dir", rundir], capture_output=True, text=True)
                if done.returncode != 0:
                    failures.append(f"upgrade {number}: {done.returncode} {done.stderr}")
                    continue
                process = control(rundir, "/status")["pid"]
                processes.add(process)
                with open(pidfile) as file:
                    if int(file.read()) != process:
                        failures.append(f"upgrade {number}: the pid file does not follow")
                # The one before may still finish its requests; an upgrade waits for none but its own.
            if len(processes) != upgrades:
                failures.append(f"{len(processes)} processes served after {upgrades} upgrades")
            wrk, ab = (load.communicate()[0] for load in loads)
            sent = int(re.search(r"(\d+) requests in", wrk).group(1))
            completed = int(re.search(r"Complete requests:\s+(\d+)", ab).group(1))
            failed = int(re.search(r"Failed requests:\s+(\d+)", ab).group(1))
            if "Socket errors" in wrk or "Non-2xx" in wrk:
                failures.append("wrk: " + " ".join(line for line in wrk.splitlines() if "errors" in line or "Non-2xx" in line))
            if failed or "Non-2xx" in ab:
                failures.append(f"ab: {failed} of {completed} failed: {ab}")
            counted = control(rundir, "/status")["counters"]["requests"]
            if counted < sent + completed:
                failures.append(f"{counted} requests were counted, and {sent + completed} answered")
            print(f"{backend}: {upgrades} upgrades, wrk {sent} and ab {completed} requests, {counted} counted: "
                  + ("; ".join(failures) or "no failure"))
        finally:
            subprocess.run([program, "stop", "--run-dir", rundir], capture_output=True)
            server.wait()
            errors.close()
            if failures:
                with open(os.path.join(folder, "stderr")) as file:
                    print(file.read()[-6000:])
    return failures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?", default=os.path.join(ROOT, "target/release/production_server"))
    parser.add_argument("--upgrades", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    program = os.path.abspath(options.program)
    failures = [run(program, backend, options.upgrades, options.seconds) for backend in ("epoll", "io_uring")]
    sys.exit(1 if any(failures) else 0)


if __name__ == "__main__":
    main()
