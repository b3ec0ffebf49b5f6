#!/bin/sh
# bench.sh BENCH BENCHTIME: runs the benchmarks whose name matches BENCH in
# both modules, shows Go's own lines as they come, and ends
# with one table and a line about the machine.
set -eu
bench=$1 benchtime=$2
busy=$(uptime | sed 's/.*load average[s]*: //; s/,.*//')
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# What measures processes runs as often as it says itself: see e2e/bench_test.go.
{
	# No name of a folder here has white space in it.
	# shellcheck disable=SC2046
	go test -run '^$' -bench "$bench" -benchtime "$benchtime" -benchmem \
		$(find . -name .cache -prune -o -path ./e2e -prune -o -name '*_test.go' -exec grep -l '^func Benchmark' {} + | sed 's,/[^/]*$,,' | sort -u) 2>&1 ||
		echo 'FAIL the benchmarks of the packages'
	cd e2e && go test -run '^$' -bench "$bench" -benchtime 1x -timeout 30m . 2>&1 ||
		echo 'FAIL the end-to-end benchmarks'
} | tee "$out"
if grep -q '^FAIL' "$out"; then exit 1; fi

cpu=$(sed -n 's/^cpu: //p' "$out" | head -n 1)
cores=$(getconf _NPROCESSORS_ONLN)
echo
echo "machine: $cpu, $cores cores, $(uname -sr), $(go version | cut -d' ' -f3), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
echo "load average before the start: $busy (over a fifth of the cores, and the times are of other work too)"
echo
awk '
	# A name, how often it ran, then numbers and their units.
	/^pkg: / { pkg = $2; sub(/^.*\/action\//, "", pkg) }
	/^Benchmark/ && NF > 3 {
		name = $1
		sub(/^Benchmark/, "", name)
		sub(/-[0-9]+$/, "", name)
		gsub(/_/, " ", name)
		own = 0
		for (i = 4; i <= NF; i += 2)
			if ($i != "ns/op" && $i != "B/op" && $i != "allocs/op") own = 1
		rows++
		row[rows] = pkg ": " name
		for (i = 4; i <= NF; i += 2) {
			if ($i == "B/op" || (own && ($i == "ns/op" || $i == "allocs/op"))) continue
			cell = sprintf("%10s %s", $(i - 1), $i)
			cells[rows]++
			table[rows, cells[rows]] = cell
			if (length(cell) > width[cells[rows]]) width[cells[rows]] = length(cell)
		}
		if (length(row[rows]) > first) first = length(row[rows])
	}
	END {
		for (r = 1; r <= rows; r++) {
			line = sprintf("%-" first "s", row[r])
			for (c = 1; c <= cells[r]; c++) line = line sprintf("  %-" width[c] "s", table[r, c])
			sub(/ +$/, "", line)
			print line
		}
	}' "$out"
