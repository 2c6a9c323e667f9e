#!/usr/bin/env python3
"""Sends the same requests to nginx, Apache and this server, and compares their access lines byte for byte.

    tests/scripts/access-log-formats.py [--server target/debug/production_server]

`combined` is compared with nginx's, `common` with Apache's, but for the time of day. Needed: Debian's `nginx` and `apache2-bin`.
Exit codes: 0 all alike, 1 some differ or a server did not start.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "benches", "load"))
from processes import free_port  # noqa: E402  (found by the line above)

# What reaches the log of all three: servers differ in what they refuse, and in the bytes of their own refusals.
COMMON = [
    b"GET / HTTP/1.1\r\nHost: a\r\n",
    b"GET /?q=%22%5C HTTP/1.1\r\nHost: a\r\nReferer: http://r/\"x\"\\\r\nUser-Agent: curl/8 (\xc3\xa9)\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nUser-Agent: a\tb\r\n",
    b"GET /?x=1&y='<>` HTTP/1.1\r\nHost: a\r\nUser-Agent:\r\nReferer: -\r\n",
]
NGINX = COMMON + [
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YWxpY2U6czNjcmV0\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YSAiYiI6eA==\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic OnBhc3M=\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer YTpi\r\n",
    b"GET /\"x\\ HTTP/1.1\r\nHost: a\r\n",
]


def ask(port, head):
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(head + b"Connection: close\r\n\r\n")
                while client.recv(65536):
                    pass
                return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def lines(command, port, log, requests, **options):
    """Runs a server for these requests, and returns the lines that it has logged."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        for head in requests:
            ask(port, head)
        deadline = time.monotonic() + 20
        while not os.path.exists(log) or open(log, "rb").read().count(b"\n") < len(requests):
            if time.monotonic() > deadline:
                sys.exit(f"error: {command[0]} has not logged all requests")
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)
    return [re.sub(rb"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]", b"[TIME]", line) for line in open(log, "rb").read().splitlines()]


def nginx(place):
    port, log = free_port(), os.path.join(place, "nginx.log")
    config = os.path.join(place, "nginx.conf")
    with open(config, "w") as file:
        file.write(f"""daemon off; master_process off; pid {place}/nginx.pid; error_log /dev/null; events {{}}
http {{ access_log {log} combined; client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello"; }} }} }}
""")
    return lines(["nginx", "-c", config, "-p", place], port, log, NGINX)


def apache(place):
    port, log, modules = free_port(), os.path.join(place, "apache.log"), "/usr/lib/apache2/modules"
    config, root = os.path.join(place, "apache.conf"), os.path.join(place, "root")
    os.mkdir(root)
    with open(os.path.join(root, "index.html"), "w") as file:
        file.write("hello")
    os.chmod(place, 0o755)
    with open(config, "w") as file:
        file.write(f"""ServerRoot {place}
ServerName a
PidFile {place}/apache.pid
DefaultRuntimeDir {place}
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dir_module {modules}/mod_dir.so
DirectoryIndex index.html
User www-data
Group www-data
ErrorLog /dev/null
LogFormat "%h %l %u %t \\"%r\\" %>s %b" common
CustomLog {log} common
DocumentRoot {root}
""")
    return lines(["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", config], port, log, COMMON)


def ours(server, place, form, requests):
    port, log = free_port(), os.path.join(place, f"{form}.log")
    command = [server, "--listen", f"127.0.0.1:{port}", "--respond", "hello", "--access-log", log, "--log-format", form,
               "--stats-interval", "0s", "--run-dir", os.path.join(place, form)]
    return lines(command, port, log, requests)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="target/debug/production_server", help="default: %(default)s")
    server = os.path.abspath(parser.parse_args().server)
    differ = 0
    with tempfile.TemporaryDirectory() as place:
        pairs = [("nginx", "combined", nginx(place), NGINX), ("Apache", "common", apache(place), COMMON)]
        for name, form, theirs, requests in pairs:
            mine = ours(server, place, form, requests)
            for request, (one, other) in zip(requests, zip(theirs, mine)):
                if one != other:
                    differ += 1
                    print(f"{request!r}\n  {name}: {one!r}\n  ours:  {other!r}")
            print(f"{form}: {len(requests)} requests compared with {name}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
