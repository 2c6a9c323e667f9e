// A worker that keeps 64 KiB of each request, as one with a leak does, up to 80 MiB: enough to stay over its limit, and no more.
'use strict';
const http = require('node:http');

const kept = [];
const server = http.createServer((request, response) => {
  if (kept.length < 1280) kept.push(Buffer.alloc(64 * 1024, 1));
  setTimeout(() => {
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': 4 });
    response.end('pong');
  }, 2);
});
server.listen(process.env.SOCKET_PATH);
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
