package client_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/secret"
)

func file(variable, name, kind string, size int) api.File {
	return api.File{Variable: variable, Name: name, Kind: kind, Value: api.NewValue(secret.FromString(strings.Repeat(canary, size/len(canary)+1)[:size])), Mask: true}
}

func TestFilesOfALease(t *testing.T) {
	t.Parallel()
	want := api.Lease{
		Name: "demo", Files: []api.File{file("KUBECONFIG", "kubeconfig", "", 4<<20), file("AWS_SHARED_CREDENTIALS_FILE", "aws", api.KindAWSProfile, 9), file("DOCKER_CONFIG", "docker", api.KindDockerConfig, 9)},
		Hide: []api.Value{api.NewValue(secret.FromString(canary))},
	}
	w := newWorld(t, clienttest.Config{
		Roles:      map[string][]api.Lease{"demo": {want}},
		References: map[string]api.Lease{"vault://secret/tls": {Env: []api.Var{{Name: "key", Value: api.NewValue(secret.FromString("k3y"))}}}},
	})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	leases, err := s.LeaseAll(t.Context(), api.LeaseRequest{Leases: []string{"demo"}, References: []api.Reference{{Ref: "vault://secret/tls#key", Variable: "TLS_KEY_FILE"}}})
	if err != nil || len(leases) != 2 {
		t.Fatalf("%d leases, %v", len(leases), err)
	}
	same := cmp.Comparer(func(a, b api.Value) bool { return string(a.Reveal()) == string(b.Reveal()) })
	if diff := cmp.Diff(want.Files, leases[0].Files, same); diff != "" {
		t.Errorf("files (-want +got):\n%.2000s", diff)
	}
	if diff := cmp.Diff(want.Hide, leases[0].Hide, same); diff != "" {
		t.Errorf("hide (-want +got):\n%s", diff)
	}
	if f := leases[1].Files; len(f) != 1 || f[0].Variable != "TLS_KEY_FILE" || f[0].Name != "tls_key" || len(leases[1].Env) != 0 {
		t.Errorf("the reference's lease has %d files", len(f))
	}
	ended, err := s.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ended.Leases {
		if len(l.Files)+len(l.Hide) > 0 {
			t.Errorf("the end of %q tells values again", l.Name)
		}
	}
}

// A broker that oversteps doesn't choose where on this machine a file lies, nor
// which program reads it.
func TestFilesThatNoClientMakes(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]api.File{
		"a path":              file("A", "../a", "", 9),
		"an absolute path":    file("A", "/etc/passwd", "", 9),
		"a path of Windows":   file("A", `a\b`, "", 9),
		"another stream":      file("A", "a:b", "", 9),
		"no name":             file("A", "", "", 9),
		"a folder":            file("A", "..", "", 9),
		"a hidden file":       file("A", ".ssh", "", 9),
		"a flag":              file("A", "-rf", "", 9),
		"a long name":         file("A", strings.Repeat("a", 129), "", 9),
		"a name with an end":  file("A", "a\x00b", "", 9),
		"a name of two lines": file("A", "a\nb", "", 9),
		"what runs code":      file("BASH_ENV", "a", "", 9),
		"no variable":         file("A=B", "a", "", 9),
		"an unknown kind":     file("A", "a", "canary-value-4711", 9),
		"more than 4 MiB":     file("A", "a", "", 4<<20+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, clienttest.Config{Roles: map[string][]api.Lease{"demo": {{Name: "demo", Files: []api.File{file("GOOD", "good", "", 9), bad}}}}})
			s, err := w.Exchange(t.Context(), "demo")
			if err != nil {
				t.Fatal(err)
			}
			leases, err := s.Lease(t.Context())
			if err == nil || len(leases) > 0 {
				t.Fatalf("Lease = %d leases, %v", len(leases), err)
			}
			if strings.Contains(err.Error(), canary) || strings.ContainsAny(err.Error(), "\x00\n") {
				t.Errorf("the error holds what the broker said: %v", err)
			}
		})
	}
}
