// A Bun app without dependencies.
//
//     npm install --global bun
//     production_server -c 64 -- bun examples/bun/server.js
//
// The server gives the path of a Unix socket as SOCKET_PATH; alone the app takes port 3000. `-c 64` lets 64 requests run in each
// worker at once.

const place = process.env.SOCKET_PATH ? { unix: process.env.SOCKET_PATH } : { port: 3000 };

const server = Bun.serve({
  ...place,
  maxRequestBodySize: 64 * 1024 * 1024,
  async fetch(request) {
    const url = new URL(request.url);
    switch (url.pathname) {
      case '/':
        return new Response(`Hello from worker ${process.env.WORKER_ID || '0'}, process ${process.pid}\n`);
      case '/echo': {
        const type = request.headers.get('content-type') || 'application/octet-stream';
        return new Response(await request.arrayBuffer(), { headers: { 'Content-Type': type } });
      }
      case '/slow': {
        const pause = Math.min(Number(url.searchParams.get('ms')) || 100, 60000);
        await Bun.sleep(pause);
        return new Response(`slept ${pause} ms\n`);
      }
      default:
        return new Response('not found\n', { status: 404 });
    }
  },
});

// On SIGTERM the requests in flight are answered before the process leaves; without this Bun would cut them.
process.on('SIGTERM', async () => {
  await server.stop();
  process.exit(0);
});
