"""The rows of the comparison: what is asked of the servers, and the target that each figure is held against."""

import dataclasses

from callgrind import BROWSER_FIELDS
from servers import FILES

# Sends 16 requests at a time over each connection.
PIPELINE = """
init = function()
    local requests = {}
    for i = 1, 16 do requests[i] = wrk.format("GET", "/small") end
    pipelined = table.concat(requests)
end
request = function() return pipelined end
"""

POST = """
wrk.method = "POST"
wrk.body = string.rep("x", 16384)
wrk.headers["Content-Type"] = "application/octet-stream"
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One load row. Targets are × nginx's CPU per request, for epoll and for io_uring."""

    name: str
    title: str
    forwarding: bool | str
    path: str
    connections: int
    target_epoll: float
    target_io_uring: float
    script: str = ""
    fields: tuple = ()
    secure: bool = False
    gzip: bool = False

    def server(self, kind):
        """What tells apart the servers that the rows need."""
        return kind, self.forwarding, self.secure, self.gzip


LOAD = [
    Row("direct-64", "direct, 64 connections", False, "/small", 64, 0.90, 0.90),
    Row("direct-512", "direct, 512 connections", False, "/small", 512, 0.90, 0.90),
    Row("pipelined", "direct, pipelined 16 deep", False, "/small", 64, 0.15, 0.15, script=PIPELINE),
    Row("forwarded-64", "forwarded, small, 64 connections", True, "/small", 64, 0.85, 0.80),
    Row("forwarded-512", "forwarded, small, 512 connections", True, "/small", 512, 0.70, 0.70),
    Row("browser", "forwarded, browser headers", True, "/small", 64, 0.75, 0.75,
        fields=tuple(f"{name}: {value}" for name, value in BROWSER_FIELDS)),
    Row("64k", "forwarded, 64 KiB answer", True, "/64k", 64, 0.85, 1.10),
    Row("1m", "forwarded, 1 MiB answer", True, "/1m", 64, 0.85, 1.10),
    Row("post", "forwarded, POST of 16 KiB", True, "/small", 64, 0.85, 1.10, script=POST),
    Row("chunked", "forwarded, chunked 4 x 1 KiB", True, "/chunked", 64, 0.60, 0.60),
    Row("gzip-64k", "forwarded, 64 KiB of JSON, compressed on the way", True, "/json", 64, 0.80, 0.80,
        fields=("Accept-Encoding: gzip",), gzip=True),
    Row("file-10k", "a file of 10 KiB", FILES, "/10k", 64, 0.90, 0.90),
    Row("file-1m", "a file of 1 MiB", FILES, "/1m", 64, 0.90, 0.90),
    Row("close", "direct, one connection a request", False, "/small", 64, 0.95, 0.85, fields=("Connection: close",)),
    Row("tls-direct-64", "TLS 1.3, direct, 64 connections", False, "/small", 64, 0.87, 0.87, secure=True),
    Row("tls-forwarded-64", "TLS 1.3, forwarded, small, 64 connections", True, "/small", 64, 0.87, 0.87, secure=True),
    Row("tls-64k", "TLS 1.3, forwarded, 64 KiB answer", True, "/64k", 64, 0.90, 0.90, secure=True),
]

# Rows that are measured in another way, each once a server: name and title.
OTHER = {
    "memory": "resident bytes per idle connection",
    "tls-memory": "resident bytes per idle connection with TLS 1.3",
    "tls-full": "TLS 1.3 handshakes with a P-256 certificate",
    "tls-resumed": "TLS 1.3 handshakes of clients that come back with a ticket",
    "latency": "forwarded at a constant rate",
    "queue": "two loops, more clients than permits",
    "slow-readers": "fast clients beside 2,000 slow readers of 400 KB",
    "streams": "fast clients beside 10,000 event streams",
    "access-log": "with an access log in JSON to a file, against none",
    "instructions": "instructions per request",
}

# `--backend auto` takes the backend with the lower geometric mean over these.
DECISIVE = ("forwarded-64", "64k", "post")

# The crowds of those rows: what each peer does (see crowd.c), how many come, and where the fast ones may be with them, as a multiple
# of their p99 without.
CROWDS = {"slow-readers": ("readers", 2000), "streams": ("listeners", 10_000)}
CROWD_FACTOR = 2.0
# Requests a second of the fast clients together: far from what would keep any of the servers busy.
CROWD_RATE = 3000
# The permits of the queue's row, each with a worker of its own, and its clients.
QUEUE_PERMITS, QUEUE_CLIENTS = 2, 64

MEMORY_TARGET = 300
# × nginx: of the memory of an idle connection with TLS, and of the CPU time of a handshake (1.5 and 1.2 times as many a second).
TLS_MEMORY_TARGET, HANDSHAKE_TARGETS = 0.5, {"tls-full": 1 / 1.5, "tls-resumed": 1 / 1.2}
# The rows that are measured with and without an access log, and what the log may cost at most.
LOGGED, LOG_TARGET = ("direct-64", "forwarded-64", "browser"), 0.03
INSTRUCTION_TARGETS = {"direct": 2471, "forwarded": 7398, "direct, browser": 5184, "forwarded, browser": 10178}

NAMES = [row.name for row in LOAD] + list(OTHER)
