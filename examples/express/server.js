// An Express app.
//
//     npm install --prefix examples/express
//     production_server -c 64 -- node examples/express/server.js
//
// The server sets PORT to the path of a Unix socket; alone the app takes port 3000. `-c 64` lets 64 requests run in each worker at once.
'use strict';
const express = require('express');

const app = express();
app.disable('x-powered-by');

app.get('/', (request, response) => {
  response.type('text').send(`Hello from worker ${process.env.WORKER_ID || '0'}, process ${process.pid}\n`);
});

app.post('/echo', express.raw({ type: () => true, limit: '64mb' }), (request, response) => {
  response.type(request.get('content-type') || 'application/octet-stream').send(Buffer.from(request.body || ''));
});

app.get('/slow', (request, response) => {
  const pause = Math.min(Number(request.query.ms) || 100, 60000);
  setTimeout(() => response.type('text').send(`slept ${pause} ms\n`), pause);
});

const server = app.listen(process.env.PORT || 3000);

// On SIGTERM the requests in flight are answered before the process leaves; without this Node would cut them.
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
