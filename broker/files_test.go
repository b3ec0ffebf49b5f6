package broker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/providers"
)

// filed is a file of the broker whose leases are files, too.
var filed = strings.NewReplacer(
	"env: {NPM_TOKEN: token, NPM_REGISTRY: {field: registry, mask: false}}",
	`env: {NPM_LINK: {template: "https://x:{{.token}}@{{.registry}}"}, NPM_REGISTRY: {field: registry, mask: false}}, file: {NPMRC: token}`,
	"provider: odd, env: {ODD: value}", `provider: odd, env: {ODD_KEY_FILE: {field: value, mask: false}}, file: {AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: odd}}`,
	`values: {token: "`+canary+`-other"}, env: {OTHER: token}`, `values: {access_key: "AK", secret_key: "`+canary+`-other"}, file: {AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: local}}`,
	"leases: [odd, npm]", "leases: [odd, npm, secret-lease]",
).Replace(brokerFile)

// filesOf are the files of leases, as variable, name, kind, mask and content.
func filesOf(leases []api.Lease) []string {
	var out []string
	for _, l := range leases {
		for _, f := range l.Files {
			out = append(out, fmt.Sprintf("%s %s %q %v %s", f.Variable, f.Name, f.Kind, f.Mask, f.Value.Reveal()))
		}
	}
	slices.Sort(out)
	return out
}

func TestFilesAreDelivered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.swap(filed)
	r.fields(providers.Revocable, time.Minute, map[string]string{"value": "c4n4ry-key", "access_key_id": "ASIA", "secret_access_key": "c4n4ry-secret"})
	s := r.open("odd")
	leases := s.leased(s.call(http.MethodPost, api.PathLeases, "{}"))
	want := []string{
		`AWS_SHARED_CREDENTIALS_FILE aws_shared_credentials "aws-profile" true [local]` + "\naws_access_key_id = AK\naws_secret_access_key = " + canary + "-other\n",
		`AWS_SHARED_CREDENTIALS_FILE aws_shared_credentials "aws-profile" true [odd]` + "\naws_access_key_id = ASIA\naws_secret_access_key = c4n4ry-secret\n",
		`NPMRC npmrc "" true ` + canary,
		`ODD_KEY_FILE odd_key "" false c4n4ry-key`,
	}
	if diff := cmp.Diff(want, filesOf(leases)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	var hide []string
	for _, l := range leases {
		for _, f := range l.Files {
			if err := f.Check(); err != nil {
				t.Errorf("a client refuses %s: %v", f.Variable, err)
			}
		}
		for _, v := range l.Hide {
			hide = append(hide, l.Name+" "+string(v.Reveal()))
		}
	}
	slices.Sort(hide)
	// The token is hidden as NPMRC already, and the registry isn't a secret.
	if diff := cmp.Diff([]string{"odd ASIA", "odd c4n4ry-secret", "secret-lease AK", "secret-lease " + canary + "-other"}, hide); diff != "" {
		t.Errorf("hidden besides (-want +got):\n%s", diff)
	}
}

func TestReferencesToFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{creds: nil, token: nil}
	r.fields(providers.Revocable, time.Minute, map[string]string{"value": "c4n4ry\x00key"})
	s := r.open("odd")
	leases := s.leased(s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: []api.Reference{
		reference(token+"#value", "TLS_KEY_FILE"), reference(creds, "WHOLE_FILE"),
	}})))
	want := []string{`TLS_KEY_FILE tls_key "" true c4n4ry` + "\x00key", `WHOLE_FILE whole "" true c4n4ry` + "\x00key"}
	if diff := cmp.Diff(want, filesOf(leases)); diff != "" || len(env(leases)) != 0 {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// Two that would be one file are refused before a back end is asked.
	calls := r.odd.calls
	a := s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: []api.Reference{
		reference(token+"#value", "TLS_KEY_FILE"), reference(creds, "tls_key_FILE"),
	}}))
	if !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || r.odd.calls != calls || !strings.Contains(a.refusal().Description, "two files of the request are named tls_key") {
		t.Errorf("two files with one name = %v, after %d calls", a, r.odd.calls-calls)
	}
}

// Values of one answer have a bound, those in files and those to hide too.
func TestT21FilesCountForTheAnswersBound(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	more := creds + "-more"
	r.grants = map[string]error{creds: nil, token: nil, more: nil}
	r.fields(providers.Revocable, time.Minute, map[string]string{"a": strings.Repeat("x", 3<<20+512<<10), "b": "2"})
	s := r.open("odd")
	tests := []struct {
		name       string
		references []api.Reference
		status     int
	}{
		{"14 MiB in files", []api.Reference{reference(creds+"#a", "A_FILE"), reference(creds+"#a", "B_FILE"), reference(creds+"#a", "C_FILE"), reference(creds+"#a", "D_FILE")}, http.StatusOK},
		{"17.5 MiB in files", []api.Reference{
			reference(creds+"#a", "A_FILE"), reference(creds+"#a", "B_FILE"), reference(creds+"#a", "C_FILE"), reference(creds+"#a", "D_FILE"), reference(creds+"#a", "E_FILE"),
		}, http.StatusUnprocessableEntity},
		// JSON of all fields, of each of which a is hidden by itself.
		{"7 MiB in files, and as much to hide", []api.Reference{reference(creds, "A_FILE"), reference(token, "B_FILE")}, http.StatusOK},
		{"10.5 MiB in files, and as much to hide", []api.Reference{reference(creds, "A_FILE"), reference(token, "B_FILE"), reference(more, "C_FILE")}, http.StatusBadGateway},
	}
	for _, tt := range tests {
		a := s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: tt.references}))
		if a.status != tt.status || len(a.body) > api.MaxAnswer {
			t.Errorf("%s = %d and %d bytes, want %d", tt.name, a.status, len(a.body), tt.status)
		}
	}
}
