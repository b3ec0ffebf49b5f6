#!/bin/sh
# test-windows.sh DIR: runs the unit tests of what differs on Windows, as Windows
# programs under Wine. DIR keeps Wine's files. Wine 8 lacks two things that Go 1.26
# needs: a random number generator by its newer name, which a DLL of our own
# gives, and a way of deleting files, for which Go's older one is taken.
# It isn't Windows: it has no Ctrl-Break, and what limits a job it doesn't tell.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
dir=$(cd "$1" && pwd)

wine=$(sh scripts/need.sh wine64 wine64 /usr/lib/wine)
gcc=$(sh scripts/need.sh x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64)

export WINEPREFIX="$dir/prefix" WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='
server=$(command -v wineserver64 || echo "${wine%/*}/wineserver64")
trap '"$server" -k 2>/dev/null || :' EXIT
system=$WINEPREFIX/drive_c/windows/system32
if ! test -f "$system/bcryptprimitives.dll"; then
	echo "making Wine's folder (seconds, once)"
	"$wine" wineboot -i >/dev/null 2>&1 </dev/null
	cat >"$dir/random.c" <<-'C'
		#include <windows.h>
		BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
		__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE *p, SIZE_T n) { return SystemFunction036(p, n); }
	C
	"$gcc" -shared -nostartfiles -Wl,-e,0 -o "$system/bcryptprimitives.dll" "$dir/random.c" -ladvapi32
fi

go=$(go env GOROOT)/src/internal/syscall/windows/at_windows.go
sed 's/case STATUS_INVALID_INFO_CLASS,/case NTStatus(0xC0000002), STATUS_INVALID_INFO_CLASS,/' "$go" >"$dir/at_windows.go"
if cmp -s "$go" "$dir/at_windows.go"; then
	echo "test-windows: Go deletes files in another way now: see whether Wine can do it" >&2
	exit 1
fi
printf '{"Replace":{"%s":"%s"}}\n' "$go" "$dir/at_windows.go" >"$dir/overlay.json"

windows() { CGO_ENABLED=0 GOOS=windows GOARCH=amd64 go "$@"; }

windows vet ./...
windows test -count=1 -timeout=5m -overlay "$dir/overlay.json" -exec "$wine" \
	./internal/proc ./internal/guardian ./internal/filesecret ./internal/inject ./internal/redact ./internal/needle \
	./internal/backoff ./internal/ci ./internal/roots ./secret ./ref ./client
# Those that are left out hold paths as Unix writes them, or tell files by their inodes.
windows test -count=1 -timeout=5m -overlay "$dir/overlay.json" -exec "$wine" \
	-skip '^(TestWorkspace|TestRootAsTheWorkingFolderLeavesMemory|TestPlanOfFiles|TestPathsMayBeFilesAndNamedTwice)$' \
	./internal/cli ./internal/leakscan
