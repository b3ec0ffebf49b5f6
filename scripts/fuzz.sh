#!/bin/sh
# fuzz.sh TIME: finds every fuzz test of the module and runs each for TIME.
set -eu
time=$1
found=0

for package in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	dir=$(go list -f '{{.Dir}}' "$package")
	for name in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | cut -d' ' -f2 | sort); do
		echo "--- $name of $package for $time"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$package"
		found=$((found + 1))
	done
done
echo "ran $found fuzz tests"
test "$found" -gt 0
