// Where the runenv to run comes from.
import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { Problem } from './say.mjs';

const input = (env, name) => (env[`INPUT_${name.toUpperCase()}`] ?? '').trim();

/** Returns the path of the program: the one that `binary` names, else a verified one. */
export async function find(env) {
  const binary = input(env, 'binary');
  if (binary) {
    return checked(resolve(binary));
  }
  const table = JSON.parse(readFileSync(new URL('checksums.json', import.meta.url), 'utf8'));
  // Only where it is needed: Node's HTTP makes standard error non-blocking.
  const { install } = await import('./install.mjs');
  return install(table, input(env, 'version'), env);
}

function checked(path) {
  const hint = '`binary:` takes the path of an executable runenv for this machine';
  let isFile;
  try {
    isFile = statSync(path).isFile();
  } catch (err) {
    throw new Problem(`the binary ${path} can't be used: ${err.code}`, hint);
  }
  if (!isFile) {
    throw new Problem(`the binary ${path} isn't a file`, hint);
  }
  try {
    accessSync(path, constants.X_OK);
  } catch {
    throw new Problem(`the binary ${path} isn't executable`, hint);
  }
  return path;
}
