"""What an app needs to take part in a hub: reads an event, writes an answer, publishes. No package; copy it.

    [hub.NAME]
    app = "web"          each event of a socket comes as POST /v1/realtime
"""

import base64
import json
import urllib.parse
import urllib.request
from dataclasses import dataclass, field


@dataclass
class Event:
    """What has happened on a socket."""

    kind: str  # open, text, binary or close
    id: str  # the socket's
    groups: list = field(default_factory=list)  # the topics that it listens to
    target: str = ""  # open: what the client asked for, path and query
    text: str = ""  # text: what it has said
    data: bytes = b""  # binary: what it has said
    code: int = 0  # close: how it was closed

    def query(self, name, otherwise=""):
        """A value of the target's query."""
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.target).query).get(name, [otherwise])[0]


def event(headers, body):
    """The event that a request tells of, or None; `headers` is anything with `get`, in which case of letters does not matter."""
    kind = headers.get("Sec-WebSocket-Frame")
    if kind is None:
        return None
    groups = [urllib.parse.unquote(name) for name in headers.get("X-Socket-Groups", "").split(",") if name]
    told = Event(kind, headers.get("X-Socket-Id", ""), groups, headers.get("X-Socket-Target", ""))
    if kind == "text":
        told.text = body.decode()
    elif kind == "binary":
        told.data = body
    elif kind == "close":
        told.code = int(headers.get("X-Socket-Close", "0"))
    return told


def answer(message=None, to=None, excluded=None, join=None, leave=None, close=None):
    """The body of an answer: `message`, a dict, goes to the topics and sockets `to`, but not to the sockets `excluded`; without `to` it goes to the
    socket itself. `join` and `leave` are topics, and `close` ends the socket: a code, or {"code", "reason"}."""
    members = {"@": to, ">": excluded, "+": join, "-": leave, "!": close}
    return json.dumps({**(message or {}), **{name: value for name, value in members.items() if value is not None}}).encode()


def publish(url, topic, data, id=None, key=None):
    """Publishes at `url` (http://HOST:PORT/api/v1/notify): text, any value of JSON, or bytes. What comes again with the same `id` is not
    published again. `key` is one of the hub's `keys`, where there are such. Gives {"id", "subscribers"}; raises urllib.error.HTTPError."""
    said = {"binary": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"data": data}
    said |= {"topic": topic} | ({"id": id} if id else {})
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(said).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)
