"""A WebSocket echo app; each message comes back as it went.

    pip install websockets
    production_server -- python examples/websocket/echo.py {socket}

Without an argument it takes the socket from SOCKET_PATH. A plain GET gets a short page. Messages of up to 64 MiB; no compression.
"""

import asyncio
import contextlib
import http
import os
import signal
import sys

from websockets.asyncio.server import unix_serve


async def echo(connection):
    async for message in connection:
        await connection.send(message)


def page(connection, request):
    """Answers what is no WebSocket handshake."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return connection.respond(http.HTTPStatus.OK, "This is a WebSocket echo app.\n")
    return None


async def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ["SOCKET_PATH"]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by an earlier process
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    async with unix_serve(echo, path, process_request=page, max_size=64 * 1024 * 1024, compression=None):
        await leave.wait()


if __name__ == "__main__":
    asyncio.run(main())
