package guardian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/secret"
)

// patience bounds every wait; none takes that long unless something is broken.
const patience = 30 * time.Second

const urlVar = "RUNENV_GUARDIAN_TEST_URL" // makes the test binary a wrapper

// The test binary plays the guardian, and the wrapper that is killed.
func TestMain(m *testing.M) {
	switch {
	case IsGuardian(os.Args):
		for _, kv := range os.Environ() {
			if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "RUN") {
				os.Exit(97) // Start then fails
			}
		}
		os.Exit(Main(context.Background()))
	case os.Getenv(urlVar) != "":
		wrapper(os.Getenv(urlVar))
	default:
		os.Exit(m.Run())
	}
}

// wrapper opens a folder, starts a guardian, says so, and waits to be killed.
func wrapper(url string) {
	dir, err := filesecret.Open(filesecret.Options{Disk: true})
	if err == nil {
		var h *Handle
		if h, err = Start(""); err == nil {
			err = h.Guard(Config{SessionURL: url, EndToken: secret.FromString("end-token-canary")})
		}
		if err == nil {
			err = h.Files(dir.Path())
		}
		if err == nil {
			_, err = dir.Write("canary", []byte("a value"))
		}
		if err == nil {
			fmt.Println(h.process.Pid, dir.Path())
		}
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	<-time.After(2 * patience) // nobody may be left to end it
}

func TestT30KilledWrapper(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 100)
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
		w.WriteHeader(http.StatusNoContent)
	}))
	defer b.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := pipe(t)
	p, err := os.StartProcess(exe, []string{exe}, &os.ProcAttr{
		Env:   append(environment(), urlVar+"="+b.URL+"/v1/session", "TMP="+t.TempDir()),
		Files: []*os.File{nil, out[1], os.Stderr},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Kill() }()
	_ = out[1].Close()
	line, err := bufio.NewReader(out[0]).ReadString('\n')
	number, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
	pid, nerr := strconv.Atoi(number)
	if err != nil || nerr != nil {
		t.Fatalf("the wrapper says %q, %v", line, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "canary")); err != nil {
		t.Fatal(err)
	}
	guardian := openProcess(t, pid)
	if len(asked) != 0 {
		t.Errorf("the broker was asked before the death: %q", <-asked)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-asked:
		if want := "DELETE /v1/session Bearer end-token-canary"; got != want {
			t.Errorf("the broker was asked %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatal("the broker wasn't asked")
	}
	if event, err := windows.WaitForSingleObject(guardian, uint32(patience.Milliseconds())); event != windows.WAIT_OBJECT_0 {
		t.Fatalf("the guardian doesn't exit: %v", err)
	}
	var code uint32
	if err := windows.GetExitCodeProcess(guardian, &code); err != nil || code != 0 {
		t.Errorf("the guardian's exit code is %d, %v, want 0", code, err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of file secrets is still there: %v", err)
	}
}

func pipe(t *testing.T) [2]*os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return [2]*os.File{r, w}
}

func openProcess(t *testing.T, pid int) windows.Handle {
	t.Helper()
	h, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_QUERY_INFORMATION, false, uint32(pid))
	if err != nil {
		t.Fatalf("the guardian is gone: %v", err)
	}
	t.Cleanup(func() { _ = windows.CloseHandle(h) })
	return h
}

func TestDoneAsksNobody(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 100)
	b := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method }))
	defer b.Close()
	h, err := Start("")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Guard(Config{SessionURL: b.URL, EndToken: secret.FromString("end-token-canary")}); err != nil {
		t.Fatal(err)
	}
	if err := h.Watches(); err != nil {
		t.Fatal(err)
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
	<-h.exited
	if code := h.state.ExitCode(); code != 0 || len(asked) != 0 {
		t.Errorf("the guardian's exit code is %d, and the broker was asked %d times, want 0, 0", code, len(asked))
	}
}

// A console could close, and a job end with the wrapper.
func TestGuardianHasNoConsoleAndLeavesTheJob(t *testing.T) {
	t.Parallel()
	const alone, leave, kill = windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP,
		windows.CREATE_BREAKAWAY_FROM_JOB, windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	for limits, want := range map[uint32]uint32{
		0: alone, kill: alone, kill | windows.JOB_OBJECT_LIMIT_BREAKAWAY_OK: alone | leave,
	} {
		if got := creationFlags(limits); got != want {
			t.Errorf("creationFlags(%#x) = %#x, want %#x", limits, got, want)
		}
	}
}
