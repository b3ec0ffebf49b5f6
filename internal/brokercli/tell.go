package brokercli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/runenv/action/broker/audit"
)

// tell shows what the audit log says about the command that dev ran, and
// verifies the log.
func (d *devWorld) tell(ctx context.Context, env Env) error {
	d.settle(ctx)
	if err := d.audit.Flush(ctx); err != nil {
		return fmt.Errorf("completing the audit log: %w", err)
	}
	report, err := audit.Verify(ctx, d.store, d.audit.VerifierKey())
	if err != nil {
		return fmt.Errorf("verifying the audit log: %w", err)
	}
	say(env, "the command has ended; the audit log tells:")
	entries, err := d.store.Entries(ctx, 0, 1000)
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	for _, e := range entries {
		if text := story(e.Body); text != "" {
			say(env, "  %s", text)
		}
	}
	say(env, "audit log verified: %d entries under a signed checkpoint", report.Size)
	return nil
}

// settle waits, within bounds, for ends that are under way.
func (d *devWorld) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		counts, err := d.store.Counts(ctx)
		if err != nil || counts["session"]+counts["revoking"] == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// story is an entry in a newcomer's words.
func story(body []byte) string {
	var rec audit.Record
	if json.Unmarshal(body, &rec) != nil {
		return ""
	}
	at := rec.Time.Local().Format("15:04:05.000")
	switch rec.Event {
	case "session.created":
		return fmt.Sprintf("%s  the job of project %s proved who it is and got a session for role %s", at, rec.Project, rec.Role)
	case "session.refused":
		return fmt.Sprintf("%s  a job was refused role %s: %s %s", at, rec.Role, rec.Reason, rec.Detail)
	case "session.ended":
		how := map[string]string{"client": "the command exited", "end_token": "its guardian ended it", "heartbeat": "its heartbeats stopped"}[rec.Reason]
		if how == "" {
			how = rec.Reason
		}
		return fmt.Sprintf("%s  the session ended: %s; nothing can be leased under it any more", at, how)
	case "lease.disclosed":
		return fmt.Sprintf("%s  lease %s was handed to that one command (a static value is disclosed, not revoked: it stays valid at its source)", at, rec.LeaseName)
	case "lease.issued":
		return fmt.Sprintf("%s  lease %s was issued, until %s", at, rec.LeaseName, rec.ExpiresAt.Local().Format("15:04:05"))
	case "broker.started", "policy.loaded":
		return ""
	}
	return fmt.Sprintf("%s  %s", at, strings.TrimSpace(rec.Event+" "+rec.LeaseName+" "+rec.Reason))
}
