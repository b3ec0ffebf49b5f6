package providertest_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/ref"
)

// brokenVar names the fault of the provider that TestToy tries, in a process
// of its own.
const brokenVar = "RUNENV_TEST_TOY_BROKEN"

// TestToy is the suite on a provider in memory: it passes, unless something is
// broken.
func TestToy(t *testing.T) {
	broken := os.Getenv(brokenVar)
	providertest.Run(t, providertest.Harness{New: func(*testing.T) *providertest.Backend {
		b := newToy(broken)
		return &providertest.Backend{
			Provider:     b,
			Define:       providertest.Keys(map[string]any{"path": "a"}),
			Fields:       map[string]string{"value": canary + "-value"},
			Revocability: providers.Revocable,
			LimitsTTL:    true,
			Tokens:       func(context.Context, string) (string, error) { return canary + "-id-token", nil },
			Canaries:     []string{canary},
			Inject: func(f providertest.Fault) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.fault = f
			},
			More: []providertest.Fault{providertest.HalfReply, providertest.ErrorIn200, providertest.ThrottleOnce, providertest.LoginExpired},
			Requests: func() int {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.requests
			},
			Alive: func() (int, int) {
				b.mu.Lock()
				defer b.mu.Unlock()
				return len(b.creds), len(b.logins)
			},
			Log: func() string {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.log.String()
			},
			Reference: &ref.Ref{Scheme: "toy", Path: "a"},
		}
	}})
}

// Every case of the suite is seen to fail on a provider that breaks it.
func TestSuiteSeesWhatIsBroken(t *testing.T) {
	t.Parallel()
	for broken, seenBy := range map[string]string{
		"leaves a field out":                                 "issues what was asked for",
		"hands out the same bytes twice":                     "hands out copies of its own",
		"has a definition that shows a value":                "TestT18 shows no value",
		"asks the back end while it defines":                 "opens and defines without the network",
		"hides the decoder's refusal":                        "passes the decoder's refusal on",
		"takes another provider's definition":                "refuses another provider's definition",
		"ignores a context that is over":                     "issues nothing under a context that is over",
		"revokes nothing":                                    "revokes, and again",
		"renews for longer than asked":                       "renews",
		"leaves credentials when it logs out":                "logs out, and the credentials end with it",
		"renews a login for too long":                        "renews a login",
		"takes handles that aren't its own":                  "refuses handles that aren't its own",
		"asks for a token for somebody else":                 "logs in with a token for its audience",
		"finds nothing":                                      "finds what it issued",
		"gives every credential ten minutes":                 "gives no longer life than asked for",
		"has bounds that no life fits":                       "says sane bounds",
		"has a default variable of no field":                 "says sane default variables",
		"doesn't say when a login ends":                      "says how long a login lives",
		"hides its markers":                                  "shows its markers to the back end",
		"takes references of any scheme":                     "issues what a reference names",
		"leaves a login when it checks":                      "checks itself",
		"takes a cancelled call for a refusal":               "returns when it is cancelled in mid-call",
		"repeats the back end's words":                       "TestT15 the back end denies",
		"says that nothing was issued, though something was": "TestT15 the back end does what was asked and cuts the connection",
		"takes any trouble for the end":                      "TestT15 the back end fails",
		"takes a failed logout for one":                      "TestT15 the back end cuts the connection and does nothing",
		"takes half an answer":                               "TestT15 the back end does what was asked and answers half",
		"takes an error for a success":                       "TestT15 the back end calls an error a success",
		"gives up when throttled once":                       "TestT15 the back end throttles once",
		"takes an expired login for an outage":               "TestT15 the back end says that the login has run out",
	} {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			name := strings.ReplaceAll(seenBy, " ", "_")
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestToy$/^"+name+"$")
			cmd.Env = append(os.Environ(), brokenVar+"="+broken)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestToy/"+name) {
				t.Errorf("the case %q, on a provider that %s: %v\n%s", seenBy, broken, err, out)
			}
		})
	}
}
