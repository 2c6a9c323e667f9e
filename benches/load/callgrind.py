"""User-space instructions per request under callgrind, over one keep-alive connection.

A server runs twice under valgrind, for N and for 3 N requests; the difference of the two counts divided by 2 N is free
of start, stop and warm-up. The same requests give the same count on a noisy machine, to some tenths of a per cent, so
that this is the figure that guards against regressions. Not counted: the kernel's work.
"""

import contextlib
import glob
import os
import re

import processes
from processes import Trouble

# What a browser sends: 15 lines, 702 bytes beside the 40 of the bare request; also used by the load rows. The targets were set
# with another head of 700 bytes, for which nginx takes 18,400 instructions (direct) and 29,800 (forwarded, nothing added); for
# this one it takes 21,450 and 33,800. So this one is the harder.
BROWSER_FIELDS = [
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"),
    ("Accept-Language", "en-US,en;q=0.9,de;q=0.8"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Cache-Control", "max-age=0"),
    ("Sec-Ch-Ua", '"Chromium";v="131", "Not_A Brand";v="24"'),
    ("Sec-Ch-Ua-Mobile", "?0"),
    ("Sec-Ch-Ua-Platform", '"Linux"'),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Site", "same-origin"),
    ("Sec-Fetch-User", "?1"),
    ("Upgrade-Insecure-Requests", "1"),
    ("Referer", "http://localhost/catalogue/list?page=2"),
    ("Cookie", "session=2f1c0d9a7b6e5f4d3c2b1a09; theme=dark; _ga=GA1.1.1234567890.1700000000"),
]

# The cases in the order of the table: name, forwarded, with a browser's fields.
CASES = [
    ("direct", False, False),
    ("forwarded", True, False),
    ("direct, browser", False, True),
    ("forwarded, browser", True, True),
]


def request_bytes(browser):
    """The request that is repeated."""
    fields = [("Host", "localhost"), *(BROWSER_FIELDS if browser else [])]
    return ("GET /small HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n").encode()


def instructions(bench, kind, forwarding, browser, requests=1000, routes=0, log=None):
    """Instructions per request of one server and case; ours with so many routes, and with an access log in that format."""
    processes.need("valgrind")
    few, many = (count(bench, kind, forwarding, browser, times * requests, routes, log) for times in (1, 3))
    return (many - few) / (2 * requests)


def count(bench, kind, forwarding, browser, requests, routes=0, log=None):
    """All instructions of one server's life that answers so many requests."""
    # A worker that is already there must not be a child of the stack that ends with this run.
    if forwarding:
        bench.worker()
    place = os.path.join(bench.home, f"callgrind-{next(bench.numbers)}")
    os.mkdir(place)
    prefix = ["valgrind", "--tool=callgrind", "-q", f"--callgrind-out-file={place}/out.%p"]
    with contextlib.ExitStack() as stack:
        server = bench.start(kind, forwarding, prefix=prefix, master=False, stack=stack, routes=routes, log=log)
        talk(server.port, request_bytes(browser), requests)
    try:
        with open(f"{place}/out.{server.pid}") as file:
            found = re.search(r"^(?:summary|totals): (\d+)", file.read(), re.MULTILINE)
    except OSError as error:
        raise Trouble(f"{kind}: callgrind wrote nothing for process {server.pid}; it wrote {glob.glob(place + '/*')}") from error
    if not found:
        raise Trouble(f"{kind}: callgrind's file for process {server.pid} holds no sum")
    return int(found.group(1))


def talk(port, request, times):
    """Sends one request after another over one connection and checks each answer."""
    with processes.connect(port, timeout=30.0) as stream:
        pending = b""
        for _ in range(times):
            stream.sendall(request)
            status, _, _, pending = processes.read_answer(stream, pending)
            if status != 200 or pending:
                raise Trouble(f"a request under callgrind got status {status} and {len(pending)} bytes more")
