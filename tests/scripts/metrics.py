#!/usr/bin/env python3
"""Has the metrics read by those who are to read them: promtool, prometheus-client's parsers, and a Prometheus that scrapes once.

    tests/scripts/metrics.py --server target/release/production_server [--parser python3]

Needs Debian's package prometheus; `--parser` names an interpreter that has PyPI's prometheus-client (default: this one). What is
missing is an error. Exit codes: 0 all agree, 1 something does not, 64 wrong flags.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

PATIENCE = 20.0
CLASSIC = "text/plain;version=0.0.4"
OPEN = "application/openmetrics-text;version=1.0.0"
# Both parsers of the client library over files; prints what they found of the requests.
PARSE = """
import sys
from prometheus_client.parser import text_string_to_metric_families as classic
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
for parse, path in ((classic, sys.argv[1]), (strict, sys.argv[2])):
    families = list(parse(open(path).read()))
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
    print(len(families), samples[("http_server_requests_total", (("app", "web"), ("code", "200")))])
"""


class Trouble(Exception):
    """What went wrong, for people."""


def fetch(url, accept="*/*"):
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            found = condition()
        except (OSError, ValueError, KeyError, IndexError, StopIteration):
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise Trouble(f"in vain was waited until {what}")


def check_promtool(text):
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, timeout=PATIENCE)
    if done.returncode or done.stderr.strip():
        raise Trouble(f"promtool check metrics: exit {done.returncode}\n{done.stdout}{done.stderr}")


def check_parsers(python, folder, classic, open_text):
    paths = [os.path.join(folder, name) for name in ("classic.txt", "open.txt")]
    for path, text in zip(paths, (classic, open_text)):
        with open(path, "w") as file:
            file.write(text)
    done = subprocess.run([python, "-c", PARSE, *paths], text=True, capture_output=True, timeout=PATIENCE)
    if done.returncode:
        raise Trouble(f"prometheus-client: {done.stderr.strip() or done.stdout}")
    for line in done.stdout.splitlines():
        families, count = line.split()
        if int(families) < 30 or float(count) != 5:
            raise Trouble(f"prometheus-client found {line}, expected 5 requests and at least 30 families")


def check_scrape(folder, address, processes):
    """Lets a Prometheus scrape, and asks it what it has."""
    config = os.path.join(folder, "prometheus.yml")
    with open(config, "w") as file:
        file.write(f"scrape_configs:\n- job_name: server\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{address}']\n")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0"]
    log = open(os.path.join(folder, "prometheus.log"), "w+")
    processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder))

    def where():
        log.seek(0)
        found = re.search(r"Listening on\W+(?:\w+=)?\W*(127\.0\.0\.1:\d+)", log.read())
        return found and found.group(1)

    own = until("Prometheus listens", where)

    def ask(query):
        text, _ = fetch(f"http://{own}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        return [float(result["value"][1]) for result in json.loads(text)["data"]["result"]]

    until("Prometheus has scraped", lambda: ask('up{job="server"} == 1'))
    for query, expected in (
        ('http_server_requests_total{app="web",code="200"}', 5),
        ('http_server_request_duration_seconds_count{app="web"}', 5),
        ('production_server_build_info', 1),
    ):
        found = until(query, lambda query=query: ask(query))
        if found != [expected]:
            raise Trouble(f"Prometheus has {found} for {query}, expected {expected}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="target/release/production_server", help="default: %(default)s")
    parser.add_argument("--parser", default=sys.executable, help="an interpreter with prometheus-client")
    try:
        options = parser.parse_args()
    except SystemExit as leaving:
        return 64 if leaving.code else 0
    processes = []
    folder = tempfile.mkdtemp(prefix="metrics-")
    try:
        for tool in ("promtool", "prometheus"):
            if not shutil.which(tool):
                raise Trouble(f"{tool} is missing: apt-get install prometheus")
        run(options, folder, processes)
    except (Trouble, OSError, subprocess.SubprocessError) as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    print("promtool, prometheus-client and Prometheus agree with the server")
    return 0


def run(options, folder, processes):
    log_path = os.path.join(folder, "server.log")
    with open(log_path, "w") as log:
        command = [os.path.abspath(options.server), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--run-dir", f"{folder}/run"]
        command += ["--workers", "2", "--log-format", "json", "--no-access-log", "--stats-interval", "0s"]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=folder))

    def said(message):
        with open(log_path) as lines:
            events = [json.loads(line) for line in lines if line.startswith("{")]
        return next(event["address"] for event in events if event["message"] == message)

    public = until("the server listens", lambda: said("listening"))
    admin = until("its admin listener is there", lambda: said("listening for those who watch the server"))
    until("the workers are ready", lambda: fetch(f"http://{admin}/readyz")[0])
    for _ in range(5):
        fetch(f"http://{public}/ping")
    classic, kind = fetch(f"http://{admin}/metrics", CLASSIC)
    if not kind.startswith("text/plain; version=0.0.4"):
        raise Trouble(f"asked for the classic text, got {kind}")
    open_text, kind = fetch(f"http://{admin}/metrics", f"{OPEN},{CLASSIC};q=0.5")
    if not kind.startswith("application/openmetrics-text; version=1.0.0"):
        raise Trouble(f"asked for OpenMetrics, got {kind}")
    check_promtool(classic)
    check_parsers(options.parser, folder, classic, open_text)
    check_scrape(folder, admin, processes)


if __name__ == "__main__":
    sys.exit(main())
