package brokercli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/internal/devissuer"
)

// jobFlags say what job dev vouches for.
type jobFlags struct {
	event  string   // the path of a webhook's payload
	claims []string // NAME=VALUE, over what follows from the payload
}

// job reads them. Without any, it is the one that the local issuer makes up.
func (f jobFlags) job() (devissuer.Event, error) {
	claims, err := parseClaims(f.claims)
	if err != nil || f.event == "" {
		return devissuer.Event{Claims: claims}, err
	}
	payload, err := readEvent(f.event)
	if err != nil {
		return devissuer.Event{}, err
	}
	name, _ := claims["event_name"].(string)
	event, err := devissuer.ParseEvent(payload, name)
	if err != nil {
		return devissuer.Event{}, hinted{fmt.Errorf("the event file %s: %w", f.event, err), "it is the payload of a webhook, as act takes it by --eventpath"}
	}
	for name, value := range claims {
		event.Claims[name] = value
	}
	return event, nil
}

func parseClaims(flags []string) (map[string]any, error) {
	github, _ := identity.ProfileByName("github")
	claims := map[string]any{}
	for _, f := range flags {
		name, value, ok := strings.Cut(f, "=")
		switch {
		case !ok:
			return nil, usageError{hinted{fmt.Errorf("--claim %q has no =", f), "--claim NAME=VALUE, like --claim environment=production"}}
		case !slices.Contains(github.Known, name) && !slices.ContainsFunc(github.KnownPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }):
			return nil, usageError{hinted{fmt.Errorf("--claim %s isn't a claim of GitHub's that can be chosen", name), "the claims: " + strings.Join(github.Known, ", ")}}
		case claims[name] != nil:
			return nil, usageError{fmt.Errorf("--claim %s is given twice", name)}
		}
		claims[name] = value
	}
	return claims, nil
}

func readEvent(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errors.New("the file isn't there")
		}
		return nil, fmt.Errorf("the event file %s: %w", path, err)
	}
	defer func() { _ = file.Close() }()
	payload, err := io.ReadAll(io.LimitReader(file, devissuer.MaxEventBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the event file %s: %w", path, err)
	}
	return payload, nil
}
