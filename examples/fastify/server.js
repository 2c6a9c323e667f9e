// A Fastify app.
//
//     npm install --prefix examples/fastify
//     production_server -c 64 -- node examples/fastify/server.js
//
// Fastify takes a Unix socket as `path`, and the server gives it as SOCKET_PATH; alone the app takes port 3000. `-c 64` lets 64
// requests run in each worker at once.
'use strict';
const fastify = require('fastify')({ bodyLimit: 64 * 1024 * 1024 });

// Bodies of any type, as bytes.
fastify.removeAllContentTypeParsers();
fastify.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));

fastify.get('/', async (request, reply) => {
  reply.type('text/plain');
  return `Hello from worker ${process.env.WORKER_ID || '0'}, process ${process.pid}\n`;
});

fastify.post('/echo', async (request, reply) => {
  reply.type(request.headers['content-type'] || 'application/octet-stream');
  return request.body || Buffer.alloc(0);
});

fastify.get('/slow', async (request, reply) => {
  const pause = Math.min(Number(request.query.ms) || 100, 60000);
  await new Promise((done) => setTimeout(done, pause));
  reply.type('text/plain');
  return `slept ${pause} ms\n`;
});

const place = process.env.SOCKET_PATH ? { path: process.env.SOCKET_PATH } : { port: 3000 };
fastify.listen(place).catch((error) => {
  console.error(error.message);
  process.exit(1);
});

// On SIGTERM the requests in flight are answered before the process leaves; without this Node would cut them.
process.on('SIGTERM', () => fastify.close().then(() => process.exit(0)));
