package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/secret"
)

// fileCanary is what a file secret holds where nothing depends on it.
const fileCanary = "canary-in-a-file-secret-0123456789"

// A fileSite is a fake of the broker that delivers files, and a user who runs
// commands with them.
type fileSite struct {
	broker *clienttest.Broker
	user   jobUser
	dir    string // the user's own
	env    []string
}

// apart gives the site a memory file system that no start of another test
// looks into.
func (s *fileSite) apart(t *testing.T) *fileSite {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "runenv-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s.give(t, dir)
	s.env = []string{"XDG_RUNTIME_DIR=" + dir}
	return s
}

func newFileSite(t *testing.T, u jobUser, leases ...api.Lease) *fileSite {
	t.Helper()
	s := &fileSite{broker: clienttest.Start(clienttest.Config{Roles: map[string][]api.Lease{"r": leases}}), user: u}
	t.Cleanup(s.broker.Close)
	dir, err := os.MkdirTemp("", "runenv-files-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s.dir = dir
	// What a cache takes up is elsewhere than temporary files are.
	for _, name := range []string{"work", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.give(t, dir)
	return s
}

// give makes what is below a folder the user's.
func (s *fileSite) give(t *testing.T, dir string) {
	t.Helper()
	if s.user.as == nil {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(s.user.as.Uid), int(s.user.as.Gid)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func fileLeaseOf(name string, files ...api.File) api.Lease {
	return api.Lease{Name: name, Provider: "static", State: "active", Revocability: "static", Files: files}
}

func fileOf(variable, name, kind string, content []byte) api.File {
	return api.File{Variable: variable, Name: name, Kind: kind, Mask: true, Value: api.NewValue(secret.New(bytes.Clone(content)))}
}

// command runs a command of the user's with everything that the role has.
func (s *fileSite) command(t *testing.T, flags []string, command ...string) *exec.Cmd {
	t.Helper()
	claims, err := json.Marshal(map[string]any{"iss": "https://ci.example.com", "aud": s.broker.URL, "exp": time.Now().Add(time.Hour).Unix(), "jti": strconv.FormatInt(time.Now().UnixNano(), 36)})
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	token := encode([]byte(`{"alg":"RS256"}`)) + "." + encode(claims) + "." + encode([]byte("not checked"))
	args := append([]string{"run", "--role", "r"}, flags...)
	cmd := exec.CommandContext(t.Context(), harness.Binaries(t).Runenv, append(append(args, "--"), command...)...)
	cmd.Dir = filepath.Join(s.dir, "work")
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.dir, "TMPDIR=" + filepath.Join(s.dir, "tmp"),
		"RUNENV_BROKER=" + s.broker.URL, "RUNENV_ID_TOKEN=" + token,
	}, s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user.as}
	return cmd
}

// run returns what the command printed, and its status.
func (s *fileSite) run(t *testing.T, flags []string, command ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := s.command(t, flags, command...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), 0
}

// fileModes are the ways in which files get to a command.
var fileModes = map[string][]string{"plain": nil, "isolated": {"--isolate=require"}}

func TestP1FilesLieInMemoryAndNowhereElse(t *testing.T) {
	t.Parallel()
	for _, u := range jobUsers(t) {
		for mode, flags := range fileModes {
			t.Run(u.name+", "+mode, func(t *testing.T) {
				t.Parallel()
				s := newFileSite(t, u, fileLeaseOf("one", fileOf("A_FILE", "token.txt", "", []byte(fileCanary))), fileLeaseOf("two", fileOf("B_FILE", "token.txt", "", []byte("another value of it"))))
				out, errs, status := s.run(t, flags, "sh", "-c", `stat -f -c %T "$A_FILE"; stat -c '%a %u' "$A_FILE" "${A_FILE%/*}"; echo "${A_FILE##*/} ${B_FILE##*/}"; wc -c <"$A_FILE"; cat "$A_FILE" "$B_FILE"; echo; echo "${A_FILE%/*}"; exit 5`)
				if status != 5 {
					t.Fatalf("status %d, want the command's 5\n%s%s", status, out, errs)
				}
				lines := strings.Split(strings.TrimSpace(out), "\n")
				uid := os.Getuid()
				if u.as != nil {
					uid = int(u.as.Uid)
				}
				want := []string{lines[0], fmt.Sprintf("400 %d", uid), fmt.Sprintf("700 %d", uid), "token.txt token-2.txt", strconv.Itoa(len(fileCanary)), "[REDACTED:one][REDACTED:two]", lines[len(lines)-1]}
				if !strings.HasPrefix(lines[0], "tmpfs") && !strings.HasPrefix(lines[0], "ramfs") || strings.Join(lines, "\n") != strings.Join(want, "\n") {
					t.Errorf("the command printed\n%s\nwant\n%s", out, strings.Join(want, "\n"))
				}
				folder := lines[len(lines)-1]
				if _, err := os.Lstat(folder); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is left: %v", folder, err)
				}
				left, err := filepath.Glob(filepath.Join(s.dir, "*", "*"))
				if err != nil || len(left) != 0 {
					t.Errorf("the user's folders hold %v, %v", left, err)
				}
			})
		}
	}
}

// nowhere runs what follows where no memory file system can be found: /dev/shm
// is hidden behind a folder on the disk.
func nowhere(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	path, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"unshare", "-m"}
	if os.Getuid() != 0 {
		args = append(args, "-U", "-r")
	}
	cmd.Args = append(append(args, "sh", "-c", `mkdir -p "$HOME/shm" && mount --bind "$HOME/shm" /dev/shm && exec "$@"`, "sh", cmd.Path), cmd.Args[1:]...)
	cmd.Path = path
}

func TestP1WithoutMemoryOnlyATypedDisk(t *testing.T) {
	t.Parallel()
	lease := fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary)))
	me := jobUser{name: "whoever runs the tests"}
	script := []string{"sh", "-c", `stat -f -c %T "$A_FILE"; cat "$A_FILE"`}

	s := newFileSite(t, me, lease)
	cmd := s.command(t, nil, script...)
	nowhere(t, cmd)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "error: no memory file system for file secrets") || !strings.Contains(string(out), "--files=disk") || strings.Contains(string(out), "REDACTED") {
		t.Errorf("without memory: %v\n%s", err, out)
	}
	for _, session := range s.broker.Sessions() {
		if session.Ended == "" {
			t.Error("the session of the refused command lives on")
		}
	}

	s = newFileSite(t, me, lease)
	cmd = s.command(t, []string{"--files=disk", "--scan=off"}, script...)
	nowhere(t, cmd)
	out, err = cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "[REDACTED:one]") || !strings.Contains(string(out), "warning: file secrets lie on a disk") || strings.Contains(string(out), "tmpfs") {
		t.Errorf("--files=disk without memory: %v\n%s", err, out)
	}
	for _, session := range s.broker.Sessions() {
		if len(session.Reports) == 0 || session.Reports[0].Files != api.FilesDisk {
			t.Errorf("the broker was told %+v, want the disk", session.Reports)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left on the disk: %v, %v", left, err)
	}

	// With its own mount it needs no memory file system outside.
	s = newFileSite(t, me, lease)
	cmd = s.command(t, []string{"--isolate=require"}, script...)
	nowhere(t, cmd)
	out, err = cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "[REDACTED:one]") || strings.Contains(string(out), "on a disk") {
		t.Errorf("--isolate=require without memory: %v\n%s", err, out)
	}

	// Asked for and not needed, a disk isn't used.
	s = newFileSite(t, me, lease)
	if out, errs, status := s.run(t, []string{"--files=disk"}, script...); status != 0 || !strings.HasPrefix(out, "tmpfs") || strings.Contains(errs, "disk") {
		t.Errorf("--files=disk with memory = %d\n%s%s", status, out, errs)
	}
}

func TestP1UnreportedDiskIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	s := newFileSite(t, jobUser{}, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary))))
	s.broker.Next("POST /v1/session/report", clienttest.Refuse(400, api.CodeInvalidRequest, ""))
	cmd := s.command(t, []string{"--files=disk"}, "sh", "-c", "echo it runs")
	nowhere(t, cmd)
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(out), "it runs") || !strings.Contains(string(out), "audit log") {
		t.Errorf("a disk that nobody recorded: %v\n%s", err, out)
	}
}

func TestFilesThatCanBeReadSoOften(t *testing.T) {
	t.Parallel()
	for _, u := range jobUsers(t) {
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			s := newFileSite(t, u, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary)), fileOf("B_FILE", "unread", "", []byte(fileCanary))))
			out, errs, status := s.run(t, []string{"--mount-max-reads", "2", "--scan=off"}, "bash", "-c", `test -p "$A_FILE"; a=$(cat "$A_FILE"); b=$(cat "$A_FILE"); [ "$a" = "$b" ] && echo "${#a}"; cat "$A_FILE" || echo gone; test -p "$B_FILE" && rm "$B_FILE"`)
			if want := fmt.Sprintf("%d\ngone\n", len(fileCanary)); out != want || status != 0 {
				t.Errorf("--mount-max-reads 2 = %d, %q, want %q\n%s", status, out, want, errs)
			}
		})
	}
}

func TestT29CommandOutsideTheMountFindsNothing(t *testing.T) {
	t.Parallel()
	for _, u := range jobUsers(t) {
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			s := newFileSite(t, u, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary))))
			cmd := s.command(t, []string{"--isolate=require"}, "sh", "-c", `echo "$A_FILE" >path; read -r _; wc -c <"$A_FILE" >size`)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			path := awaitFile(t, filepath.Join(s.dir, "work", "path"))
			// An outsider of the same user.
			look := exec.Command("cat", path)
			look.SysProcAttr = &syscall.SysProcAttr{Credential: u.as}
			if out, err := look.CombinedOutput(); err == nil || strings.Contains(string(out), fileCanary) {
				t.Errorf("an outsider reads %q, %v", out, err)
			}
			if err := stdin.Close(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if size := awaitFile(t, filepath.Join(s.dir, "work", "size")); size != strconv.Itoa(len(fileCanary)) {
				t.Errorf("the command read %s bytes", size)
			}
		})
	}
}

// awaitFile waits for a line in a file.
func awaitFile(t *testing.T, path string) string {
	t.Helper()
	var text []byte
	harness.Eventually(t, 10*time.Second, path+" is written", func() bool {
		text, _ = os.ReadFile(path)
		return bytes.HasSuffix(text, []byte("\n"))
	})
	return strings.TrimSpace(string(text))
}
