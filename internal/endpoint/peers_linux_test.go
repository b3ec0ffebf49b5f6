package endpoint

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// addressFile holds the server's address, for helpers that start before it.
func addressFile(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "endpoint-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "address")
}

func writeAddress(t *testing.T, path, address string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(address), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestT29OnlyTheCommandsProcessesGetGoogleTokens(t *testing.T) {
	t.Parallel()
	path := addressFile(t)
	env := []string{"ENDPOINT_TEST_ADDRESS=" + path, "ENDPOINT_TEST_NETWORK=tcp"}
	// A shell's background job, which is there before it becomes runenv.
	earlier := startHelper(t, "dial", env, nil)
	<-time.After(2 * time.Second / ticksPerSecond) // the unit in which it can be told
	s := newSite(t, time.Hour, nil)
	writeAddress(t, path, s.server.addr)
	helpers := map[string]*helper{
		"child":              startHelper(t, "dial", env, nil),
		"earlier child":      earlier,
		"not a descendant":   startHelper(t, "orphan", env, nil),
		"by a mapped socket": startHelper(t, "dial", append([]string{"ENDPOINT_TEST_NETWORK=tcp6"}, env[:1]...), nil),
	}
	want := map[string]string{
		"child": "200 OK", "earlier child": errStranger.Error(), "not a descendant": errStranger.Error(), "by a mapped socket": "200 OK",
	}
	for name, h := range helpers {
		got := h.next(t)
		answer := got.Values["answer"]
		if !strings.Contains(answer, want[name]) || strings.Contains(answer, canary) != (want[name] == "200 OK") {
			t.Errorf("%s: %s %s, want %s", name, got.Error, answer, want[name])
		}
	}
	// This process itself isn't the command.
	if got := s.ask(t, http.MethodGet, gceRoot+"/v1/instance/service-accounts/default/token", "", "Metadata-Flavor", "Google"); got.status != http.StatusForbidden {
		t.Errorf("runenv itself = %d %s", got.status, got.body)
	}
	if strings.Contains(s.log.String(), canary) || !strings.Contains(s.log.String(), "kind=gce") {
		t.Errorf("log:\n%s", s.log)
	}
}

func TestT29AnotherUserGetsNoGoogleToken(t *testing.T) {
	t.Parallel()
	path := addressFile(t)
	var as *syscall.SysProcAttr
	s := newSite(t, time.Hour, nil)
	if os.Geteuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, err1 := strconv.ParseUint(nobody.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(nobody.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	} else {
		s.server.gce.peers.uid++ // we are the other
	}
	writeAddress(t, path, s.server.addr)
	h := startHelper(t, "dial", []string{"ENDPOINT_TEST_ADDRESS=" + path, "ENDPOINT_TEST_NETWORK=tcp"}, as)
	if got := h.next(t); !strings.Contains(got.Values["answer"], errOtherUser.Error()) || strings.Contains(got.Values["answer"], canary) {
		t.Errorf("another user: %s %s", got.Error, got.Values["answer"])
	}
}

// metadata asks as one of the command's processes would: who asks is known.
func (s *site) metadata(path string, header ...string) answer {
	r := &http.Request{Method: http.MethodGet, Host: s.server.addr, RequestURI: path, ProtoMajor: 1, Header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	ctx := withKnownPeer(r.Context())
	return s.server.answer(r.WithContext(ctx))
}

func TestMetadataTree(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour, nil)
	const v1, email = "/computeMetadata/v1/", "deploy@shop.iam.gserviceaccount.com"
	for path, want := range map[string]string{
		"/":                                                      "computeMetadata/\n",
		"/computeMetadata":                                       "v1/\n",
		v1:                                                       "instance/\nproject/\nuniverse/\n",
		v1 + "instance/":                                         "service-accounts/\n",
		v1 + "instance/service-accounts/":                        "default/\n" + email + "/\n",
		v1 + "instance/service-accounts":                         "default/\n" + email + "/\n",
		v1 + "project/project-id":                                "shop",
		v1 + "project/numeric-project-id":                        "1234",
		v1 + "universe/universe-domain":                          "googleapis.com",
		v1 + "project/project-id?alt=json":                       `"shop"`,
		v1 + "project/?recursive=true":                           `{"numericProjectId":1234,"projectId":"shop"}`,
		v1 + "universe/?recursive=true&alt=json":                 `{"universeDomain":"googleapis.com"}`,
		v1 + "instance/service-accounts/default/":                "aliases\nemail\nidentity\nscopes\ntoken\n",
		v1 + "instance/service-accounts/default/email":           email,
		v1 + "instance/service-accounts/" + email + "/email":     email,
		v1 + "instance/service-accounts/default/aliases":         "default\n",
		v1 + "instance/service-accounts/default/scopes":          cloudPlatformScope + "\n",
		v1 + "instance/service-accounts/default/?recursive=true": `{"aliases":["default"],"email":"` + email + `","scopes":["` + cloudPlatformScope + `"]}`,
		v1 + "instance/service-accounts/default/identity?audience=https%3A%2F%2Fservice.example.com&format=full": idTokenFor("https://service.example.com", 0),
	} {
		got := s.metadata(path, "Metadata-Flavor", "Google")
		body := string(got.body)
		if strings.Contains(path, "identity") { // its claims hold the time
			body, want = strings.Split(body, ".")[0], strings.Split(want, ".")[0]
		}
		if got.status != http.StatusOK || body != want {
			t.Errorf("%s = %d %q, want %q", path, got.status, body, want)
		}
	}
	var token struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		TokenType   string `json:"token_type"`
	}
	got := s.metadata(v1+"instance/service-accounts/"+email+"/token?scopes=a", "Metadata-Flavor", "Google")
	if err := json.Unmarshal(got.body, &token); err != nil {
		t.Fatal(err)
	}
	if token.AccessToken != valueOf("CLOUDSDK_AUTH_ACCESS_TOKEN", 0) || token.TokenType != "Bearer" || token.ExpiresIn < 3500 || token.ExpiresIn > 3600 {
		t.Errorf("token = %d %+v", got.status, token)
	}
	if all := s.metadata(v1+"?recursive=true", "Metadata-Flavor", "Google"); strings.Contains(string(all.body), canary) || !strings.Contains(string(all.body), `"serviceAccounts"`) {
		t.Errorf("all = %s", all.body)
	}
	for path, want := range map[string]int{
		v1 + "instance/id":                             http.StatusNotFound,
		v1 + "instance/attributes/":                    http.StatusNotFound,
		v1 + "project/project-id/x":                    http.StatusNotFound,
		"/computeMetadata/v2/":                         http.StatusNotFound,
		"/metadata/identity/oauth2/":                   http.StatusNotFound,
		v1 + "project/project-id?wait_for_change=true": http.StatusBadRequest,
		v1 + "instance/service-accounts/default/token?transport=mtls&binding-enforcement=on":  http.StatusBadRequest,
		v1 + "instance/service-accounts/default/identity?audience=https%3A%2F%2Fevil.example": http.StatusNotFound,
		v1 + "instance/service-accounts/default/identity":                                     http.StatusNotFound,
		v1 + "instance/service-accounts/default/%74oken":                                      http.StatusBadRequest,
		v1 + "instance/service-accounts/somebody@shop.iam.gserviceaccount.com/token":          http.StatusNotFound,
	} {
		if got := s.metadata(path, "Metadata-Flavor", "Google"); got.status != want || strings.Contains(string(got.body), canary) {
			t.Errorf("%s = %d %s, want %d", path, got.status, got.body, want)
		}
	}
	path := v1 + "instance/service-accounts/default/token"
	for _, header := range [][]string{nil, {"Metadata-Flavor", "google"}, {"Metadata-Flavor", "Google", "X-Forwarded-For", "1.2.3.4"}, {"Metadata-Flavor", "Google", "Origin", "null"}} {
		if got := s.metadata(path, header...); got.status != http.StatusForbidden || strings.Contains(string(got.body), canary) {
			t.Errorf("with %q = %d %s", header, got.status, got.body)
		}
	}
}

func TestGCEChecksItsConfiguration(t *testing.T) {
	t.Parallel()
	leases := append(allLeases(time.Now().Add(time.Hour)), numbered("forever", 0, time.Time{}, vars("GOOGLE_OAUTH_ACCESS_TOKEN")))
	k, err := Keep(KeepConfig{Session: &fakeSession{now: time.Now}, Leases: leases})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	for want, cfg := range map[string]GCE{
		"both have its variables": {},
		"neither":                 {Lease: "db"},
		"never expires":           {Lease: "forever"},
		"isn't one":               {Lease: "google", Account: "a/b"},
		"no variable NIX":         {Lease: "google", IDTokens: []LeaseVariable{{"google", "NIX"}}},
		"or its number":           {Lease: "google", ProjectNumber: "shop"},
	} {
		s, err := Serve(Config{Keeper: k, GCE: &cfg})
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Serve = %v, want %q", err, want)
		}
	}
}

const socketTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0000000000000000 20 4 30 10 -1
   2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 13 1 0000000000000000 20 4 30 10 -1
   3: 0000000000000000FFFF00000100007F:C351 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 14 1 0
   4: 0100007F:C352 0100007F:1F90 05 00000000:00000000 00:00000000 00000000     0        0 0 1 0
`

func TestFindSocket(t *testing.T) {
	t.Parallel()
	server := netip.MustParseAddrPort("127.0.0.1:8080")
	for port, want := range map[uint16]socket{50000: {1000, 13}, 50001: {1001, 14}, 50002: {0, 0}} {
		got, ok, err := findSocket(strings.NewReader(socketTable), netip.AddrPortFrom(server.Addr(), port), server)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(socket{})); !ok || err != nil || diff != "" {
			t.Errorf("port %d: %v %v %s", port, ok, err, diff)
		}
	}
	if _, ok, err := findSocket(strings.NewReader(socketTable), netip.MustParseAddrPort("127.0.0.2:50000"), server); ok || err != nil {
		t.Errorf("another address is found: %v", err)
	}
}

func FuzzSockets(f *testing.F) {
	f.Add(socketTable)
	f.Add("0: :1 7F:2\n")
	f.Fuzz(func(t *testing.T, table string) {
		s, ok, err := findSocket(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:50000"), netip.MustParseAddrPort("127.0.0.1:8080"))
		if ok && (err != nil || s.uid < 0) || !ok && s != (socket{}) {
			t.Errorf("findSocket = %+v %v %v", s, ok, err)
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add("42 (a) b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 0 0")
	f.Add("42 (x S 1")
	f.Fuzz(func(t *testing.T, stat string) {
		if p, err := parseStat(stat); err != nil && p != (process{}) {
			t.Errorf("parseStat(%q) = %+v, %v", stat, p, err)
		}
	})
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	got, err := parseStat("42 (a) S 1 (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 0 0")
	if want := (process{7, 12345}); got != want || err != nil {
		t.Errorf("parseStat = %+v, %v, want %+v", got, err, want)
	}
}
