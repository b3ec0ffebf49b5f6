#!/bin/sh
# need.sh COMMAND PACKAGE [DIR-PATTERN]: prints the path of COMMAND, looked for
# on the PATH and in the folders that match DIR-PATTERN. If it is missing, root
# on Debian or Ubuntu gets it by apt-get; anybody else is told what to install.
set -eu
command=$1 package=$2 dirs=${3:-}

find_command() {
	# The pattern is meant to expand. The newest version sorts last.
	found=
	# shellcheck disable=SC2086
	for dir in $dirs; do
		if test -x "$dir/$command"; then found=$dir/$command; fi
	done
	test -n "$found" || found=$(command -v "$command") || return 1
	echo "$found"
}

find_command && exit
if test "$(id -u)" = 0 && command -v apt-get >/dev/null 2>&1; then
	echo "need: installing the package $package for $command (apt-get, once)" >&2
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt-get -q update && apt-get -q install -y --no-install-recommends "$package"; } >"$log" 2>&1 </dev/null; then
		tail -n 20 "$log" >&2
		echo "need: apt-get could not install $package" >&2
		exit 1
	fi
	find_command && exit
fi
echo "need: the tests need $command: install it (Debian and Ubuntu: sudo apt-get install $package)" >&2
exit 1
