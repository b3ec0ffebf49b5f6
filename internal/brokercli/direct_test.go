package brokercli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/secret"
)

// jwtFor is a token whose payload says aud; nothing here looks at more.
func jwtFor(t *testing.T, aud any) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"aud": aud})
	if err != nil {
		t.Fatal(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(b) + ".c2ln"
}

// fixed is a CI whose one token has its audience fixed.
type fixed string

func (fixed) Name() string { return "RUNENV_ID_TOKEN" }

func (f fixed) Token(context.Context, string) (secret.Value, error) {
	return secret.FromString(string(f)), nil
}

// minting is a CI that mints a token for each audience.
type minting struct{ t *testing.T }

func (minting) Name() string { return "GitHub Actions" }

func (m minting) Token(_ context.Context, audience string) (secret.Value, error) {
	return secret.FromString(jwtFor(m.t, audience)), nil
}

// A back end gets a token that is made out to it and to nobody else, or none.
func TestT34EachBackEndGetsItsOwnToken(t *testing.T) {
	t.Parallel()
	const broker, vault, aws = "https://runenv.example.com", "https://vault.example.com:8200", "sts.amazonaws.com"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(jwtFor(t, aws)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := testEnv("RUNENV_ID_TOKEN="+jwtFor(t, broker), "RUNENV_ID_TOKEN_FOR_TEAM_VAULT="+jwtFor(t, vault), "RUNENV_ID_TOKEN_FILE_FOR_AWS="+file,
		"RUNENV_ID_TOKEN_FOR_BOTH="+jwtFor(t, []string{vault, broker}))
	given := fixed(jwtFor(t, broker))
	tests := []struct {
		name, provider, audience, want string
		minted                         bool
	}{
		{"a variable of its own", "team-vault", vault, "", false},
		{"a file of its own", "aws", aws, "", false},
		{"minted", "gcp", "//iam.googleapis.com/x", "", true},
		{"a variable, though the CI mints", "team-vault", vault, "", true},
		{"only the broker's", "gcp", "//iam.googleapis.com/x", `isn't made out to "//iam.googleapis.com/x"`, false},
		{"another's variable", "team-vault", aws, `isn't made out to "sts.amazonaws.com"`, false},
		{"one for several", "both", vault, "isn't made out to", false},
		{"the broker's own audience", "gcp", broker, "is the broker's own url", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tokens := jobTokens(env, broker, given)
			if tt.minted {
				tokens = jobTokens(env, broker, minting{t})
			}
			token, err := tokens(tt.provider)(t.Context(), tt.audience)
			switch {
			case tt.want == "" && (err != nil || !isFor(secret.FromString(token), tt.audience)):
				t.Errorf("token = %q, %v, want one for %q", token, err, tt.audience)
			case tt.want != "" && (token != "" || err == nil || !strings.Contains(err.Error(), tt.want) || hintOf(err) == "" || strings.Contains(err.Error(), "e30.")):
				t.Errorf("token = %q, %v, want none and %q with a hint", token, err, tt.want)
			}
		})
	}
}

func TestVariable(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"vault": "VAULT", "team-vault.2": "TEAM_VAULT_2", "é": "_"} {
		if got := variable(name); got != want {
			t.Errorf("variable(%q) = %q, want %q", name, got, want)
		}
	}
}

// A broker for one command has no token of its own that anybody could verify.
func TestDirectRefusesTheBrokersOwnTokens(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "runenv.yaml")
	text := strings.NewReplacer("url: http://127.0.0.1:8098", "url: https://runenv.example.com", `"http://127.0.0.1:8099"`, "https://token.actions.githubusercontent.com",
		"token: c4n4ry-value", `token: "${env:SEAL}"`, "providers:", "providers:\n  vault: {type: vault, address: https://vault.example.com}").Replace(local)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadWhole(testEnv(), path, true)
	if err == nil || !strings.Contains(told(err), "providers.vault.auth.method: logs in with the broker's own token") || !strings.Contains(told(err), "auth: {method: ci}") {
		t.Errorf("loadWhole = %v, want it refused with its cure", told(err))
	}
	text = strings.Replace(text, "address: https://vault.example.com", "address: https://vault.example.com, auth: {method: ci, role: team}", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadWhole(testEnv(), path, true); err != nil {
		t.Errorf("loadWhole with method ci = %v", told(err))
	}
	// Neither serve nor dev has a job's token.
	for _, dev := range []bool{false, true} {
		if _, err := open(parse(t, strings.Replace(local, "providers:", "providers:\n  vault: {type: vault, address: https://vault.example.com, auth: {method: ci, role: team}}", 1), true), mode{dev: dev}, testEnv().Now, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(told(err), "runenv-broker run") {
			t.Errorf("open for dev %v = %v, want method ci refused", dev, err)
		}
	}
}

// full is a disk without space, after a while.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	if f.room -= len(b); f.room < 0 {
		return 0, errors.New("no space left")
	}
	return len(b), nil
}

// A trail that has a gap is no trail: once a record is lost, nothing more is
// answered.
func TestTrailFailsForGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := &full{room: 4 << 10}
	tr := &trail{out: out}
	if err := tr.follow(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	entry, err := audit.Record{Time: w.now(), Event: "session.created", Session: "s-1", Detail: strings.Repeat("x", 1000)}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := w.store.Record(t.Context(), w.now(), []store.Entry{entry}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.follow(t.Context(), w); err == nil {
		t.Fatal("follow onto a full disk = nil")
	}
	out.room = 1 << 20
	if err := tr.follow(t.Context(), w); err == nil {
		t.Error("follow after a gap = nil")
	}
}
