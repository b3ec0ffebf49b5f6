package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// shapes are values as they stand in a real KV store. Each is a lease of its
// name in lower case, in the variable of its name.
var shapes = map[string]string{
	"PLAIN":    "plain-kv-value-0123456789",
	"LINES":    "-----BEGIN KEY-----\nfirst-line-of-a-key\nsecond-line-of-a-key\n-----END KEY-----\n",
	"PERCENT":  "100%-of%20a%%secret%n",
	"QUOTES":   `it's "quoted" \and $escaped` + "`here`",
	"SHORT":    "x",
	"LARGE":    strings.Repeat("0123456789abcdef", 1<<16-64), // just under 1 MiB
	"NUL":      "before-the-nul\x00after-the-nul",
	"OVERLAPS": "abcabcabdabcabcabcabd-k7Q",
}

func newShapes(t *testing.T) *site {
	t.Helper()
	c := newComponents(t)
	leases := `word: {provider: vault, path: secret/ci/plain, env: {WORD: value}}`
	names := "db"
	for name := range shapes {
		lower := strings.ToLower(name)
		leases += fmt.Sprintf("\n  %s: {provider: vault, path: secret/ci/%s, env: {%s: value}}", lower, lower, name)
		names += ", " + lower
	}
	s := c.newSite(t, plan{leases: leases, leasesOf: names, vaultPolicy: `path "secret/data/ci/*" { capabilities = ["read"] }`})
	for name, value := range shapes {
		c.vault.Write(t, "secret/data/ci/"+strings.ToLower(name), map[string]any{"data": map[string]any{"value": value}})
	}
	return s
}

func TestCommandsOfEveryKind(t *testing.T) {
	t.Parallel()
	s := newShapes(t)
	dir := t.TempDir()
	plainFile := filepath.Join(dir, "plain-file")
	if err := os.WriteFile(plainFile, []byte("not a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want int
		says []string
	}{
		{"not found", []string{"no-such-command-anywhere"}, 127, []string{"runenv: error: ", "no-such-command-anywhere", "runenv: hint: "}},
		{"not found by path", []string{filepath.Join(dir, "none")}, 127, []string{"runenv: error: ", "runenv: hint: "}},
		{"not executable", []string{plainFile}, 126, []string{"runenv: error: ", "runenv: hint: make the file executable"}},
		{"a directory", []string{dir}, 126, []string{"runenv: error: "}},
		{"own status", []string{"sh", "-c", "exit 42"}, 42, nil},
		{"status 125 of its own", []string{"sh", "-c", "exit 125"}, 125, nil},
		{"killed by TERM", []string{"sh", "-c", "kill -TERM $$"}, 128 + 15, nil},
		{"killed by SEGV", []string{"sh", "-c", "kill -SEGV $$"}, 128 + 11, nil},
		{"killed by KILL", []string{"sh", "-c", "kill -KILL $$"}, 128 + 9, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := s.launch(t, order{flags: []string{"--lease", "db", "--lease", "plain"}, args: tt.args})
			if got := r.status(t, 30*time.Second); got != tt.want {
				t.Errorf("runenv run ends with %d, want %d", got, tt.want)
			}
			r.says(t, tt.says...)
			if tt.says == nil && r.stderr.String() != "" {
				t.Errorf("runenv says %q, want nothing", r.stderr)
			}
		})
	}
	t.Run("leaves a background child", func(t *testing.T) {
		t.Parallel()
		// Both hold the output open; the second has a session of its own.
		r := s.launch(t, order{flags: []string{"--lease", "plain"}, args: []string{"sh", "-c",
			`sleep 600 & echo "left $!"; setsid sleep 600 & echo "left $!"; echo "$PLAIN"; exit 5`}})
		if got := r.status(t, 10*time.Second); got != 5 {
			t.Errorf("runenv run ends with %d, want the command's own 5", got)
		}
		if out := r.stdout.String(); !strings.HasSuffix(out, "[REDACTED:plain]\n") {
			t.Errorf("the output is %q, want all that the command wrote", out)
		}
		left := regexp.MustCompile(`left (\d+)`).FindAllStringSubmatch(r.stdout.String(), -1)
		if len(left) != 2 {
			t.Fatalf("the command left %q, want two processes", left)
		}
		for _, m := range left {
			pid, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			if syscall.Kill(pid, 0) == nil {
				t.Errorf("process %d, left behind by the command, still runs", pid)
			}
		}
	})
	t.Run("prints 1 GiB", func(t *testing.T) {
		t.Parallel()
		const size = 1 << 30
		r := s.launch(t, order{flags: []string{"--lease", "plain"}, count: true, args: []string{"sh", "-c",
			fmt.Sprintf(`yes "a line of a log, as long as they are: $PLAIN and more of the same, once again" | head -c %d; echo printed >&2; `, size) + hold + `; exit 7`}})
		harness.Eventually(t, 3*time.Minute, "all is printed", func() bool { return strings.Contains(r.stderr.String(), "printed") })
		if peak := peakMemory(t, r.cmd.Process.Pid); peak > 100<<20 {
			t.Errorf("runenv took %d MiB of memory at most, want under 100", peak>>20)
		} else {
			t.Logf("runenv took %d MiB of memory at most for 1 GiB of output", peak>>20)
		}
		r.release()
		if got := r.status(t, time.Minute); got != 7 {
			t.Errorf("runenv run ends with %d, want the command's own 7", got)
		}
		// The marker is a little shorter than the value.
		if got := r.passed.Load(); got >= size || got < size*8/10 {
			t.Errorf("%d bytes came through, of %d with a value in each line", got, size)
		}
	})
}

func TestValuesOfEveryShape(t *testing.T) {
	t.Parallel()
	s := newShapes(t)
	for _, name := range []string{"PLAIN", "LINES", "PERCENT", "QUOTES", "SHORT", "OVERLAPS"} {
		value, lease := shapes[name], strings.ToLower(name)
		t.Run(lease, func(t *testing.T) {
			t.Parallel()
			// The command gets exactly the value; what it prints of it, whole
			// or a byte at a time, is hidden.
			r := s.launch(t, order{flags: []string{"--lease", lease}, args: []string{"sh", "-c", `
				printf %s "$` + name + `" | sha256sum
				printf 'whole: %s\n' "$` + name + `" >&2
				printf %s "$` + name + `" | dd bs=1 status=none
				printf ' and '
				printf %s "$` + name + `" | base64 -w 0`}})
			if got := r.status(t, 30*time.Second); got != 0 {
				t.Errorf("runenv run ends with %d, want 0", got)
			}
			sum := sha256.Sum256([]byte(value))
			if !strings.HasPrefix(r.stdout.String(), hex.EncodeToString(sum[:])) {
				t.Error("the command has another value than the store")
			}
			short := `runenv: warning: lease "short" has a value of under 6 bytes: that one isn't hidden in the output`
			if name == "SHORT" {
				r.says(t, short)
				return
			}
			if strings.Contains(r.stderr.String(), "warning") {
				t.Errorf("runenv warns: %s", r.stderr)
			}
			for stream, text := range map[string]string{"standard output": r.stdout.String(), "standard error": r.stderr.String()} {
				if !strings.Contains(text, "[REDACTED:"+lease+"]") {
					t.Errorf("%s has no marker: %q", stream, text)
				}
				for line := range strings.Lines(value) {
					line = strings.TrimSuffix(line, "\n")
					if strings.Contains(line, "KEY") { // says nothing
						continue
					}
					harness.NewScanner(t, harness.Canary{Name: "value", Value: line}).Check(t, stream, []byte(text))
				}
			}
		})
	}
	// A write may end within the value, where it looks like its own beginning.
	t.Run("split", func(t *testing.T) {
		t.Parallel()
		value := shapes["OVERLAPS"]
		for _, at := range []int{1, 3, 5, 6, 8, 11, 14, 17, 20} {
			r := s.launch(t, order{flags: []string{"--lease", "overlaps"}, args: []string{"sh", "-c",
				// Without a pause one read would take both writes.
				fmt.Sprintf(`printf 'abcab%%.%ds' "$OVERLAPS"; sleep 0.1; printf %%s "${OVERLAPS#%s}"`, at, strings.Repeat("?", at))}})
			if got := r.status(t, 30*time.Second); got != 0 {
				t.Errorf("runenv run ends with %d, want 0", got)
			}
			// What waits longer than a prompt may is shown up to five bytes.
			shown := ""
			if at < 6 {
				shown = value[:at]
			}
			if got, want := r.stdout.String(), "abcab"+shown+"[REDACTED:overlaps]"; got != want {
				t.Errorf("split after %d of %d bytes, the output is %q, want %q", at, len(value), got, want)
			}
		}
	})
	for _, tt := range []struct {
		lease string
		says  []string
	}{
		{"large", []string{`runenv: error: `, `(lease large)`, "LARGE", "131071 bytes", "runenv: hint: "}},
		{"nul", []string{`runenv: error: `, `(lease nul)`, "NUL", "NUL byte", "runenv: hint: "}},
	} {
		t.Run(tt.lease, func(t *testing.T) {
			t.Parallel()
			r := s.launch(t, order{flags: []string{"--lease", "db", "--lease", tt.lease, "--debug"}, args: []string{"true"}})
			if got := r.status(t, 30*time.Second); got != 125 {
				t.Errorf("runenv run ends with %d, want 125", got)
			}
			r.says(t, tt.says...)
			for _, part := range []string{"before-the-nul", "after-the-nul", "0123456789abcdef0123456789abcdef"} {
				if strings.Contains(r.stdout.String()+r.stderr.String()+s.broker.Log(), part) {
					t.Errorf("runenv or the broker's log shows the value: %q", part)
				}
			}
		})
	}
}

// GitLab fixes a job's token at its start, so that two runs share it.
func TestGitLabJobRunsTwiceWithOneToken(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	s := c.newSite(t, plan{
		issuer:   `gitlab: {profile: gitlab, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}`,
		projects: `shop-api: {gitlab: pay/api@88}`, sessions: 2,
	})
	token := func(claims map[string]any) []string {
		token, err := c.ci.Issuer.GitLabToken(s.broker.URL, claims)
		if err != nil {
			t.Fatal(err)
		}
		return []string{"RUNENV_ID_TOKEN=" + token, "GITLAB_CI=true", "ACTIONS_ID_TOKEN_REQUEST_URL="}
	}
	job := token(nil)
	script := tell + hold + `; exit 7`
	first := s.start(t, order{script: script, env: job})
	second := s.start(t, order{script: script, env: job})
	s.alive(t, first)
	s.alive(t, second)
	third := s.launch(t, order{script: script, env: job})
	if got := third.status(t, 20*time.Second); got != 125 {
		t.Errorf("a third runenv run, with limits.sessions 2, ends with %d, want 125", got)
	}
	third.says(t, "runenv: error: ", "limit_exceeded", "runenv: hint: the role's `limits`")
	if got := len(s.users(t)); got != 2 {
		t.Errorf("the site has %d users, want 2", got)
	}
	// Another job has a limit of its own.
	other := s.start(t, order{script: script, env: token(map[string]any{"job_id": "30000000002"})})
	for i, r := range []*run{first, second, other} {
		r.release()
		if got := r.status(t, 10*time.Second); got != 7 {
			t.Errorf("run %d ends with %d, want 7", i, got)
		}
		s.gone(t, r, 2*time.Second, "the command's end")
	}
	// One after another, the same token serves as often as it likes.
	if got := s.start(t, order{script: tell, env: job}).status(t, 10*time.Second); got != 0 {
		t.Errorf("a run after those ended with %d, want 0", got)
	}
}

// peakMemory is the most memory that a process has had, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
