// HTTP for the install: through a proxy where the variables name one, trusting
// what they name, and never more bytes than asked for. Node's own fetch knows
// neither variable before Node 24.
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import tls from 'node:tls';

const MAX_REDIRECTS = 5;
const IDLE_MS = 30_000;
const TRY_MS = 5 * 60_000;

/** An error that says whether another try may help. */
class DownloadError extends Error {
  constructor(message, again) {
    super(message);
    this.again = again;
  }
}

/**
 * Returns the bytes at the URL, at most `limit` of them. It tries `tries`
 * times where that may help; `wait(n)` waits before try n+1.
 */
export async function download(url, { env, limit, tries = 4, wait = backOff }) {
  const ca = authorities(env);
  for (let n = 1; ; n++) {
    try {
      return await follow(new URL(url), { env, ca, limit });
    } catch (err) {
      if (n >= tries || err.again === false) {
        throw err;
      }
      await wait(n);
    }
  }
}

// Jobs of one matrix start at the same moment: they mustn't come back at one.
function backOff(n) {
  const most = Math.min(8000, 500 * 2 ** n);
  return new Promise((done) => setTimeout(done, most * (0.5 + Math.random() / 2)));
}

async function follow(url, options) {
  // Not AbortSignal.timeout: with listeners it keeps the process for all its time.
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), TRY_MS);
  try {
    return await hop(url, { ...options, signal: late.signal });
  } finally {
    clearTimeout(timer);
  }
}

async function hop(url, options) {
  for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
    const answer = await request(url, options);
    const { statusCode: status, headers } = answer;
    if (status === 200) {
      return read(answer, options.limit);
    }
    answer.destroy();
    if (![301, 302, 303, 307, 308].includes(status) || !headers.location) {
      throw new DownloadError(`${url.host} answered ${status}`, status === 408 || status === 429 || status >= 500);
    }
    const next = new URL(headers.location, url);
    if (next.protocol !== 'https:' && next.protocol !== url.protocol) {
      throw new DownloadError(`${url.host} redirects to ${next.protocol}//, which isn't https`, false);
    }
    url = next;
  }
  throw new DownloadError(`over ${MAX_REDIRECTS} redirects`, false);
}

async function request(url, { env, ca, signal }) {
  if (url.protocol !== 'https:' && url.protocol !== 'http:') {
    throw new DownloadError(`${url.protocol}// can't be downloaded from`, false);
  }
  const secure = url.protocol === 'https:';
  const proxy = proxyFor(url, env);
  const headers = { 'User-Agent': 'runenv-action', Accept: 'application/octet-stream' };
  const options = { headers, ca, signal, timeout: IDLE_MS, agent: false };
  let sent;
  if (proxy && secure) {
    const socket = await tunnel(proxy, url, { ca, signal });
    const name = bare(url.hostname);
    sent = https.request(url, { ...options, createConnection: () => tls.connect({ socket, ca, servername: /[a-z]/i.test(name) && !name.includes(':') ? name : '', host: name }) });
    sent.once('error', () => socket.destroy()); // or it would keep us for minutes
  } else if (proxy) {
    const client = proxy.protocol === 'https:' ? https : http;
    sent = client.request(proxy, { ...options, path: url.href, headers: { ...headers, Host: url.host, ...authorization(proxy) } });
  } else {
    sent = (secure ? https : http).request(url, options);
  }
  return answered(sent, 'response', url.host);
}

/** Opens a way through the proxy to the URL's host. */
async function tunnel(proxy, url, { ca, signal }) {
  const to = `${url.hostname}:${url.port || 443}`;
  const client = proxy.protocol === 'https:' ? https : http;
  const sent = client.request(proxy, {
    method: 'CONNECT', path: to, headers: { Host: to, ...authorization(proxy) }, ca, signal, timeout: IDLE_MS, agent: false,
  });
  const [answer, socket] = await answered(sent, 'connect', `the proxy ${proxy.host}`);
  if (answer.statusCode !== 200) {
    socket.destroy();
    throw new DownloadError(`the proxy ${proxy.host} answered ${answer.statusCode}`, answer.statusCode >= 500);
  }
  return socket;
}

function answered(sent, event, host) {
  return new Promise((done, failed) => {
    sent.once(event, (...args) => done(event === 'connect' ? args : args[0]));
    sent.once('timeout', () => sent.destroy(new Error(`silent for ${IDLE_MS / 1000} s`)));
    sent.once('error', (err) => failed(new DownloadError(`${host}: ${err.code ?? err.message}`, true)));
    sent.end();
  });
}

async function read(answer, limit) {
  const parts = [];
  let size = 0;
  try {
    for await (const part of answer) {
      size += part.length;
      if (size > limit) {
        throw new DownloadError(`an answer of over ${limit} bytes`, false);
      }
      parts.push(part);
    }
  } catch (err) {
    throw err instanceof DownloadError ? err : new DownloadError(`the download broke off: ${err.code ?? err.message}`, true);
  }
  return Buffer.concat(parts);
}

function authorization(proxy) {
  if (!proxy.username) {
    return {};
  }
  const pair = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`;
  return { 'Proxy-Authorization': `Basic ${Buffer.from(pair).toString('base64')}` };
}

const bare = (hostname) => hostname.replace(/^\[|\]$/g, '');

/** Returns the proxy for the URL, or null: as curl reads the variables. */
export function proxyFor(url, env) {
  const variable = (name) => env[name] || env[name.toUpperCase()] || '';
  const host = bare(url.hostname).toLowerCase();
  const port = url.port || (url.protocol === 'https:' ? '443' : '80');
  for (const entry of variable('no_proxy').toLowerCase().split(/[\s,]+/).filter(Boolean)) {
    const [, name, entryPort] = /^(\[.*\]|[^:]*):(\d+)$/.exec(entry) ?? [entry, entry];
    const domain = bare(name).replace(/^\*?\./, '');
    if (entry === '*' || ((host === domain || host.endsWith(`.${domain}`)) && (!entryPort || entryPort === port))) {
      return null;
    }
  }
  const text = variable(url.protocol === 'https:' ? 'https_proxy' : 'http_proxy') || variable('all_proxy');
  if (!text) {
    return null;
  }
  const proxy = new URL(text.includes('://') ? text : `http://${text}`);
  if (proxy.protocol !== 'http:' && proxy.protocol !== 'https:') {
    throw new DownloadError(`a ${proxy.protocol}// proxy can't be used here`, false);
  }
  return proxy;
}

// SSL_CERT_FILE stands in for the system's roots, as it does for runenv. Node
// itself adds NODE_EXTRA_CA_CERTS to its own roots, but not to others.
function authorities(env) {
  if (!env.SSL_CERT_FILE) {
    return undefined;
  }
  const files = [env.SSL_CERT_FILE, env.NODE_EXTRA_CA_CERTS].filter(Boolean);
  return files.map((file) => readFileSync(file));
}
