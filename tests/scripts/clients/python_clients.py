"""Python's HTTP clients against a server: `python_clients.py CLIENT PORT`, over TLS where TRUSTED in the environment names the certificate to
trust. Prints `ok CASE` or `FAIL CASE: why`, then `end`."""

import asyncio
import http.client
import os
import ssl
import sys

TRUSTED = os.environ.get("TRUSTED")
CONTEXT = ssl.create_default_context(cafile=TRUSTED) if TRUSTED else None
SIZE = 2_000_000
BODY = os.urandom(SIZE)
TIMES = 20


def pieces():
    """A body of unknown length, so that the client sends it chunked."""
    for start in range(0, SIZE, 50_000):
        yield BODY[start : start + 50_000]


async def pieces_slowly():
    for piece in pieces():
        yield piece


def report(case, check):
    try:
        check()
        print(f"ok {case}", flush=True)
    except Exception as error:  # whatever a client raises is the result of its case
        print(f"FAIL {case}: {type(error).__name__} {error}".replace("\n", " "), flush=True)


def wanted(status, body, expected=None):
    assert status == 200, f"status {status}"
    assert body if expected is None else body == expected, f"a body of {len(body)} bytes differs"


def with_http_client(port):
    secure = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=CONTEXT) if TRUSTED else None
    connection = secure or http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def ask(method, path, body=None, headers=None, expected=None, chunked=False):
        connection.request(method, path, body, headers or {}, encode_chunked=chunked)
        answer = connection.getresponse()
        came = answer.read()
        wanted(answer.status, came, expected)
        return came

    def exactly():
        assert len(ask("GET", f"/bytes?n={SIZE}")) == SIZE, "not all of it"

    def head():
        connection.request("HEAD", "/ping")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b""), "a body after HEAD"

    def same_connection():
        ask("GET", "/ping")
        used = connection.sock
        for _ in range(TIMES):
            ask("GET", "/ping")
            assert connection.sock is used and used is not None, "the connection was closed"

    report("GET", lambda: ask("GET", "/ping"))
    report("HEAD", head)
    report("POST", lambda: ask("POST", "/echo", b"hello", expected=b"hello"))
    report("GET 2 MB", exactly)
    report("POST 2 MB", lambda: ask("POST", "/echo", BODY, expected=BODY))
    report("POST 2 MB chunked", lambda: ask(
        "POST", "/echo", pieces(), {"Transfer-Encoding": "chunked"}, expected=BODY, chunked=True))
    report("stream", lambda: ask("GET", "/stream"))
    report("keep-alive", same_connection)


def with_session(session, url, chunked):
    """requests and httpx, whose sessions are alike."""

    def ask(method, path, expected=None, **more):
        answer = session.request(method, url + path, timeout=20, **more)
        wanted(answer.status_code, answer.content, expected)
        return answer

    def head():
        answer = session.request("HEAD", f"{url}/ping", timeout=20)
        assert (answer.status_code, answer.content) == (200, b""), "a body after HEAD"

    def exactly():
        assert len(ask("GET", f"/bytes?n={SIZE}").content) == SIZE, "not all of it"

    report("GET", lambda: ask("GET", "/ping"))
    report("HEAD", head)
    report("POST", lambda: ask("POST", "/echo", b"hello", **{chunked: b"hello"}))
    report("GET 2 MB", exactly)
    report("POST 2 MB", lambda: ask("POST", "/echo", BODY, **{chunked: BODY}))
    report("POST 2 MB chunked", lambda: ask("POST", "/echo", BODY, **{chunked: pieces()}))
    report("stream", lambda: ask("GET", "/stream"))
    report("keep-alive", lambda: [ask("GET", "/ping") for _ in range(TIMES)])


async def with_aiohttp(url):
    import aiohttp

    async def ask(session, method, path, data=None, expected=None):
        async with session.request(method, url + path, data=data, ssl=CONTEXT or True) as answer:
            body = await answer.read()
            if method == "HEAD":
                assert (answer.status, body) == (200, b""), "a body after HEAD"
            else:
                wanted(answer.status, body, expected)
            return body

    async def exactly(session):
        assert len(await ask(session, "GET", f"/bytes?n={SIZE}")) == SIZE, "not all of it"

    async def many(session):
        await asyncio.gather(*(ask(session, "POST", "/echo", BODY[:1000], BODY[:1000]) for _ in range(200)))

    async def case(name, check):
        try:
            await check
            print(f"ok {name}", flush=True)
        except Exception as error:  # whatever a client raises is the result of its case
            print(f"FAIL {name}: {type(error).__name__} {error}".replace("\n", " "), flush=True)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        await case("GET", ask(session, "GET", "/ping"))
        await case("HEAD", ask(session, "HEAD", "/ping"))
        await case("POST", ask(session, "POST", "/echo", b"hello", b"hello"))
        await case("GET 2 MB", exactly(session))
        await case("POST 2 MB", ask(session, "POST", "/echo", BODY, BODY))
        await case("POST 2 MB chunked", ask(session, "POST", "/echo", pieces_slowly(), BODY))
        await case("stream", ask(session, "GET", "/stream"))
        await case("200 at once", many(session))


def with_websockets(url):
    from websockets.sync.client import connect

    def ask():
        with connect(f"{url}/socket", ssl=CONTEXT, proxy=None, max_size=None) as socket:
            for message in ("hello", "", "x" * 126, BODY):
                socket.send(message)
                assert socket.recv(timeout=20) == message, f"a message of {len(message)} differs"

    report("echo of 0, 5, 126 and 2,000,000", ask)
    report("20 one after the other", lambda: [ask() for _ in range(TIMES)])


def main(client, port):
    url = f"{'https' if TRUSTED else 'http'}://127.0.0.1:{port}"
    if client == "http.client":
        with_http_client(port)
    elif client == "requests":
        import requests

        with requests.Session() as session:
            session.trust_env, session.verify = False, TRUSTED or True
            with_session(session, url, "data")
    elif client == "httpx":
        import httpx

        with httpx.Client(trust_env=False, verify=CONTEXT or True) as session:
            with_session(session, url, "content")
    elif client == "websockets":
        with_websockets(url.replace("http", "ws", 1))
    else:
        asyncio.run(with_aiohttp(url))
    print("end")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
