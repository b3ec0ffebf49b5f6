package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A Job is what [Act] and [GitLab] run: a repository and what surrounds it.
type Job struct {
	// Dir is where the repository ("work") is laid, beside the job's "home"
	// and "tmp". As must be able to reach it; "" means a new folder.
	Dir string
	// Files of the repository, by path.
	Files map[string]string
	// Env is added to the environment of the runner, which else has only a
	// PATH, a HOME and a TMPDIR. The job sees it, and a workflow reads it as
	// ${{ env.NAME }}, but for ACTIONS_*.
	Env []string
	// Args are further arguments of the runner.
	Args []string
	// Path holds folders that come first of all on the PATH.
	Path []string
	// As is the user of the runner; nil: whoever runs the tests.
	As *syscall.Credential

	// Event is what triggered the workflow; "" means push. EventFile is the
	// path of the event's JSON, if there is one. (Act)
	Event, EventFile string
	// Node is the major version that runs node actions: 24, 22 or 20; 0 means 24. (Act)
	Node int
	// Actions are folders by the "owner/name@ref" that stands for them in
	// workflows, beside this module's own, which is [Action]. (Act)
	Actions map[string]string

	// Name is the job to run. (GitLab)
	Name string
	// Variables are those that only the GitLab of a job sets: its id tokens.
	// As "NAME=value". (GitLab)
	Variables []string
}

// Action is what stands for this module's action in the workflows of [Act].
const Action = "runenv/action@v1"

// Act makes a command that runs a repository's workflows by the real act, on
// this machine and without a network: its jobs ask for ubuntu-latest.
// Standard output and error are the caller's to set.
func Act(tb testing.TB, job Job) *exec.Cmd {
	tb.Helper()
	act := tool(tb, "RUNENV_E2E_ACT")
	node := Node(tb, job.Node)
	if job.As != nil {
		act, node = publicTool(tb, act), publicTool(tb, node)
	}
	event := job.Event
	if event == "" {
		event = "push"
	}
	args := []string{
		event, "-P", "ubuntu-latest=-self-hosted", "--rm",
		"--cache-server-addr", "127.0.0.1", "--artifact-server-addr", "127.0.0.1",
		"--local-repository", Action + "=" + ActionDir(tb),
	}
	for ref, dir := range job.Actions {
		args = append(args, "--local-repository", ref+"="+dir)
	}
	if job.EventFile != "" {
		args = append(args, "--eventpath", job.EventFile)
	}
	for _, assignment := range job.Env {
		// Steps have act's own environment too, but the workflow reads only
		// what is named here. Anybody can read arguments: the keys to the
		// job's token aren't among them.
		if !strings.HasPrefix(assignment, "ACTIONS_") {
			args = append(args, "--env", assignment)
		}
	}
	job.Path = append(job.Path, filepath.Dir(node))
	return job.command(tb, act, append(args, job.Args...)...)
}

// GitLab makes a command that runs one job of a repository's .gitlab-ci.yml by
// the real gitlab-ci-local, in a shell on this machine. Standard output and
// error are the caller's to set.
func GitLab(tb testing.TB, job Job) *exec.Cmd {
	tb.Helper()
	node := Node(tb, 22)
	args := []string{
		filepath.Join(NPM(tb), "gitlab-ci-local", "dist", "index.js"),
		"--force-shell-executor", "--no-color",
	}
	for _, assignment := range job.Variables {
		args = append(args, "--variable", assignment)
	}
	cmd := job.command(tb, node, append(append(args, job.Args...), job.Name)...)
	git(tb, cmd, "remote", "add", "origin", "git@gitlab.example.com:pay/api.git")
	return cmd
}

// command lays the job's folders and makes the command of its runner.
func (job Job) command(tb testing.TB, program string, args ...string) *exec.Cmd {
	tb.Helper()
	dir := job.Dir
	if dir == "" {
		dir = publicDir(tb, "runenv-job-")
	}
	for name, content := range job.Files {
		path := filepath.Join(dir, "work", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	for _, name := range []string{"work", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			tb.Fatal(err)
		}
		if job.As != nil {
			giveTree(tb, filepath.Join(dir, name), job.As)
		}
	}
	cmd := exec.CommandContext(tb.Context(), program, args...)
	cmd.Dir = filepath.Join(dir, "work")
	cmd.Env = append([]string{
		"PATH=" + strings.Join(append(job.Path, os.Getenv("PATH")), ":"),
		"HOME=" + filepath.Join(dir, "home"),
		"TMPDIR=" + filepath.Join(dir, "tmp"),
	}, job.Env...)
	if job.As != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: job.As}
	}
	git(tb, cmd, "init", "-q", "-b", "main", ".")
	git(tb, cmd, "add", "-A")
	git(tb, cmd, "-c", "user.name=Sam", "-c", "user.email=sam@example.com", "commit", "-q", "--allow-empty", "-m", "a commit")
	return cmd
}

// git runs git where, and as whom, the command will run.
func git(tb testing.TB, like *exec.Cmd, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "git", args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = like.Dir, like.Env, like.SysProcAttr
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("git %s: %v\n%s", args[0], err, out)
	}
}

func giveTree(tb testing.TB, dir string, as *syscall.Credential) {
	tb.Helper()
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(as.Uid), int(as.Gid))
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// NPM is the folder node_modules with what the tests take from npm.
func NPM(tb testing.TB) string {
	tb.Helper()
	return tool(tb, "RUNENV_E2E_NPM")
}

// Node is the path of the node of a major version: 24, 22 or 20; 0 means 24.
// Of these, 20 can't replace itself by another program.
func Node(tb testing.TB, major int) string {
	tb.Helper()
	if major == 0 {
		major = 24
	}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	path := filepath.Join(NPM(tb), fmt.Sprintf("node%d-%s-%s", major, runtime.GOOS, arch), "bin", "node")
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("no Node %d for this machine: %v (run `make e2e`; e2e/tools/npm/package.json names the platforms)", major, err)
	}
	return path
}

// printNPM prints the versions of the packages that match a pattern.
func printNPM(pattern string) {
	paths, _ := filepath.Glob(filepath.Join(os.Getenv("RUNENV_E2E_NPM"), pattern, "package.json"))
	for _, path := range paths {
		var p struct{ Name, Version string }
		if content, err := os.ReadFile(path); err == nil && json.Unmarshal(content, &p) == nil {
			fmt.Printf("real component: %s %s\n", p.Name, p.Version)
		}
	}
}

// laid are the folders that other users' processes read, by what is in them.
var laid struct {
	mu   sync.Mutex
	dirs map[string]string
}

// lay makes such a folder once in a run of the tests.
func lay(tb testing.TB, what string, fill func(dir string) error) string {
	tb.Helper()
	laid.mu.Lock()
	defer laid.mu.Unlock()
	if dir, ok := laid.dirs[what]; ok {
		return dir
	}
	dir, err := os.MkdirTemp("", "runenv-laid-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = fill(dir)
	}
	if err != nil {
		tb.Fatal(err)
	}
	if laid.dirs == nil {
		laid.dirs = make(map[string]string)
	}
	laid.dirs[what] = dir
	return dir
}

func removeLaid() {
	laid.mu.Lock()
	defer laid.mu.Unlock()
	for _, dir := range laid.dirs {
		_ = os.RemoveAll(dir)
	}
	clear(laid.dirs)
}

// publicTool gives the path of a copy of a program that any user can run.
func publicTool(tb testing.TB, path string) string {
	tb.Helper()
	dir := lay(tb, path, func(dir string) error {
		return copyFile(path, filepath.Join(dir, filepath.Base(path)))
	})
	return filepath.Join(dir, filepath.Base(path))
}

// ActionDir is a folder with the action alone: act copies the whole folder
// for each job.
func ActionDir(tb testing.TB) string {
	tb.Helper()
	return lay(tb, Action, func(dir string) error {
		root, err := moduleRoot()
		if err != nil {
			return err
		}
		if err := os.CopyFS(filepath.Join(dir, "action"), os.DirFS(filepath.Join(root, "action"))); err != nil {
			return err
		}
		return copyFile(filepath.Join(root, "action.yml"), filepath.Join(dir, "action.yml"))
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // nothing was written
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm()|0o444)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
