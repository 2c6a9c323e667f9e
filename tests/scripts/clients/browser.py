"""Chromium against a server with a certificate that it has made itself (`--tls self-signed`).

    browser.py app SOCKET REPORT            the app behind the server: pages, an echo, a WebSocket, an event stream; needs aiohttp
    browser.py drive PORT CERTIFICATE REPORT HOME    the browser, twice: it trusts nobody, and then that certificate's key

What the page has seen it sends to the app, which keeps it in the file REPORT: `ok CASE` or `FAIL CASE: why`, and `end` when done, which the driver prints.
"""

import base64
import hashlib
import os
import subprocess
import sys
import time

PATIENCE = 60
SIZE = 2_000_000
PAGE = """<!doctype html><title>a test</title><script>
const size = %d, said = [], words = new Uint8Array(size);
for (let at = 0; at < size; at += 65536) crypto.getRandomValues(words.subarray(at, Math.min(at + 65536, size)));
const same = (came) => came.length === size && came.every((byte, at) => byte === words[at]);
const check = (ok, what) => { if (!ok) throw new Error(what); };
async function report(name, run) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error('too late')), 20000));
  try { await Promise.race([run(), late]); said.push('ok ' + name); } catch (error) { said.push(`FAIL ${name}: ${error}`); }
}
const bytes = async (answer) => new Uint8Array(await answer.arrayBuffer());
(async () => {
  await report('is a secure context over HTTP/1.1', async () => {
    check(isSecureContext && performance.getEntriesByType('navigation')[0].nextHopProtocol === 'http/1.1', 'it is not');
  });
  await report('GET', async () => check((await (await fetch('/word')).text()) === 'word', 'another answer'));
  await report('GET 2 MB', async () => check((await bytes(await fetch('/many'))).length === size, 'another length'));
  await report('POST 2 MB', async () => check(same(await bytes(await fetch('/echo', { method: 'POST', body: words }))), 'another body'));
  await report('100 at once', async () => {
    const asked = Array.from({ length: 100 }, (_, at) => fetch('/echo', { method: 'POST', body: 'number ' + at }));
    const came = await Promise.all(asked.map(async (one) => (await one).text()));
    check(came.every((text, at) => text === 'number ' + at), 'an answer is another\\'s');
  });
  await report('WebSocket', () => new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${location.host}/socket`);
    const texts = ['one', 'two', words.buffer];
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => texts.forEach((text) => socket.send(text));
    socket.onerror = () => reject(new Error('it has failed'));
    socket.onmessage = (event) => {
      const text = texts.shift();
      if (typeof text === 'string' ? event.data !== text : !same(new Uint8Array(event.data))) return reject(new Error('another message'));
      if (!texts.length) { socket.onclose = (end) => (end.wasClean ? resolve() : reject(new Error('no clean end'))); socket.close(1000); }
    };
  }));
  await report('event stream', () => new Promise((resolve, reject) => {
    const stream = new EventSource('/events'), came = [];
    stream.onerror = () => reject(new Error('it has failed'));
    stream.onmessage = (event) => { came.push(event.data); if (came.length === 5) { stream.close(); came.join() === '0,1,2,3,4' ? resolve() : reject(new Error(came)); } };
  }));
  await fetch('/report', { method: 'POST', body: said.concat('end', '').join('\\n') });
})();
</script>""" % SIZE


def app(path, report):
    import asyncio

    from aiohttp import web

    async def socket(request):
        stream = web.WebSocketResponse(max_msg_size=2 * SIZE)
        await stream.prepare(request)
        async for message in stream:
            await (stream.send_str if isinstance(message.data, str) else stream.send_bytes)(message.data)
        return stream

    async def events(request):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number in range(1000):
            await answer.write(f"data: {number}\n\n".encode())
            await asyncio.sleep(0.05)
        return answer

    async def keep(request):
        with open(report, "ab") as file:
            file.write(await request.read())
        return web.Response()

    async def echo(request):
        return web.Response(body=await request.read())

    async def word(_):
        return web.Response(text="word")

    async def many(_):
        return web.Response(body=bytes(SIZE))

    async def page(_):
        return web.Response(text=PAGE, content_type="text/html")

    made = web.Application(client_max_size=2 * SIZE)
    made.add_routes([web.get("/", page), web.get("/word", word), web.get("/many", many), web.post("/echo", echo), web.get("/socket", socket),
                     web.get("/events", events), web.post("/report", keep)])
    web.run_app(made, path=path, print=None)


def drive(port, certificate, report, home):
    made = subprocess.run(["openssl", "x509", "-in", certificate, "-pubkey", "-noout"], capture_output=True, check=True)
    key = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=made.stdout, capture_output=True, check=True).stdout
    trusted = base64.b64encode(hashlib.sha256(key).digest()).decode()
    line = ["chromium", "--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={os.path.join(home, 'profile')}",
            *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    url = f"https://localhost:{port}/"
    shown = subprocess.run([*line, "--dump-dom", url], capture_output=True, text=True, timeout=PATIENCE)
    distrusts = "ERR_CERT_AUTHORITY_INVALID" in shown.stdout + shown.stderr
    print("ok trusts nobody" if distrusts else f"FAIL trusts nobody: {shown.stdout[:200]} {shown.stderr[-300:]}")
    log = os.path.join(home, "net.json")
    browser = subprocess.Popen([*line, f"--ignore-certificate-errors-spki-list={trusted}", f"--log-net-log={log}", "--remote-debugging-port=0", url],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not (os.path.exists(report) and open(report).read().endswith("end\n")):
            time.sleep(0.1)
    finally:
        browser.terminate()
        browser.wait(PATIENCE)
    if os.path.exists(report):
        print(open(report).read(), end="")


if __name__ == "__main__":
    {"app": app, "drive": drive}[sys.argv[1]](*sys.argv[2:])
