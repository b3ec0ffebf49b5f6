package brokercli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/providers"
)

func leasesCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "List leases, and cut off what can't be revoked",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(leasesListCommand(env), leasesContainCommand(env))
	return cmd
}

// leaseJSON is a lease as `leases list` prints it.
type leaseJSON struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"` // of the definition; a login's is its provider's
	Provider     string    `json:"provider"`
	Login        bool      `json:"login,omitempty"`
	State        string    `json:"state"`
	Revocability string    `json:"revocability"`
	Session      string    `json:"session"`
	Role         string    `json:"role"`
	Project      string    `json:"project,omitempty"`
	Marker       string    `json:"marker"`
	CreatedAt    time.Time `json:"created_at"`
	ExpiresAt    time.Time `json:"expires_at,omitzero"`
	DiesBy       time.Time `json:"dies_by,omitzero"`
}

func leasesListCommand(env Env) *cobra.Command {
	var path, session string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list --config FILE [--session ID] [--json]",
		Short: "List the leases that haven't ended, or all of a session's",
		Long: `List the leases that haven't ended, oldest first, or all of one session's, with
the logins under which they were made. DIES BY is when each has surely ended,
whatever happens to the broker: "-" is never, or ended. It looks into the store
beside a running broker and changes nothing.`,
		Example: `  runenv-broker leases list --config broker.yaml
  runenv-broker leases list --config broker.yaml --session s-b7mk…
  runenv-broker leases list --config broker.yaml --json | jq -r 'select(.state == "irrevocable") | .id'`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			_, s, err := look(cmd.Context(), env, path)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			all, err := listed(cmd.Context(), s, session)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				for _, l := range all {
					if err := enc.Encode(l); err != nil {
						return err
					}
				}
				return nil
			}
			return printLeases(cmd.OutOrStdout(), all)
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().StringVar(&session, "session", "", "list all leases of the session with this `ID`, ended ones too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the leases as JSON lines, with all that is told of them")
	return cmd
}

// listed reads one session's leases, or all that haven't ended.
func listed(ctx context.Context, s *sqlite.Store, session string) ([]leaseJSON, error) {
	var rows []store.Lease
	var err error
	sessions := map[string]store.Session{}
	if session == "" {
		rows, err = s.Unended(ctx)
	} else {
		if sessions[session], err = s.Session(ctx, session); errors.Is(err, store.ErrNotFound) {
			return nil, noSession(session)
		}
		if err == nil {
			rows, err = s.Leases(ctx, session)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading leases: %w", err)
	}
	all := []leaseJSON{}
	for _, row := range rows {
		of, ok := sessions[row.Session]
		if !ok {
			// Sessions are forgotten only after their leases.
			if of, err = s.Session(ctx, row.Session); err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, fmt.Errorf("reading session %s: %w", row.Session, err)
			}
			sessions[row.Session] = of
		}
		all = append(all, leaseJSON{
			row.ID, row.Name, row.Provider, row.IsLogin, string(row.State), row.Revocability,
			row.Session, of.Role, of.Project, row.Marker, row.CreatedAt, row.ExpiresAt, row.DiesBy,
		})
	}
	return all, nil
}

func noSession(id string) error {
	return hinted{fmt.Errorf("the store has no session %q", id), "an id is like s-…; ended sessions are forgotten after 30 days"}
}

func printLeases(out io.Writer, all []leaseJSON) error {
	w := table(out, "LEASE", "PROVIDER", "STATE", "REVOCABILITY", "DIES BY", "ROLE", "SESSION", "ID")
	for _, l := range all {
		name, dies := l.Name, ""
		if l.Login {
			name = "(login)"
		}
		if !l.DiesBy.IsZero() && !store.State(l.State).Terminal() {
			dies = l.DiesBy.UTC().Format(time.RFC3339)
		}
		row(w, name, l.Provider, l.State, l.Revocability, dies, l.Role, l.Session, l.ID)
	}
	return w.Flush()
}

// containJSON is a containment as `leases contain` prints it.
type containJSON struct {
	Target string `json:"target"`
	Policy string `json:"policy"`
	Undo   string `json:"undo"`
	Done   bool   `json:"done"`
}

func leasesContainCommand(env Env) *cobra.Command {
	var path, session string
	var apply, asJSON bool
	cmd := &cobra.Command{
		Use:   "contain --config FILE --session ID [--apply] [--json]",
		Short: "Cut off a session's credentials that can't be revoked",
		Long: `Cut off the credentials of a session that live and that nobody can revoke: they
only expire. Without --apply it prints what would be put where, and how to take
it back, and does nothing. Credentials that can be revoked aren't its business:
they are, when the session ends.

For AWS that is a policy on each role that denies everything to the session's
source identity; it is put there with the credentials of this command's own
environment, which need iam:PutRolePolicy. It runs as the broker's user, with
its environment, beside the running broker or a stopped one. What is applied
stands in the audit log before it is.`,
		Example: `  runenv-broker leases contain --config broker.yaml --session s-b7mk…           # what would be done
  runenv-broker leases contain --config broker.yaml --session s-b7mk… --apply`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			if session == "" {
				return usageError{hinted{errors.New("--session is missing"), "the id of a session (s-…), as the audit log and `leases list` show it"}}
			}
			steps, err := contain(cmd.Context(), env, path, session, apply)
			if steps == nil {
				return err
			}
			if asJSON {
				out := make([]containJSON, 0, len(steps))
				for _, s := range steps {
					out = append(out, containJSON(s))
				}
				return errors.Join(json.NewEncoder(cmd.OutOrStdout()).Encode(out), err)
			}
			return errors.Join(printSteps(cmd.OutOrStdout(), steps, apply), err)
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().StringVar(&session, "session", "", "the session's `ID`")
	cmd.Flags().BoolVar(&apply, "apply", false, "do it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of the steps")
	_ = cmd.RegisterFlagCompletionFunc("session", cobra.NoFileCompletions) // it fails for unknown flags alone
	return cmd
}

// contain gives the steps, none and not nil if there is nothing to cut off,
// also beside an error: what was applied has to be told.
func contain(ctx context.Context, env Env, path, session string, apply bool) ([]providers.Containment, error) {
	file, err := load(env, path, mode{})
	if err != nil {
		return nil, err
	}
	parts, err := open(file, mode{}, env.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	sealer, err := sealerOf(file)
	if err != nil {
		return nil, err
	}
	s, err := besideTool(ctx, file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	highWater, err := s.HighWater(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the store's clock: %w", err)
	}
	cutter := lease.Cutter{
		Store: s, Sealer: sealer, Now: lease.NewClock(highWater, env.Now).Now,
		Provider: func(name string) (providers.Provider, bool) {
			p, ok := parts.providers[name]
			return p, ok
		},
	}
	steps, err := cutter.Contain(ctx, session, apply)
	if errors.Is(err, store.ErrNotFound) {
		return nil, noSession(session)
	}
	if steps == nil && err == nil {
		steps = []providers.Containment{}
	}
	return steps, err
}

func printSteps(out io.Writer, steps []providers.Containment, apply bool) error {
	var b strings.Builder
	for _, s := range steps {
		verdict := "would be put on"
		switch {
		case s.Done:
			verdict = "is now on"
		case apply:
			verdict = "couldn't be put on"
		}
		fmt.Fprintf(&b, "%s %s:\n%s\nundo: %s\n\n", verdict, oneLine(s.Target), indented(s.Policy), oneLine(s.Undo))
	}
	switch {
	case len(steps) == 0:
		b.WriteString("nothing to cut off: the session has no live credential that can't be revoked\n")
	case !apply:
		b.WriteString("nothing was done; --apply does it\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// indented is a text of several lines, none of which can steer a terminal.
func indented(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		lines[i] = "  " + oneLine(strings.ReplaceAll(l, "\t", "  "))
	}
	return strings.Join(lines, "\n")
}
