package isolate_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/internal/isolate"
)

const (
	canary = "canary-of-an-isolated-file"
	// interrupted, as a command's last argument, has the mode get the signal of
	// a terminal's key before it has done anything.
	interrupted = "interrupted while the mount is made"
)

// TestMain is also the mode, and a process of an ordinary user that starts a
// command isolated.
func TestMain(m *testing.M) {
	if isolate.Is(os.Args) {
		if os.Args[len(os.Args)-1] == interrupted {
			_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
			select {}
		}
		os.Exit(isolate.Main(os.Args))
	}
	if len(os.Args) > 2 && os.Args[1] == "drive" {
		os.Exit(drive(os.Args[2], os.Args[3:]))
	}
	os.Exit(m.Run())
}

// drive starts a command with one file and one link in a folder, and prints
// what became of it. how is "require", or "auto" with a fallback.
func drive(how string, command []string) int {
	dir, err := filesecret.Open(filesecret.Options{})
	if err != nil {
		fmt.Println("opening:", err)
		return 99
	}
	defer func() { _ = dir.Remove() }()
	stage := &isolate.Stage{Dir: dir.Path(), Files: []isolate.File{
		{Name: "token", Content: []byte(canary)}, {Name: "docker/config.json", Content: []byte("{}")}, {Name: "docker/contexts", Target: "/usr"},
	}}
	if how == "auto" {
		stage.Fallback = func(why error) error {
			fmt.Println("fallback:", why)
			_, err := dir.Write("token", []byte(canary))
			return err
		}
	}
	attr := &os.ProcAttr{Env: []string{"PATH=" + os.Getenv("PATH"), "TOKEN_FILE=" + filepath.Join(dir.Path(), "token"), "LATIN=\xe9"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	p, err := stage.Start(command[0], command, attr)
	if stopped, ok := errors.AsType[*isolate.Interrupted](err); ok {
		fmt.Println(stopped.Signal(), stopped)
		return 96
	}
	if err != nil {
		fmt.Printf("refused: %v (%v)\n", err, errors.Is(err, syscall.ENOENT))
		return 98
	}
	entries, err := os.ReadDir(dir.Path())
	fmt.Println("outside:", len(entries)-1, err)
	state, err := p.Wait()
	if err != nil {
		return 97
	}
	return state.ExitCode()
}

// A driver runs this test's program as somebody.
type driver struct {
	name    string
	program string
	as      *syscall.Credential
}

// drivers are root, if that is who runs the tests, and an ordinary user.
func drivers(t *testing.T) []driver {
	t.Helper()
	if os.Getuid() != 0 {
		return []driver{{"ordinary user", os.Args[0], nil}}
	}
	dir, err := os.MkdirTemp("/dev/shm", "runenv-isolate-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = self.Close() }()
	program := filepath.Join(dir, "driver")
	out, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, self); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return []driver{{"root", program, nil}, {"ordinary user", program, &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}}
}

func (d driver) command(args ...string) *exec.Cmd {
	cmd := exec.Command(d.program, append([]string{"drive"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.as}
	return cmd
}

func (d driver) run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := d.command(args...)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	} else if ok {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

func TestT29FilesAreTheCommandsAlone(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			out, status := d.run(t, "require", "/bin/sh", "-c", `
				cat "$TOKEN_FILE"; echo
				stat -c '%a %F' "$TOKEN_FILE" "${TOKEN_FILE%/*}" "${TOKEN_FILE%/*}/docker"
				stat -f -c %T "$TOKEN_FILE"
				readlink "${TOKEN_FILE%/*}/docker/contexts"
				grep " ${TOKEN_FILE%/*} " /proc/self/mountinfo | grep -cE 'ramfs|noswap'
				printf %s "$LATIN" | od -An -tx1
				id -u
				grep CapEff /proc/self/status
				exit 7`)
			if status != 7 {
				t.Errorf("status = %d, want the command's own 7", status)
			}
			for _, want := range []string{canary, "400 regular file\n700 directory\n700 directory\n", "/usr\n1\n", "\n e9\n", "outside: 0 <nil>"} {
				if !strings.Contains(out, want) {
					t.Errorf("the output doesn't hold %q", want)
				}
			}
			if d.as != nil && !strings.Contains(out, fmt.Sprintf("\n%d\nCapEff:\t0000000000000000\n", d.as.Uid)) {
				t.Errorf("the command isn't its user without capabilities")
			}
			if t.Failed() {
				t.Logf("it printed:\n%s", out)
			}
		})
	}
}

// Root without CAP_SYS_ADMIN, as in a container, needs a user namespace too,
// and would have every capability in it.
func TestT29CommandHasNoCapabilityThatItsCallerLacks(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		if d.as != nil || os.Getuid() != 0 {
			continue // has none in any case
		}
		cmd := d.command("require", "/bin/sh", "-c", `cat "$TOKEN_FILE"; grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status`)
		path, err := exec.LookPath("setpriv")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path, cmd.Args = path, append([]string{"setpriv", "--bounding-set=-all,+chown,+kill,+setpcap,+setfcap", "--inh-caps=-all"}, cmd.Args...)
		out, err := cmd.CombinedOutput()
		want := canary + fmt.Sprintf("CapPrm:\t%016x\nCapEff:\t%016[1]x\nCapBnd:\t%016[1]x\n", 1<<0|1<<5|1<<8|1<<31)
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v\n%s\nwant %s", err, out, want)
		}
	}
}

func TestCommandInheritsNothingOfTheMode(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			const list = `ls /proc/self/fd | wc -l`
			plain := exec.Command("/bin/sh", "-c", list)
			cmd := d.command("require", "/bin/sh", "-c", list+`; tr '\0' '\n' </proc/$$/environ | cut -d= -f1 | sort; tr '\0' ' ' </proc/$$/cmdline; cat <&3`)
			extra, err := os.CreateTemp("/dev/shm", "runenv-isolate-")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = extra.Close(), os.Remove(extra.Name()) }()
			if _, err := extra.WriteString("its caller's own"); err != nil {
				t.Fatal(err)
			}
			if _, err := extra.Seek(0, 0); err != nil {
				t.Fatal(err)
			}
			cmd.ExtraFiles, plain.ExtraFiles = []*os.File{extra}, []*os.File{extra}
			open, err := plain.Output()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range []string{string(open), "\nPATH\n", "\nTOKEN_FILE\n", "its caller's own"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("the output doesn't hold %q:\n%s", want, out)
				}
			}
			if strings.Contains(string(out), "__isolate") {
				t.Errorf("the command shows the mode's arguments:\n%s", out)
			}
		})
	}
}

func TestCommandThatCannotBeExecuted(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		out, status := d.run(t, "require", "/nowhere/to/be/found")
		if want := "refused: no such file or directory (true)\n"; status != 98 || out != want {
			t.Errorf("%s: %q with status %d, want %q", d.name, out, status, want)
		}
	}
}

// A key isn't a refusal: without its command there is nothing to fall back to.
func TestKeyBeforeTheCommand(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		for _, how := range []string{"require", "auto"} {
			out, status := d.run(t, how, "/bin/echo", "it runs", interrupted)
			if want := "interrupt stopped by a signal: interrupt\n"; status != 96 || out != want {
				t.Errorf("%s, %s: %q with status %d, want %q", d.name, how, out, status, want)
			}
		}
	}
}

// The program runs where it may make no namespace.
func TestRefusedNamespaces(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		if d.name == "root" {
			continue // nothing keeps it from them
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			for how, want := range map[string]string{"require": "refused: isolating the command's file secrets: ", "auto": "fallback: "} {
				cmd := d.command(how, "/bin/sh", "-c", `cat "$TOKEN_FILE"`)
				// In a user namespace of its own, whose maker allows no further one.
				cmd.Args = append([]string{"unshare", "-Ur", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin --inh-caps=-all --ambient-caps=-all "$@"`, "sh"}, cmd.Args...)
				path, err := exec.LookPath("unshare")
				if err != nil {
					t.Fatal(err)
				}
				cmd.Path = path
				out, err := cmd.CombinedOutput()
				if !strings.HasPrefix(string(out), want) || strings.Contains(string(out), canary) != (how == "auto") || (err == nil) != (how == "auto") {
					t.Errorf("%s = %v, %q, want %q", how, err, out, want)
				}
			}
		})
	}
}

func TestT30MountGoesWithTheCommand(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			cmd := d.command("require", "/bin/sh", "-c", `echo "$TOKEN_FILE"; read -r _`)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = stdin.Close() }()
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var outside, path string
			// The driver's line and the command's come in either order.
			for range 2 {
				var line []byte
				for b := make([]byte, 1); ; line = append(line, b[0]) {
					if _, err := stdout.Read(b); err != nil {
						t.Fatalf("%v after %q", err, line)
					}
					if b[0] == '\n' {
						break
					}
				}
				if strings.HasPrefix(string(line), "outside:") {
					outside = string(line)
				} else if _, err := fmt.Sscan(string(line), &path); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
			}
			if outside != "outside: 0 <nil>" {
				t.Errorf("the folder outside has %q", outside)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file is seen outside: %v", err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			// The command holds the pipe for as long as it lives.
			if _, err := io.Copy(io.Discard, stdout); err != nil {
				t.Errorf("the command's output: %v", err)
			}
			_ = cmd.Wait()
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Error(err)
			}
		})
	}
}
