package brokercli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/audit"
)

// tell shows what the audit log says about the command that dev ran, and
// verifies the log.
func (d *devWorld) tell(ctx context.Context, env Env, code int) error {
	live := d.settle(ctx)
	if err := d.audit.Flush(ctx); err != nil {
		return fmt.Errorf("completing the audit log: %w", err)
	}
	report, err := audit.Verify(ctx, d.store, d.audit.VerifierKey())
	if err != nil {
		return fmt.Errorf("verifying the audit log: %w", err)
	}
	say(env, "the command has ended with status %d; the audit log tells:", code)
	told := 0
	for index := int64(0); index < report.Size; {
		page, err := d.store.Entries(ctx, index, 1000)
		if err != nil {
			return fmt.Errorf("reading the audit log: %w", err)
		}
		if len(page) == 0 {
			break // what was verified can't be missing
		}
		for _, e := range page {
			index = e.Index + 1
			if text := story(e.Body); text != "" {
				say(env, "  %s", text)
				told++
			}
		}
	}
	if told == 0 {
		say(env, "  nobody asked the broker for anything; a command does with: runenv run --role ROLE -- COMMAND")
	}
	if live > 0 {
		say(env, "  sessions still live: %d; they end here, with the broker", live)
	}
	say(env, "audit log verified: %d entries under a signed checkpoint", report.Size)
	return nil
}

// settle waits, within bounds, for ends that are under way, and returns how
// many sessions live all the same.
func (d *devWorld) settle(ctx context.Context) (live int) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		counts, err := d.store.Counts(ctx)
		if err == nil {
			live = counts["session"]
		}
		if err != nil || live+counts["revoking"] == 0 {
			return live
		}
		select {
		case <-ctx.Done():
			return live
		case <-tick.C:
		}
	}
}

// story is an entry in a newcomer's words; empty for one that is no part of
// theirs.
func story(body []byte) string {
	var rec audit.Record
	if json.Unmarshal(body, &rec) != nil {
		return ""
	}
	at := rec.Time.Local().Format("15:04:05.000")
	switch rec.Event {
	case "session.created":
		job := "a job"
		if rec.Project != "" {
			job = "the job of project " + quoted(rec.Project)
		}
		return fmt.Sprintf("%s  %s proved who it is and got a session for role %s", at, job, quoted(rec.Role))
	case "session.refused":
		why := rec.Reason
		if rec.Detail != "" {
			why += " (" + oneLine(rec.Detail) + ")"
		}
		return fmt.Sprintf("%s  a job was refused role %s: %s", at, quoted(rec.Role), why)
	case "session.ended":
		how, ok := map[string]string{
			"client":    "the command was over",
			"end_token": "runenv was killed, and its guardian ended it",
			"heartbeat": "its heartbeats stopped",
			"hard_end":  "its time was up",
		}[rec.Reason]
		if !ok {
			how = rec.Reason
		}
		return fmt.Sprintf("%s  the session ended: %s; nothing can be leased under it any more", at, how)
	case "lease.disclosed":
		return fmt.Sprintf("%s  lease %s was handed to that one command (a static value is disclosed, not revoked: it stays valid at its source)", at, rec.LeaseName)
	case "broker.started":
		return ""
	}
	return at + "  " + strings.Join(slices.DeleteFunc([]string{rec.Event, rec.LeaseName, rec.Reason}, func(s string) bool { return s == "" }), " ")
}
