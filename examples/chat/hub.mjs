// What an app needs to take part in a hub: reads an event, writes an answer, publishes. No package; copy it.
//
//     [hub.NAME]
//     app = "web"          each event of a socket comes as POST /v1/realtime

// Whether a request tells of a socket.
export const isEvent = (request) => 'sec-websocket-frame' in request.headers;

// What has happened: `kind` is open, text, binary or close; `id` is the socket's, `groups` are the topics that it listens to. With open comes
// `target`, what the client asked for, as a URL; with text `text` and with binary `data`, what it has said; with close `code`.
export function event(request, body) {
  const field = (name) => request.headers[name] ?? '';
  const kind = field('sec-websocket-frame');
  return {
    kind,
    id: field('x-socket-id'),
    groups: field('x-socket-groups').split(',').filter(Boolean).map(decodeURIComponent),
    ...(kind === 'open' && { target: new URL(field('x-socket-target'), 'http://hub') }),
    ...(kind === 'text' && { text: body.toString() }),
    ...(kind === 'binary' && { data: body }),
    ...(kind === 'close' && { code: Number(field('x-socket-close')) }),
  };
}

// The body of an answer: `message`, an object, goes to the topics and sockets `to`, but not to the sockets `except`; without `to` it goes to the
// socket itself. `join` and `leave` are topics, and `close` ends the socket: a code, or { code, reason }.
export function answer({ message, to, except, join, leave, close } = {}) {
  return JSON.stringify({ ...message, '@': to, '>': except, '+': join, '-': leave, '!': close });
}

// Publishes at `url` (http://HOST:PORT/api/v1/notify): text, any value of JSON, or bytes. What comes again with the same `id` is not published again.
// `key` is one of the hub's `keys`, where there are such. Gives { id, subscribers }.
export async function publish(url, topic, data, { id, key } = {}) {
  const said = data instanceof Uint8Array ? { binary: Buffer.from(data).toString('base64') } : { data };
  const headers = { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify({ topic, id, ...said }) });
  if (response.status !== 202) throw new Error(`${url}: ${response.status} ${await response.text()}`);
  return response.json();
}
