// An app in a hub: what a socket says comes back to it, in the same form. An empty answer is nothing, so that what is empty comes back by being
// published on the socket's own topic, at the URL in HUB. `GET /` is a page.
import fs from 'node:fs';
import http from 'node:http';
import { answer, event, isEvent, publish } from '../../../examples/chat/hub.mjs';

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', async () => {
    const body = Buffer.concat(pieces);
    let [type, said] = ['application/json', answer()];
    if (isEvent(request)) {
      const { kind, id } = event(request, body);
      if (kind === 'open') said = answer({ join: [id] });
      else if (kind !== 'close' && body.length) [type, said] = [request.headers['content-type'], body];
      else if (kind !== 'close') await publish(process.env.HUB, id, kind === 'text' ? '' : new Uint8Array());
    }
    response.writeHead(200, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(said) });
    response.end(said);
  });
});
// Node loads its client with the first request, which takes longer than some of Autobahn's clocks on a busy machine.
await fetch(process.env.HUB).catch(() => {});
fs.rmSync(process.env.SOCKET_PATH, { force: true });
server.listen(process.env.SOCKET_PATH);
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
