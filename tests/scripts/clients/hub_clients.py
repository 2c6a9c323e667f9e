"""A client of a hub, for tests/scripts/hub.py: hub_clients.py websockets|websockets-plain|httpx-sse|poll URL [LAST-ID]. It prints `open`, each
`message ID DATA`, and over a WebSocket `echoed 20` when what it has said, texts and bytes, has come back in order. TRUSTED is a certificate."""

import json
import os
import ssl
import sys
import urllib.request


def say(text):
    print(text, flush=True)


def message(told):
    if told["type"] == "subscribed":  # the app has it join a topic
        return
    if told["type"] != "message":
        raise SystemExit(f"FAIL {told}")
    say(f"message {told['id']} {json.dumps(told['data'], separators=(',', ':'))}")


def socket(target, trust, compression):
    from websockets.sync.client import connect

    echoes = [bytes((at + number) % 256 for at in range(1000)) if number % 2 else f"text {number} grüße " + "long " * (number * 500) for number in range(20)]
    with connect(target.replace("http", "ws", 1), ssl=trust, subprotocols=["hub.v1"], compression=compression) as stream:
        if (stream.protocol.extensions != []) != (compression is not None):
            raise SystemExit(f"FAIL extensions {stream.protocol.extensions}")
        say("open")
        for echo in echoes:
            stream.send(echo)
        echoed = 0
        for came in stream:
            if isinstance(came, str) and came.startswith('{"type":'):
                message(json.loads(came))
            elif came != echoes[echoed]:
                raise SystemExit(f"FAIL another echo at {echoed}")
            else:
                echoed += 1
                if echoed == len(echoes):
                    say(f"echoed {echoed}")
    raise SystemExit("FAIL closed")


def events(target, trust):
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(verify=trust or True, timeout=None) as client, connect_sse(client, "GET", target) as source:
        say("open")
        for event in source.iter_sse():
            if event.event == "gap":
                raise SystemExit(f"FAIL {event.data}")
            if event.data:
                say(f"message {event.id} {event.data}")


def poll(url, last, trust):
    # The first answer says where to go on from: from there on nothing is missed.
    if not last:
        with urllib.request.urlopen(f"{url}/../topics", context=trust, timeout=60) as answer:
            known = {topic["topic"]: topic["id"] for topic in json.load(answer)["topics"]}
        last = known.get("broadcast", "")
    say("open")
    while True:
        with urllib.request.urlopen(f"{url}?last_event_id={last}", context=trust, timeout=60) as answer:
            document = json.load(answer)
        if document["gaps"]:
            raise SystemExit(f"FAIL {document['gaps']}")
        for told in document["messages"]:
            message(told)
        last = document["last_event_id"]


def main(kind, url, last=""):
    trust = ssl.create_default_context(cafile=os.environ["TRUSTED"]) if url.startswith("https") else None
    target = url + (f"?last_event_id={last}" if last else "")
    if kind == "httpx-sse":
        events(target, trust)
    elif kind == "poll":
        poll(url, last, trust)
    else:
        socket(target, trust, "deflate" if kind == "websockets" else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
