// The action's post step: ends a session that the main step left, which says
// in its state whether there is one and which runenv it was.
import { spawnAs } from './launch.mjs';
import { fail } from './say.mjs';

if (process.env.STATE_session && process.env.STATE_ended !== 'true') {
  try {
    spawnAs(process.env.STATE_binary, ['action', 'post']);
  } catch (err) {
    fail(err);
  }
}
