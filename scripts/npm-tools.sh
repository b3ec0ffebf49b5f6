#!/bin/sh
# npm-tools.sh DIR OUT: installs what DIR/package-lock.json pins into
# OUT/node_modules, and says every 20 seconds that it still does. No package's
# own install script is run.
set -eu
dir=$1 out=$2

npm=$(sh "${0%/*}/need.sh" npm npm)
echo "installing three versions of Node, gitlab-ci-local and more by npm (about half a minute, once)"
part=$out.part
rm -rf "$part"
mkdir -p "$part"
cp "$dir/package.json" "$dir/package-lock.json" "$dir/.npmrc" "$part/"
(
	n=0
	while sleep 20 >/dev/null 2>&1; do
		n=$((n + 20))
		echo "  still installing after $n s"
	done
) &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || :' EXIT

# Installed beside its place and renamed, so that a broken install leaves nothing that looks whole.
log=$part/npm.log
if ! (cd "$part" && "$npm" ci) >"$log" 2>&1 </dev/null; then
	tail -n 20 "$log" >&2
	echo "npm-tools: npm ci failed in $part" >&2
	exit 1
fi
rm -rf "$out"
mv "$part" "$out"
