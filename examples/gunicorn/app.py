"""A WSGI app without dependencies, for gunicorn.

    pip install gunicorn
    production_server -- gunicorn -b unix:{socket} --chdir examples/gunicorn app:application

Gunicorn's own sync worker takes one connection at a time and closes it after each answer, which fits the server's default of one
request at a time for each worker. With threads connections are kept, and `-c` gives each worker as many requests as it has threads:

    production_server -c 4 -- gunicorn -k gthread --threads 4 -b unix:{socket} --chdir examples/gunicorn app:application

The server does the restarting, so gunicorn gets no `--workers`, `--max-requests` or `--reload` of its own. It handles TERM itself.
"""

import os
import time
from urllib.parse import parse_qs


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = parse_qs(environ["QUERY_STRING"])
    status, content_type = "200 OK", "text/plain"
    if path == "/":
        body = f"Hello from worker {os.environ.get('WORKER_ID', '0')}, process {os.getpid()}\n".encode()
    elif path == "/ping":
        body = b"pong\n"
    elif path == "/echo":
        body = environ["wsgi.input"].read()
        content_type = environ.get("CONTENT_TYPE") or "application/octet-stream"
    elif path == "/slow":
        pause = number(query, "ms", 100, 60_000)
        time.sleep(pause / 1000)
        body = f"slept {pause} ms\n".encode()
    elif path == "/bytes":
        body = b"x" * number(query, "n", 1024, 64 * 1024 * 1024)
    else:
        status, body = "404 Not Found", b"not found\n"
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def number(query, name, otherwise, most):
    value = query.get(name, [""])[0]
    return min(int(value), most) if value.isdigit() else otherwise
