#!/bin/sh
# demo.sh: one command gets a secret, uses it, prints it, and loses it. Wants
# runenv and runenv-broker on the PATH; `make demo` sees to that.
set -eu

cat <<'STORY'
RunEnv gives one command its secrets, hides them in its output, and ends them
when it exits. Here is a whole local world: a broker, an issuer that speaks the
token protocol of GitHub Actions, and a command under `runenv run`.

$ runenv-broker dev -- runenv run --role demo -- sh -c '…'

STORY

# shellcheck disable=SC2016 # the command expands it, not this shell
exec runenv-broker dev -- runenv run --role demo -- sh -c '
	echo "  command: I was given DEMO_TOKEN, ${#DEMO_TOKEN} characters long."
	echo "  command: I print it, and you read: $DEMO_TOKEN"
	echo "  command: even as base64: $(printf %s "$DEMO_TOKEN" | base64)"
	echo "  command: could I ask for more? The token request URL is \"${ACTIONS_ID_TOKEN_REQUEST_URL-gone}\"."
'
