package gcp_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/gcp"
	"github.com/runenv/action/providers/gcp/gcptest"
	"github.com/runenv/action/providers/providertest"
)

func TestReads(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", keys{"project": "shop"})
	tests := []struct {
		name string
		keys keys
		want error
		text string // the value, or in the error
	}{
		{"the latest", keys{"secret": npm}, nil, "c4n4ry-token"},
		{"a name alone", keys{"secret": "npm"}, nil, "c4n4ry-token"},
		{"a name of a template", keys{"secret": "{{project.name}}-x"}, providers.ErrNotFound, "no such secret"},
		{"a version", keys{"secret": npm, "version": 1}, nil, "c4n4ry-old"},
		{"a version in quotes", keys{"secret": npm, "version": "3"}, nil, "c4n4ry-token"},
		{"an alias", keys{"secret": npm, "version": "stable"}, nil, "c4n4ry-old"},
		{"bytes", keys{"secret": blob}, nil, "\x00\xff\n\x80"},
		{"no such alias", keys{"secret": npm, "version": "beta"}, providers.ErrNotFound, "no such secret or version"},
		{"no such version", keys{"secret": npm, "version": 9}, providers.ErrNotFound, "no such secret or version"},
		{"a disabled version", keys{"secret": npm, "version": 2}, providers.ErrNotFound, "disabled or destroyed"},
		{"no such secret", keys{"secret": "projects/shop/secrets/none"}, providers.ErrNotFound, "no such secret"},
		{"somebody else's", keys{"secret": "projects/pay/secrets/key"}, providers.ErrDenied, "may not be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cred, err := s.issue(t, tt.keys, time.Hour)
			if !errors.Is(err, tt.want) || err != nil && (!strings.Contains(err.Error(), tt.text) || !providers.Void(err)) {
				t.Fatalf("Issue = %v, want %v with %q", err, tt.want, tt.text)
			}
			if err == nil && string(cred.Fields["value"].Reveal()) != tt.text {
				t.Errorf("value = %q, want %q", cred.Fields["value"].Reveal(), tt.text)
			}
		})
	}
}

// A secret that isn't surely the one that was asked for is none.
func TestSecretsAreVerified(t *testing.T) {
	t.Parallel()
	type answer = secretmanagerpb.AccessSecretVersionResponse
	tests := []struct {
		name   string
		tamper func(*answer)
		want   string
	}{
		{"a wrong checksum", func(r *answer) { *r.Payload.DataCrc32C ^= 1 }, "checksum is wrong"},
		{"a changed value", func(r *answer) { r.Payload.Data[0] ^= 1 }, "checksum is wrong"},
		{"no checksum", func(r *answer) { r.Payload.DataCrc32C = nil }, "without a checksum"},
		{"no payload", func(r *answer) { r.Payload = nil }, "without a value"},
		{"an empty value", func(r *answer) { r.Payload.Data, *r.Payload.DataCrc32C = nil, 0 }, "without a value"},
		{"another secret", func(r *answer) { r.Name = "projects/42/secrets/other/versions/3" }, "another secret"},
		{"another version", func(r *answer) { r.Name = "projects/42/secrets/npm/versions/4" }, "another secret or version"},
		{"another project", func(r *answer) { r.Name = "projects/pay/secrets/npm/versions/3" }, "another secret"},
		{"no name", func(r *answer) { r.Name = "" }, "another secret"},
		{"a value that is too large", func(r *answer) { r.Payload.Data = make([]byte, 300<<10) }, "larger than it may be"},
		{"a value beyond all bounds", func(r *answer) { r.Payload.Data = make([]byte, 3<<20) }, "larger than it may be"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newWorld(t).session(t, "prod", nil)
			s.world.Tamper(tt.tamper)
			cred, err := s.issue(t, keys{"secret": npm, "version": 3}, time.Hour)
			if cred != nil || !errors.Is(err, providers.ErrMalformed) || !providers.Void(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Issue = %v, want a malformed answer, void, with %q", err, tt.want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	type fields = map[string]string
	for name, tt := range map[string]struct {
		payload string
		want    fields
	}{
		"text":                    {"abc", fields{"value": "abc"}},
		"an object":               {`{"a":"b","n":1.50,"l":[ 1 ],"z":null,"t":false}`, fields{"value": `{"a":"b","n":1.50,"l":[ 1 ],"z":null,"t":false}`, "a": "b", "n": "1.50", "l": "[1]", "t": "false"}},
		"escapes":                 {`{"a":"\u00e9\n"}`, fields{"value": `{"a":"\u00e9\n"}`, "a": "é\n"}},
		"value means the whole":   {`{"value":"x"}`, fields{"value": `{"value":"x"}`}},
		"a key without a name":    {`{"":"x"}`, fields{"value": `{"":"x"}`}},
		"a doubled key":           {`{"a":1,"a":2}`, fields{"value": `{"a":1,"a":2}`}},
		"a list":                  {`[1]`, fields{"value": `[1]`}},
		"a string":                {`"a"`, fields{"value": `"a"`}},
		"something behind":        {`{"a":"b"} x`, fields{"value": `{"a":"b"} x`}},
		"half an object":          {`{"a":"b"`, fields{"value": `{"a":"b"`}},
		"no UTF-8":                {"{\"a\":\"\xff\"}", fields{"value": "{\"a\":\"\xff\"}"}},
		"more keys than a secret": {manyKeys, fields{"value": manyKeys}},
	} {
		if diff := cmp.Diff(tt.want, gcp.Fields([]byte(tt.payload))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

var manyKeys = func() string {
	var b strings.Builder
	for i := range 1001 {
		b.WriteString(`,"k` + strings.Repeat("x", i) + `":1`)
	}
	return "{" + b.String()[1:] + "}"
}()

func FuzzFields(f *testing.F) {
	for _, s := range []string{confJSON, "", "{}", `{"a":{"b":[1,{"c":null}]}}`, `{"a":1,"a":2}`, "{\"a\":\"\\ud800\"}", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		fields := gcp.Fields(payload)
		if fields["value"] != string(payload) {
			t.Error("value isn't the payload")
		}
		if len(fields) == 1 {
			return
		}
		var whole map[string]json.RawMessage
		if err := json.Unmarshal(payload, &whole); err != nil {
			t.Fatalf("fields of what isn't an object: %v", err)
		}
		for name := range fields {
			if _, ok := whole[name]; !ok && name != "value" {
				t.Errorf("field %q isn't a key", name)
			}
		}
	})
}

func FuzzClaims(f *testing.F) {
	enc := base64.RawURLEncoding.EncodeToString
	for _, s := range []string{`{"sub":"a","aud":["x"],"exp":1e300}`, `{"sub":1}`, `{"sub":"a","sub":"b"}`, "null"} {
		f.Add("h." + enc([]byte(s)) + ".s")
	}
	f.Add("a.b")
	f.Fuzz(func(t *testing.T, token string) {
		if subject, ok := gcp.Claims(token); !ok && subject != "" {
			t.Error("a subject of what has none")
		}
	})
}

func TestAccessTokens(t *testing.T) {
	t.Parallel()
	const storage = "https://www.googleapis.com/auth/devstorage.read_only"
	tests := []struct {
		name, role string
		keys       keys
		ttl        time.Duration
		who        string
		life       time.Duration
		scopes     []string
	}{
		{"of a service account", "prod", keys{"service_account": deploy}, 10 * time.Minute, gcptest.Account(deploy), 10 * time.Minute, nil},
		{"with scopes", "prod", keys{"service_account": deploy, "scopes": []string{storage, "openid"}}, time.Hour, gcptest.Account(deploy), time.Hour, []string{storage, "openid"}},
		{"by delegates", "prod", keys{"service_account": deploy, "delegates": []providers.Template{template(chain)}}, time.Hour, gcptest.Account(deploy), time.Hour, nil},
		{"no longer than an hour", "prod", keys{"service_account": deploy}, 5 * time.Hour, gcptest.Account(deploy), time.Hour, nil},
		{"twelve hours", "pay", keys{"service_account": pay, "extended_lifetime": true}, 12 * time.Hour, gcptest.Account(pay), 12 * time.Hour, nil},
		{"of parts of a second, whole ones", "prod", keys{"service_account": deploy}, 90*time.Second + 999*time.Millisecond, gcptest.Account(deploy), 90 * time.Second, nil},
		{"federated", "prod", keys{}, time.Hour, gcptest.Role("prod"), time.Hour, nil},
		{"federated, with scopes", "prod", keys{"scopes": []string{storage}}, time.Hour, gcptest.Role("prod"), time.Hour, []string{storage}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newWorld(t).session(t, tt.role, nil)
			before := time.Now()
			cred, err := s.issue(t, keys{"access_token": tt.keys}, tt.ttl)
			if err != nil {
				t.Fatal(err)
			}
			token := string(cred.Fields["access_token"].Reveal())
			if got := s.world.Who(token); got != tt.who {
				t.Errorf("the token is of %q, want %q", got, tt.who)
			}
			want := tt.scopes
			if want == nil {
				want = []string{"https://www.googleapis.com/auth/cloud-platform"}
			}
			if diff := cmp.Diff(want, s.world.Scopes(token)); diff != "" {
				t.Errorf("scopes (-want +got):\n%s", diff)
			}
			if off := cred.Expires.Sub(before.Add(tt.life)).Abs(); off > 10*time.Second {
				t.Errorf("Expires is off by %v", off)
			}
			if at, err := time.Parse(time.RFC3339, string(cred.Fields["expires_at"].Reveal())); err != nil || cred.Expires.Sub(at).Abs() >= time.Second {
				t.Errorf("expires_at = %s, want %v", cred.Fields["expires_at"].Reveal(), cred.Expires)
			}
		})
	}
}

// The lease without a service account isn't the session's own login.
func TestT17AFederatedTokenIsNotTheLogin(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", nil)
	cred, err := s.issue(t, keys{"access_token": keys{}}, time.Hour)
	if err != nil || bytes.Contains(s.login.Reveal(), cred.Fields["access_token"].Reveal()) {
		t.Errorf("Issue = %v, or it handed out the login", err)
	}
}

func TestIDTokens(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", nil)
	for _, email := range []bool{false, true} {
		cred, err := s.issue(t, keys{"id_token": keys{"service_account": deploy, "audience": "https://{{project.name}}.example", "include_email": email}}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(string(cred.Fields["id_token"].Reveal()), ".")[1])
		var claims struct{ Aud, Email string }
		if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Aud != "https://shop.example" || (claims.Email == deploy) != email {
			t.Errorf("claims %+v, %v, want the audience, and the e-mail address: %v", claims, err, email)
		}
	}
}

// T34: what one role may, another may not, and nothing was made for it.
func TestT34RolesDoNotReachEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	own := map[string]keys{
		"prod": {"access_token": keys{"service_account": deploy}},
		"pay":  {"access_token": keys{"service_account": pay}},
	}
	others := map[string]keys{"prod": {"secret": npm}, "pay": {"secret": "projects/pay/secrets/key"}}
	id := func(account string) keys { return keys{"id_token": keys{"service_account": account, "audience": "x"}} }
	ids := map[string]keys{"prod": id(deploy), "pay": id(pay)}
	byDelegate := map[string]keys{"prod": {"access_token": keys{"service_account": deploy, "delegates": []providers.Template{template(chain)}}}}
	for _, role := range []string{"prod", "pay"} {
		s := w.session(t, role, nil)
		for _, table := range []map[string]keys{own, others, ids, byDelegate} {
			for owner, k := range table {
				before := w.Issued(":generateAccessToken") + w.Issued(":generateIdToken")
				cred, err := s.issue(t, k, time.Hour)
				made := w.Issued(":generateAccessToken") + w.Issued(":generateIdToken") - before
				switch {
				case owner == role && err != nil:
					t.Errorf("%s may not have its own %v: %v", role, k, err)
				case owner != role && (cred != nil || !errors.Is(err, providers.ErrDenied) || made != 0):
					t.Errorf("%s got %v of %s: %v", role, k, owner, err)
				}
			}
		}
	}
	// Nor does a role whom the attribute condition leaves out get in.
	w = newWorld(t)
	w.Condition = map[string][]string{"sub": {"runenv:role:prod"}}
	w.session(t, "prod", nil)
	if _, err := w.open(t, nil).(providers.Loginer).Login(t.Context(), w.loginRequest("pay")); !errors.Is(err, providers.ErrDenied) {
		t.Errorf("Login of another role = %v, want %v", err, providers.ErrDenied)
	}
}

// Ten leases of a session cost one login.
func TestOneLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.session(t, "prod", keys{"auth": keys{"service_account": reader}})
	for i := range 10 {
		k := keys{"secret": npm}
		if i%2 == 0 {
			k = keys{"access_token": keys{"service_account": deploy}}
		}
		if _, err := s.issue(t, k, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	got := []int{w.Issued("/v1/token"), w.Issued(reader + ":generateAccessToken"), w.Issued(deploy + ":generateAccessToken"), len(w.Requests("AccessSecretVersion"))}
	if want := []int{1, 1, 5, 5}; !slices.Equal(got, want) {
		t.Errorf("exchanges, the reader's tokens, leases, secrets = %v, want %v", got, want)
	}
}

// Answers that promise more than was asked for, or what can't be.
func TestLies(t *testing.T) {
	t.Parallel()
	set := func(name string, value any) func(map[string]any) { return func(b map[string]any) { b[name] = value } }
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	access := keys{"access_token": keys{"service_account": deploy}}
	id := keys{"id_token": keys{"service_account": deploy, "audience": "x"}}
	jwt := func(claims string) string { return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s" }
	tests := []struct {
		name string
		path string
		keys keys
		lie  func(map[string]any)
		want string // empty: it is taken
	}{
		{"a longer life", ":generateAccessToken", access, set("expireTime", in(time.Hour)), "lives longer than"},
		{"a clock that is a little ahead", ":generateAccessToken", access, set("expireTime", in(10*time.Minute+30*time.Second)), ""},
		{"an end in the past", ":generateAccessToken", access, set("expireTime", in(-time.Second)), "has ended"},
		{"no end", ":generateAccessToken", access, set("expireTime", nil), "no token with an end"},
		{"no token", ":generateAccessToken", access, set("accessToken", ""), "no token"},
		{"a token that can't be one", ":generateAccessToken", access, set("accessToken", "a\r\nb"), "no token"},
		{"a token that isn't text", ":generateAccessToken", access, set("accessToken", 1), "no token"},
		{"an ID token for another", ":generateIdToken", id, set("token", jwt(`{"aud":"y","exp":9999999999}`)), "for the audience"},
		{"an ID token for two", ":generateIdToken", id, set("token", jwt(`{"aud":["x","y"],"exp":9999999999}`)), "for the audience"},
		{"an ID token for ever", ":generateIdToken", id, set("token", jwt(`{"aud":"x","exp":9999999999}`)), "lives longer than"},
		{"an ID token without an end", ":generateIdToken", id, set("token", jwt(`{"aud":"x"}`)), "has ended"},
		{"an ID token with two ends", ":generateIdToken", id, set("token", jwt(`{"aud":"x","exp":1,"exp":9999999999}`)), "for the audience"},
		{"no ID token", ":generateIdToken", id, set("token", "x"), "for the audience"},
		{"a federated token for a day", "/v1/token", keys{"access_token": keys{}}, set("expires_in", 86400), "lives longer than"},
		{"a federated token without an end", "/v1/token", keys{"access_token": keys{}}, set("expires_in", nil), "no token with an end"},
		{"a federated token of another kind", "/v1/token", keys{"access_token": keys{}}, set("token_type", "N_A"), "isn't a bearer's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newWorld(t).session(t, "prod", nil)
			s.world.Inject(gcptest.On(tt.path, gcptest.Lie(tt.lie)))
			before := time.Now()
			cred, err := s.issue(t, tt.keys, 10*time.Minute)
			if tt.want == "" {
				if err != nil || cred.Expires.After(before.Add(10*time.Minute+5*time.Second)) {
					t.Errorf("Issue = %+v, %v, want one within what was asked for", cred, err)
				}
				return
			}
			if cred != nil || !errors.Is(err, providers.ErrMalformed) || providers.Void(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Issue = %v, want a malformed answer with %q that isn't void", err, tt.want)
			}
		})
	}
}

func TestDoubledKeysAreRefused(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", nil)
	for _, body := range []string{
		`{"accessToken":"a","accessToken":"b","expireTime":"2099-01-01T00:00:00Z"}`, `{"accessToken":"a"} {}`, `[]`, `{"accessToken":"a"`, ``,
	} {
		s.world.Inject(gcptest.Raw(200, body))
		if _, err := s.issue(t, keys{"access_token": keys{"service_account": deploy}}, time.Minute); !errors.Is(err, providers.ErrMalformed) {
			t.Errorf("Issue with %s = %v, want %v", body, err, providers.ErrMalformed)
		}
	}
}

// How often a request is made at most, if it fails every time.
func TestRepeats(t *testing.T) {
	t.Parallel()
	const access = ":generateAccessToken"
	token := keys{"access_token": keys{"service_account": deploy}}
	for _, tt := range []struct {
		name  string
		fault providertest.Fault
		keys  keys
		path  string
		want  int
	}{
		{"what issues, throttled", providertest.Throttle429, token, access, 4},
		{"what issues, failed", providertest.Fail500, token, access, 1},
		{"what issues, its answer lost", providertest.LoseReply, token, access, 1},
		{"what issues, refused", providertest.Deny, token, access, 1},
		{"a federated lease, failed", providertest.Fail500, keys{"access_token": keys{}}, "/v1/token", 1},
		{"what reads, failed", providertest.Fail500, keys{"secret": npm}, "AccessSecretVersion", 4},
		{"what reads, its answer lost", providertest.LoseReply, keys{"secret": npm}, "AccessSecretVersion", 4},
		{"what reads, refused", providertest.Deny, keys{"secret": npm}, "AccessSecretVersion", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newWorld(t).session(t, "prod", nil)
			before := len(s.world.Requests(tt.path))
			s.world.InjectFault(tt.fault)
			if _, err := s.issue(t, tt.keys, time.Hour); err == nil {
				t.Fatal("no error")
			}
			if got := len(s.world.Requests(tt.path)) - before; got != tt.want {
				t.Errorf("%d requests, want %d", got, tt.want)
			}
		})
	}
}
