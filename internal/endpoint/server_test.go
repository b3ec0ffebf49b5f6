package endpoint

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/secret"
)

// withoutGCE is what every system can serve.
func withoutGCE(c *Config) { c.GCE = nil }

func TestAWSAnswer(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	got := s.askAWS(t)
	var body map[string]string
	if err := json.Unmarshal([]byte(got.body), &body); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"AccessKeyId": valueOf(awsKeyID, 0), "SecretAccessKey": valueOf(awsSecretKey, 0), "Token": valueOf(awsSessionToken, 0),
		"AccountId": valueOf(awsAccountID, 0), "Expiration": s.keeper.lease("deploy").now().ExpiresAt.UTC().Format(time.RFC3339),
	}
	if diff := cmp.Diff(want, body); got.status != http.StatusOK || diff != "" {
		t.Errorf("status %d, body (-want +got):\n%s", got.status, diff)
	}
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != jsonType {
		t.Errorf("header = %v", got.header)
	}
}

func TestVaultAnswers(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	read := func(method, path, body string) (int, vaultBody) {
		t.Helper()
		got := s.askVault(t, method, path, body)
		var b vaultBody
		if err := json.Unmarshal([]byte(got.body), &b); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return got.status, b
	}
	db := map[string]any{"username": valueOf("DB_USER", 0), "password": valueOf("DB_PASSWORD", 0)}
	npm := map[string]any{"token": valueOf("NPM_TOKEN", 0)}
	var id string
	for _, tt := range []struct {
		method, path, body string
		data               any
		dynamic            bool
	}{
		{"GET", "database/creds/shop-ro", "", db, true},
		{"PUT", "database/creds/shop-ro", "{}", db, true},
		{"POST", "database/creds/shop-ro", "", db, true},
		{"GET", "secret/ci/npm", "", npm, false},
		{"GET", "secret/data/ci/npm", "", map[string]any{"data": npm, "metadata": map[string]any{}}, false},
		{"GET", "sys/internal/ui/mounts/secret/ci/npm", "", map[string]any{"path": "secret/", "type": "kv", "options": map[string]any{"version": "2"}}, false},
		{"GET", "sys/internal/ui/mounts/secret", "", map[string]any{"path": "secret/", "type": "kv", "options": map[string]any{"version": "2"}}, false},
	} {
		status, b := read(tt.method, tt.path, tt.body)
		if diff := cmp.Diff(tt.data, b.Data); status != http.StatusOK || diff != "" {
			t.Errorf("%s %s = %d (-want +got):\n%s", tt.method, tt.path, status, diff)
		}
		if dynamic := b.LeaseID != "" && b.LeaseDuration > 3500; dynamic != tt.dynamic || b.Renewable {
			t.Errorf("%s: lease %q of %d s, renewable %v", tt.path, b.LeaseID, b.LeaseDuration, b.Renewable)
		}
		if b.LeaseID != "" {
			id = b.LeaseID
		}
	}
	renewal := fmt.Sprintf(`{"lease_id":%q,"increment":3600}`, id)
	if got := s.askVault(t, "PUT", "sys/leases/renew", renewal); got.status != http.StatusBadRequest {
		t.Errorf("renewing what can't be = %d %s", got.status, got.body)
	}
	l := s.keeper.lease("db")
	l.mu.Lock()
	l.lease.Renewable = true
	l.mu.Unlock()
	if status, b := read("PUT", "sys/leases/renew", renewal); status != http.StatusOK || b.LeaseID != id || b.LeaseDuration < 3500 || !b.Renewable {
		t.Errorf("renewing = %d %+v", status, b)
	}
	if status, b := read("GET", "auth/token/lookup-self", ""); status != http.StatusOK || strings.Contains(fmt.Sprint(b), s.variable(t, "VAULT_TOKEN")) {
		t.Errorf("lookup-self = %d %+v", status, b)
	}
}

// Nothing of another lease, or of Vault's own, is served or passed on.
func TestT12VaultServesLeasedPathsOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	for _, tt := range []struct{ method, path, body string }{
		{"GET", "database/creds/shop-rw", ""},
		{"GET", "database/creds", ""},
		{"GET", "database/creds/shop-ro/", ""},
		{"GET", "database/creds/shop-ro/x", ""},
		{"GET", "DATABASE/creds/shop-ro", ""},
		{"LIST", "secret/metadata/ci", ""},
		{"LIST", "database/creds/shop-ro", ""},
		{"DELETE", "secret/ci/npm", ""},
		{"PATCH", "secret/data/ci/npm", "{}"},
		{"PUT", "secret/ci/npm", "{}"},
		{"POST", "secret/data/ci/npm", `{"data":{"token":"x"}}`},
		{"GET", "secret/metadata/ci/npm", ""},
		{"GET", "secret/data/ci/other", ""},
		{"GET", "other/OTHER", ""},
		{"GET", "auth/token/lookup", ""},
		{"POST", "auth/token/create", "{}"},
		{"PUT", "auth/token/revoke-self", ""},
		{"PUT", "auth/token/renew-self", "{}"},
		{"PUT", "sys/leases/revoke", `{"lease_id":"database/creds/shop-ro/x"}`},
		{"PUT", "sys/leases/lookup", `{"lease_id":"database/creds/shop-ro/x"}`},
		{"PUT", "sys/leases/renew", `{"lease_id":"database/creds/shop-ro/real-vault-lease"}`},
		{"PUT", "sys/leases/renew", `{"lease_id":""}`},
		{"GET", "sys/internal/ui/mounts", ""},
		{"GET", "sys/internal/ui/mounts/database/creds/shop-ro", ""},
		{"GET", "sys/internal/ui/mounts/secret/ci/other", ""},
		{"GET", "sys/health", ""},
	} {
		got := s.askVault(t, tt.method, tt.path, tt.body)
		if got.status != http.StatusForbidden || got.body != `{"errors":["permission denied"]}` {
			t.Errorf("%s %s = %d %s, want Vault's refusal", tt.method, tt.path, got.status, got.body)
		}
	}
	// Who says what he wants is told that it can't be had.
	for path, body := range map[string]string{
		"database/creds/shop-ro":        `{"ttl":"24h"}`,
		"database/creds/shop-ro?ttl=1h": "",
		"secret/data/ci/npm?version=1":  "",
		"sys/leases/renew":              `{"lease_id":1}`,
	} {
		method := http.MethodPut
		if body == "" {
			method = http.MethodGet
		}
		if got := s.askVault(t, method, path, body); got.status != http.StatusBadRequest {
			t.Errorf("%s %s %s = %d, want 400", method, path, body, got.status)
		}
	}
	for _, header := range []string{"X-Vault-Namespace", "X-Vault-Wrap-TTL"} {
		got := s.ask(t, http.MethodGet, "/v1/secret/ci/npm", "", "X-Vault-Token", s.variable(t, "VAULT_TOKEN"), header, "60")
		if got.status != http.StatusBadRequest {
			t.Errorf("with %s = %d, want 400", header, got.status)
		}
	}
}

func TestT29BearersAreNeeded(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	aws, vault := s.variable(t, "AWS_CONTAINER_AUTHORIZATION_TOKEN"), s.variable(t, "VAULT_TOKEN")
	if aws == vault || len(aws) != 43 || len(vault) != 43 {
		t.Errorf("bearers of %d and %d characters, want two of 256 bits", len(aws), len(vault))
	}
	another := newSite(t, time.Hour, withoutGCE)
	if another.variable(t, "VAULT_TOKEN") == vault {
		t.Error("two servers have one bearer")
	}
	for name, bad := range map[string]string{
		"none": "", "a prefix": aws[:42], "a longer one": aws + "a", "a changed one": strings.ToLower(aws), "Vault's": vault,
		"with a scheme": "Bearer " + aws, "another server's": another.variable(t, "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
	} {
		if got := s.ask(t, http.MethodGet, awsPath, "", "Authorization", bad); got.status != http.StatusForbidden || strings.Contains(got.body, canary) {
			t.Errorf("AWS with %s = %d %s", name, got.status, got.body)
		}
	}
	if got := s.ask(t, http.MethodGet, awsPath, "", "Authorization", aws, "Authorization", aws); got.status != http.StatusForbidden {
		t.Errorf("AWS with two = %d", got.status)
	}
	for _, path := range []string{"secret/ci/npm", "nowhere", "auth/token/lookup-self", "sys/internal/ui/mounts/secret/ci/npm"} {
		for _, bad := range []string{"", "root", vault[1:], aws} {
			got := s.ask(t, http.MethodGet, "/v1/"+path, "", "X-Vault-Token", bad)
			if got.status != http.StatusForbidden || got.body != `{"errors":["permission denied"]}` {
				t.Errorf("vault %s with %q = %d %s", path, bad, got.status, got.body)
			}
		}
	}
	for _, method := range []string{"POST", "HEAD", "DELETE"} {
		if got := s.ask(t, method, awsPath, "", "Authorization", aws); got.status != http.StatusMethodNotAllowed {
			t.Errorf("AWS by %s = %d", method, got.status)
		}
	}
}

// A page in a browser has a name made to mean loopback, or asks loopback
// outright.
func TestT25BrowsersAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	aws := s.variable(t, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
	_, port, err := net.SplitHostPort(s.server.addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range [][2]string{
		{"Host", "evil.example.com"}, {"Host", "evil.example.com:" + port}, {"Host", "localhost:" + port}, {"Host", "127.0.0.1"},
		{"Host", "127.1:" + port}, {"Host", "[::1]:" + port}, {"Host", "127.0.0.1.:" + port}, {"Host", "metadata.google.internal"},
		{"Origin", "http://" + s.server.addr}, {"Origin", "null"}, {"Origin", ""},
		{"Sec-Fetch-Site", "none"}, {"X-Forwarded-For", "127.0.0.1"}, {"Via", "1.1 proxy"},
	} {
		got := s.ask(t, http.MethodGet, awsPath, "", "Authorization", aws, header[0], header[1])
		if got.status != http.StatusForbidden || strings.Contains(got.body, canary) || got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("with %s: %s = %d %s", header[0], header[1], got.status, got.body)
		}
	}
	if got := s.ask(t, http.MethodOptions, awsPath, "", "Origin", "http://evil.example.com"); got.status != http.StatusForbidden {
		t.Errorf("preflight = %d", got.status)
	}
}

// raw sends bytes as they are.
func (s *site) raw(t *testing.T, request string) reply {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.server.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, request) // a server that refuses early cuts the rest off
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return reply{body: err.Error()}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body)}
}

func TestT12NoPathLeadsAround(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	token := s.variable(t, "VAULT_TOKEN")
	ask := func(target string) reply {
		return s.raw(t, "GET "+target+" HTTP/1.1\r\nHost: "+s.server.addr+"\r\nX-Vault-Token: "+token+"\r\nConnection: close\r\n\r\n")
	}
	if got := ask("/v1/secret/ci/npm"); got.status != http.StatusOK {
		t.Fatalf("the plain path = %d %s", got.status, got.body)
	}
	for _, target := range []string{
		"/v1/secret/../secret/ci/npm", "/v1/./secret/ci/npm", "/v1//secret/ci/npm", "//v1/secret/ci/npm", "/v1/secret/ci%2fnpm", "/v1/secret/%63i/npm",
		"/v1/secret/ci/npm%00", "/v1/secret/ci/npm;x", "/v1/secret/ci\\npm", "/v1/x/..%2f..%2fsecret/ci/npm", "/v1/secret/ci/npm/..", "/v1/secret/ci/npm#x",
		"http://" + s.server.addr + "/v1/secret/ci/npm", "http://evil.example.com/v1/secret/ci/npm", "*", "/aws/../v1/secret/ci/npm",
		"/v1/secret/ci/npm?a=1&a=2", "/v1/secret/ci/npm?%61=1", "/v1/secret/ci/npm?a=%zz",
	} {
		if got := ask(target); got.status < 400 || got.status >= 500 || strings.Contains(got.body, canary) || got.header.Get("Location") != "" {
			t.Errorf("%s = %d %s", target, got.status, got.body)
		}
	}
}

func TestT21LargeAndSlowRequestsAreCutOff(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	head := "PUT /v1/database/creds/shop-ro HTTP/1.1\r\nHost: " + s.server.addr + "\r\nX-Vault-Token: " + s.variable(t, "VAULT_TOKEN") + "\r\n"
	large := `{"a":"` + strings.Repeat("x", 2*maxBodyBytes) + `"}`
	if got := s.raw(t, fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(large), large)); got.status != http.StatusBadRequest {
		t.Errorf("a large body = %d %s", got.status, got.body)
	}
	if got := s.raw(t, head+"X: "+strings.Repeat("x", 4*maxHeaderBytes)+"\r\n\r\n"); got.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a large header = %d %s", got.status, got.body)
	}
	// Slow ones: a header without an end, and a body that doesn't come. More
	// than there is room for, and all are gone in time.
	begin := time.Now()
	var slow []net.Conn
	for i := range maxConns + 20 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.server.addr)
		if err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
		part := head + "X: "
		if i%2 == 0 {
			part = head + "Content-Length: 10\r\n\r\n{"
		}
		if _, err := io.WriteString(conn, part); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.askAWS(t); got.status != http.StatusOK {
		t.Errorf("beside slow requests = %d", got.status)
	}
	for _, conn := range slow {
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("a slow connection: %v", err)
		}
		_ = conn.Close()
	}
	if took := time.Since(begin); took > 2*(readTimeout+headerTimeout) {
		t.Errorf("slow connections were held for %v", took)
	}
}

// New values are announced, then served to however many ask.
func TestManyReadersShareOneRenewal(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2*time.Second, withoutGCE)
	hold := make(chan struct{})
	s.session.set(func(f *fakeSession) { f.hold, f.life = hold, time.Hour })
	<-time.After(time.Until(s.keeper.lease("deploy").now().ExpiresAt))
	got := make(chan reply, 100)
	for range cap(got) {
		go func() { got <- s.askAWS(t) }()
	}
	close(hold)
	for range cap(got) {
		if r := <-got; r.status != http.StatusOK || !strings.Contains(r.body, valueOf(awsKeyID, s.number(t, "deploy"))) {
			t.Errorf("a reader got %d %s", r.status, r.body)
		}
	}
	var names []string
	for len(s.told) > 0 {
		names = append(names, (<-s.told).Name)
	}
	slices.Sort(names)
	if want := []string{"db", "deploy", "google", "other"}; !slices.Equal(names, want) || s.session.count() != len(want) {
		t.Errorf("announced %q in %d renewals, want %q, one for each", names, s.session.count(), want)
	}
}

func TestT18NothingShowsAValue(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2*time.Second, withoutGCE)
	s.session.set(func(f *fakeSession) { f.fail = errDown })
	bearers := []string{s.variable(t, "VAULT_TOKEN"), s.variable(t, "AWS_CONTAINER_AUTHORIZATION_TOKEN")}
	for _, v := range s.server.Secrets() {
		if !slices.Contains(bearers, string(v.Reveal())) {
			t.Error("Secrets has something that isn't a bearer")
		}
	}
	if len(s.server.Secrets()) != 2 {
		t.Errorf("%d secrets, want both bearers", len(s.server.Secrets()))
	}
	s.askAWS(t)
	<-time.After(time.Until(s.keeper.lease("deploy").now().ExpiresAt))
	sinks := []string{s.askAWS(t).body, s.askVault(t, "GET", "database/creds/shop-ro", "").body}
	for _, guess := range append(bearers, canary) {
		// A client that puts a value where it doesn't belong has it neither
		// logged nor sent back.
		sinks = append(sinks, s.ask(t, "GET", "/"+guess, "", "Authorization", guess).body)
		sinks = append(sinks, s.ask(t, "GET", "/v1/"+guess+"?"+guess+"="+guess, "", "X-Vault-Token", "x").body)
		sinks = append(sinks, s.raw(t, guess+" "+guess+"\r\n\r\n").body)
	}
	sinks = append(sinks, s.log.String(), fmt.Sprintf("%+v %+v %#v", s.server.aws, s.server.vault, s.server.Variables(func(string) string { return "" })))
	for _, sink := range sinks {
		for _, bad := range append(bearers, canary) {
			if strings.Contains(sink, bad) {
				t.Errorf("a value or a bearer stands in: %s", sink)
			}
		}
	}
	if !strings.Contains(s.log.String(), "refused") || !strings.Contains(s.log.String(), errDown.Error()) {
		t.Errorf("the log lacks what happened:\n%s", s.log)
	}
}

func TestServerClosesWithTheCommand(t *testing.T) {
	t.Parallel()
	keeper, err := Keep(KeepConfig{Session: &fakeSession{life: time.Hour, now: time.Now, hold: make(chan struct{})}, Leases: allLeases(time.Now().Add(-time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(Config{Keeper: keeper, AWS: &AWS{}})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	asked := make(chan error, 1)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\n\r\n", awsPath, s.addr, s.aws.bearer.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	go func() { // a request that waits is cut
		_, err := io.ReadAll(conn)
		asked <- err
	}()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-asked
	keeper.Close()
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.addr); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("closing took %v", took)
	}
}

func TestVariablesAndWhatTheyReplace(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, withoutGCE)
	withheld := s.server.Withholds()
	for _, name := range []string{awsKeyID, awsSecretKey, awsSessionToken, "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "DB_USER", "DB_PASSWORD", "NPM_TOKEN", "VAULT_NAMESPACE"} {
		if !slices.Contains(withheld, name) {
			t.Errorf("%s isn't withheld", name)
		}
	}
	host := "http://" + s.server.addr
	for env, want := range map[string]string{
		"":                                   "",
		"HTTP_PROXY=x":                       "127.0.0.1",
		"http_proxy=x NO_PROXY=a,b":          "a,b,127.0.0.1",
		"ALL_PROXY=x no_proxy=c NO_PROXY":    "c,127.0.0.1",
		"http_proxy=x no_proxy=* NO_PROXY=*": "",
	} {
		got := map[string]string{}
		for _, v := range s.server.Variables(getenv(env)) {
			if err := api.CheckVariable(v.Name); err != nil {
				t.Error(err)
			}
			if isBearer := slices.ContainsFunc(s.server.Secrets(), v.Value.Equal); isBearer != v.Mask {
				t.Errorf("%s: mask = %v", v.Name, v.Mask)
			}
			got[v.Name] = string(v.Value.Reveal())
		}
		if got["AWS_CONTAINER_CREDENTIALS_FULL_URI"] != host+awsPath || got["VAULT_ADDR"] != host {
			t.Errorf("variables = %q", got)
		}
		if got["NO_PROXY"] != want {
			t.Errorf("with %q NO_PROXY = %q, want %q", env, got["NO_PROXY"], want)
		}
	}
	if !strings.HasPrefix(host, "http://127.0.0.1:") {
		t.Errorf("it listens at %s", host)
	}
	// What the command's environment says of AWS's files stays.
	for _, v := range s.server.Variables(getenv("AWS_CONFIG_FILE=/home/me/aws")) {
		if v.Name == "AWS_CONFIG_FILE" || v.Name == "AWS_SHARED_CREDENTIALS_FILE" && string(v.Value.Reveal()) != os.DevNull {
			t.Errorf("%s is set", v.Name)
		}
	}
}

func getenv(env string) func(string) string {
	return func(name string) string {
		for kv := range strings.FieldsSeq(env) {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

func TestServeChecksItsConfiguration(t *testing.T) {
	t.Parallel()
	soon := time.Now().Add(time.Hour)
	leases := append(allLeases(soon),
		numbered("deploy2", 0, soon, vars(awsKeyID, awsSecretKey, awsSessionToken)),
		numbered("forever", 0, time.Time{}, vars(awsKeyID, awsSecretKey, awsSessionToken)),
		api.Lease{Name: "file", ExpiresAt: soon, Files: []api.File{{Variable: awsKeyID, Name: "key", Value: api.NewValue(secret.FromString("x"))}}})
	k, err := Keep(KeepConfig{Session: &fakeSession{now: time.Now}, Leases: leases})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	fields := map[string]string{"token": "NPM_TOKEN"}
	vault := func(v ...Vault) Config { return Config{Keeper: k, Vault: v} }
	for want, cfg := range map[string]Config{
		"no leases are kept":      {AWS: &AWS{}},
		"nothing to serve":        {Keeper: k},
		"both have its variables": {Keeper: k, AWS: &AWS{}},
		`no lease is named "nix"`: {Keeper: k, AWS: &AWS{Lease: "nix"}},
		"no variable AWS_ACCESS":  {Keeper: k, AWS: &AWS{Lease: "db"}},
		"never expires":           {Keeper: k, AWS: &AWS{Lease: "forever"}},
		"is a file":               {Keeper: k, AWS: &AWS{Lease: "file"}},
		"isn't below the mount":   vault(Vault{"npm", "secret/ci/npm", "kv", fields}),
		"is no secret":            vault(Vault{"npm", "sys/leases/renew", "", fields}),
		"can't be served":         vault(Vault{"npm", "secret/../npm", "secret", fields}),
		"no field is given":       vault(Vault{"npm", "secret/ci/npm", "secret", nil}),
		"no variable NIX":         vault(Vault{"npm", "secret/ci/npm", "secret", map[string]string{"token": "NIX"}}),
		"two leases would answer": vault(Vault{"npm", "secret/ci/npm", "secret", fields}, Vault{"npm", "secret/data/ci/npm", "", fields}),
	} {
		s, err := Serve(cfg)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Serve = %v, want %q", err, want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /aws/credentials HTTP/1.1\r\nHost: @\r\nAuthorization: AWS\r\n\r\n",
		"GET /v1/secret/ci/npm HTTP/1.1\r\nHost: @\r\nX-Vault-Token: VAULT\r\n\r\n",
		"PUT /v1/database/creds/shop-ro HTTP/1.1\r\nHost: @\r\nX-Vault-Token: VAULT\r\nContent-Length: 2\r\n\r\n{}",
		"PUT /v1/sys/leases/renew HTTP/1.1\r\nHost: @\r\nX-Vault-Token: VAULT\r\nContent-Length: 16\r\n\r\n{\"lease_id\":\"x\"}",
		"GET /computeMetadata/v1/instance/service-accounts/default/token?scopes=a HTTP/1.1\r\nHost: @\r\nMetadata-Flavor: Google\r\n\r\n",
		"GET /v1/../aws/credentials?a=b&a=%zz HTTP/1.1\r\nHost: @\r\n\r\n",
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	k, err := Keep(KeepConfig{Session: &fakeSession{life: time.Hour, now: time.Now}, Leases: allLeases(time.Now().Add(time.Hour))})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(k.Close)
	cfg := allServices(k)
	withoutGCE(&cfg)
	s, err := Serve(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	served := []string{awsPath, "/v1/database/creds/shop-ro", "/v1/secret/ci/npm", "/v1/secret/data/ci/npm"}
	f.Fuzz(func(t *testing.T, raw []byte, known bool) {
		aws, vault := rand.Text(), rand.Text()
		if known {
			aws, vault = string(s.aws.bearer.Reveal()), string(s.vault.bearer.Reveal())
		}
		for from, to := range map[string]string{"@": s.addr, "AWS": aws, "VAULT": vault} {
			raw = bytes.ReplaceAll(raw, []byte(from), []byte(to))
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		a := s.answer(r)
		if !bytes.Contains(a.body, []byte(canary)) {
			return
		}
		path, query, _ := strings.Cut(r.RequestURI, "?")
		if !known || a.status != http.StatusOK || !slices.Contains(served, path) || strings.Trim(query, "&") != "" && path != awsPath || r.Host != s.addr || r.Header.Get("Origin") != "" {
			t.Errorf("%q gets values", raw)
		}
	})
}

func FuzzTarget(f *testing.F) {
	for _, seed := range []string{"/", "/a/b?c=d", "/a/../b", "//", "/%2e", "/a/?x=%41&y", "*", "http://h/p"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		got, ok := parseTarget(uri)
		if !ok {
			return
		}
		if !strings.HasPrefix(uri, got.path) || strings.ContainsAny(got.path, "%\\?#") || strings.Contains(got.path+"/", "/../") || strings.Contains(got.path, "//") {
			t.Errorf("parseTarget(%q) = %+v", uri, got)
		}
	})
}
