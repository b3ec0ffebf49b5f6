package gcp_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/gcp"
	"github.com/runenv/action/providers/gcp/gcptest"
	"github.com/runenv/action/providers/providertest"
)

// Each known failure of a login, by the fake's own checks or by what Google is
// reported to say, with what is said of it.
func TestLoginFailures(t *testing.T) {
	t.Parallel()
	oauth := func(code, description string) gcptest.Fault {
		return gcptest.On("/v1/token", gcptest.Refuse(gcptest.Refusal{OAuth: code, Description: description}))
	}
	byAccount := keys{"auth": keys{"service_account": reader}}
	tests := []struct {
		name  string
		keys  keys
		role  string
		world func(*world)
		want  error
		text  string
		hint  string
		first bool // the federated token is there already, so that it isn't void
	}{
		{name: "an unknown pool", keys: keys{"audience": strings.Replace(gcptest.Pool, "/ci/", "/ic/", 1)}, want: providers.ErrNotFound, text: "no such pool or provider", hint: "workloadIdentityPools/ic/"},
		{name: "another issuer", world: func(w *world) { w.Issuer = "https://other.example" }, want: providers.ErrDenied, text: "trusts another issuer", hint: "set the provider's issuer to http://127.0.0.1:"},
		{name: "an attribute condition", world: func(w *world) { w.Condition = map[string][]string{"project": {"pay"}} }, want: providers.ErrDenied, text: "attribute condition refuses", hint: "assertion.sub"},
		{name: "keys that can't be fetched", world: func(w *world) { w.JWKSURL = "http://127.0.0.1:1/jwks" }, want: providers.ErrDenied, text: "can't fetch the issuer's keys", hint: "runenv-broker keys export"},
		{name: "somebody else's keys", world: func(w *world) { w.JWKSURL = gcptest.NewIssuer(t).URL }, want: providers.ErrDenied, text: "doesn't know the key", hint: "runenv-broker keys export"},
		{name: "another audience", world: func(w *world) {
			w.Inject(oauth("invalid_grant", "The audience in ID Token [//iam] does not match the expected audience."))
		}, want: providers.ErrDenied, text: "takes another audience", hint: gcptest.Pool},
		{name: "a stale token", world: func(w *world) {
			w.Inject(oauth("invalid_grant", "ID Token issued at 1700000000 is stale to sign-in."))
		}, want: providers.ErrDenied, text: "too old or too young", hint: "clock"},
		{name: "an attribute that is too long", world: func(w *world) {
			w.Inject(oauth("invalid_request", "The size of mapped attribute google.subject exceeds the 127 bytes limit."))
		}, want: providers.ErrInvalid, text: "mapped attribute is too long", hint: "google.subject=assertion.sub"},
		{name: "something unknown", world: func(w *world) { w.Inject(oauth("invalid_grant", "Who knows.")) }, want: providers.ErrDenied, text: "doesn't take the token", hint: "set-up guide"},
		{name: "a disabled STS", world: func(w *world) {
			w.Inject(gcptest.Refuse(gcptest.Refusal{Status: 403, Reason: "SERVICE_DISABLED", Code: codes.PermissionDenied}))
		}, want: providers.ErrDenied, text: "API is disabled", hint: "gcloud services enable sts"},
		{name: "a redirect", world: func(w *world) { w.Inject(gcptest.Redirect("http://127.0.0.1:1")) }, want: providers.ErrUnavailable, text: "redirects", hint: "`endpoints`"},
		{name: "no right to the service account", keys: byAccount, role: "pay", want: providers.ErrDenied, text: "may not be impersonated", hint: "roles/iam.workloadIdentityUser --member=" + gcptest.Role("pay"), first: true},
		{name: "no such service account", keys: keys{"auth": keys{"service_account": "none@shop.iam.gserviceaccount.com"}}, want: providers.ErrNotFound, text: "no such service account", hint: "create it", first: true},
		{name: "a disabled IAM Credentials", keys: byAccount, world: func(w *world) {
			w.Inject(gcptest.On(":generate", gcptest.Refuse(gcptest.Refusal{Status: 403, Reason: "SERVICE_DISABLED", Code: codes.PermissionDenied})))
		}, want: providers.ErrDenied, text: "API is disabled", hint: "gcloud services enable iamcredentials", first: true},
		{name: "nobody at the address", keys: keys{"endpoints": keys{"sts": "http://127.0.0.1:1"}}, want: providers.ErrUnavailable, text: "connection refused"},
		{name: "no TLS there", keys: keys{"endpoints": keys{"sts": "https://127.0.0.1:1"}}, want: providers.ErrUnavailable, text: "connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if tt.world != nil {
				tt.world(w)
			}
			role := "prod"
			if tt.role != "" {
				role = tt.role
			}
			p := w.open(t, tt.keys)
			login, err := p.(providers.Loginer).Login(t.Context(), w.loginRequest(role))
			_, checked := p.(providers.Checker).Check(t.Context(), w.loginRequest(role))
			for _, err := range []error{err, checked} {
				if login != nil || !errors.Is(err, tt.want) || providers.Void(err) == tt.first || !strings.Contains(err.Error(), tt.text) || !strings.Contains(hint(err), tt.hint) {
					t.Errorf("got %v (hint: %s), want %v with %q and a hint with %q", err, hint(err), tt.want, tt.text, tt.hint)
				}
				if strings.Contains(err.Error()+hint(err), "c4n4ry") {
					t.Errorf("%v (%s) shows what Google said", err, hint(err))
				}
			}
		})
	}
}

// A login that Google said it failed at may have made a token, whatever it says
// of the next attempt.
func TestT14ALoginThatFailedFirstIsNotVoid(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, then := gcptest.First(1, gcptest.Raw(http.StatusInternalServerError, "{}")), gcptest.Refuse(gcptest.Refusal{OAuth: "invalid_grant"})
	w.Inject(func(s *gcptest.Server, next http.Handler) http.Handler { return first(s, then(s, next)) })
	_, err := w.open(t, nil).(providers.Loginer).Login(t.Context(), w.loginRequest("prod"))
	if !errors.Is(err, providers.ErrDenied) || providers.Void(err) || !strings.Contains(hint(err), "set-up guide") {
		t.Errorf("Login = %v (%s), want %v, not void, with its hint", err, hint(err), providers.ErrDenied)
	}
}

// What a lease's refusal says beyond its class.
func TestLeaseFailures(t *testing.T) {
	t.Parallel()
	refuse := func(r gcptest.Refusal) gcptest.Fault { return gcptest.Refuse(r) }
	access := func(k keys) keys { return keys{"access_token": k} }
	tests := []struct {
		name  string
		keys  keys
		fault gcptest.Fault
		want  error
		hint  string
	}{
		{"somebody else's account", access(keys{"service_account": pay}), nil, providers.ErrDenied, "gcloud iam service-accounts add-iam-policy-binding " + pay + " --role=roles/iam.workloadIdentityUser --member=" + gcptest.Role("prod")},
		{"a chain with a missing link", access(keys{"service_account": pay, "delegates": []providers.Template{template(chain)}}), nil, providers.ErrDenied, "roles/iam.serviceAccountTokenCreator on each account"},
		{"no such delegate", access(keys{"service_account": deploy, "delegates": []providers.Template{template("none@shop.iam.gserviceaccount.com")}}), nil, providers.ErrNotFound, "correct `service_account`"},
		{"a login that has run out", access(keys{"service_account": deploy}), refuse(gcptest.Refusal{Status: 401, Code: codes.Unauthenticated}), providers.ErrDenied, "start the session again"},
		{"a long life that isn't allowed", access(keys{"service_account": deploy, "extended_lifetime": true}), nil, providers.ErrInvalid, "iam.allowServiceAccountCredentialLifetimeExtension"},
		{"a secret's login that has run out", keys{"secret": npm}, refuse(gcptest.Refusal{Code: codes.Unauthenticated}), providers.ErrDenied, "start the session again"},
		{"a secret of another role", keys{"secret": "projects/pay/secrets/key"}, nil, providers.ErrDenied, "roles/secretmanager.secretAccessor --member=" + gcptest.Role("prod")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newWorld(t).session(t, "prod", nil)
			s.world.Inject(tt.fault)
			_, err := s.issue(t, tt.keys, 12*time.Hour)
			if !errors.Is(err, tt.want) || !strings.Contains(hint(err), tt.hint) || strings.Contains(err.Error()+hint(err), "c4n4ry") {
				t.Errorf("Issue = %v (hint: %s), want %v and a hint with %q", err, hint(err), tt.want, tt.hint)
			}
		})
	}
}

// Each code of gRPC has its class.
func TestCodes(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", nil)
	for code, want := range map[codes.Code]error{
		codes.Canceled: providers.ErrUnavailable, codes.Unknown: providers.ErrUnavailable, codes.InvalidArgument: providers.ErrInvalid,
		codes.DeadlineExceeded: providers.ErrUnavailable, codes.NotFound: providers.ErrNotFound, codes.AlreadyExists: providers.ErrInvalid,
		codes.PermissionDenied: providers.ErrDenied, codes.ResourceExhausted: providers.ErrUnavailable, codes.FailedPrecondition: providers.ErrInvalid,
		codes.Aborted: providers.ErrUnavailable, codes.OutOfRange: providers.ErrInvalid, codes.Unimplemented: providers.ErrMalformed,
		codes.Internal: providers.ErrUnavailable, codes.Unavailable: providers.ErrUnavailable, codes.DataLoss: providers.ErrMalformed,
		codes.Unauthenticated: providers.ErrDenied, codes.Code(99): providers.ErrUnavailable,
	} {
		s.world.Inject(gcptest.Refuse(gcptest.Refusal{Code: code}))
		if _, err := s.issue(t, keys{"secret": npm}, time.Hour); !errors.Is(err, want) || !providers.Void(err) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("Issue at %v = %v, want %v, void", code, err, want)
		}
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		keys keys
		want string
	}{
		{"a principal", nil, gcptest.Role("prod")},
		{"the CI's own", keys{"auth": keys{"method": "ci"}}, gcptest.Principal("repo:acme/shop:ref:refs/heads/main")},
		{"a service account of the role's", keys{"auth": keys{"service_account": "reader-{{role.name}}@shop.iam.gserviceaccount.com"}}, reader},
	} {
		w := newWorld(t)
		got, err := w.open(t, tt.keys).(providers.Checker).Check(t.Context(), w.loginRequest("prod"))
		if err != nil || got.As != tt.want {
			t.Errorf("%s: Check = %+v, %v, want %s", tt.name, got, err, tt.want)
		}
	}
}

// A subject that Google couldn't take isn't sent.
func TestLongSubjects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	req := w.loginRequest("prod")
	req.Tokens = func(_ context.Context, audience string) (string, error) {
		return w.issuer.Token("prod", audience, keys{"sub": strings.Repeat("x", 128)})
	}
	if _, err := w.open(t, nil).(providers.Loginer).Login(t.Context(), req); !errors.Is(err, providers.ErrInvalid) || len(w.Requests("")) != 0 {
		t.Errorf("Login = %v after %d requests, want %v and none", err, len(w.Requests("")), providers.ErrInvalid)
	}
}

// A login isn't shown to other places than it was made with.
func TestT34ALoginStaysWhereItWasMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.session(t, "prod", nil)
	var seen atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) }))
	defer other.Close()
	for _, k := range []keys{
		{"endpoints": keys{"sts": w.URL, "iamcredentials": other.URL, "secretmanager": w.URL}},
		{"endpoints": keys{"sts": w.URL, "iamcredentials": w.URL, "secretmanager": other.URL}},
		{"audience": strings.Replace(gcptest.Pool, "/ci/", "/ic/", 1)},
		{"auth": keys{"service_account": reader}},
	} {
		turned := &session{Provider: w.open(t, k), world: w, role: "prod", login: s.login}
		for _, lease := range []keys{{"secret": npm}, {"access_token": keys{"service_account": deploy}}} {
			before := len(w.Requests(""))
			if _, err := turned.issue(t, lease, time.Hour); !errors.Is(err, providers.ErrUnavailable) || !providers.Void(err) || len(w.Requests("")) != before {
				t.Errorf("Issue after %v = %v, want it refused without a request", k, err)
			}
		}
	}
	if seen.Load() != 0 {
		t.Errorf("the other address got %d requests", seen.Load())
	}
}

// Application default credentials come from the environment, and the service
// account's token is kept.
func TestDefaultCredentials(t *testing.T) {
	w := newWorld(t)
	w.Accounts[reader] = gcptest.ServiceAccount{Members: []string{gcptest.Role("broker")}}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", w.adc(t))
	s := w.session(t, "prod", keys{"audience": nil, "auth": keys{"method": "default", "service_account": reader}})
	if n := len(w.Requests("")); n != 0 {
		t.Errorf("opening made %d requests", n)
	}
	for range 3 {
		if _, err := s.issue(t, keys{"secret": npm}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if tokens, made := w.Issued("/v1/token"), w.Issued(":generateAccessToken"); tokens != 1 || made != 1 {
		t.Errorf("%d exchanges and %d tokens of the service account, want 1 of each", tokens, made)
	}
	got, err := s.Provider.(providers.Checker).Check(t.Context(), providers.LoginRequest{Role: "prod"})
	if err != nil || got.As != reader || len(got.Notes) != 1 {
		t.Errorf("Check = %+v, %v, want the service account and a note", got, err)
	}

	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none")
	_, err = w.open(t, keys{"audience": nil, "auth": keys{"method": "default"}}).(providers.Checker).Check(t.Context(), providers.LoginRequest{Role: "prod"})
	if !errors.Is(err, providers.ErrUnavailable) || !strings.Contains(hint(err), "GOOGLE_APPLICATION_CREDENTIALS") {
		t.Errorf("Check without credentials = %v (%s), want a hint", err, hint(err))
	}
}

// environment runs a test of this package again, alone, with variables set,
// and returns what it prints.
func environment(t *testing.T, test string, variables ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.count=1", "-test.v")
	cmd.Env = append(append(os.Environ(), "GCP_TEST_INNER="+test), variables...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return string(out)
}

func inner(name string) bool { return os.Getenv("GCP_TEST_INNER") == name }

// T18: Google's libraries log whole requests, tokens included, where the
// environment says so; not here. Nor does it lead them anywhere.
func TestT18TheEnvironmentChangesNothing(t *testing.T) {
	const name = "TestT18TheEnvironmentChangesNothing"
	if !inner(name) {
		t.Parallel()
		trap, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var caught atomic.Int64
		go func() {
			for {
				c, err := trap.Accept()
				if err != nil {
					return
				}
				caught.Add(1)
				_ = c.Close()
			}
		}()
		defer func() { _ = trap.Close() }()
		there := "http://" + trap.Addr().String()
		out := environment(t, name, "GOOGLE_SDK_GO_LOGGING_LEVEL=debug", "HTTPS_PROXY="+there, "HTTP_PROXY="+there, "ALL_PROXY="+there, "NO_PROXY=",
			"GOOGLE_APPLICATION_CREDENTIALS=/none", "GCE_METADATA_HOST="+trap.Addr().String(), "GOOGLE_CLOUD_UNIVERSE_DOMAIN=evil.example",
			"GOOGLE_CLOUD_QUOTA_PROJECT=evil", "GOOGLE_API_USE_CLIENT_CERTIFICATE=true", "GOOGLE_API_USE_MTLS_ENDPOINT=always",
			"CLOUDSDK_AUTH_ACCESS_TOKEN=evil", "CLOUDSDK_CORE_PROJECT=evil", "GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99")
		for _, bad := range []string{"c4n4ry", "ya29", "subject_token", "eyJ"} {
			if strings.Contains(out, bad) {
				t.Errorf("it printed %q:\n%s", bad, out)
			}
		}
		if caught.Load() != 0 {
			t.Errorf("%d connections went where the environment led", caught.Load())
		}
		return
	}
	s := newWorld(t).session(t, "prod", keys{"auth": keys{"service_account": reader}})
	for _, k := range []keys{
		{"secret": npm}, {"access_token": keys{"service_account": deploy}}, {"access_token": keys{}},
		{"id_token": keys{"service_account": deploy, "audience": "x"}},
	} {
		if _, err := s.issue(t, k, time.Hour); err != nil {
			t.Errorf("Issue(%v) = %v, want nil", k, err)
		}
	}
	// A proxy would be asked for what isn't on this machine: here nobody answers.
	const away = "https://192.0.2.1"
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	far := s.world.open(t, keys{"endpoints": keys{"sts": away}})
	if _, err := far.(providers.Loginer).Login(ctx, s.world.loginRequest("prod")); !errors.Is(err, providers.ErrUnavailable) {
		t.Errorf("Login at an address of nobody = %v, want %v", err, providers.ErrUnavailable)
	}
	far = s.world.open(t, keys{"endpoints": keys{"sts": s.world.URL, "iamcredentials": s.world.URL, "secretmanager": away}})
	login, err := far.(providers.Loginer).Login(t.Context(), s.world.loginRequest("prod"))
	if err != nil {
		t.Fatal(err)
	}
	def, err := far.Define(providertest.Keys(keys{"secret": npm}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := far.Issue(ctx, providers.Request{Definition: def, Login: login.Handle, TTL: time.Hour}); !errors.Is(err, providers.ErrUnavailable) {
		t.Errorf("Issue at an address of nobody = %v, want %v", err, providers.ErrUnavailable)
	}
	for _, r := range s.world.Requests("") {
		if q := r.Header.Get("X-Goog-User-Project"); q != "" {
			t.Errorf("a request is billed to %q", q)
		}
	}
}

// T18: the same for application default credentials, which the environment may
// lead, but not make talk.
func TestT18DefaultCredentialsAreQuiet(t *testing.T) {
	const name = "TestT18DefaultCredentialsAreQuiet"
	if !inner(name) {
		t.Parallel()
		if out := environment(t, name, "GOOGLE_SDK_GO_LOGGING_LEVEL=debug"); strings.Contains(out, "c4n4ry") || strings.Contains(out, "subject_token") {
			t.Errorf("it printed tokens:\n%s", out)
		}
		return
	}
	w := newWorld(t)
	w.Accounts[deploy] = gcptest.ServiceAccount{Members: []string{gcptest.Role("broker")}}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", w.adc(t))
	s := w.session(t, "prod", keys{"audience": nil, "auth": keys{"method": "default"}})
	if _, err := s.issue(t, keys{"access_token": keys{"service_account": deploy}}, time.Hour); err != nil {
		t.Error(err)
	}
}

// The provider speaks to nobody but its endpoints.
func TestT01NobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var seen atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) }))
	defer other.Close()
	s := w.session(t, "prod", nil)
	w.Inject(gcptest.Redirect(other.URL))
	for _, k := range []keys{{"secret": npm}, {"access_token": keys{"service_account": deploy}}, {"access_token": keys{}}} {
		if _, err := s.issue(t, k, time.Hour); err == nil {
			t.Errorf("Issue(%v) followed a redirect", k)
		}
	}
	if seen.Load() != 0 {
		t.Errorf("the other address got %d requests", seen.Load())
	}
}

func TestHandlesAreKept(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", nil)
	if !bytes.Contains(s.login.Reveal(), []byte("ya29.")) || bytes.Contains(s.login.Reveal(), []byte("eyJ")) {
		t.Error("a login's handle holds the federated token, and no ID token of the broker's")
	}
}

// BenchmarkOpen measures what a provider costs before its first use.
func BenchmarkOpen(b *testing.B) {
	for b.Loop() {
		if _, err := gcp.Type().Open(providers.Config{Name: "gcp", Decode: providertest.Keys(keys{"audience": gcptest.Pool})}); err != nil {
			b.Fatal(err)
		}
	}
}
