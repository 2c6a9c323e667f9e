// The Node app of the comparison: a small JSON answer. With CLUSTER=N it is its own process manager, as node:cluster has it.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');

const processes = Number(process.env.CLUSTER || 0);
if (processes > 0 && cluster.isPrimary) {
  for (let count = 0; count < processes; count += 1) cluster.fork();
  process.on('SIGTERM', () => {
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGTERM');
    process.exit(0);
  });
} else {
  const server = http.createServer((request, response) => {
    const body = JSON.stringify({ message: 'Hello, World!', path: request.url });
    response.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) });
    response.end(body);
  });
  server.listen(process.env.PORT);
  process.on('SIGTERM', () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
