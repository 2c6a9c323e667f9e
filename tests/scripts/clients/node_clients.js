// Node's HTTP clients against a server: `node_clients.js http|fetch|undici PORT [DIRECTORY OF node_modules]`.
// Over TLS where TRUSTED in the environment names the certificate to trust (and NODE_EXTRA_CA_CERTS, too). Prints `ok CASE` or `FAIL CASE: why` for each case, then `end`.
'use strict';
const assert = require('node:assert');
const crypto = require('node:crypto');
const http = require(process.env.TRUSTED ? 'node:https' : 'node:http');
const path = require('node:path');
const { Readable } = require('node:stream');

const [client, port, modules] = process.argv.slice(2);
const size = 2_000_000;
const body = crypto.randomBytes(size);
const url = `${process.env.TRUSTED ? 'https' : 'http'}://127.0.0.1:${port}`;

function* pieces() {
  for (let start = 0; start < size; start += 50_000) yield body.subarray(start, start + 50_000);
}

async function report(name, check) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    console.log(`FAIL ${name}: ${error.cause || error}`.replaceAll('\n', ' '));
  }
}

function withHttp(agent) {
  return (method, target, sent, stream) =>
    new Promise((resolve, reject) => {
      const headers = sent && !stream ? { 'Content-Length': sent.length } : {};
      const request = http.request(url + target, { method, agent, headers, timeout: 20_000 }, (response) => {
        const came = [];
        response.on('data', (piece) => came.push(piece));
        response.on('error', reject);
        response.on('end', () => resolve({ status: response.statusCode, body: Buffer.concat(came), reused: request.reusedSocket }));
      });
      request.on('timeout', () => request.destroy(new Error('no answer in 20 s')));
      request.on('error', reject);
      if (stream) Readable.from(pieces()).pipe(request);
      else request.end(sent);
    });
}

async function withFetch(method, target, sent, stream) {
  const more = stream ? { body: Readable.toWeb(Readable.from(pieces())), duplex: 'half' } : { body: sent };
  const answer = await fetch(url + target, { method, ...more, signal: AbortSignal.timeout(20_000) });
  return { status: answer.status, body: Buffer.from(await answer.arrayBuffer()) };
}

function withUndici(dispatcher) {
  return async (method, target, sent, stream) => {
    const answer = await dispatcher.request({ path: target, method, body: stream ? Readable.from(pieces()) : sent });
    return { status: answer.statusCode, body: Buffer.from(await answer.body.arrayBuffer()) };
  };
}

async function common(ask) {
  const good = async (method, target, sent, stream) => {
    const answer = await ask(method, target, sent, stream);
    assert.strictEqual(answer.status, 200);
    return answer;
  };
  await report('GET', async () => assert((await good('GET', '/ping')).body.length > 0));
  await report('HEAD', async () => assert.strictEqual((await good('HEAD', '/ping')).body.length, 0));
  await report('POST', async () => assert.strictEqual((await good('POST', '/echo', Buffer.from('hello'))).body.toString(), 'hello'));
  await report('GET 2 MB', async () => assert.strictEqual((await good('GET', `/bytes?n=${size}`)).body.length, size));
  await report('POST 2 MB', async () => assert((await good('POST', '/echo', body)).body.equals(body), 'the body differs'));
  await report('POST 2 MB chunked', async () => assert((await good('POST', '/echo', null, true)).body.equals(body), 'the body differs'));
  await report('stream', async () => assert((await good('GET', '/stream')).body.length > 0));
  await report('100 at once', async () => {
    const asked = Array.from({ length: 100 }, (_, i) => Buffer.from(`number ${i}`));
    const answers = await Promise.all(asked.map((sent) => good('POST', '/echo', sent)));
    answers.forEach((answer, i) => assert(answer.body.equals(asked[i]), `answer ${i} is another's`));
  });
}

async function main() {
  if (client === 'http') {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
    const ask = withHttp(agent);
    await common(ask);
    await report('keep-alive', async () => {
      await ask('GET', '/ping');
      for (let i = 0; i < 20; i += 1) assert((await ask('GET', '/ping')).reused, 'the connection was closed');
    });
    agent.destroy();
  } else if (client === 'fetch') {
    await common(withFetch);
  } else {
    const { Client } = require(path.join(modules, 'node_modules', 'undici'));
    const dispatcher = new Client(url, { pipelining: 10, headersTimeout: 20_000, bodyTimeout: 20_000 });
    const ask = withUndici(dispatcher);
    await common(ask);
    await report('500 pipelined, 10 deep', async () => {
      const answers = await Promise.all(Array.from({ length: 500 }, (_, i) => ask('GET', `/bytes?n=${i + 1}`)));
      answers.forEach((answer, i) => assert.strictEqual(answer.body.length, i + 1));
    });
    await dispatcher.close();
  }
  console.log('end');
  process.exit(0);
}

main();
