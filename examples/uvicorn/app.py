"""An ASGI app without dependencies, for uvicorn; /ws echoes WebSocket messages (it needs `pip install websockets` as well).

    pip install uvicorn
    production_server -c 64 -- uvicorn --uds {socket} --app-dir examples/uvicorn app:application

`-c 64` lets 64 requests run in each worker at once, as an asynchronous app wants; the default is one. Uvicorn handles TERM itself.
"""

import asyncio
import os
from urllib.parse import parse_qs


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo_messages(receive, send)
    else:
        await answer(scope, receive, send)


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def echo_messages(receive, send):
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.disconnect":
            return
        else:
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def answer(scope, receive, send):
    path, query = scope["path"], parse_qs(scope["query_string"].decode("latin-1"))
    if path == "/stream":
        return await stream(send)
    status, body = 200, b"pong\n"
    if path == "/":
        body = f"Hello from worker {os.environ.get('WORKER_ID', '0')}, process {os.getpid()}\n".encode()
    elif path == "/echo":
        body = await whole_body(receive)
    elif path == "/slow":
        pause = number(query, "ms", 100, 60_000)
        await asyncio.sleep(pause / 1000)
        body = f"slept {pause} ms\n".encode()
    elif path == "/bytes":
        body = b"x" * number(query, "n", 1024, 64 * 1024 * 1024)
    elif path != "/ping":
        status, body = 404, b"not found\n"
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", b"text/plain"), (b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


def number(query, name, otherwise, most):
    value = query.get(name, [""])[0]
    return min(int(value), most) if value.isdigit() else otherwise


async def whole_body(receive):
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def stream(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for number in range(1, 6):
        await send({"type": "http.response.body", "body": f"line {number}\n".encode(), "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b""})
