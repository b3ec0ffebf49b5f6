package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
)

func TestSplitLeases(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"":                      nil,
		" db,,aws \t npm\n":     {"db", "aws", "npm"},
		"db\ndb":                {"db"},
		"db;aws":                {"db", "aws"},
		"vault://secret/ci/a#t": {"T=vault://secret/ci/a#t"},
		"db, A=vault://b/c#d e": {"db", "A=vault://b/c#d", "e"},
		"A=vault://b/c#d,B=vault://b/c?version=2#e":                               {"A=vault://b/c#d", "B=vault://b/c?version=2#e"},
		"secret/data/ci/npm token | NPM_TOKEN ;\nsecret/data/ci/db * | DB_ ;\ndb": {"NPM_TOKEN=vault://secret/ci/npm#token", "DB_*=vault://secret/ci/db", "db"},
		"secret/data/ci/npm token":                                                {"TOKEN=vault://secret/ci/npm#token"},
		"A = vault://b/c#d":                                                       {"A=vault://b/c#d"},
		"*=vault://b/c":                                                           {"*=vault://b/c"},
		"S=arn:aws:secretsmanager:eu-west-1:111122223333:secret:x-abc123:k:: vault:kv/x#y projects/p/secrets/s db": {
			"S=aws-sm://arn:aws:secretsmanager:eu-west-1:111122223333:secret:x-abc123#k", "Y=vault://kv/x#y", "S=gcp-sm://p/s", "db"},
	} {
		got, err := splitLeases(in)
		if err != nil {
			t.Errorf("splitLeases(%q): %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("splitLeases(%q) (-want +got):\n%s", in, diff)
		}
		// What the action's set-up hands to later steps reads as the same.
		again, err := splitLeases(strings.Join(got, " "))
		if diff := cmp.Diff(got, again); diff != "" || err != nil {
			t.Errorf("splitLeases(%q), joined and split again (%v):\n%s", in, err, diff)
		}
	}
	for _, in := range []string{
		"A=c4n4ry-value", "db secret/data/ci/npm", "db A = vault://b/c#d", "https://c4n4ry@example.com/x", "PATH=vault://b/c#d", "LD_*=vault://b/c", "a | B", "secret/x c4n4ry'y | Z",
	} {
		got, err := splitLeases(in)
		if err == nil {
			t.Errorf("splitLeases(%q) = %q, want an error", in, got)
		} else if strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("splitLeases(%q): the error holds its text: %v", in, err)
		}
	}
}

func TestLeaseRequest(t *testing.T) {
	t.Parallel()
	s := settings{leases: []string{"db", "A=vault://b/c?version=2#d", "P_*=aws-sm://e/f=g"}}
	want := api.LeaseRequest{Leases: []string{"db"}, References: []api.Reference{{Ref: "vault://b/c?version=2#d", Variable: "A"}, {Ref: "aws-sm://e/f=g", Variable: "P_*"}}}
	if diff := cmp.Diff(want, s.leaseRequest()); diff != "" {
		t.Errorf("leaseRequest (-want +got):\n%s", diff)
	}
}

func TestPromisesAreTrue(t *testing.T) {
	t.Parallel()
	for want, l := range map[string]api.Lease{
		"revocable":                       {Revocability: "revocable"},
		"static: stays valid":             {Revocability: "static"},
		"expires by itself":               {Revocability: "expires"},
		"expires at 2026-11-23T00:00:00Z": {Revocability: "expires", ExpiresAt: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)},
		"something else":                  {Revocability: "something\nelse"},
	} {
		if got := promise(l); got != want {
			t.Errorf("promise(%+v) = %q, want %q", l, got, want)
		}
	}
}

func FuzzSplitLeases(f *testing.F) {
	f.Add("db, A=vault://b/c#d; secret/data/x y | Z\n*=aws-sm://e")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := splitLeases(in)
		if err != nil {
			return
		}
		again, err := splitLeases(strings.Join(got, " "))
		if diff := cmp.Diff(got, again); diff != "" || err != nil {
			t.Errorf("%q gives %q, which gives %v:\n%s", in, got, err, diff)
		}
	})
}
