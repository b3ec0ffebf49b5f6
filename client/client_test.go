package client_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/secret"
)

const canary = "canary-value-4711"

var roles = map[string][]api.Lease{
	"demo": {
		{Name: "db", Provider: "vault", Revocability: "revocable", Renewable: true, ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Env: []api.Var{{Name: "DB_PASSWORD", Value: api.NewValue(secret.FromString(canary)), Mask: true}}},
		{Name: "npm", Provider: "vault", Revocability: "static", Env: []api.Var{{Name: "NPM_TOKEN", Value: api.NewValue(secret.FromString("npm-value")), Mask: true}}},
	},
}

// source mints tokens that live as long as each of lives says, the last again.
type source struct {
	mu    sync.Mutex
	now   func() time.Time
	lives []time.Duration
	calls int
	err   error
}

func (s *source) Token(_ context.Context, audience string) (secret.Value, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.err != nil {
		return secret.Value{}, s.err
	}
	life := s.lives[min(s.calls, len(s.lives))-1]
	claims, _ := json.Marshal(map[string]any{"aud": audience, "jti": s.calls, "exp": s.now().Add(life).Unix(), "canary": canary})
	return secret.FromString("e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"), nil
}

// world is a fake broker and a client of it whose waits take no time.
type world struct {
	*clienttest.Broker
	*client.Client
	source *source
	log    *bytes.Buffer
	mu     sync.Mutex
	now    time.Time
	waits  []time.Duration
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func newWorld(t *testing.T, cfg clienttest.Config) *world {
	t.Helper()
	w := &world{now: time.Now(), log: &bytes.Buffer{}}
	w.source = &source{now: w.clock, lives: []time.Duration{5 * time.Minute}}
	cfg.Now = w.clock
	if cfg.Roles == nil {
		cfg.Roles = roles
	}
	w.Broker = clienttest.Start(cfg)
	t.Cleanup(w.Close)
	var ca []byte
	if w.Certificate != nil {
		ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate})
	}
	c, err := client.New(client.Config{
		URL: w.Broker.URL, Source: w.source, CAPEM: ca, Now: w.clock,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Wait: func(ctx context.Context, d time.Duration) error {
			w.mu.Lock()
			w.waits = append(w.waits, d)
			w.now = w.now.Add(d)
			w.mu.Unlock()
			return context.Cause(ctx)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Client = c
	return w
}

func hint(err error) string {
	h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if !ok {
		return ""
	}
	return h.Hint()
}

func TestWholeSession(t *testing.T) {
	t.Parallel()
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, clienttest.Config{TLS: tls})
			s, err := w.Exchange(t.Context(), "demo")
			if err != nil {
				t.Fatal(err)
			}
			leases, err := s.Lease(t.Context())
			if err != nil || len(leases) != 2 || string(leases[0].Env[0].Value.Reveal()) != canary {
				t.Fatalf("Lease = %v, %v", leases, err)
			}
			if left := s.HardEnd().Sub(w.clock()); left < 59*time.Minute || left > time.Hour {
				t.Errorf("HardEnd in %v", left)
			}
			renewed, err := s.Renew(t.Context(), leases[0])
			if err != nil || renewed.ID != leases[0].ID || len(renewed.Env) != 0 {
				t.Errorf("Renew = %+v, %v", renewed, err)
			}
			if _, err := s.Renew(t.Context(), api.Lease{ID: "../../oauth2/token", Renewable: true}); err == nil {
				t.Error("Renew of a strange id worked")
			}
			one, err := s.Lease(t.Context(), "npm")
			if err != nil || len(one) != 1 || one[0].Name != "npm" {
				t.Errorf("Lease(npm) = %v, %v", one, err)
			}
			ended, err := s.End(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			states := map[string]string{}
			for _, l := range ended.Leases {
				states[l.Name] = l.State
			}
			if diff := cmp.Diff(map[string]string{"db": "revoked", "npm": "disclosed"}, states); diff != "" {
				t.Error(diff)
			}
			if _, err := s.End(t.Context()); err != nil {
				t.Errorf("ending twice: %v", err)
			}
			_, err = s.Lease(t.Context())
			refusal, ok := errors.AsType[*api.Error](err)
			if !ok || refusal.Code != api.CodeSessionEnded {
				t.Errorf("Lease after the end: %v", err)
			}
			if w.Sessions()[s.ID()].ByEndToken {
				t.Error("the end token was used without need")
			}
			if w.source.calls != 1 {
				t.Errorf("%d CI tokens taken", w.source.calls)
			}
		})
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, ok := range map[string]bool{
		"https://runenv.example.com":      true,
		"https://runenv.example.com:8443": true,
		"http://127.0.0.1:8443":           true,
		"http://[::1]:8443":               true,
		"https://[2001:db8::1]":           true,
		"http://127.8.8.8":                true,
		"":                                false,
		"runenv.example.com":              false,
		"runenv.example.com:8443":         false,
		"https://":                        false,
		"https:runenv":                    false,
		"https://Runenv.example.com":      false,
		"HTTPS://runenv.example.com":      false,
		"https://runenv.example.com/":     false,
		"https://runenv.example.com/x":    false,
		"https://runenv.example.com?":     false,
		"https://runenv.example.com?a=b":  false,
		"https://runenv.example.com#":     false,
		"https://runenv.example.com:":     false,
		"https://runenv.example.com:443":  false,
		"http://127.0.0.1:80":             false,
		"https://me:pw@runenv.com":        false,
		"https://me:pw%zz@runenv.com":     false,
		"https://me:pw@runenv.com:x":      false,
		" https://me:pw@runenv.com":       false,
		"https:me:pw@runenv.com":          false,
		"http://runenv.example.com":       false,
		"http://localhost:8443":           false,
		"http://127.0.0.1.example.com":    false,
		"http://0.0.0.0:8443":             false,
		"ftp://127.0.0.1":                 false,
		"https://runenv.example.com\n":    false,
		" https://runenv.example.com":     false,
		"https://run%65nv.example.com":    false,
	} {
		err := client.CheckURL(url)
		if (err == nil) != ok {
			t.Errorf("CheckURL(%q) = %v", url, err)
		}
		if err != nil && hint(err) == "" && !strings.Contains(err.Error(), "parsed") {
			t.Errorf("CheckURL(%q) has no hint", url)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("a password stands in %v", err)
		}
	}
}

// P10: the token goes nowhere before the broker has said that it is the one.
func TestP10NoTokenToAnotherBroker(t *testing.T) {
	t.Parallel()
	location := http.Header{"Location": {"https://evil.example.com/.well-known/runenv?x=1"}}
	for name, tt := range map[string]struct {
		issuer string
		fault  clienttest.Fault
		want   string
	}{
		"another issuer":  {"https://runenv.example.com", nil, `calls itself "https://runenv.example.com"`},
		"a final slash":   {"SELF/", nil, "calls itself"},
		"no issuer":       {" ", nil, "calls itself"},
		"redirected":      {"", clienttest.Answer(http.StatusFound, location, ""), "302 Found to https://evil.example.com"},
		"not a broker":    {"", clienttest.Answer(http.StatusOK, nil, "<html>"+canary), "isn't RunEnv's"},
		"nothing there":   {"", clienttest.Answer(http.StatusNotFound, nil, canary), "404"},
		"an endless body": {"", clienttest.Answer(http.StatusOK, nil, strings.Repeat(" ", 1<<20)), "over"},
		"no content":      {"", clienttest.Answer(http.StatusNoContent, nil, ""), "204"},
		"a control code":  {"", clienttest.Answer(http.StatusForbidden, nil, `{"error":"a\u001b[31m\n::add-mask::b"}`), "a [31m ::add-mask::b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, clienttest.Config{Issuer: tt.issuer})
			w.Next("GET "+api.PathDiscovery, tt.fault)
			_, err := w.Exchange(t.Context(), "demo")
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("Exchange: %v, want %q", err, tt.want)
			}
			if diff := cmp.Diff([]string{"GET " + api.PathDiscovery}, w.Calls()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A redirect of the exchange itself isn't followed either.
func TestP10RedirectsArentFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	other := clienttest.Start(clienttest.Config{Roles: roles})
	t.Cleanup(other.Close)
	w.Next("POST "+api.PathToken, clienttest.Answer(http.StatusTemporaryRedirect, http.Header{"Location": {other.URL + api.PathToken}}, ""))
	_, err := w.Exchange(t.Context(), "demo")
	if err == nil || !strings.Contains(hint(err), "redirects aren't followed") {
		t.Errorf("Exchange: %v (hint %q)", err, hint(err))
	}
	if calls := other.Calls(); len(calls) > 0 {
		t.Errorf("the other server was asked: %v", calls)
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	busy := clienttest.Refuse(http.StatusServiceUnavailable, api.CodeTemporarily, "")
	wait3 := clienttest.Refuse(http.StatusTooManyRequests, api.CodeRateLimited, "3")
	const exchange, lease, end = "POST " + api.PathToken, "POST " + api.PathLeases, "DELETE " + api.PathSession
	for name, tt := range map[string]struct {
		route  string
		faults []clienttest.Fault
		calls  int
		want   string // of the error; "" means success
	}{
		"exchange, busy and cut":    {exchange, []clienttest.Fault{busy, wait3, clienttest.Cut}, 4, ""},
		"exchange, answers lost":    {exchange, []clienttest.Fault{clienttest.Lose, clienttest.Lose}, 3, ""},
		"exchange, always busy":     {exchange, []clienttest.Fault{busy, busy, busy, busy, busy, busy}, 5, api.CodeTemporarily},
		"exchange, refused":         {exchange, []clienttest.Fault{clienttest.Refuse(http.StatusForbidden, api.CodeLimitExceeded, "1")}, 1, api.CodeLimitExceeded},
		"exchange, 501":             {exchange, []clienttest.Fault{clienttest.Answer(http.StatusNotImplemented, nil, "")}, 1, "501"},
		"exchange, wait an hour":    {exchange, []clienttest.Fault{clienttest.Refuse(http.StatusTooManyRequests, api.CodeRateLimited, "3600")}, 1, api.CodeRateLimited},
		"exchange, a proxy's 502":   {exchange, []clienttest.Fault{clienttest.Answer(http.StatusBadGateway, nil, "<html>"+canary)}, 2, ""},
		"lease, busy and cut":       {lease, []clienttest.Fault{busy, wait3, clienttest.Cut}, 4, ""},
		"lease, answers lost":       {lease, []clienttest.Fault{clienttest.Lose, clienttest.Lose}, 3, ""},
		"lease, refused":            {lease, []clienttest.Fault{clienttest.Refuse(http.StatusForbidden, api.CodeAccessDenied, "")}, 1, api.CodeAccessDenied},
		"lease, back end refused":   {lease, []clienttest.Fault{clienttest.Refuse(http.StatusBadGateway, api.CodeProviderDenied, "")}, 1, api.CodeProviderDenied},
		"lease, back end hasn't it": {lease, []clienttest.Fault{clienttest.Refuse(http.StatusBadGateway, api.CodeProviderNotFound, "")}, 1, api.CodeProviderNotFound},
		"lease, answer broken":      {lease, []clienttest.Fault{clienttest.Answer(http.StatusOK, nil, `{"leases":[{"env":[{"value":"`+canary)}, 1, "isn't RunEnv's"},
		"end, busy and lost":        {end, []clienttest.Fault{busy, clienttest.Lose}, 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, clienttest.Config{})
			w.Next(tt.route, tt.faults...)
			err := func() error {
				s, err := w.Exchange(t.Context(), "demo")
				if err != nil {
					return err
				}
				if _, err := s.Lease(t.Context()); err != nil {
					return err
				}
				_, err = s.End(t.Context())
				return err
			}()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if got := w.Count(tt.route); got != tt.calls {
				t.Errorf("%d calls, want %d", got, tt.calls)
			}
			live, held := 0, 0
			for _, s := range w.Sessions() {
				if s.Ended == "" {
					live++
				}
				held = max(held, len(s.Leases))
			}
			if tt.want == "" && (live != 0 || held != 2) {
				t.Errorf("%d sessions live on; %d leases in one", live, held)
			}
			if tt.faults[0] != nil && strings.Contains(w.log.String()+fmt.Sprint(err), canary) {
				t.Errorf("a value stands in the log or in %v:\n%s", err, w.log)
			}
			if name == "exchange, busy and cut" && (len(w.waits) != 3 || w.waits[1] != 3*time.Second) {
				t.Errorf("waits = %v, want the second to be 3s", w.waits)
			}
		})
	}
}

func TestBrokerDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	gone := clienttest.Start(clienttest.Config{})
	gone.Close()
	c, err := client.New(client.Config{URL: gone.URL, Source: w.source, Wait: func(context.Context, time.Duration) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exchange(t.Context(), "demo")
	var unreachable *client.UnreachableError
	if !errors.As(err, &unreachable) || !strings.Contains(hint(err), "nothing listens there") {
		t.Errorf("Exchange: %v, hint %q", err, hint(err))
	}
}

func TestTLSFailuresAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{TLS: true})
	other := newWorld(t, clienttest.Config{TLS: true})
	for name, tt := range map[string]struct{ url, want string }{
		"an unknown authority": {w.Broker.URL, "private CA"},
		"another name":         {strings.Replace(w.Broker.URL, "127.0.0.1", "localhost", 1), "another name"},
	} {
		cfg := client.Config{URL: tt.url, Source: w.source, CAPEM: foreignCA()}
		if name == "another name" {
			cfg.CAPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate})
		}
		cfg.Wait = func(context.Context, time.Duration) error {
			t.Errorf("%s: it was tried again", name)
			return nil
		}
		c, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Exchange(t.Context(), "demo"); err == nil || !strings.Contains(hint(err), tt.want) {
			t.Errorf("%s: %v, hint %q", name, err, hint(err))
		}
	}
	if len(w.Calls()) > 0 {
		t.Errorf("the broker got %v", w.Calls())
	}
}

func TestFreshTokenWhenTheOldExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	w.source.lives = []time.Duration{20 * time.Second, 5 * time.Minute}
	w.Next("POST "+api.PathToken, clienttest.Refuse(http.StatusTooManyRequests, api.CodeRateLimited, "30"))
	if _, err := w.Exchange(t.Context(), "demo"); err != nil {
		t.Fatal(err)
	}
	if w.source.calls != 2 {
		t.Errorf("%d tokens taken, want 2", w.source.calls)
	}

	w = newWorld(t, clienttest.Config{})
	w.source.lives = []time.Duration{-time.Second}
	_, err := w.Exchange(t.Context(), "demo")
	if err == nil || !strings.Contains(err.Error(), "expired at") || hint(err) == "" {
		t.Errorf("an expired token: %v", err)
	}
	if w.Count("POST "+api.PathToken) != 0 {
		t.Error("an expired token was sent")
	}
}

func TestSourceFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	w.source.err = errors.New("no token today")
	if _, err := w.Exchange(t.Context(), "demo"); !errors.Is(err, w.source.err) {
		t.Errorf("Exchange: %v", err)
	}
}

func TestRefusalShowsOwnClaims(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	_, err := w.Exchange(t.Context(), "not-mine")
	refusal, ok := errors.AsType[*api.Error](err)
	if !ok || refusal.Code != api.CodeInvalidTarget || refusal.Status != http.StatusBadRequest || refusal.Claims["aud"] != w.Broker.URL || refusal.RequestID == "" {
		t.Fatalf("Exchange: %#v", err)
	}
	if !strings.Contains(hint(err), "audit show r-fake") {
		t.Errorf("hint = %q", hint(err))
	}
	for _, role := range []string{"", "Demo", "a b", "a/b", strings.Repeat("a", 64)} {
		if _, err := w.Exchange(t.Context(), role); err == nil || w.Count("POST "+api.PathToken) != 1 {
			t.Errorf("Exchange(%q): %v", role, err)
		}
	}
}

// A GitLab job whose `aud:` is wrong is told so.
func TestWrongAudienceIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	c, err := client.New(client.Config{URL: w.Broker.URL, Source: given("https://vault.example.com")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exchange(t.Context(), "demo")
	if want := `the job's token is made for the audience "https://vault.example.com"`; err == nil || !strings.Contains(hint(err), want) {
		t.Errorf("%v, hint %q, want %q", err, hint(err), want)
	}
}

// given is a source of tokens for one audience.
type given string

func (g given) Token(context.Context, string) (secret.Value, error) {
	claims, _ := json.Marshal(map[string]any{"aud": g, "exp": time.Now().Add(time.Hour).Unix()})
	return secret.FromString("e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"), nil
}

func TestEndFallsBackToTheEndToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	w.Next("DELETE "+api.PathSession, clienttest.Refuse(http.StatusUnauthorized, api.CodeInvalidDPoP, ""))
	if _, err := s.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !w.Sessions()[s.ID()].ByEndToken {
		t.Error("the session wasn't ended by its end token")
	}
}

func TestEndStopsWithTheContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{})
	w.Next("DELETE "+api.PathSession, clienttest.Stall(reached))
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	go func() {
		<-reached
		cancel(cause)
	}()
	if _, err := s.End(ctx); !errors.Is(err, cause) {
		t.Errorf("End: %v, want its cause", err)
	}
}

func TestEndTokenAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.EndURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(s.EndToken().Reveal()))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || w.Sessions()[s.ID()].Ended == "" {
		t.Errorf("status %d, session %+v", resp.StatusCode, w.Sessions()[s.ID()])
	}
}

// T13: each try has a proof of its own, and another client's key is worth
// nothing with a stolen token. The fake holds to both.
func TestT13StolenTokenIsWorthless(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	var stolen http.Header
	w.Next("POST "+api.PathLeases, func(rw http.ResponseWriter, r *http.Request, serve http.Handler) {
		stolen = r.Header.Clone()
		serve.ServeHTTP(rw, r)
	})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lease(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{api.PathLeases, api.PathHeartbeat} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.Broker.URL+path, strings.NewReader(`{"leases":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = stolen.Clone()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: a replayed proof got %d", path, resp.StatusCode)
		}
	}
}
