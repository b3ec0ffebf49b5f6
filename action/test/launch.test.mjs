// How the launcher hands over, with a shell script in runenv's place.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const dir = mkdtempSync(join(tmpdir(), 'runenv-launch-'));
after(() => rmSync(dir, { recursive: true, force: true }));

const becomes = typeof process.execve === 'function';
const file = (name) => fileURLToPath(new URL(`../${name}`, import.meta.url));

function script(name, text, mode = 0o755) {
  const path = join(dir, name);
  writeFileSync(path, `#!/bin/sh\n${text}\n`);
  chmodSync(path, mode);
  return path;
}

function start(entry, env) {
  const child = spawn(process.execPath, [file(entry)], { env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'], cwd: dir });
  const got = { stdout: '', stderr: '' };
  for (const stream of ['stdout', 'stderr']) {
    child[stream].setEncoding('utf8').on('data', (text) => (got[stream] += text));
  }
  got.child = child;
  got.ended = once(child, 'close').then(([code, signal]) => Object.assign(got, { code, signal }));
  return got;
}

const run = (entry, env) => start(entry, env).ended;

test('the main step becomes the program where Node can, and spawns it elsewhere', async () => {
  const tell = script('tell', 'echo "$$ $*"; echo "$PASSED" >&2; exit 3');
  const got = await run('main.mjs', { INPUT_BINARY: tell, PASSED: 'on' });
  const [pid, ...args] = got.stdout.trim().split(' ');
  assert.equal(Number(pid) === got.child.pid, becomes, `the launcher is ${got.child.pid}, the program ${pid}`);
  assert.deepEqual(args, becomes ? ['action', 'main'] : ['action', 'main', '--spawned']);
  assert.equal(got.stderr, 'on\n', 'nothing but the program is heard');
  assert.equal(got.code, 3);
});

test('the program\'s streams block, as those of a program that the runner starts', async () => {
  const flags = script('flags', 'for fd in 0 1 2; do sed -n "s/^flags:[[:space:]]*//p" /proc/self/fdinfo/$fd; done');
  const got = await run('main.mjs', { INPUT_BINARY: flags });
  for (const text of got.stdout.trim().split('\n')) {
    assert.equal(Number.parseInt(text, 8) & 0o4000, 0, `flags ${text}`);
  }
});

test('signals reach the program, and its status comes back', async () => {
  const waits = script('waits', 'trap "echo INT" INT; trap "echo TERM; exit 7" TERM; echo ready; for i in $(seq 400); do sleep 0.05; done');
  const got = start('main.mjs', { INPUT_BINARY: waits });
  const heard = async (word) => {
    while (!got.stdout.includes(word)) {
      assert.equal(got.code, undefined, `it ended before it said ${word}`);
      await Promise.race([once(got.child.stdout, 'data'), got.ended]);
    }
  };
  await heard('ready');
  got.child.kill('SIGINT');
  await heard('INT');
  got.child.kill('SIGTERM');
  await got.ended;
  assert.equal(got.code, 7);
});

test('a program that a signal killed has the shell\'s status, or the signal itself', async () => {
  const dies = script('dies', 'kill -KILL $$');
  const got = await run('main.mjs', { INPUT_BINARY: dies });
  assert.deepEqual([got.code, got.signal], becomes ? [null, 'SIGKILL'] : [137, null]);
});

test('a binary that can\'t be run is an annotation and status 125', async () => {
  for (const [binary, message] of [
    [join(dir, 'nowhere'), "nowhere can't be used: ENOENT"],
    [dir, "isn't a file"],
    [script('plain', 'exit 0', 0o644), "isn't executable"],
  ]) {
    const got = await run('main.mjs', { INPUT_BINARY: binary });
    assert.equal(got.code, 125);
    assert.ok(got.stderr.startsWith('::error title=RunEnv::') && got.stderr.includes(message) && got.stderr.includes('%0Ahint: '), got.stderr);
    assert.equal(got.stderr.trim().split('\n').length, 1);
  }
  script('relative', 'echo here');
  const got = await run('main.mjs', { INPUT_BINARY: ' ./relative ' });
  assert.equal(got.stdout, 'here\n');
});

test('the post step says nothing when there is nothing', async () => {
  const tell = script('post', 'echo "$*"; exit 4');
  for (const env of [{}, { STATE_binary: tell }, { STATE_session: 's-1', STATE_binary: tell, STATE_ended: 'true' }]) {
    const got = await run('post.mjs', env);
    assert.deepEqual([got.stdout, got.stderr, got.code], ['', '', 0]);
  }
  const got = await run('post.mjs', { STATE_session: 's-1', STATE_binary: tell });
  assert.deepEqual([got.stdout, got.stderr, got.code], ['action post\n', '', 4]);
  const gone = await run('post.mjs', { STATE_session: 's-1', STATE_binary: join(dir, 'nowhere') });
  assert.equal(gone.code, 125);
  assert.match(gone.stderr, /^::error title=RunEnv::starting .*nowhere: ENOENT\n$/);
});
