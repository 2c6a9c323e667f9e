// A client of a hub, for tests/scripts/hub.py: hub_clients.mjs ws|bun|eventsource URL [LAST-ID]. It prints `open`, each `message ID DATA`, and over a WebSocket
// `echoed 20` when what it has said, texts and bytes, has come back in order. The packages lie below MODULES.
import { createRequire } from 'node:module';

const [kind, url, last] = process.argv.slice(2);
const load = createRequire(`${process.env.MODULES}/`);
const target = `${url}${last ? `?last_event_id=${last}` : ''}`;
const say = (text) => process.stdout.write(`${text}\n`);
const fail = (why) => { say(`FAIL ${why}`); process.exit(1); };

if (kind === 'eventsource') {
  const { EventSource } = load('eventsource');
  const stream = new EventSource(target);
  stream.onopen = () => say('open');
  stream.onerror = (event) => fail(event.message);
  stream.addEventListener('gap', (event) => fail(`gap ${event.data}`));
  stream.onmessage = (event) => say(`message ${event.lastEventId} ${event.data}`);
} else {
  const Socket = kind === 'bun' ? WebSocket : load('ws').WebSocket;
  const socket = new Socket(target.replace('http', 'ws'), 'hub.v1');
  socket.binaryType = 'arraybuffer';
  const echoes = Array.from({ length: 20 }, (_, number) => (number % 2 ? Uint8Array.from({ length: 1000 }, (_, at) => at + number) : `text ${number} grüße ${'long '.repeat(number * 500)}`));
  let echoed = 0;
  socket.onopen = () => { say('open'); echoes.forEach((echo) => socket.send(echo)); };
  socket.onerror = (event) => fail(event.message ?? 'an error');
  socket.onclose = (event) => fail(`closed ${event.code}`);
  socket.onmessage = ({ data }) => {
    if (typeof data === 'string' && data.startsWith('{"type":')) {
      const told = JSON.parse(data);
      // The app has it join a topic.
      if (told.type === 'subscribed') return undefined;
      return told.type === 'message' ? say(`message ${told.id} ${JSON.stringify(told.data)}`) : fail(data);
    }
    const wanted = echoes[echoed];
    const same = typeof wanted === 'string' ? data === wanted : typeof data !== 'string' && Buffer.from(data).equals(Buffer.from(wanted));
    if (!same) return fail(`another echo at ${echoed}`);
    echoed += 1;
    if (echoed === echoes.length) say(`echoed ${echoed}`);
  };
}
