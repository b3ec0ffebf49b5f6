#!/bin/sh
# build-tool.sh DIR PACKAGE OUT WHAT: builds a tool of the module in DIR into
# OUT, and says every 20 seconds that it still does.
set -eu
dir=$1 package=$2 out=$3 what=$4

echo "building $what"
mkdir -p "${out%/*}"
(
	n=0
	while sleep 20 >/dev/null 2>&1; do
		n=$((n + 20))
		echo "  still building after $n s"
	done
) &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || :' EXIT

# Built beside its place and renamed, so that a broken build leaves nothing that looks whole.
cd "$dir"
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$out.part" "$package"
mv "$out.part" "$out"
