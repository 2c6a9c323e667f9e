"""A WSGI app without dependencies, for gunicorn.

    pip install gunicorn
    production_server -- gunicorn -b unix:{socket} --chdir examples/python wsgi:application

Gunicorn's own sync worker takes one connection at a time and closes it after each answer, which fits the server's default of one
request at a time for each worker. For threads: `production_server -c 4 -- gunicorn -k gthread --threads 4 …`.
"""

import os
from urllib.parse import parse_qs


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = parse_qs(environ["QUERY_STRING"])
    content_type = "text/plain"
    if path == "/":
        body = f"Hello from worker {os.environ.get('WORKER_ID', '0')}, process {os.getpid()}\n".encode()
    elif path == "/ping":
        body = b"pong\n"
    elif path == "/echo":
        body = environ["wsgi.input"].read()
        content_type = environ.get("CONTENT_TYPE") or "application/octet-stream"
    elif path == "/bytes":
        count = query.get("n", ["1024"])[0]
        body = b"x" * min(int(count) if count.isdigit() else 1024, 64 * 1024 * 1024)
    else:
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
        return [b"not found\n"]
    start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]
