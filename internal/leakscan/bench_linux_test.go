package leakscan_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/internal/leakscan"
	"github.com/runenv/action/internal/needle"
	"github.com/runenv/action/secret"
)

// The tree that is searched is a build's workspace: sources, their objects,
// packages, in 1.3 GB. LEAKSCAN_BENCH_FILES makes it smaller, or larger.
const (
	benchFiles  = 60_000
	benchValues = 100
	filesPerDir = 20
)

// benchTree makes the tree, with a seed of its own for each file.
func benchTree(b *testing.B, dir string, files int) (total int64) {
	b.Helper()
	words := strings.Fields(`func return if err != nil { } package import const static public void class struct the of and to
		github.com/acme/shop-api/internal/server http.StatusOK ctx context.Context := range len append string int64 []byte
		"node_modules" "version": "4.17.21", "integrity": sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg==
		// comment /* block */ <div class="row"> </div> 0x1f8b0800 1234567890 2026-11-23T10:00:00Z error: warning: note:`)
	var text []byte
	for i := range files {
		rnd := rand.New(rand.NewPCG(uint64(i), 7))
		// From 1 kB to 400 kB, most of them small: 22 kB as a rule.
		size := 1000 + int(22_000*rnd.ExpFloat64())
		text = text[:0]
		if i%10 == 9 {
			for len(text) < size {
				text = append(text, byte(rnd.Uint32()>>16), byte(rnd.Uint32()>>8), 0, byte(rnd.Uint32()))
			}
		}
		for len(text) < size {
			for range 3 + rnd.IntN(9) {
				text = append(append(text, words[rnd.IntN(len(words))]...), ' ')
			}
			text = append(text, '\n')
		}
		at := filepath.Join(dir, fmt.Sprintf("d%03d/e%02d", i/filesPerDir/50, i/filesPerDir%50))
		if i%filesPerDir == 0 {
			if err := os.MkdirAll(at, 0o700); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(at, fmt.Sprintf("f%d", i)), text, 0o600); err != nil {
			b.Fatal(err)
		}
		total += int64(len(text))
	}
	return total
}

// usage is user and system time so far.
func usage(b *testing.B, who int) time.Duration {
	b.Helper()
	var ru syscall.Rusage
	if err := syscall.Getrusage(who, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// peak is the most memory that this process has had since reset, in bytes.
func peak(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := bytes.Cut(text, []byte("VmHWM:"))
	kb, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
	if err != nil {
		b.Fatal(err)
	}
	return float64(kb) * 1024
}

// BenchmarkTree searches a warm tree for 100 values with all their encodings,
// reads no more than its times, and has ripgrep and grep, where they are found,
// look for the 100 values as they are.
func BenchmarkTree(b *testing.B) {
	files := benchFiles
	if n, err := strconv.Atoi(os.Getenv("LEAKSCAN_BENCH_FILES")); err == nil {
		files = n
	}
	dir := b.TempDir()
	total := benchTree(b, dir, files)
	plain, patterns := benchPatterns()
	list := filepath.Join(b.TempDir(), "patterns")
	if err := os.WriteFile(list, []byte(patterns), 0o600); err != nil {
		b.Fatal(err)
	}
	var start *leakscan.Start
	for {
		start = leakscan.Begin(dir)
		r, err := leakscan.Run(b.Context(), leakscan.Config{Needles: plain, Paths: []string{dir}, Since: start})
		if err != nil {
			b.Fatal(err)
		}
		if r.Read == 0 {
			break
		}
	}
	scan := func(since *leakscan.Start, read int64) func(b *testing.B) {
		return func(b *testing.B) {
			runtime.GC()
			if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
				b.Log(err) // then the peak is that of the whole process
			}
			before := usage(b, syscall.RUSAGE_SELF)
			for b.Loop() {
				r, err := leakscan.Run(b.Context(), leakscan.Config{Needles: plain, Paths: []string{dir}, Since: since})
				if err != nil || len(r.Hits) > 0 || len(r.Gaps) > 0 || r.Read != read {
					b.Fatalf("%+v, %v", r, err)
				}
			}
			report(b, usage(b, syscall.RUSAGE_SELF)-before, total)
			b.ReportMetric(peak(b)/1e6, "peak-MB")
		}
	}
	b.Run("scan", scan(nil, int64(files)))
	b.Run("unchanged", scan(start, 0))
	for _, tool := range [][]string{{"rg", "-F", "-f", list, "-uuu", "--no-messages", "-l", dir}, {"grep", "-rFl", "-f", list, dir}} {
		path, err := exec.LookPath(tool[0])
		if err != nil {
			b.Logf("%s isn't here to be measured against", tool[0])
			continue
		}
		b.Run(tool[0], func(b *testing.B) {
			before := usage(b, syscall.RUSAGE_CHILDREN)
			for b.Loop() {
				cmd := exec.CommandContext(b.Context(), path, tool[1:]...)
				cmd.Env = append(os.Environ(), "LC_ALL=C")
				if out, err := cmd.Output(); len(out) > 0 || err == nil {
					b.Fatalf("found %q, %v", out, err)
				}
			}
			report(b, usage(b, syscall.RUSAGE_CHILDREN)-before, total)
		})
	}
}

func report(b *testing.B, cpu time.Duration, total int64) {
	b.Helper()
	b.SetBytes(total)
	each := cpu.Seconds() / float64(b.N)
	b.ReportMetric(each*1000, "cpu-ms")
	b.ReportMetric(float64(total)/1e6/each, "MB/cpu-s")
}

func benchPatterns() (set *needle.Set, plain string) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	rnd := rand.New(rand.NewPCG(1, benchValues))
	var s []needle.Secret
	for i := range benchValues {
		v := make([]byte, 20+rnd.IntN(21))
		for i := range v {
			v[i] = alphabet[rnd.IntN(len(alphabet))]
		}
		plain += string(v) + "\n"
		s = append(s, needle.Secret{Lease: fmt.Sprint("lease-", i), Value: secret.New(v)})
	}
	return needle.New(s), plain
}

// BenchmarkBegin is what a search adds before the command.
func BenchmarkBegin(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		leakscan.Begin(dir)
	}
}

// BenchmarkGzip is what inflating takes.
func BenchmarkGzip(b *testing.B) {
	dir := b.TempDir()
	text, err := os.ReadFile("fuzz_test.go")
	if err != nil {
		b.Fatal(err)
	}
	long := strings.Repeat(string(text), 1000)
	if err := os.WriteFile(filepath.Join(dir, "a.gz"), []byte(gzipped(long)), 0o600); err != nil {
		b.Fatal(err)
	}
	set, _ := benchPatterns()
	b.SetBytes(int64(len(long)))
	for b.Loop() {
		if r, err := leakscan.Run(b.Context(), leakscan.Config{Needles: set, Paths: []string{dir}}); err != nil || len(r.Gaps) > 0 {
			b.Fatal(r.Gaps, err)
		}
	}
}
