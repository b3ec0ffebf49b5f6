package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/ref"
)

// A setting for leases holds names, and VARIABLE=REFERENCE in its canonical
// text. Neither has a blank in it.

// isName tells a lease's name from everything that begins a reference.
func isName(text string) bool { return !strings.ContainsAny(text, ":/=|* \t\n;\"") }

// splitLeases reads a text with several leases: lines or semicolons, and on
// each names and references with commas or white space between, or one
// reference in a spelling that has blanks of its own.
func splitLeases(text string) ([]string, error) {
	var items []string
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ';' || r == '\n' || r == '\r' }) {
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
		if slices.ContainsFunc(words, func(word string) bool { return !isName(word) && !wholeReference(word) }) {
			words = []string{line}
		}
		items = append(items, words...)
	}
	return readLeases(items)
}

// wholeReference reports whether a word is a reference by itself, with or
// without the name of its variable.
func wholeReference(word string) bool {
	if strings.Contains(word, "://") {
		return true
	}
	if name, rest, ok := strings.Cut(word, "="); ok && isName(strings.TrimSuffix(name, "*")) {
		word = rest
	}
	return strings.HasPrefix(word, "arn:") || strings.HasPrefix(word, "vault:") || strings.HasPrefix(word, "projects/")
}

// readLeases reads items that are a name or references each, and drops what
// stands twice. Errors hold no part of an item: it may be a value in the wrong
// place.
func readLeases(items []string) ([]string, error) {
	var out []string
	add := func(item string) {
		if !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	for i, item := range items {
		item = strings.TrimSpace(item)
		if item == "" {
			return nil, &settingError{"a lease without a name", "give --lease NAME, or leave it out for all that the role has"}
		}
		if isName(item) {
			add(item)
			continue
		}
		assignments, err := ref.ParseAssignments(item)
		if err != nil {
			if inner := errors.Unwrap(err); inner != nil {
				err = inner // it counts within this item
			}
			return nil, &settingError{fmt.Sprintf("lease %d: %v", i+1, err), "a lease is a name, or VARIABLE=REFERENCE, like NPM_TOKEN=vault://secret/ci/npm#token"}
		}
		for _, a := range assignments {
			name := a.Variable
			if prefix, all := strings.CutSuffix(name, "*"); all {
				name = prefix + "A" // whatever the fields are
			}
			if err := api.CheckVariable(name); err != nil {
				return nil, &settingError{fmt.Sprintf("lease %d: %v", i+1, err), "give it another name: VARIABLE=REFERENCE"}
			}
			add(a.Variable + "=" + a.Ref.String())
		}
	}
	return out, nil
}

// leaseRequest is what the broker is asked for.
func (s *settings) leaseRequest() api.LeaseRequest {
	var request api.LeaseRequest
	for _, item := range s.leases {
		if variable, text, ok := strings.Cut(item, "="); ok {
			request.References = append(request.References, api.Reference{Ref: text, Variable: variable})
		} else {
			request.Leases = append(request.Leases, item)
		}
	}
	return request
}

// completeLease offers the schemes of references; names are the broker's to
// tell.
func completeLease(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	schemes := []string{ref.SchemeVault, ref.SchemeAWSSM, ref.SchemeSSM, ref.SchemeGCPSM}
	for i := range schemes {
		schemes[i] += "://"
	}
	return schemes, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// promise says how a lease can end, before it does (P11).
func promise(l api.Lease) string {
	switch l.Revocability {
	case "revocable":
		return "revocable"
	case "expires":
		return expires(l)
	case "static":
		return "static: stays valid"
	}
	return oneLine(l.Revocability)
}
