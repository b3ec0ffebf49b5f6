// The action's main step: finds a runenv that can be trusted, and becomes it.
import { find } from './find.mjs';
import { become } from './launch.mjs';
import { fail } from './say.mjs';

try {
  become(await find(process.env), ['action', 'main']);
} catch (err) {
  fail(err);
}
