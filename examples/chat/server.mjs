// A chat: a page, and what is said over its sockets, which the server holds and this app only hears of. See README.md.
import fs from 'node:fs';
import http from 'node:http';
import { answer, event, isEvent, publish } from './hub.mjs';

const place = process.env.PORT || process.env.SOCKET_PATH || '3000';
const release = process.env.GENERATION || '0';
const page = fs.readFileSync(new URL('index.html', import.meta.url));
const NAME = 'name:';

// What an event is answered. The app remembers nothing: the name that somebody has taken is a topic of the socket's, so that every worker knows it.
function answered({ kind, groups, target, text }) {
  if (kind === 'open') {
    const name = target.searchParams.get('name')?.trim().slice(0, 40);
    if (!name || /[\s\p{C}*]/u.test(name)) return null;
    return answer({ join: [NAME + name], to: ['chat'], message: { name, came: true, release } });
  }
  const name = groups.find((group) => group.startsWith(NAME))?.slice(NAME.length) ?? 'somebody';
  if (kind === 'text') return answer({ to: ['chat'], message: { name, text: text.slice(0, 2000), release } });
  if (kind === 'close') return answer({ to: ['chat'], message: { name, left: true, release } });
  return answer();
}

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', async () => {
    const body = Buffer.concat(pieces);
    const say = (status, type, text) => {
      response.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(text) });
      response.end(text);
    };
    if (isEvent(request)) {
      const text = answered(event(request, body));
      return text === null ? say(403, 'text/plain', 'who are you?\n') : say(200, 'application/json', text);
    }
    if (request.url.split('?')[0] === '/') return say(200, 'text/html; charset=utf-8', page);
    // What does not come from a socket is published: curl -d 'the shop opens' http://localhost:8080/announce
    if (request.url === '/announce' && request.method === 'POST') {
      try {
        await publish(process.env.HUB, 'chat', { name: 'announcement', text: body.toString(), release });
        return say(200, 'text/plain', 'said\n');
      } catch (error) {
        return say(502, 'text/plain', `${error.message}\n`);
      }
    }
    return say(404, 'text/plain', 'not found\n');
  });
});

if (place.includes('/')) fs.rmSync(place, { force: true });
server.listen(/^\d+$/.test(place) ? Number(place) : place);

// On SIGTERM the requests in flight are answered before the process leaves.
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
