// A Node app without dependencies.
//
//     production_server -- node examples/node/server.js
//
// The server sets PORT to the path of a Unix socket, so that an app which listens on process.env.PORT needs no change; alone it
// takes port 3000. The paths: /, /ping, /echo, /bytes?n=, /stream, /slow?ms= (and /sleep?ms=, as the built-in worker has it).
'use strict';
const fs = require('node:fs');
const http = require('node:http');

const place = process.env.PORT || process.env.SOCKET_PATH || '3000';
const worker = process.env.WORKER_ID || '0';

function number(url, name, otherwise, most) {
  const value = Number(url.searchParams.get(name) ?? otherwise);
  return Number.isFinite(value) && value >= 0 ? Math.min(value, most) : otherwise;
}

function text(response, body) {
  response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': Buffer.byteLength(body) });
  response.end(body);
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  switch (url.pathname) {
    case '/':
      return text(response, `Hello from worker ${worker}, process ${process.pid}\n`);
    case '/ping':
      return text(response, 'pong\n');
    case '/echo': {
      const pieces = [];
      request.on('data', (piece) => pieces.push(piece));
      request.on('end', () => {
        const body = Buffer.concat(pieces);
        response.writeHead(200, {
          'Content-Type': request.headers['content-type'] || 'application/octet-stream',
          'Content-Length': body.length,
        });
        response.end(body);
      });
      return undefined;
    }
    case '/bytes': {
      const body = Buffer.alloc(number(url, 'n', 1024, 64 * 1024 * 1024), 'x');
      response.writeHead(200, { 'Content-Type': 'application/octet-stream', 'Content-Length': body.length });
      return response.end(body);
    }
    case '/stream': {
      response.writeHead(200, { 'Content-Type': 'text/plain' });
      let sent = 0;
      const timer = setInterval(() => {
        response.write(`line ${(sent += 1)}\n`);
        if (sent === 5) {
          clearInterval(timer);
          response.end();
        }
      }, 20);
      return response.on('close', () => clearInterval(timer));
    }
    case '/slow':
    case '/sleep': {
      const pause = number(url, 'ms', 100, 60000);
      return void setTimeout(() => text(response, `slept ${pause} ms\n`), pause);
    }
    default:
      response.writeHead(404, { 'Content-Type': 'text/plain' });
      return response.end('not found\n');
  }
});

// Node refuses to listen over a socket file that an earlier process has left.
if (place.includes('/')) fs.rmSync(place, { force: true });
server.listen(/^\d+$/.test(place) ? Number(place) : place);

// On SIGTERM the requests in flight are answered before the process leaves; without this Node would cut them.
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
