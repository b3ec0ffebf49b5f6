// The verified install: a runenv whose SHA-256 stands in this commit of the
// action, from the runner's tool cache or downloaded.
import { createHash, randomUUID } from 'node:crypto';
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { download } from './download.mjs';
import { Problem, warn } from './say.mjs';

const RELEASES = 'https://github.com/runenv/action/releases/download';
const MAX_BYTES = 128 * 1024 * 1024;
const SYSTEMS = { linux: 'linux', darwin: 'darwin', win32: 'windows' };
const MACHINES = { x64: 'amd64', arm64: 'arm64' };

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

/**
 * Returns the path of a runenv of the version, "" for the table's default,
 * whose bytes have the checksum that the table gives for this machine.
 */
export async function install(table, version, env, { platform = process.platform, arch = process.arch, ...options } = {}) {
  const known = Object.keys(table.versions);
  if (known.length === 0) {
    throw new Problem("this commit of runenv/action isn't a release: it has checksums of no runenv to download",
      'pin `uses:` to the commit of a release, or give `binary:` the path of a runenv');
  }
  const wanted = version.replace(/^v/, '') || table.default;
  if (!Object.hasOwn(table.versions, wanted)) {
    throw new Problem(`this commit of runenv/action has no checksums for runenv ${wanted}`,
      `it has them for ${known.join(', ')}; pin \`uses:\` to the release with the version that you want`);
  }
  const target = `${SYSTEMS[platform] ?? platform}-${MACHINES[arch] ?? arch}`;
  const sum = Object.hasOwn(table.versions[wanted], target) ? table.versions[wanted][target] : '';
  if (!/^[0-9a-f]{64}$/.test(sum)) {
    throw new Problem(`there is no runenv ${wanted} for ${target}`, 'build one there with Go, and give `binary:` its path');
  }
  const root = env.RUNNER_TOOL_CACHE || env.RUNNER_TEMP;
  if (!root) {
    throw new Problem('neither RUNNER_TOOL_CACHE nor RUNNER_TEMP is set', 'give `binary:` the path of a runenv');
  }
  const exe = platform === 'win32' ? '.exe' : '';
  const path = join(root, 'runenv', wanted, arch, `runenv${exe}`);
  if (cached(path, sum)) {
    return path;
  }
  const base = (env.RUNENV_DOWNLOAD_BASE || RELEASES).replace(/\/+$/, '');
  const url = `${base}/v${wanted}/runenv-${target}${exe}`;
  let bytes;
  try {
    bytes = await download(url, { env, limit: MAX_BYTES, ...options });
  } catch (err) {
    throw new Problem(`downloading ${url}: ${err.message}`,
      'where GitHub is out of reach, let RUNENV_DOWNLOAD_BASE name a mirror, or give `binary:` the path of a runenv');
  }
  if (sha256(bytes) !== sum) {
    throw new Problem(`what ${url} gives isn't runenv ${wanted}: its SHA-256 is ${sha256(bytes)}, and this commit of the action says ${sum}`,
      'nothing of it was run. Do not go on before you know why');
  }
  keep(path, bytes);
  return path;
}

// Whoever can write to the tool cache could swap the program between two jobs.
function cached(path, sum) {
  let bytes;
  try {
    bytes = readFileSync(path);
  } catch (err) {
    if (err.code === 'ENOENT') {
      return false;
    }
    throw new Problem(`reading the tool cache: ${err.code} at ${path}`);
  }
  if (sha256(bytes) === sum) {
    return true;
  }
  warn(`${path} in the tool cache isn't what it was when it was put there, and is replaced`);
  return false;
}

/** Puts the program in its place whole: jobs beside this one may look there. */
function keep(path, bytes) {
  const mine = `${path}.${randomUUID()}`;
  try {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(mine, bytes, { flag: 'wx', mode: 0o755 });
    chmodSync(mine, 0o755); // whatever the umask
    renameSync(mine, path);
  } catch (err) {
    rmSync(mine, { force: true });
    throw new Problem(`writing to the tool cache: ${err.code} at ${path}`);
  }
}
