package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// The commands of docs/local.md lead from nothing to a workflow that has its
// lease under the real act and `runenv-broker dev`.
func TestLocalDocumentWorks(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/local.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(document), -1)
	told := regexp.MustCompile("(?s)\n```\n(dev: .*?)```").FindStringSubmatch(string(document))
	if len(blocks) != 3 || told == nil {
		t.Fatalf("docs/local.md has %d blocks of commands, want 3, and what dev tells", len(blocks))
	}
	ports := strings.NewReplacer("127.0.0.1:8098", freeAddress(t), "127.0.0.1:8099", freeAddress(t))

	// act as a user has it, but for what a machine without a network needs.
	job := harness.Act(t, harness.Job{Actions: map[string]string{"runenv/action@" + placeholder: harness.ActionDir(t)}})
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" %s\n", job.Path, strings.Join(job.Args[2:], " "))
	if err := os.WriteFile(filepath.Join(bin, "act"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	shell := func(commands string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", commands)
		cmd.Dir, cmd.WaitDelay = job.Dir, 5*time.Second
		for _, v := range job.Env {
			if path, ok := strings.CutPrefix(v, "PATH="); ok {
				v = "PATH=" + bin + ":" + filepath.Dir(harness.Binaries(t).Runenv) + ":" + path
			}
			cmd.Env = append(cmd.Env, v)
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	var out string
	for _, block := range blocks {
		printed, err := shell(ports.Replace(block[1]))
		if err != nil {
			t.Fatalf("%s\nends with %v and prints:\n%s", block[1], err, printed)
		}
		out += printed
	}
	want := strings.ReplaceAll(regexp.QuoteMeta(told[1]), "…", ".*")
	if !regexp.MustCompile(want).MatchString(out) {
		t.Errorf("dev doesn't tell what the document says; all output:\n%s", out)
	}
	if !strings.Contains(out, "I am [REDACTED:db], my password is [REDACTED:db]") || strings.Contains(out, "made-up-") || strings.Contains(out, "not reached") {
		t.Errorf("the jobs printed:\n%s", out)
	}

	// On another branch the same job is refused, as at GitHub.
	printed, err := shell(ports.Replace(strings.ReplaceAll(blocks[1][1], "--event push.json", "--event push.json --claim ref=refs/heads/dev")))
	if err == nil || !strings.Contains(printed, "a job was refused role migrate: claim_mismatch (claim ref)") {
		t.Errorf("on another branch: %v\n%s", err, printed)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
