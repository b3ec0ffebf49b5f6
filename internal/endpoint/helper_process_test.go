package endpoint

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/idtoken"
	"cloud.google.com/go/compute/metadata"
	"github.com/aws/aws-sdk-go-v2/config"
	vaultapi "github.com/hashicorp/vault/api"
)

// helperMode makes this test's own program a tool of the command: for each
// line that it reads it answers with one, in JSON.
const helperMode = "ENDPOINT_TEST_HELPER"

// A said is a helper's answer.
type said struct {
	Values  map[string]string
	Expires time.Time
	Error   string
}

func help(mode string) int {
	ctx := context.Background()
	tools := map[string]func(context.Context) (func() (said, error), error){
		"aws": awsTool, "google": googleTool, "vault": vaultTool, "dial": dialTool,
	}
	if mode == "orphan" {
		return leaveOrphan()
	}
	next, err := tools[mode](ctx)
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	for in.Scan() {
		var s said
		if err == nil {
			var failed error
			if s, failed = next(); failed != nil {
				s.Error = failed.Error()
			}
		} else {
			s.Error = err.Error()
		}
		if json.NewEncoder(os.Stdout).Encode(s) != nil {
			return 1
		}
	}
	return 0
}

func awsTool(ctx context.Context) (func() (said, error), error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion("eu-west-1"))
	if err != nil {
		return nil, err
	}
	return func() (said, error) {
		c, err := cfg.Credentials.Retrieve(ctx)
		return said{Values: map[string]string{"id": c.AccessKeyID, "secret": c.SecretAccessKey, "token": c.SessionToken, "account": c.AccountID}, Expires: c.Expires}, err
	}, nil
}

func googleTool(ctx context.Context) (func() (said, error), error) {
	c, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{cloudPlatformScope}})
	if err != nil {
		return nil, err
	}
	ids, err := idtoken.NewCredentials(&idtoken.Options{Audience: "https://service.example.com"})
	if err != nil {
		return nil, err
	}
	return func() (said, error) {
		t, err := c.Token(ctx)
		if err != nil {
			return said{}, err
		}
		s := said{Values: map[string]string{"token": t.Value, "on": fmt.Sprint(metadata.OnGCEWithContext(ctx))}, Expires: t.Expiry}
		var errs [5]error
		s.Values["project"], errs[0] = c.ProjectID(ctx)
		s.Values["universe"], errs[1] = c.UniverseDomain(ctx)
		s.Values["email"], errs[2] = metadata.EmailWithContext(ctx, "default")
		scopes, err := metadata.ScopesWithContext(ctx, "default")
		s.Values["scopes"], errs[3] = strings.Join(scopes, " "), err
		id, err := ids.Token(ctx)
		if errs[4] = err; err == nil {
			s.Values["id"] = id.Value
		}
		return s, errors.Join(errs[:]...)
	}, nil
}

func vaultTool(ctx context.Context) (func() (said, error), error) {
	c, err := vaultapi.NewClient(vaultapi.DefaultConfig())
	if err != nil {
		return nil, err
	}
	return func() (said, error) {
		db, err := c.Logical().ReadWithContext(ctx, "database/creds/shop-ro")
		if err != nil {
			return said{}, err
		}
		v1, err1 := c.KVv1("secret").Get(ctx, "ci/npm")
		v2, err2 := c.KVv2("secret").Get(ctx, "ci/npm")
		self, err3 := c.Auth().Token().LookupSelfWithContext(ctx)
		if err := errors.Join(err1, err2, err3); err != nil {
			return said{}, err
		}
		_, refused := c.Logical().ReadWithContext(ctx, "database/creds/other")
		return said{
			Values: map[string]string{
				"username": fmt.Sprint(db.Data["username"]), "password": fmt.Sprint(db.Data["password"]), "lease": db.LeaseID,
				"v1": fmt.Sprint(v1.Data["token"]), "v2": fmt.Sprint(v2.Data["token"]), "self": fmt.Sprint(self.Data["display_name"]),
				"refused": fmt.Sprint(refused != nil),
			},
			Expires: time.Now().Add(time.Duration(db.LeaseDuration) * time.Second),
		}, nil
	}, nil
}

// dialTool asks the metadata server for a token with nothing but a socket. Its
// address comes from the file that ENDPOINT_TEST_ADDRESS names, which may be
// written after its start.
func dialTool(ctx context.Context) (func() (said, error), error) {
	return func() (said, error) {
		addr, err := os.ReadFile(os.Getenv("ENDPOINT_TEST_ADDRESS"))
		if err != nil {
			return said{}, err
		}
		conn, err := dial(ctx, os.Getenv("ENDPOINT_TEST_NETWORK"), string(addr))
		if err != nil {
			return said{}, err
		}
		defer func() { _ = conn.Close() }()
		_, err = fmt.Fprintf(conn, "GET /computeMetadata/v1/instance/service-accounts/default/token HTTP/1.1\r\nHost: %s\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n", addr)
		if err != nil {
			return said{}, err
		}
		answer, err := io.ReadAll(conn)
		return said{Values: map[string]string{"answer": string(answer)}}, err
	}, nil
}

// leaveOrphan starts a helper that outlives it.
func leaveOrphan() int {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperMode+"=dial")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	if cmd.Start() != nil {
		return 1
	}
	return 0
}

// A helper is a process of this test's program.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startHelper starts one with env and nothing else of ours.
func startHelper(t *testing.T, mode string, env []string, as *syscall.SysProcAttr) *helper {
	t.Helper()
	exe := testProgram(t)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append([]string{helperMode + "=" + mode, "HOME=" + filepath.Dir(exe), "GORACE=atexit_sleep_ms=0"}, env...)
	cmd.Dir, cmd.SysProcAttr, cmd.Stderr = filepath.Dir(exe), as, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // the helper has its own
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
		_ = out.Close()
	})
	h := &helper{cmd, in, bufio.NewReader(out)}
	if line, err := h.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("a helper says %q, %v", line, err)
	}
	return h
}

// testProgram is a copy of this program that every user may run.
func testProgram(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "endpoint-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "helper")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func (h *helper) next(t *testing.T) said {
	t.Helper()
	if _, err := io.WriteString(h.in, "next\n"); err != nil {
		t.Fatal(err)
	}
	line, err := h.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var s said
	if err := json.Unmarshal(line, &s); err != nil {
		t.Fatal(err)
	}
	return s
}
