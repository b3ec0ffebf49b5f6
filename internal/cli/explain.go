package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/inject"
)

// An explanation is what `runenv run --explain` says: what a command would get,
// without a value and without a lease.
type explanation struct {
	Broker string           `json:"broker"`
	Role   string           `json:"role"`
	Leases []explainedLease `json:"leases"`
	// Withheld are the caller's variables that the command wouldn't inherit.
	Withheld []string `json:"withheld"`
	Output   string   `json:"output"` // redacted, or untouched
	Scan     string   `json:"scan"`   // fail, scrub, warn or off
	// Searched are the folders and files of the leak scan.
	Searched []string `json:"searched"`
	Files    string   `json:"files"`   // memory or disk
	Isolate  string   `json:"isolate"` // off, auto or require
	// Serve is what --serve was given.
	Serve []string `json:"serve"`
}

type explainedLease struct {
	Name         string         `json:"name"`
	Provider     string         `json:"provider"`
	Revocability string         `json:"revocability"`
	TTL          string         `json:"ttl,omitempty"`
	Variables    []explainedVar `json:"variables"`
}

type explainedVar struct {
	Name      string `json:"name"`
	Mechanism string `json:"mechanism"` // environment, file or endpoint
	Masked    bool   `json:"masked"`
	Optional  bool   `json:"optional,omitempty"`
	// Note says what is special: that it takes the place of the caller's, that
	// the caller's is kept, or why it would be refused.
	Note string `json:"note,omitempty"`
}

// explain is `runenv run --explain`: the session ends again, and nothing was
// leased.
func (a *app) explain(p *process, s *client.Session, o *runOptions) error {
	said, err := s.Explain(p.starting, o.leaseRequest())
	ctx, cancel := context.WithTimeout(p.ending, endTimeout)
	defer cancel()
	if _, endErr := s.End(ctx); endErr != nil {
		a.say.problem("the session isn't ended yet (the broker ends it after missed heartbeats)", endErr)
	}
	if err != nil {
		return p.orSignal(err)
	}
	out := explanation{
		Broker: o.broker, Role: o.role, Leases: []explainedLease{}, Withheld: []string{}, Output: "redacted",
		Scan: o.scan.mode, Searched: []string{}, Files: o.files.files, Isolate: o.files.isolate,
		Serve: append([]string{}, o.serve.texts...),
	}
	if o.noRedact {
		out.Output = "untouched"
	}
	if o.scan.mode != scanOff {
		out.Searched = a.scanFolders(o.scan.paths)
	}
	for _, l := range said.Leases {
		out.Leases = append(out.Leases, a.explainLease(l, o))
	}
	if out.Withheld, err = a.withheld(o, said.Leases); err != nil {
		return err
	}
	if o.asJSON {
		enc := json.NewEncoder(a.env.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(out)
	}
	return out.write(a.env.Stdout)
}

func (a *app) explainLease(l api.Explained, o *runOptions) explainedLease {
	out := explainedLease{Name: l.Name, Provider: l.Provider, Revocability: l.Revocability, Variables: []explainedVar{}}
	if l.TTLSeconds > 0 {
		out.TTL = (time.Duration(l.TTLSeconds) * time.Second).String()
	}
	for _, v := range l.Variables {
		e := explainedVar{Name: v.Name, Mechanism: "environment", Masked: v.Mask, Optional: v.Optional}
		switch {
		case v.File:
			e.Mechanism = "file"
		case o.serve.serves(l.Name, v.Name):
			e.Mechanism = "endpoint"
		}
		_, several := strings.CutSuffix(v.Name, "*")
		there := slices.ContainsFunc(a.env.Environ, func(kv string) bool { return strings.HasPrefix(kv, v.Name+"=") })
		switch err := inject.CheckName(v.Name); {
		case several:
			e.Note = "one for each field of the secret"
		case err != nil:
			e.Note = "refused: " + err.Error()
		case there && slices.Contains(o.inherit.keep, v.Name):
			e.Note = "not set: the caller's is kept"
		case there:
			e.Note = "takes the place of the caller's"
		}
		out.Variables = append(out.Variables, e)
	}
	return out
}

// withheld are the names that the command wouldn't inherit, leased ones apart.
func (a *app) withheld(o *runOptions, leases []api.Explained) ([]string, error) {
	inherited, err := inject.Environ(a.env.Environ, nil, o.injection(nil))
	if err != nil {
		return nil, err
	}
	left := map[string]bool{}
	for _, l := range leases {
		for _, v := range l.Variables {
			left[v.Name] = true
		}
	}
	for _, kv := range inherited {
		name, _, _ := strings.Cut(kv, "=")
		left[name] = true
	}
	out := []string{}
	for _, kv := range a.env.Environ {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "" && !left[name] && !slices.Contains(o.inherit.keep, name) {
			left[name] = true
			out = append(out, oneLine(name))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (e *explanation) write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "role %s at %s: nothing is leased, this is what would be\n", e.Role, e.Broker)
	for _, l := range e.Leases {
		life := map[string]string{"revocable": "revoked at the end", "expires": "can't be revoked, expires", "static": "static, stays valid"}[l.Revocability]
		if life == "" {
			life = l.Revocability
		}
		if l.TTL != "" {
			life += ", ttl " + l.TTL
		}
		fmt.Fprintf(&b, "\nlease %s (%s; %s)\n", l.Name, l.Provider, life)
		for _, v := range l.Variables {
			how := map[string]string{"environment": "in the environment", "file": "path of a file in " + e.Files, "endpoint": "not in the environment, but served on loopback"}[v.Mechanism]
			if v.Masked {
				how += ", hidden in the output and looked for by the leak scan"
			}
			if v.Optional {
				how += ", if the credential has it"
			}
			if v.Note != "" {
				how += "; " + v.Note
			}
			fmt.Fprintf(&b, "  %s: %s\n", v.Name, how)
		}
	}
	b.WriteString("\n")
	if len(e.Withheld) > 0 {
		fmt.Fprintf(&b, "not inherited: %s\n", strings.Join(e.Withheld, " "))
	}
	if len(e.Serve) > 0 {
		fmt.Fprintf(&b, "served on loopback: %s\n", strings.Join(e.Serve, ", "))
	}
	fmt.Fprintf(&b, "output: %s\n", e.Output)
	if len(e.Searched) > 0 {
		fmt.Fprintf(&b, "leak scan: %s, of what changes in %s\n", e.Scan, strings.Join(e.Searched, ", "))
	} else {
		fmt.Fprintf(&b, "leak scan: %s\n", e.Scan)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
