// The verified install, against a mirror of this test's own (T33).
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { download, proxyFor } from '../download.mjs';
import { install } from '../install.mjs';

const program = Buffer.from('#!/bin/sh\necho this stands for runenv\n');
const sum = createHash('sha256').update(program).digest('hex');
const table = { default: '1.2.3', versions: { '1.2.3': { 'linux-amd64': sum, 'windows-arm64': sum }, '1.2.2': { 'linux-amd64': sum } } };
const here = { platform: 'linux', arch: 'x64', wait: async () => {} };

const flipped = Buffer.from(program);
flipped[10] ^= 1;

function folder() {
  const dir = mkdtempSync(join(tmpdir(), 'runenv-install-'));
  after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

// A server on loopback that answers with what `answers` has, then with the last.
async function serve(answers, server = http.createServer()) {
  const asked = [];
  server.on('request', (req, res) => {
    asked.push(req.url);
    answers[Math.min(asked.length, answers.length) - 1](req, res);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { asked, port: server.address().port, url: `http://127.0.0.1:${server.address().port}` };
}

const bytes = (content) => (_req, res) => res.end(content);
const status = (code, headers = {}) => (_req, res) => res.writeHead(code, headers).end('no');
const cut = (_req, res) => {
  res.writeHead(200, { 'Content-Length': program.length });
  res.write(program.subarray(0, 5), () => res.destroy());
};

test('a verified program is kept, whole and executable', async () => {
  const mirror = await serve([bytes(program)]);
  const env = { RUNNER_TOOL_CACHE: folder(), RUNENV_DOWNLOAD_BASE: `${mirror.url}/dl/` };
  const path = await install(table, '', env, here);
  assert.deepEqual(mirror.asked, ['/dl/v1.2.3/runenv-linux-amd64']);
  assert.equal(path, join(env.RUNNER_TOOL_CACHE, 'runenv', '1.2.3', 'x64', 'runenv'));
  assert.deepEqual(readFileSync(path), program);
  assert.equal(statSync(path).mode & 0o777, 0o755);

  assert.equal(await install(table, 'v1.2.3', env, here), path);
  assert.equal(mirror.asked.length, 1, 'the second time it came from the tool cache');
  assert.match(await install(table, '1.2.2', env, here), /1\.2\.2/);
  assert.match(await install(table, '', env, { ...here, platform: 'win32', arch: 'arm64' }), /runenv\.exe$/);
  assert.equal(mirror.asked.at(-1), '/dl/v1.2.3/runenv-windows-arm64.exe');
});

test('T33: one flipped bit is refused, and nothing is kept', async () => {
  const mirror = await serve([bytes(flipped)]);
  const env = { RUNNER_TOOL_CACHE: folder(), RUNENV_DOWNLOAD_BASE: mirror.url };
  await assert.rejects(install(table, '', env, here), { message: new RegExp(`isn't runenv 1\\.2\\.3: its SHA-256 is .*says ${sum}`) });
  assert.deepEqual(readdirSync(env.RUNNER_TOOL_CACHE), []);
});

test('T33: what the tool cache has is verified each time', async () => {
  const mirror = await serve([bytes(program), bytes(program), bytes(flipped)]);
  const env = { RUNNER_TOOL_CACHE: folder(), RUNENV_DOWNLOAD_BASE: mirror.url };
  const path = await install(table, '', env, here);
  writeFileSync(path, flipped);
  await install(table, '', env, here);
  assert.deepEqual(readFileSync(path), program);
  assert.equal(mirror.asked.length, 2);

  writeFileSync(path, flipped);
  await assert.rejects(install(table, '', env, here), /isn't runenv/);
});

test('T33: only what the table of this commit names is asked for', async () => {
  const env = { RUNNER_TOOL_CACHE: folder(), RUNENV_DOWNLOAD_BASE: 'http://127.0.0.1:1' };
  const cases = [
    [{ default: '', versions: {} }, '', here, /isn't a release/, /pin `uses:` to the commit of a release, or give `binary:`/],
    [{ default: '', versions: {} }, '1.2.3', here, /isn't a release/, /`binary:`/],
    [table, '9.9.9', here, /no checksums for runenv 9\.9\.9/, /1\.2\.3, 1\.2\.2/],
    [table, 'latest', here, /no checksums for runenv latest/, /1\.2\.3/],
    [table, '__proto__', here, /no checksums/, /1\.2\.3/],
    [table, '../1.2.3', here, /no checksums/, /1\.2\.3/],
    [table, '1.2.2', { ...here, platform: 'darwin' }, /no runenv 1\.2\.2 for darwin-amd64/, /`binary:`/],
    [table, '', { ...here, arch: 'riscv64' }, /no runenv 1\.2\.3 for linux-riscv64/, /`binary:`/],
    [{ default: '1', versions: { 1: { 'linux-amd64': '' } } }, '', here, /no runenv 1 for/, /`binary:`/],
  ];
  for (const [sums, version, options, message, hint] of cases) {
    await assert.rejects(install(sums, version, env, options), { message, hint });
  }
  await assert.rejects(install(table, '', {}, here), /neither RUNNER_TOOL_CACHE nor RUNNER_TEMP/);
  assert.deepEqual(readdirSync(env.RUNNER_TOOL_CACHE), []);
});

test('three jobs at once share one tool cache', async () => {
  const mirror = await serve([bytes(program)]);
  const env = { RUNNER_TOOL_CACHE: folder(), RUNENV_DOWNLOAD_BASE: mirror.url };
  const paths = await Promise.all([1, 2, 3].map(() => install(table, '', env, here)));
  assert.equal(new Set(paths).size, 1);
  assert.deepEqual(readdirSync(join(paths[0], '..')), ['runenv']);
});

test('a tool cache that can\'t be written to is an error with its path', async () => {
  const mirror = await serve([bytes(program)]);
  const file = join(folder(), 'file');
  writeFileSync(file, '');
  const env = { RUNNER_TOOL_CACHE: file, RUNENV_DOWNLOAD_BASE: mirror.url };
  await assert.rejects(install(table, '', env, here), /tool cache: \w+ at /);
});

test('what passes is tried again, and what doesn\'t isn\'t', async () => {
  const get = (mirror, more = {}) => download(`${mirror.url}/x`, { env: {}, limit: 1000, wait: async () => {}, ...more });
  const passing = await serve([status(503), cut, bytes(program)]);
  assert.deepEqual(await get(passing), program);
  assert.equal(passing.asked.length, 3);

  for (const [answer, message, times] of [
    [status(500), /answered 500/, 4],
    [status(404), /answered 404/, 1],
    [status(302), /answered 302/, 1],
    [(req, res) => res.writeHead(302, { Location: req.url }).end(), /redirects/, 6],
    [status(302, { Location: 'ftp://127.0.0.1/x' }), /redirects to ftp:/, 1],
    [bytes(Buffer.alloc(1001)), /over 1000 bytes/, 1],
  ]) {
    const mirror = await serve([answer]);
    await assert.rejects(get(mirror), message);
    assert.equal(mirror.asked.length, times, String(message));
  }
  await assert.rejects(download('http://127.0.0.1:1/x', { env: {}, limit: 1, tries: 1 }), /ECONNREFUSED/);
  await assert.rejects(download('file:///etc/passwd', { env: {}, limit: 1 }), /can't be downloaded from/);
});

test('a redirect to another host is followed', async () => {
  const store = await serve([bytes(program)]);
  const mirror = await serve([status(302, { Location: `${store.url}/blob` })]);
  assert.deepEqual(await download(mirror.url, { env: {}, limit: 1000 }), program);
});

// A proxy that counts, and wants the name and password of its URL.
async function proxy() {
  const server = http.createServer();
  const tunnels = [];
  const basic = `Basic ${Buffer.from('me:p@ss').toString('base64')}`;
  server.on('connect', (req, socket) => {
    tunnels.push(req.url);
    if (req.headers['proxy-authorization'] !== basic) {
      socket.end('HTTP/1.1 407 No\r\n\r\n');
      return;
    }
    const [host, port] = req.url.split(':');
    const far = net.connect(Number(port), host, () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      far.pipe(socket).pipe(far);
    });
    socket.on('close', () => far.destroy());
    for (const s of [far, socket]) {
      s.on('error', () => {});
    }
  });
  const { asked, port } = await serve([(req, res) => {
    http.get(req.url, (answer) => answer.pipe(res));
  }], server);
  return { asked, tunnels, url: `http://me:p%40ss@127.0.0.1:${port}`, bare: `127.0.0.1:${port}` };
}

test('the proxy variables are honoured', async () => {
  const mirror = await serve([bytes(program)]);
  const way = await proxy();
  const get = (env) => download(`${mirror.url}/x`, { env, limit: 1000, tries: 1 });
  assert.deepEqual(await get({ http_proxy: way.url }), program);
  assert.deepEqual(way.asked, [`${mirror.url}/x`]);
  assert.deepEqual(await get({ HTTP_PROXY: way.url, NO_PROXY: 'localhost, 127.0.0.1' }), program);
  assert.equal(way.asked.length, 1, 'NO_PROXY goes past it');
});

// The test's caller gives a folder with a server's certificate, its key and
// the CA: Node can't make them.
const tlsDir = process.env.RUNENV_TEST_TLS;

test('https is trusted by the CA variables alone, through a proxy too', async () => {
  const server = https.createServer({ cert: readFileSync(join(tlsDir, 'cert.pem')), key: readFileSync(join(tlsDir, 'key.pem')) });
  const { port } = await serve([bytes(program), bytes(program), status(302, { Location: 'http://127.0.0.1:1/' })], server);
  const url = `https://127.0.0.1:${port}/x`;
  const ca = { SSL_CERT_FILE: join(tlsDir, 'ca.pem') };
  const way = await proxy();
  const get = (env) => download(url, { env, limit: 1000, tries: 1 });

  await assert.rejects(get({}), /CERT|SELF_SIGNED|UNABLE_TO/);
  await assert.rejects(get({ https_proxy: way.url }), /CERT|SELF_SIGNED|UNABLE_TO/);
  assert.deepEqual(await get(ca), program);
  assert.deepEqual(await get({ ...ca, HTTPS_PROXY: way.url }), program);
  assert.equal(way.tunnels.length, 2);
  await assert.rejects(get({ ...ca, https_proxy: way.bare }), /the proxy 127\.0\.0\.1:\d+ answered 407/);
  await assert.rejects(get(ca), /redirects to http:/);
});

test('proxyFor reads the variables as curl does', () => {
  const proxies = { https_proxy: 'http://p:1', HTTP_PROXY: 'q:2' };
  for (const [url, env, want] of [
    ['https://a.example', {}, null],
    ['https://a.example', proxies, 'p:1'],
    ['http://a.example', proxies, 'q:2'],
    ['https://a.example', { all_proxy: 'http://r:3' }, 'r:3'],
    ['https://a.example', { ...proxies, no_proxy: '*' }, null],
    ['https://a.example', { ...proxies, no_proxy: 'example' }, null],
    ['https://a.example', { ...proxies, no_proxy: '.example' }, null],
    ['https://a.example', { ...proxies, no_proxy: 'xa.example,ample' }, 'p:1'],
    ['https://a.example', { ...proxies, no_proxy: 'a.example:8443' }, 'p:1'],
    ['https://a.example:8443', { ...proxies, NO_PROXY: 'A.example:8443' }, null],
    ['https://[::1]:8443', { ...proxies, no_proxy: '::1' }, null],
    ['https://[::1]:8443', { ...proxies, no_proxy: '[::1]:443' }, 'p:1'],
  ]) {
    assert.equal(proxyFor(new URL(url), env)?.host ?? null, want, `${url} with ${JSON.stringify(env)}`);
  }
  assert.throws(() => proxyFor(new URL('https://a.example'), { https_proxy: 'socks5://p:1' }), /socks5/);
});

test('the table of this commit is well formed', () => {
  const committed = JSON.parse(readFileSync(new URL('../checksums.json', import.meta.url)));
  assert.deepEqual(Object.keys(committed), ['default', 'versions']);
  if (committed.default) {
    assert.ok(committed.versions[committed.default]);
  }
  for (const sums of Object.values(committed.versions)) {
    for (const [target, hex] of Object.entries(sums)) {
      assert.match(`${target} ${hex}`, /^(linux|darwin|windows)-(amd64|arm64) [0-9a-f]{64}$/);
    }
  }
  assert.ok(existsSync(new URL('../main.mjs', import.meta.url)));
});
