// A worker that writes down every request before it answers: `recording_worker.js SOCKET DIRECTORY`.
// Each process appends the request's path, one a line, to a file of its own; a write(2) that has returned outlives a kill -9.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const [socket, directory] = process.argv.slice(2);
const record = fs.openSync(path.join(directory, String(process.pid)), 'a');

const server = http.createServer((request, response) => {
  const name = request.url.slice(1);
  if (name !== 'ping' && name !== '') fs.writeSync(record, `${name}\n`);
  request.resume();
  request.on('end', () => {
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': 2 });
    response.end('ok');
  });
});
fs.rmSync(socket, { force: true });
server.listen(socket);
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
