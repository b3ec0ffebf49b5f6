// How Node hands over to runenv.
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { fail, Problem } from './say.mjs';

/**
 * Becomes the program where Node can: the runner's signals then reach it, and
 * no process is left that holds the job's token variables. Elsewhere it is
 * spawned, and told so.
 */
export function become(program, args) {
  if (typeof process.execve === 'function' && process.platform !== 'win32') {
    process.execve(program, ['runenv', ...args], process.env);
  }
  spawnAs(program, [...args, '--spawned']);
}

/** Runs the program as a child, which gets our signals and gives us its status. */
export function spawnAs(program, args) {
  let child;
  // First: a signal that came between would end us and leave the child. On
  // Windows the console tells the child as well, and kill() would be its death.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGBREAK']) {
    process.on(signal, () => process.platform === 'win32' || child.kill(signal));
  }
  child = spawn(program, args, { stdio: 'inherit', windowsHide: true });
  child.on('error', (err) => fail(new Problem(`starting ${program}: ${err.code ?? err.message}`)));
  child.on('exit', (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
}
