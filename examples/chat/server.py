"""A chat: a page, and what is said over its sockets, which the server holds and this app only hears of. See README.md."""

import contextlib
import os
import pathlib
import re
import socketserver
from http.server import BaseHTTPRequestHandler

from hub import answer, event, publish

RELEASE = os.environ.get("GENERATION", "0")
PAGE = pathlib.Path(__file__).with_name("index.html").read_bytes()
NAME = "name:"


def answered(told):
    """What an event is answered, or None to who is not let in. The app remembers nothing: the name that somebody has taken is a topic of the
    socket's, so that every worker knows it."""
    if told.kind == "open":
        name = told.query("name").strip()[:40]
        if not name or re.search(r"[\s\x00-\x1f\x7f-\x9f*]", name):
            return None
        return answer({"name": name, "came": True, "release": RELEASE}, join=[NAME + name], to=["chat"])
    name = next((group[len(NAME):] for group in told.groups if group.startswith(NAME)), "somebody")
    if told.kind == "text":
        return answer({"name": name, "text": told.text[:2000], "release": RELEASE}, to=["chat"])
    if told.kind == "close":
        return answer({"name": name, "left": True, "release": RELEASE}, to=["chat"])
    return answer()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.split("?")[0] == "/":
            return self.say(200, "text/html; charset=utf-8", PAGE)
        return self.say(404, "text/plain", b"not found\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = event(self.headers, body)
        if told:
            text = answered(told)
            return self.say(403, "text/plain", b"who are you?\n") if text is None else self.say(200, "application/json", text)
        # What does not come from a socket is published: curl -d 'the shop opens' http://localhost:8080/announce
        if self.path == "/announce":
            try:
                publish(os.environ["HUB"], "chat", {"name": "announcement", "text": body.decode(errors="replace"), "release": RELEASE})
            except OSError as error:
                return self.say(502, "text/plain", f"{error}\n".encode())
            return self.say(200, "text/plain", b"said\n")
        return self.say(404, "text/plain", b"not found\n")

    def say(self, status, media, body):
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # the server has an access log


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    path = os.environ["SOCKET_PATH"]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by an earlier process
    Server(path, Handler).serve_forever()
