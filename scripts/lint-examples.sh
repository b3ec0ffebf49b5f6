#!/bin/sh
# lint-examples.sh ACTIONLINT: lints examples/github as workflows of a repository
# of their own, in which the action is a local one, so that its inputs and
# outputs are checked as well.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/.github/workflows" "$dir/.git" # by .git it knows the root
cp -R action action.yml "$dir"
for f in examples/github/*.yml; do
	sed 's,uses: runenv/action@[0-9a-f]* .*,uses: ./,' "$f" >"$dir/.github/workflows/${f##*/}"
done
(cd "$dir" && "$1")
