package brokercli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/issuer"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/providers"
)

const (
	// checkTimeout bounds the check of one provider for one role.
	checkTimeout = 30 * time.Second
	// checksAtOnce bounds how many checks run at a time.
	checksAtOnce = 8
)

func providersCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "providers",
		Short: "List and check the back ends of the broker's file",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(providersListCommand(env), providersCheckCommand(env))
	return cmd
}

// entry is a provider of the file, opened.
type entry struct {
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Audience string   `json:"audience,omitempty"` // of the tokens that it logs in with
	Leases   []string `json:"leases"`
	Roles    []string `json:"roles"` // that have one of them, or references to it
	Checks   bool     `json:"checks"`

	provider providers.Provider
}

// entries are the file's providers, in its order.
func entries(file *config.File, parts *opened) []entry {
	var out []entry
	for _, p := range file.Providers {
		e := entry{Name: p.Name, Type: p.Type, Leases: []string{}, Roles: []string{}, provider: parts.providers[p.Name]}
		for _, l := range file.Leases {
			if l.Provider == p.Name {
				e.Leases = append(e.Leases, l.Name)
			}
		}
		for _, r := range file.Compiled.Roles() {
			leased := slices.ContainsFunc(r.Leases, func(name string) bool { return slices.Contains(e.Leases, name) })
			if leased || parts.references.reach(file, r, p.Name) {
				e.Roles = append(e.Roles, r.Name)
			}
		}
		if a, ok := e.provider.(providers.Audienced); ok {
			e.Audience = a.Audience()
		}
		_, e.Checks = e.provider.(providers.Checker)
		out = append(out, e)
	}
	return out
}

// reach tells whether a role's references can be to the named provider.
func (r *references) reach(file *config.File, role *policy.Role, provider string) bool {
	for grant := range file.Compiled.RoleGrants(role) {
		for _, t := range r.byRole[role.Name] {
			g, err := expand(t, grant.Vars)
			if err != nil {
				continue // open has refused it
			}
			if name, err := r.entry(g.Scheme(), g.Provider()); err == nil && name == provider {
				return true
			}
		}
	}
	return false
}

func providersListCommand(env Env) *cobra.Command {
	var path string
	var asJSON, direct bool
	cmd := &cobra.Command{
		Use:   "list --config FILE [--json]",
		Short: "List the file's providers, without any network call",
		Example: `  runenv-broker providers list --config broker.yaml
  runenv-broker providers list --config broker.yaml --json | jq -r '.[].audience'`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			var m mode
			if direct {
				m = aloneWith
			}
			file, err := load(env, path, m)
			if err != nil {
				return err
			}
			parts, err := open(file, m, env.Now, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			all := entries(file, parts)
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(all)
			}
			w := table(cmd.OutOrStdout(), "PROVIDER", "TYPE", "LEASES", "ROLES", "AUDIENCE")
			for _, e := range all {
				row(w, e.Name, e.Type, fmt.Sprint(len(e.Leases)), strings.Join(e.Roles, ","), e.Audience)
			}
			return w.Flush()
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`")
	directFlag(cmd, &direct)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array, with the leases' names")
	return cmd
}

// table prints what is aligned in columns, each as wide as it needs.
func table(w io.Writer, columns ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row(t, columns...)
	return t
}

func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		cells[i] = cmp.Or(oneLine(c), "-")
	}
	_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// result is what a check found.
type result struct {
	Provider string   `json:"provider"`
	Type     string   `json:"type"`
	Role     string   `json:"role,omitempty"`
	Result   string   `json:"result"` // ok, failed or skipped
	As       string   `json:"as,omitempty"`
	Notes    []string `json:"notes,omitempty"`
	Error    string   `json:"error,omitempty"`
	Hint     string   `json:"hint,omitempty"`
	Marker   string   `json:"marker,omitempty"`
	Seconds  float64  `json:"seconds"`

	provider providers.Checker
}

func providersCheckCommand(env Env) *cobra.Command {
	var path, roleName string
	var names []string
	var asJSON, direct bool
	cmd := &cobra.Command{
		Use:   "check --config FILE [--role ROLE] [--provider NAME]... [--json]",
		Short: "Log in to every provider, and say as whom or what is wrong",
		Long: `Log in to every provider of FILE as a session of each role that has leases or
references from it would, and give the login up again. Each line says as whom the back end let
the broker in and how long that took; for a failure, why, and the cure where it
is known. Nothing is leased.

It runs on the broker's machine as its user, with its environment, beside the
running broker or a stopped one: the broker's own tokens are made with the keys
in its store. What is tried stands in the broker's audit log before it is tried,
under a session "check-…", which the back ends' logs show too.

With --direct it does what "run" would, in a CI job, with the job's own tokens;
what is tried is then told on standard error.

The status is 1 if a check fails.`,
		Example: `  runenv-broker providers check --config broker.yaml
  runenv-broker providers check --config broker.yaml --role deploy --provider vault
  runenv-broker providers check --config broker.yaml --json | jq '.checks[] | select(.result == "failed")'`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			c, err := newChecker(cmd.Context(), env, path, direct)
			if err != nil {
				return err
			}
			defer c.close()
			results, err := c.plan(roleName, names)
			if err != nil {
				return err
			}
			c.run(cmd.Context(), results)
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Session string   `json:"session"`
					Checks  []result `json:"checks"`
				}{c.session, results})
			} else {
				err = printResults(cmd.OutOrStdout(), results)
			}
			failed := 0
			for _, r := range results {
				if r.Result == "failed" {
					failed++
				}
			}
			if failed > 0 {
				err = errors.Join(err, fmt.Errorf("%d of %d checks failed", failed, len(results)))
			}
			return err
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().StringVar(&roleName, "role", "", "check as a session of this `ROLE` only")
	cmd.Flags().StringArrayVar(&names, "provider", nil, "check the provider of this `NAME` only; once for each")
	directFlag(cmd, &direct)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the session and the checks as JSON")
	for _, name := range []string{"role", "provider"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // it fails for unknown flags alone
	}
	return cmd
}

// checker checks providers in a session of its own.
type checker struct {
	file    *config.File
	entries []entry
	session string
	now     func() time.Time
	tokens  func(role string) providers.TokenSource
	record  func(context.Context, audit.Record) error
	close   func()
}

func newChecker(ctx context.Context, env Env, path string, direct bool) (*checker, error) {
	c := &checker{session: lease.NewID("check"), now: env.Now, close: func() {}}
	var err error
	if c.file, err = loadWhole(env, path, direct); err != nil {
		return nil, err
	}
	var m mode
	if direct {
		source, err := ci.Detect(ci.Config{Getenv: func(name string) string { v, _ := env.LookupEnv(name); return v }})
		if err != nil {
			return nil, err
		}
		m.ci = jobTokens(env, c.file.URL, source)
	}
	parts, err := open(c.file, m, env.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	c.entries = entries(c.file, parts)
	own := issuer.Mute()
	if direct {
		c.record = func(_ context.Context, rec audit.Record) error {
			e, err := rec.Entry()
			if err == nil {
				_, err = fmt.Fprintf(env.Stderr, "%s: audit: %s\n", program, escaped(e.Body))
			}
			return err
		}
	} else {
		s, err := besideTool(ctx, c.file)
		if err != nil {
			return nil, err
		}
		c.close = func() { _ = s.Close() } // what was recorded is durable
		if own, err = ownIssuer(ctx, env, c.file, s); err != nil {
			c.close()
			return nil, err
		}
		c.record = func(ctx context.Context, rec audit.Record) error {
			e, err := rec.Entry()
			if err == nil {
				err = s.Record(ctx, rec.Time, []store.Entry{e})
			}
			return err
		}
	}
	c.tokens = func(role string) providers.TokenSource {
		return func(ctx context.Context, audience string) (string, error) {
			return own.Mint(ctx, issuer.Claims{Audience: audience, Role: role, Session: c.session}, "")
		}
	}
	return c, nil
}

// plan says what is to be checked, in the file's order.
func (c *checker) plan(role string, names []string) ([]result, error) {
	if _, ok := c.file.Compiled.Role(role); role != "" && !ok {
		var all []string
		for _, r := range c.file.Compiled.Roles() {
			all = append(all, r.Name)
		}
		return nil, hinted{fmt.Errorf("the file has no RunEnv role %q", role), "the roles: " + strings.Join(all, ", ")}
	}
	var known []string
	for _, e := range c.entries {
		known = append(known, e.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, hinted{fmt.Errorf("the file has no provider %q", name), "the providers: " + strings.Join(known, ", ")}
		}
	}
	results := []result{}
	for _, e := range c.entries {
		named := slices.Contains(names, e.Name)
		if len(names) > 0 && !named {
			continue
		}
		roles := e.Roles
		if role != "" {
			if !slices.Contains(roles, role) && !named {
				continue
			}
			roles = []string{role}
		}
		p, ok := e.provider.(providers.Checker)
		base := result{Provider: e.Name, Type: e.Type, Result: "skipped", provider: p}
		switch {
		case !ok:
			base.Notes = []string{"there is nothing to log in to"}
			results = append(results, base)
		case len(roles) == 0:
			base.Notes = []string{"no role has a lease from it; name one by --role"}
			results = append(results, base)
		default:
			for _, r := range roles {
				one := base
				one.Role, one.Marker, one.Result = r, lease.NewID("check"), ""
				results = append(results, one)
			}
		}
	}
	return results, nil
}

// run makes the checks, some at a time.
func (c *checker) run(ctx context.Context, results []result) {
	slots := make(chan struct{}, checksAtOnce)
	var all sync.WaitGroup
	for i := range results {
		r := &results[i]
		if r.Result != "" {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			c.check(ctx, r)
		})
	}
	all.Wait()
}

// check records what it is about to do before it does it: a login that isn't
// given up, say because this process dies, is bounded by what the record says.
func (c *checker) check(ctx context.Context, r *result) {
	began := c.now()
	rec := audit.Record{
		Time: began, Event: "provider.checking", Session: c.session, Provider: r.Provider, Marker: r.Marker, Role: r.Role,
		Policy: c.file.Compiled.Digest(),
	}
	if l, ok := r.provider.(providers.Loginer); ok {
		rec.DiesBy = began.Add(l.LoginTTL())
	}
	err := c.record(ctx, rec)
	if err != nil {
		err = fmt.Errorf("recording the check: %w", err)
	} else {
		var found providers.Checked
		found, err = c.ask(ctx, r)
		r.As, r.Notes = found.As, found.Notes
		rec.Time, rec.Event, rec.DiesBy = c.now(), "provider.checked", time.Time{}
		if err != nil {
			rec.Reason = "failed"
		}
		if rerr := c.record(context.WithoutCancel(ctx), rec); rerr != nil {
			err = errors.Join(err, fmt.Errorf("recording the check: %w", rerr))
		}
	}
	r.Seconds = c.now().Sub(began).Round(time.Millisecond).Seconds()
	r.Result = "ok"
	if err != nil {
		r.Result, r.Error, r.Hint = "failed", err.Error(), hintOf(err)
	}
}

func (c *checker) ask(ctx context.Context, r *result) (found providers.Checked, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	defer func() {
		if recover() != nil {
			err = errors.New("the provider panicked") // its text may hold anything
		}
	}()
	return r.provider.Check(ctx, providers.LoginRequest{Role: r.Role, Session: c.session, Marker: r.Marker, Tokens: c.tokens(r.Role)})
}

func printResults(out io.Writer, results []result) error {
	w := table(out, "PROVIDER", "ROLE", "RESULT", "TIME", "AS")
	for _, r := range results {
		took := ""
		if r.Result != "skipped" {
			took = (time.Duration(r.Seconds * float64(time.Second))).Round(time.Millisecond).String()
		}
		row(w, r.Provider, r.Role, r.Result, took, r.As)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		who := r.Provider
		if r.Role != "" {
			who += " as " + r.Role
		}
		for _, line := range slices.Concat(titled("note", r.Notes...), titled("error", r.Error), titled("hint", r.Hint)) {
			if _, err := fmt.Fprintf(out, "%s: %s\n", who, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// titled are lines for texts that aren't empty.
func titled(kind string, texts ...string) []string {
	var out []string
	for _, text := range texts {
		if text != "" {
			out = append(out, kind+": "+oneLine(text))
		}
	}
	return out
}
