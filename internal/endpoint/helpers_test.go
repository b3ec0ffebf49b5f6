package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/secret"
)

var _ Renewer = (*client.Session)(nil)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		os.Exit(help(mode))
	}
	os.Exit(m.Run())
}

// A fakeSession leases anew: each lease has a number in its id and values.
type fakeSession struct {
	life time.Duration
	now  func() time.Time

	mu      sync.Mutex
	number  int
	calls   int
	fail    error
	inPlace time.Duration // by how much it lengthens what is renewable; 0: it leases anew
	hold    chan struct{} // closed: go on
}

func (f *fakeSession) Renew(ctx context.Context, lease api.Lease, _ ...api.Reference) (api.Lease, error) {
	f.mu.Lock()
	f.calls++
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return api.Lease{}, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return api.Lease{}, f.fail
	}
	if f.inPlace != 0 && lease.Renewable {
		lease.ExpiresAt, lease.Env = f.now().Add(f.inPlace), nil
		return lease, nil
	}
	f.number++
	return numbered(lease.Name, f.number, f.now().Add(f.life), lease.Env), nil
}

func (f *fakeSession) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fakeSession) set(change func(*fakeSession)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// numbered is a lease whose values end in its number.
func numbered(name string, n int, expires time.Time, like []api.Var) api.Lease {
	lease := api.Lease{ID: fmt.Sprintf("%s-%d", name, n), Name: name, ExpiresAt: expires}
	for _, v := range like {
		v.Value = api.NewValue(secret.FromString(valueOf(v.Name, n)))
		lease.Env = append(lease.Env, v)
	}
	return lease
}

// canary begins every value.
const canary = "canary-value-7c1e"

func valueOf(name string, n int) string {
	if name == "ID_TOKEN" {
		return idTokenFor("https://service.example.com", n)
	}
	return fmt.Sprintf("%s-%s-%d", canary, name, n)
}

func vars(names ...string) []api.Var {
	var all []api.Var
	for _, name := range names {
		all = append(all, api.Var{Name: name, Mask: true})
	}
	return all
}

// all are leases of every kind, number 0.
func allLeases(expires time.Time) []api.Lease {
	return []api.Lease{
		numbered("deploy", 0, expires, vars(awsKeyID, awsSecretKey, awsSessionToken, awsAccountID)),
		numbered("google", 0, expires, vars("CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN", "ID_TOKEN")),
		numbered("db", 0, expires, vars("DB_USER", "DB_PASSWORD")),
		numbered("npm", 0, time.Time{}, vars("NPM_TOKEN")),
		numbered("other", 0, expires, vars("OTHER")),
	}
}

// allServices serve them; "other" is kept fresh alone.
func allServices(k *Keeper) Config {
	return Config{
		Keeper: k,
		AWS:    &AWS{},
		GCE: &GCE{
			Account: "deploy@shop.iam.gserviceaccount.com", Project: "shop", ProjectNumber: "1234",
			IDTokens: []LeaseVariable{{"google", "ID_TOKEN"}},
		},
		Vault: []Vault{
			{Lease: "db", Path: "database/creds/shop-ro", Fields: map[string]string{"username": "DB_USER", "password": "DB_PASSWORD"}},
			{Lease: "npm", Path: "secret/ci/npm", Mount: "secret", Fields: map[string]string{"token": "NPM_TOKEN"}},
		},
	}
}

type site struct {
	keeper  *Keeper
	server  *Server
	session *fakeSession
	told    chan api.Lease
	log     *syncBuffer
}

// newSite serves leases of every kind that live for life.
func newSite(t *testing.T, life time.Duration, change func(*Config)) *site {
	t.Helper()
	s := &site{session: &fakeSession{life: life, now: time.Now}, told: make(chan api.Lease, 100), log: &syncBuffer{}}
	keeper, err := Keep(KeepConfig{
		Session: s.session, Leases: allLeases(time.Now().Add(life)), Log: s.log.logger(),
		OnValues: func(l api.Lease) { s.told <- l },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keeper.Close)
	s.keeper = keeper
	cfg := allServices(keeper)
	cfg.Log = s.log.logger()
	if change != nil {
		change(&cfg)
	}
	if s.server, err = Serve(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// env is the command's environment.
func (s *site) env() []string {
	var all []string
	for _, v := range s.server.Variables(func(string) string { return "" }) {
		all = append(all, v.Name+"="+string(v.Value.Reveal()))
	}
	return all
}

func (s *site) variable(t *testing.T, name string) string {
	t.Helper()
	for _, kv := range s.env() {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	t.Fatalf("no variable %s", name)
	return ""
}

type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends a request of this process's own.
func (s *site) ask(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.server.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	if req.Header.Get("Host") != "" {
		req.Host = req.Header.Get("Host")
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(got)}
}

func (s *site) askAWS(t *testing.T) reply {
	t.Helper()
	return s.ask(t, http.MethodGet, awsPath, "", "Authorization", s.variable(t, "AWS_CONTAINER_AUTHORIZATION_TOKEN"))
}

func (s *site) askVault(t *testing.T, method, path, body string) reply {
	t.Helper()
	return s.ask(t, method, "/v1/"+path, body, "X-Vault-Token", s.variable(t, "VAULT_TOKEN"))
}

var errDown = errors.New("the broker is down")

// withKnownPeer is a request's context whose peer was found to be the command's.
func withKnownPeer(ctx context.Context) context.Context {
	p := &peer{}
	p.once.Do(func() {})
	return context.WithValue(ctx, peerKey{}, p)
}
