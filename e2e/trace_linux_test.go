package e2e_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/e2e/harness"
)

// What the kernel saw of a whole run: the wrapper, its guardian, the command
// and all that these start.
type trace struct{ path string }

// traced makes an entry for [order] that traces runenv, whose process stays
// the one that was started. The trace holds the values, so it lies in memory.
func traced(t *testing.T) (*trace, []string) {
	t.Helper()
	needs(t, "strace")
	dir, err := os.MkdirTemp("/dev/shm", "runenv-trace-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tr := &trace{filepath.Join(dir, "trace")}
	return tr, []string{
		"strace", "-D", "-f", "-y", "-q", "-s", "1048576", "-o", tr.path,
		"-e", "trace=write,pwrite64,writev,pwritev,pwritev2,sendfile,splice,tee,vmsplice,copy_file_range,mmap,mremap,truncate,ftruncate,linkat,symlinkat,setxattr,fsetxattr,io_uring_setup",
		"-e", "signal=none",
	}
}

var (
	// PID call(FD</path>, …
	tracedCall = regexp.MustCompile(`^[0-9]+ +([a-z0-9_]+)\((.*)$`)
	tracedFile = regexp.MustCompile(`[0-9]+<(/[^>]*)>`)
)

// offences are the calls that put a value into a file on a disk, or might
// have done so unseen.
func (tr *trace) offences(t *testing.T, scanner *harness.Scanner) (bad []string, calls int) {
	t.Helper()
	f, err := os.Open(tr.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	onDisk := map[string]bool{}
	for lines.Scan() {
		call := tracedCall.FindStringSubmatch(lines.Text())
		if call == nil {
			continue // a call resumed, an exit
		}
		calls++
		if call[1] == "io_uring_setup" {
			bad = append(bad, "a ring, whose writes show in no call")
		}
		var paths []string
		for _, m := range tracedFile.FindAllStringSubmatch(call[2], -1) {
			path := strings.TrimSuffix(m[1], " (deleted)")
			if _, known := onDisk[path]; !known {
				onDisk[path] = isDisk(path)
			}
			if onDisk[path] {
				paths = append(paths, path)
			}
		}
		if len(paths) == 0 {
			continue
		}
		switch name := call[1]; name {
		case "mmap":
			// What is written to such a mapping shows in no call.
			if strings.Contains(call[2], "PROT_WRITE") && strings.Contains(call[2], "MAP_SHARED") {
				bad = append(bad, "a writable shared mapping of "+paths[0])
			}
		case "sendfile", "splice", "copy_file_range", "vmsplice", "tee":
			bad = append(bad, name+" with "+strings.Join(paths, " and "))
		default:
			if len(scanner.Find([]byte(call[2]))) > 0 {
				bad = append(bad, name+" of a value to "+paths[0])
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return bad, calls
}

// isDisk reports whether a path is, or was, that of a regular file on a file
// system that isn't in memory.
func isDisk(path string) bool {
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return false
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil {
			switch st.Type {
			case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
				return false
			}
			return true
		}
		if dir == "/" {
			return true
		}
	}
}

// fileLease is a lease of a file secret beside the user of a site.
const fileLease = `key: {provider: vault, path: database/creds/%s, file: {DB_KEY: password}}`

// tellAll tells the file's content too: it is another user's password.
const tellAll = `echo "$DB_USER $DB_PASSWORD $(cat "$DB_KEY")" >"$1"; `

// canaries are what a script that begins with [tellAll] got.
func (r *run) canaries(t *testing.T) *harness.Scanner {
	t.Helper()
	if len(r.besides) != 1 || r.besides[0] == r.password {
		t.Fatalf("the command told %d values besides its password, want that of its file", len(r.besides))
	}
	return harness.NewScanner(t, harness.Canary{Name: "leased password", Value: r.password}, harness.Canary{Name: "file secret", Value: r.besides[0]})
}

func TestP1KernelSeesNoValueReachADisk(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	s := c.newSite(t, plan{})
	s.plan.leases, s.plan.leasesOf = strings.ReplaceAll(fileLease, "%s", s.dbRole), "db, key"
	s.reload(t, s.config(), reloaded)
	tests := []struct {
		name   string
		order  order
		end    func(t *testing.T, r *run)
		status int // -1: any
	}{
		{"success", order{script: tellAll + hold + `; echo "$DB_PASSWORD"; cat "$DB_KEY"`}, nil, 0},
		{"success with a mount of its own", order{script: tellAll + hold + `; cat "$DB_KEY"`, flags: []string{"--isolate=require"}}, nil, 0},
		{"failure", order{script: tellAll + hold + `; echo "$DB_PASSWORD" | base64 >&2; exit 3`}, nil, 3},
		{"interrupted", order{script: tellAll + hold}, func(t *testing.T, r *run) { r.signal(t, syscall.SIGINT) }, -1},
		{"terminated", order{script: tellAll + hold}, func(t *testing.T, r *run) { r.signal(t, syscall.SIGTERM) }, -1},
		{"aborted", order{script: tellAll + hold}, func(t *testing.T, r *run) { r.signal(t, syscall.SIGABRT) }, -1},
		{"killed", order{script: tellAll + hold}, func(t *testing.T, r *run) { r.signal(t, syscall.SIGKILL) }, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr, entry := traced(t)
			tt.order.entry, tt.order.flags = entry, append(tt.order.flags, "--debug", "-v")
			r := s.start(t, tt.order)
			if tt.end != nil {
				tt.end(t, r)
			}
			r.release()
			if got := r.status(t, 30*time.Second); tt.status >= 0 && got != tt.status {
				t.Errorf("runenv run ends with %d, want %d", got, tt.status)
			}
			s.gone(t, r, 10*time.Second, "the end")
			scanner := r.canaries(t)
			bad, calls := tr.offences(t, scanner)
			if calls < 20 {
				t.Errorf("the trace has %d calls: it can't be the whole run", calls)
			}
			for _, offence := range bad {
				t.Errorf("the kernel saw %s", offence)
			}
		})
	}
}

// How a changed runenv breaks, as the variable BREAKS tells it: with what it
// holds as the panic's value, which Go prints what it can of.
const breaking = `package cli

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func breaks(environ, command []string) {
	switch os.Getenv("BREAKS") {
	case "beside":
		at := make(chan os.Signal, 1)
		signal.Notify(at, syscall.SIGUSR1)
		go func() {
			<-at
			panic(environ)
		}()
	case "before":
		tell := exec.Command("sh", "-c", "echo \"$DB_USER $DB_PASSWORD $(cat \"$DB_KEY\")\" >\"$1\"", "sh", command[len(command)-1])
		tell.Env = environ
		if err := tell.Run(); err != nil {
			os.Exit(99)
		}
		panic(environ)
	}
}
`

// RunEnv itself panics while it holds leases and a file secret: what it prints
// then, and what Go dumps, is no way out for a value either.
func TestP1PanicPutsNoValueAnywhere(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	program := harness.Changed(t,
		harness.Change{File: "internal/cli/process.go", Before: "\tstatus, err := proc.Run(ctx, ", Insert: "\tbreaks(environ, p.command)\n"},
		harness.Change{File: "internal/cli/breaks.go", Insert: breaking})
	tests := []struct {
		name, where, traceback string
		status                 int // as Go ends; -1 is by a signal
		ended                  string
	}{
		{"beside the command", "beside", "single", 2, "end_token"},
		{"beside the command with all to be dumped", "beside", "crash", -1, "end_token"},
		{"between leasing and the command", "before", "all", 2, "client"}, // what is deferred still runs
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := c.newSite(t, plan{})
			s.plan.leases, s.plan.leasesOf = strings.ReplaceAll(fileLease, "%s", s.dbRole), "db, key"
			s.reload(t, s.config(), reloaded)
			memory, err := os.MkdirTemp("/dev/shm", "runenv-test-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(memory) })
			files := func() []string {
				found, err := filepath.Glob(filepath.Join(memory, "runenv-*", "*"))
				if err != nil {
					t.Fatal(err)
				}
				return found
			}

			tr, entry := traced(t)
			r := s.start(t, order{
				script: tellAll + hold, program: program, entry: entry, flags: []string{"--debug", "-v"},
				env: []string{"XDG_RUNTIME_DIR=" + memory, "GOTRACEBACK=" + tt.traceback, "BREAKS=" + tt.where},
			})
			if tt.where == "beside" {
				if len(files()) == 0 {
					t.Error("the command has no file secret")
				}
				r.signal(t, syscall.SIGUSR1)
			}
			if got := r.status(t, 30*time.Second); got != tt.status {
				t.Errorf("runenv ends with %d, want %d", got, tt.status)
			}
			r.says(t, "panic: ", "goroutine ", "github.com/runenv/action/internal/cli.breaks")

			s.gone(t, r, 5*time.Second, "the panic")
			harness.Eventually(t, 5*time.Second, "the file secrets are removed", func() bool { return len(files()) == 0 })
			harness.Eventually(t, 5*time.Second, "the session has ended in the audit log", func() bool {
				return slices.ContainsFunc(s.records(t), func(r record) bool { return r.Event == "session.ended" && r.Reason == tt.ended })
			})
			scanner := r.canaries(t)
			scanner.Check(t, "crash text", []byte(r.stderr.String()))
			scanner.Check(t, "standard output", []byte(r.stdout.String()))
			for _, found := range scanner.Tree(t, r.dir) {
				t.Errorf("the job's folders hold %s", found)
			}
			bad, calls := tr.offences(t, scanner)
			if calls < 20 {
				t.Errorf("the trace has %d calls: it can't be the whole run", calls)
			}
			for _, offence := range bad {
				t.Errorf("the kernel saw %s", offence)
			}
		})
	}
}

// The trace must show what it is there for.
func TestTraceSeesAWriteToADisk(t *testing.T) {
	t.Parallel()
	const value = "c4n4ry-of-the-trace-7g2k"
	scanner := harness.NewScanner(t, harness.Canary{Name: "canary", Value: value})
	for _, script := range []string{
		`echo "x $V y" >"$1"`, `printf %s "$V" | base64 >"$1"`, `printf %s "$V" | dd of="$1" 2>/dev/null`,
		`printf %s "$V" | python3 -c 'import sys,mmap; f=open(sys.argv[1],"w+b"); f.write(b" "*64); f.flush(); m=mmap.mmap(f.fileno(),64); m[:24]=sys.stdin.buffer.read()' "$1"`,
	} {
		tr, entry := traced(t)
		target := filepath.Join(t.TempDir(), "file")
		cmd := exec.CommandContext(t.Context(), entry[0], append(entry[1:], "sh", "-c", script, "sh", target)...)
		cmd.Env = append(os.Environ(), "V="+value)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		harness.Eventually(t, 10*time.Second, "the trace of "+script+" shows the write", func() bool {
			bad, _ := tr.offences(t, scanner)
			return len(bad) > 0
		})
	}
}
