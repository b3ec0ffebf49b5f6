// What the launcher itself has to say, as the runner's commands.
import { writeSync } from 'node:fs';

/** An error whose cure is known. */
export class Problem extends Error {
  constructor(message, hint) {
    super(message);
    this.hint = hint;
  }
}

// The stream objects of process stay untouched: Node would make the runner's
// pipe non-blocking, for the program that comes after it too.
function command(kind, text) {
  const data = text.replace(/%/g, '%25').replace(/\r/g, '%0D').replace(/\n/g, '%0A');
  try {
    writeSync(2, `::${kind} title=RunEnv::${data}\n`);
  } catch {
    // Nobody listens; the exit status still tells.
  }
}

/** Says why the action can't go on. */
export function fail(err) {
  command('error', err.message + (err.hint ? `\nhint: ${err.hint}` : ''));
  process.exit(125);
}

export function warn(text) {
  command('warning', text);
}
