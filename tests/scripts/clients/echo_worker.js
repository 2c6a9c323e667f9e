// A worker that sends every body back, under every method and path: `echo_worker.js SOCKET`.
'use strict';
const fs = require('node:fs');
const http = require('node:http');

const [socket] = process.argv.slice(2);
const server = http.createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    const body = Buffer.concat(pieces);
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': body.length });
    response.end(body);
  });
});
fs.rmSync(socket, { force: true });
server.listen(socket);
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
