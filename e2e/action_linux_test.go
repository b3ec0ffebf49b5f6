package e2e_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net/http"
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

// What a user does wrong, or a day does to them: each ends with an annotation
// that names the cure, and without a credential.
func TestActionRefuses(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	s := c.newSite(t, plan{})
	otherCA := writeCertificate(t, t.TempDir())
	for _, tt := range []struct {
		name  string
		steps string // its script would print "ran" and another word
		env   []string
		says  []string
	}{
		{
			"no id-token permission", "- uses: {{runenv}}\n    run: echo ran on",
			[]string{"ACTIONS_ID_TOKEN_REQUEST_URL=", "ACTIONS_ID_TOKEN_REQUEST_TOKEN="},
			[]string{"no OIDC token source", `add "permissions: id-token: write" to the job`},
		},
		{
			"broker unreachable", "- uses: {{runenv}}\n    run: echo ran on",
			[]string{"JOB_BROKER=https://127.0.0.1:1"},
			[]string{"https://127.0.0.1:1", "connection refused"},
		},
		{
			"broker with a wrong certificate", "- uses: {{runenv}}\n    run: echo ran on",
			[]string{"RUNENV_CA_FILE=" + otherCA},
			[]string{"certificate signed by unknown authority", "RUNENV_CA_FILE"},
		},
		{
			"role refused", "- uses: {{runenv}}\n    role: nobody-has-this\n    run: echo ran on", nil,
			[]string{"invalid_target", "[request r-", "job's own claims", "repository: acme/shop-api", "runenv-broker audit show r-"},
		},
		{
			"unknown input", "- uses: {{runenv}}\n    lease: db\n    run: echo ran on", nil,
			[]string{"the action has no input `lease`", "leases"},
		},
		{
			"empty run", "- uses: {{runenv}}\n    run: \"  \"", nil,
			[]string{"the input `run` holds white space and nothing else"},
		},
		{
			"unknown lease", "- uses: {{runenv}}\n    leases: nope\n    run: echo ran on", nil,
			[]string{"nope"},
		},
		{
			"unknown shell", "- uses: {{runenv}}\n    shell: fish\n    run: echo ran on", nil,
			[]string{"the input `shell` is", "{0}"},
		},
		{
			"no such folder", "- uses: {{runenv}}\n    working-directory: sub/none\n    run: echo ran on", nil,
			[]string{"the working directory", "sub/none"},
		},
		{
			"no such binary", "- uses: " + strings.Replace(runenvStep, "${{ env.JOB_RUNENV }}", "/nowhere/runenv", 1) + "\n    run: echo ran on", nil,
			[]string{"the binary /nowhere/runenv can't be used"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			steps := tt.steps
			if strings.Contains(steps, "role: nobody") {
				steps = strings.Replace(strings.ReplaceAll(steps, "{{runenv}}", runenvStep), "\n    role: migrate", "", 1)
			}
			r := s.act(t, workflow{steps: steps, env: tt.env})
			r.ended(t, false)
			r.says(t, append(tt.says, "::error title=RunEnv::", "%0Ahint: ")...)
			r.lacks(t, "| ran on")
		})
	}
	if users := s.users(t); len(users) != 0 {
		t.Errorf("%d database users were made, want none", len(users))
	}
}

func TestActionWithoutToken(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	none := []string{"ACTIONS_ID_TOKEN_REQUEST_URL=", "ACTIONS_ID_TOKEN_REQUEST_TOKEN="}
	next := "\n- run: 'echo \"skipped: ${{ steps.migrate.outputs.skipped }}\"'"
	for _, tt := range []struct {
		word       string
		says, lack []string
	}{
		{"skip", []string{"skipped: true"}, []string{"| ran with"}},
		{"run", []string{"| ran with []", "skipped: false"}, nil},
	} {
		t.Run(tt.word, func(t *testing.T) {
			t.Parallel()
			r := s.act(t, workflow{env: none, steps: "- id: migrate\n  uses: {{runenv}}\n    if-no-token: " + tt.word + "\n    run: echo \"ran with [$DB_USER]\"" + next})
			r.ended(t, true)
			r.says(t, tt.says...)
			r.lacks(t, tt.lack...)
		})
	}
}

func TestActionStep(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	values := map[string]string{
		"DELIMITER": "before\n_GitHubActionsFileCommandDelimeter_\nINJECTED=by-the-delimiter\nEOF\nghadelimiter_1\nafter",
		"STOP":      "::stop-commands::a-token-of-mine\n::set-output name=injected::by-the-value",
		"ESCAPES":   "first%0A::set-env name=INJECTED::by-escapes%0Dlast%25",
	}
	leases := ""
	for name, value := range values {
		lower := strings.ToLower(name)
		leases += fmt.Sprintf("%s: {provider: vault, path: secret/ci/%s, env: {%s: value}}\n  ", lower, lower, name)
		c.vault.Write(t, "secret/data/ci/"+lower, map[string]any{"data": map[string]any{"value": value}})
	}
	s := c.newSite(t, plan{leases: leases, leasesOf: "db, delimiter, stop, escapes", vaultPolicy: `path "secret/data/ci/*" { capabilities = ["read"] }`})
	slow := c.newSite(t, plan{front: true})

	t.Run("its own outputs and the script's", func(t *testing.T) {
		t.Parallel()
		r := s.act(t, workflow{steps: `
- id: migrate
  uses: {{runenv}}
    leases: db
    run: |
      echo "mine=from-the-script" >>"$GITHUB_OUTPUT"
      echo "LATER=in-the-environment" >>"$GITHUB_ENV"
      mkdir -p "$JOB_DIR/tmp/bin"
      printf '#!/bin/sh\necho from-the-path\n' >"$JOB_DIR/tmp/bin/mine"
      chmod +x "$JOB_DIR/tmp/bin/mine"
      echo "$JOB_DIR/tmp/bin" >>"$GITHUB_PATH"
      echo "## The script's summary" >>"$GITHUB_STEP_SUMMARY"
      test -z "${INPUT_ROLE+set}"
- run: |
    echo "outputs: ${{ steps.migrate.outputs.mine }} ${{ steps.migrate.outputs.skipped }} ${{ steps.migrate.outputs.lease-names }}"
    echo "outputs: ${{ steps.migrate.outputs.session }} ${{ steps.migrate.outputs.expires-at }}"
    echo "environment: $LATER; user: [$DB_USER]"
    mine
`})
		r.ended(t, true)
		r.says(t, "outputs: from-the-script false db", "environment: in-the-environment; user: []", "| from-the-path",
			"## The script's summary", "| db | vault | ", " | is revoked |")
		if !regexp.MustCompile(`outputs: s-\w+ \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).MatchString(r.stdout.String()) {
			t.Error("the outputs have no session and no end")
		}
	})
	t.Run("setup", func(t *testing.T) {
		t.Parallel()
		r := s.migrates(t, workflow{steps: `
- uses: {{runenv}}
    leases: |
      db
- run: |
    test -z "${DB_USER+set}"
    runenv run -- sh -c 'echo "$DB_USER $DB_PASSWORD" >"$TOLD"; read -r line <"$GATE"'
`})
		s.alive(t, r)
		r.pass(t)
		s.gone(t, r, 2*time.Second, "the command's end")
		r.ended(t, true)
	})
	t.Run("two in one job", func(t *testing.T) {
		t.Parallel()
		step := strings.ReplaceAll(migrateStep, "    run:", "    leases: db\n    run:")
		r := s.migrates(t, workflow{steps: step + step})
		first := r.user
		r.pass(t)
		s.gone(t, r, 2*time.Second, "the first script's end")
		r.listen(t)
		s.alive(t, r)
		if r.user == first {
			t.Error("both steps have the same user")
		}
		r.pass(t)
		s.gone(t, r, 2*time.Second, "the second script's end")
		r.ended(t, true)
	})
	t.Run("three jobs at once", func(t *testing.T) {
		t.Parallel()
		step := strings.ReplaceAll(migrateStep, "    run:", "    leases: db\n    run:")
		r := s.act(t, workflow{job: "strategy: {matrix: {n: [1, 2, 3]}}", steps: step, args: []string{"--concurrent-jobs", "3"}})
		users := map[string]bool{}
		if err := r.told.SetReadDeadline(time.Now().Add(40 * time.Second)); err != nil {
			t.Fatal(err)
		}
		told := bufio.NewReader(r.told)
		for range 3 {
			line, err := told.ReadString('\n')
			if err != nil {
				t.Fatalf("after %d jobs: %v", len(users), err)
			}
			r.user, r.password, _ = strings.Cut(strings.TrimSpace(line), " ")
			users[r.user] = true
			s.alive(t, r)
		}
		if len(users) != 3 {
			t.Errorf("three jobs have %d users", len(users))
		}
		for range 3 {
			r.pass(t)
		}
		r.ended(t, true)
		for user := range users {
			r.user = user
			s.gone(t, r, 2*time.Second, "the jobs' end")
		}
	})
	t.Run("T26 values that forge commands", func(t *testing.T) {
		t.Parallel()
		var script, next strings.Builder
		for name := range values {
			fmt.Fprintf(&script, "      printf %%s \"$%s\" | sha256sum | sed 's/^/sum: %s /'\n", name, name)
		}
		fmt.Fprintf(&next, "- run: |\n    echo \"injected: [$INJECTED] [${{ steps.migrate.outputs.injected }}]\"\n    echo '::notice::commands work'\n")
		r := s.act(t, workflow{steps: "- id: migrate\n  uses: {{runenv}}\n    leases: |\n      delimiter\n      stop\n      escapes\n    run: |\n" + script.String() +
			"      printf '%s\\n' \"$STOP\" \"$ESCAPES\" \"$DELIMITER\"\n" + next.String()})
		r.ended(t, true)
		r.says(t, "injected: [] []", "::notice::commands work", "[REDACTED:stop]", "[REDACTED:escapes]", "[REDACTED:delimiter]")
		for name, value := range values {
			r.says(t, fmt.Sprintf("sum: %s %x", name, sha256.Sum256([]byte(value))))
		}
		r.lacks(t, "by-the-delimiter", "by-the-value", "by-escapes", "a-token-of-mine")
	})
	t.Run("T27 a script piped through tee", func(t *testing.T) {
		t.Parallel()
		r := s.migrates(t, workflow{steps: `
- uses: {{runenv}}
    leases: db
    run: |
      exec > >(tee "$JOB_DIR/tmp/script.log") 2>&1
      echo "$DB_USER $DB_PASSWORD" >"$TOLD"
      echo "the script says $DB_PASSWORD"
`})
		r.ended(t, true)
		r.says(t, "the script says [REDACTED:db]")
		harness.NewScanner(t, harness.Canary{Name: "leased password", Value: r.password}).Check(t, "output", []byte(r.stdout.String()))
		log, err := os.ReadFile(filepath.Join(r.dir, "tmp", "script.log"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), "add-mask") || strings.Count(string(log), "\n") != 1 {
			t.Errorf("the script's own file has more than the script wrote: %d bytes", len(log))
		}
	})
	t.Run("leaves a background process", func(t *testing.T) {
		t.Parallel()
		r := s.act(t, workflow{steps: `
- uses: {{runenv}}
    leases: db
    run: |
      sleep 600 & echo "left $!."
      setsid sleep 600 & echo "left $!."
- run: echo the next step
`})
		r.ended(t, true)
		r.says(t, "the next step")
		left := regexp.MustCompile(`left (\d+)\.`).FindAllStringSubmatch(r.stdout.String(), -1)
		if len(left) != 2 {
			t.Fatalf("the script left %q, want two processes", left)
		}
		for _, m := range left {
			pid, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			if syscall.Kill(pid, 0) == nil {
				t.Errorf("process %d, left behind by the script, still runs", pid)
			}
		}
	})
	t.Run("timed out", func(t *testing.T) {
		t.Parallel()
		// A minute is the least that can be said.
		r := s.migrates(t, workflow{steps: strings.ReplaceAll(migrateStep, "- uses", "- timeout-minutes: 1\n  uses")})
		s.alive(t, r)
		select {
		case <-r.done:
		case <-time.After(90 * time.Second):
			t.Fatal("the step doesn't time out")
		}
		s.gone(t, r, 5*time.Second, "the timeout")
		r.ended(t, false)
	})
	t.Run("broker slow", func(t *testing.T) {
		t.Parallel()
		slow.front.Meddle(func(r *http.Request) harness.Fault {
			if r.Method == http.MethodPost && r.URL.Path != "/v1/session/heartbeat" {
				return harness.Fault{Hold: after(2 * time.Second)}
			}
			return harness.Fault{}
		})
		r := slow.migrates(t, workflow{steps: migrateStep})
		slow.alive(t, r)
		r.pass(t)
		slow.gone(t, r, 2*time.Second, "the script's end")
		r.ended(t, true)
	})
	t.Run("shells", func(t *testing.T) {
		t.Parallel()
		r := s.act(t, workflow{steps: `
- uses: {{runenv}}
    leases: db
    shell: sh
    run: 'echo "sh has [$DB_USER] in $(ps -o comm= -p $$)"'
- uses: {{runenv}}
    leases: db
    shell: bash
    run: 'false | true; echo "and not here"'
- if: failure()
  uses: {{runenv}}
    leases: db
    shell: perl {0}
    run: 'print "perl has [$ENV{DB_USER}]\n"'
`})
		r.ended(t, false)
		r.says(t, "sh has [[REDACTED:db]] in sh", "perl has [[REDACTED:db]]")
		r.lacks(t, "| and not here")
	})
}

// A dependency in the script looks for what could get it more.
func TestT29ScriptCantAskForTheToken(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	look := `
- uses: {{runenv}}
    run: |
      if env | grep -q '^ACTIONS_ID_TOKEN_REQUEST_'; then echo "it has them itself"; fi
      p=$$
      while test "$(cat "/proc/$p/comm")" != act; do
        echo "looked at $(cat "/proc/$p/comm")"
        if grep -qa ACTIONS_ID_TOKEN_REQUEST_ "/proc/$p/environ"; then echo "found in $(cat "/proc/$p/comm")"; fi
        p=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$p/status")
      done
`
	users := jobUsers(t)
	ordinary := users[len(users)-1].as
	for _, tt := range []struct {
		name  string
		node  int
		as    *syscall.Credential
		found bool
	}{
		{"Node 24", 24, ordinary, false},
		{"Node 22", 22, ordinary, false},
		// What docs/github.md says of it must be so, or the search finds nothing at all.
		{"Node 20", 20, ordinary, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := s.act(t, workflow{steps: look, node: tt.node, as: tt.as})
			r.ended(t, true)
			r.says(t, "looked at runenv")
			r.lacks(t, "it has them itself", "found in runenv", "found in bash")
			if got := strings.Contains(r.stdout.String(), "found in node"); got != tt.found {
				t.Errorf("the launcher's environment shows the variables: %t, want %t", got, tt.found)
			}
			if got := strings.Contains(r.stdout.String(), "::notice title=RunEnv::this runner's Node"); got != tt.found {
				t.Errorf("the launcher says so: %t, want %t", got, tt.found)
			}
		})
	}
}
