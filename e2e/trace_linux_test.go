package e2e_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v: run `make e2e`, which installs it or says how", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "runenv-trace-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tr := &trace{filepath.Join(dir, "trace")}
	return tr, []string{
		"strace", "-D", "-f", "-y", "-q", "-s", "1048576", "-o", tr.path,
		"-e", "trace=write,pwrite64,writev,pwritev,pwritev2,sendfile,splice,tee,vmsplice,copy_file_range,mmap,mremap,truncate,ftruncate,linkat,symlinkat,setxattr,fsetxattr",
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

func TestP1KernelSeesNoValueReachADisk(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	s := c.newSite(t, plan{})
	s.plan.leases, s.plan.leasesOf = strings.ReplaceAll(fileLease, "%s", s.dbRole), "db, key"
	s.reload(t, s.config(), reloaded)
	// The file's content is told too: it is another user's password.
	const tellAll = `echo "$DB_USER $DB_PASSWORD" >"$1"; test -s "$DB_KEY"; cat "$DB_KEY" | wc -c >/dev/null; `
	tests := []struct {
		name   string
		order  order
		end    func(t *testing.T, r *run)
		status int // -1: any
	}{
		{"success", order{script: tellAll + hold + `; echo "$DB_PASSWORD"; cat "$DB_KEY"`}, nil, 0},
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
			tt.order.entry, tt.order.flags = entry, []string{"--debug", "-v"}
			r := s.start(t, tt.order)
			if tt.end != nil {
				tt.end(t, r)
			}
			r.release()
			if got := r.status(t, 30*time.Second); tt.status >= 0 && got != tt.status {
				t.Errorf("runenv run ends with %d, want %d", got, tt.status)
			}
			s.gone(t, r, 10*time.Second, "the end")
			scanner := harness.NewScanner(t, harness.Canary{Name: "leased password", Value: r.password})
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
