package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/gha"
	"github.com/runenv/action/internal/guardian"
	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

// What the main step leaves for the post step, in the runner's state. An end
// token ends one session, and is good for nothing else.
const (
	stateSession  = "session"
	stateEndURL   = "end_url"
	stateEndToken = "end_token"
	stateBinary   = "binary" // the launcher reads this one
	stateEnded    = "ended"  // and this
)

// postTimeout bounds the post step.
const postTimeout = 15 * time.Second

// actionStep is the action's step while it runs. A nil one is none: `runenv
// run` tells the runner nothing.
type actionStep struct {
	say           *printer
	stdout        *os.File
	getenv        func(string) string // of what the runner set, all of it
	runner, masks *gha.Runner
	workdir       string
	spawned       bool
	mask, summary bool

	session *client.Session
	leases  []api.Lease
	since   time.Time
}

func (st *actionStep) dir() string {
	if st == nil {
		return ""
	}
	return st.workdir
}

// skipped says whether the script was, for want of a token.
func (st *actionStep) skipped(yes bool) error {
	if st == nil {
		return nil
	}
	return st.runner.SetOutput("skipped", fmt.Sprint(yes))
}

// opened leaves the post step what it needs if this process is killed.
func (st *actionStep) opened(s *client.Session) error {
	if st == nil {
		return nil
	}
	st.session = s
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	return errors.Join(
		st.runner.SaveState(stateBinary, exe),
		st.runner.SaveState(stateEndURL, s.EndURL()),
		st.runner.SaveState(stateEndToken, string(s.EndToken().Reveal())),
		st.runner.SaveState(stateSession, s.ID()),
	)
}

// leased masks the values before anything else can be printed.
func (st *actionStep) leased(s *client.Session, leases []api.Lease, bearers []redact.Secret) error {
	if st == nil {
		return nil
	}
	st.leases, st.since = leases, time.Now()
	if st.mask && st.toRunner() {
		var values []secret.Value
		for _, l := range leases {
			for _, s := range secretsOf(l) {
				values = append(values, s.Value)
			}
		}
		for _, s := range bearers {
			values = append(values, s.Value)
		}
		if err := st.masks.Mask(values...); err != nil {
			return err
		}
	}
	if st.spawned {
		// A failure to print it is no reason to stop.
		_ = st.runner.Notice("this runner's Node can't hand its process over (process.execve): a process of this user above the script still holds the variables by which the job's token can be asked for")
	}
	return errors.Join(
		st.runner.SetOutput("skipped", "false"),
		st.runner.SetOutput("session", s.ID()),
		st.runner.SetOutput("lease-names", leaseNames(leases)),
		st.runner.SetOutput("expires-at", at(s.HardEnd())),
	)
}

// toRunner keeps masks, which hold values, from a disk: whoever reads a file
// isn't the runner (T27).
func (st *actionStep) toRunner() bool {
	fi, err := st.stdout.Stat()
	if err != nil || fi.Mode().IsRegular() {
		st.say.warning("standard output is a file, and not the runner's: no masks are written there")
		return false
	}
	return true
}

// ended says what became of the session.
func (st *actionStep) ended(ended []api.Lease, err error, found *leaks) {
	if st == nil || st.session == nil {
		return
	}
	if err == nil {
		if err := st.runner.SaveState(stateEnded, "true"); err != nil {
			st.say.problem("the post step will end the session once more", err)
		}
	}
	if !st.summary || len(st.leases) == 0 {
		return
	}
	if err := st.runner.AddSummary(st.table(ended, err, time.Now()) + leakTable(found)); err != nil {
		st.say.problem("there is no step summary", err)
	}
}

// table is the step's summary.
func (st *actionStep) table(ended []api.Lease, err error, now time.Time) string {
	fates := map[string]api.Lease{}
	for _, l := range ended {
		fates[l.Name] = l
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n### RunEnv: session %s\n\n| lease | provider | kind | life | end |\n|---|---|---|---|---|\n", cell(st.session.ID()))
	for _, l := range st.leases {
		life, end := now.Sub(st.since), "ended with the session, which the broker ended early"
		switch f, ok := fates[l.Name]; {
		case err != nil:
			end = "not ended yet: the broker ends it after missed heartbeats"
		case ok:
			end = fate(f)
			if f.State != "revoked" && f.State != "expired" && f.State != "void" {
				life = f.ExpiresAt.Sub(st.since)
			}
		}
		lived := "has no end"
		if life >= 0 {
			lived = life.Round(time.Second).String()
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", cell(l.Name), cell(l.Provider), cell(promise(l)), lived, cell(end))
	}
	return b.String()
}

// leakTable is the summary of what the leak scan found.
func leakTable(found *leaks) string {
	if found == nil || len(found.Hits) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n#### Leak scan: %s\n\n", count(len(found.Hits)+found.MoreHits, "hit"))
	for _, line := range hitLines(found) {
		fmt.Fprintf(&b, "- %s\n", cell(line))
	}
	return b.String()
}

// cell is text of a table in Markdown: the broker's words are shown, and
// neither followed nor formatted.
func cell(s string) string {
	return strings.NewReplacer(
		`\`, `\\`, "`", "\\`", "*", `\*`, "[", `\[`, "]", `\]`, "<", "&lt;", ">", "&gt;", "|", `\|`, "&", "&amp;",
	).Replace(oneLine(s))
}

// actionPost is the action's post step: it ends a session that the main step
// couldn't.
func (a *app) actionPost() error {
	st, err := a.asAction()
	if err != nil {
		return err
	}
	a.sweepFiles()
	if st.runner.State(stateSession) == "" || st.runner.State(stateEnded) == "true" {
		return nil
	}
	var s settings
	if err := s.resolve(Env{Environ: a.env.Environ}); err != nil {
		return err
	}
	ca, err := s.ca()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), postTimeout)
	defer cancel()
	err = guardian.End(ctx, guardian.Config{
		SessionURL: st.runner.State(stateEndURL),
		EndToken:   secret.FromString(st.runner.State(stateEndToken)),
		CAPEM:      a.guardianCA(ca),
	})
	if err != nil {
		a.say.problem("the step left its session, which the broker ends after missed heartbeats", err)
		return nil
	}
	a.say.note("the step left its session: it is ended now")
	return nil
}
