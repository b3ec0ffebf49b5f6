package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/providers/aws/awstest"
	"github.com/runenv/action/providers/gcp/gcptest"
)

// stsAudience is what AWS's own STS takes.
const stsAudience = "sts.amazonaws.com"

// clouds is a broker before a real Vault, a real STS (MinIO) and the fakes of
// AWS and Google, each of which verifies the broker's own tokens with keys
// that it fetches from the broker.
type clouds struct {
	*world
	minio *harness.MinIOServer
	aws   *awstest.Server
	gcp   *gcptest.Server
}

func newClouds(t *testing.T) *clouds {
	t.Helper()
	c := &clouds{
		world: &world{ci: harness.NewCI(t, nil), broker: harness.NewBroker(t), vault: harness.Vault(t), postgres: harness.Postgres(t)},
		aws:   awstest.New(t), gcp: gcptest.New(t),
	}
	c.vault.MountDatabase(t, c.postgres, "shop-ro", time.Minute, time.Hour)
	c.aws.HTTP, c.gcp.HTTP = c.broker.HTTP, c.broker.HTTP
	c.gcp.Issuer, c.gcp.JWKSURL = c.broker.URL, c.broker.URL+"/jwks"
	c.gcp.Accounts["deploy@shop.iam.gserviceaccount.com"] = gcptest.ServiceAccount{Members: []string{gcptest.Role("migrate")}}
	c.gcp.Secrets["projects/shop/secrets/kubeconfig"] = gcptest.Secret{
		Readers: []string{gcptest.Role("migrate")}, Versions: [][]byte{[]byte(`{"token":"c4n4ry-of-google"}`)},
	}
	c.aws.Trust(c.broker.URL, stsAudience)
	c.aws.SetRole("arn:aws:iam::111122223333:role/runenv-migrate", awstest.Role{Issuer: c.broker.URL, Subject: "runenv:role:migrate"})
	c.aws.PutSecret("ci/npm", `{"token":"c4n4ry-of-amazon"}`)
	// MinIO reads the issuer's documents when it starts, and says then what
	// its role is called: the broker learns that when it is started again.
	c.broker.Start(t, c.config("arn:minio:iam:::role/none"))
	c.minio = harness.MinIO(t, c.broker.URL, stsAudience)
	c.broker.Stop()
	c.broker.Start(t, c.config(c.minio.RoleARN))
	c.vault.TrustIssuer(t, c.broker.URL, harness.CA(t))
	c.vault.TrustRole(t, "migrate", `path "database/creds/shop-ro" { capabilities = ["read"] }`)
	return c
}

func (c *clouds) config(minioRole string) string {
	sts := "http://127.0.0.1:1"
	if c.minio != nil {
		sts = c.minio.Address
	}
	return fmt.Sprintf(`
issuers:
  github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}
providers:
  vault: {type: vault, address: "%s"}
  minio: {type: aws, region: us-east-1, endpoints: {sts: "%s"}}
  aws:
    type: aws
    region: eu-west-1
    auth: {role: "arn:aws:iam::111122223333:role/runenv-{{role.name}}"}
    allowed_account_ids: ["111122223333"]
    endpoints: {sts: "%[5]s", secretsmanager: "%[5]s"}
  gcp:
    type: gcp
    audience: %[6]s
    endpoints: {sts: "%[7]s", iamcredentials: "%[7]s", secretmanager: "%[7]s"}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  db: {provider: vault, path: database/creds/shop-ro, env: {DB_USER: username, DB_PASSWORD: password}, ttl: 1m, max_ttl: 10m}
  bucket: {provider: minio, assume_role: "%[8]s"}
  npm: {provider: aws, secret: ci/npm, env: {NPM_TOKEN: token}}
  token: {provider: gcp, access_token: {service_account: deploy@shop.iam.gserviceaccount.com}}
  kube: {provider: gcp, secret: projects/shop/secrets/kubeconfig, env: {KUBE_TOKEN: token}}
roles:
  migrate:
    projects: [shop-api]
    match:
      github: {ref: refs/heads/main, event_name: push}
    leases: [db, bucket, npm, token, kube]
`, c.ci.URL, c.broker.CAFile, c.vault.Address, sts, c.aws.URL, gcptest.Pool, c.gcp.URL, minioRole)
}

// session is the id of the one session of which something hasn't ended.
func (c *clouds) session(t *testing.T) string {
	t.Helper()
	rows, err := c.list(t)
	if err != nil || len(rows) == 0 {
		t.Fatalf("the broker lists %d rows that haven't ended, %v", len(rows), err)
	}
	return rows[0].Session
}

func (c *clouds) list(t *testing.T, args ...string) ([]leaseRow, error) {
	t.Helper()
	out, err := c.broker.Command(t, slices.Concat([]string{"leases", "list", "--config", c.broker.Config, "--json"}, args)...).Output()
	if err != nil {
		return nil, err
	}
	var rows []leaseRow
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var row leaseRow
		if err := d.Decode(&row); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// rows are what the broker says of all leases.
func (c *clouds) rows(t *testing.T, session string) map[string]leaseRow {
	t.Helper()
	all, err := c.list(t, "--session", session)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]leaseRow{}
	for _, row := range all {
		name := row.Name
		if row.Login {
			name = "login " + name
		}
		rows[name] = row
	}
	return rows
}

type leaseRow struct {
	Name         string    `json:"name"`
	Session      string    `json:"session"`
	Login        bool      `json:"login"`
	State        string    `json:"state"`
	Revocability string    `json:"revocability"`
	ExpiresAt    time.Time `json:"expires_at"`
	DiesBy       time.Time `json:"dies_by"`
}

// TestLeasesOfThreeProvidersInOneRun: what Vault issued is gone within two
// seconds of the command's end; what AWS and Google issued can only expire,
// and is said to.
func TestLeasesOfThreeProvidersInOneRun(t *testing.T) {
	t.Parallel()
	c := newClouds(t)
	c.minio.Put(t, "readable", nil)
	c.minio.Put(t, "readable/hello", []byte("hello\n"))
	job := c.start(t, `
test "$CLOUDSDK_AUTH_ACCESS_TOKEN" = "$GOOGLE_OAUTH_ACCESS_TOKEN" && echo "google: $CLOUDSDK_AUTH_ACCESS_TOKEN"
test "$NPM_TOKEN" = c4n4ry-of-amazon && test "$KUBE_TOKEN" = c4n4ry-of-google && echo "secrets: $NPM_TOKEN $KUBE_TOKEN"
curl --silent --show-error --fail --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
	-H "x-amz-security-token: $AWS_SESSION_TOKEN" '`+c.minio.Address+`/readable/hello' | grep -q hello && echo "bucket read"
part=$(printf %s "$AWS_SESSION_TOKEN" | cut -d. -f2 | tr _- /+)
echo "MinIO says $(printf '%s==' "$part" | base64 -d 2>/dev/null | grep -o '"exp":[0-9]*')"
read -r line`, "--verbose")
	_ = job.stdin.Close()
	if err := job.cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 { // the shell's read at the end of its input
			t.Fatalf("runenv run: %v\n%s", err, job.output)
		}
	}
	c.gone(t, job, 2*time.Second)
	out := job.output.String()
	for _, want := range []string{
		"google: [REDACTED:token]", "secrets: [REDACTED:npm] [REDACTED:kube]", "bucket read",
		`lease "db" is revoked`,
		`lease "npm" was handed out: its value stays valid`, `lease "kube" was handed out: its value stays valid`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the run doesn't say %q", want)
		}
	}
	session := c.session(t)
	rows := c.rows(t, session)
	// Each lease has one line, with the end that the broker keeps.
	if n := strings.Count(out, "is revoked"); n != 1 {
		t.Errorf("the run says of %d leases that they are revoked, want only db", n)
	}
	for _, name := range []string{"bucket", "token"} {
		if want := fmt.Sprintf("lease %q can't be revoked: it expires at %s\n", name, rows[name].ExpiresAt.UTC().Format(time.RFC3339)); !strings.Contains(out, want) {
			t.Errorf("the run doesn't say %q", want)
		}
	}
	// And that end is the credential's own, which MinIO wrote into its token.
	if want := fmt.Sprintf(`MinIO says "exp":%d`, rows["bucket"].ExpiresAt.Unix()); !strings.Contains(out, want+"\n") {
		t.Errorf("the run doesn't say %s, the end that the broker keeps", want)
	}
	for name, want := range map[string]struct{ state, revocability string }{
		"db": {"revoked", "revocable"}, "login vault": {"revoked", "revocable"},
		"bucket": {"expiring", "expires"}, "token": {"expiring", "expires"},
		"login aws": {"expiring", "expires"}, "login gcp": {"expiring", "expires"},
		"npm": {"disclosed", "static"}, "kube": {"disclosed", "static"},
	} {
		row := rows[name]
		if row.State != want.state || row.Revocability != want.revocability {
			t.Errorf("%s is %s and %s, want %s and %s", name, row.State, row.Revocability, want.state, want.revocability)
		}
		if want.state == "expiring" && (row.ExpiresAt.IsZero() || row.DiesBy.Before(row.ExpiresAt) || !row.DiesBy.After(time.Now())) {
			t.Errorf("%s expires at %v and dies by %v, want the first no later than the second, both to come", name, row.ExpiresAt, row.DiesBy)
		}
	}
	if len(rows) != 8 {
		t.Errorf("the session has %d rows, want 5 leases and 3 logins: %v", len(rows), rows)
	}
	// What each cloud was told.
	if got := c.gcp.Issued("/v1/token"); got != 1 {
		t.Errorf("Google's STS issued %d federated tokens, want one for the session", got)
	}
	if n := len(c.aws.Sessions()); n != 1 {
		t.Errorf("AWS has %d sessions, want one", n)
	}
	for _, s := range c.aws.Sessions() {
		if !rows["login aws"].ExpiresAt.Equal(s.Expires.Truncate(time.Second)) {
			t.Errorf("the broker keeps %v as the end of AWS's session, which is %v", rows["login aws"].ExpiresAt, s.Expires)
		}
		if s.SourceIdentity != session || s.Tags["repository"] != "acme/shop-api" {
			t.Errorf("AWS's session has the source identity %q and the tags %v, want the RunEnv session %q and the repository", s.SourceIdentity, s.Tags, session)
		}
	}
	for what, text := range map[string]string{"output": out, "broker's log": c.broker.Log()} {
		for _, canary := range []string{"c4n4ry", job.password} {
			if strings.Contains(text, canary) {
				t.Errorf("the %s holds %q", what, canary)
			}
		}
	}
}

// One back end's refusal takes back what the others gave, while the session
// lives on: nobody's end of it helps.
func TestT14OneCloudRefusesAndNothingIsLeft(t *testing.T) {
	t.Parallel()
	c := newClouds(t)
	before := c.postgres.Roles(t)
	const impersonation = ":generateAccessToken" // after the logins, beside what the others issue
	refuse := gcptest.Refuse(gcptest.Refusal{Status: http.StatusForbidden, Code: 7})
	c.gcp.Inject(gcptest.On(impersonation, refuse))
	cmd := c.broker.Runenv(t, c.ci, "run", "--role", "migrate", "--", "touch", "ran")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 125 || !bytes.Contains(out, []byte(": provider_denied (lease token)")) {
		t.Errorf("runenv run = %v, want 125 and the class of the refusal\n%s", err, out)
	}
	if _, err := os.Lstat(filepath.Join(cmd.Dir, "ran")); err == nil {
		t.Error("the command ran")
	}
	for what, text := range map[string]string{"refusal": string(out), "broker's log": c.broker.Log()} {
		for _, canary := range []string{gcptest.Echo, "c4n4ry"} {
			if strings.Contains(text, canary) {
				t.Errorf("the %s holds %q", what, canary)
			}
		}
	}
	harness.Eventually(t, 5*time.Second, "no database user is left", func() bool { return slices.Equal(c.postgres.Roles(t), before) })

	// The refusal comes when the others have given.
	given := make(chan struct{})
	release := sync.OnceFunc(func() { close(given) })
	t.Cleanup(release)
	c.gcp.Inject(gcptest.On(impersonation, func(s *gcptest.Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-given:
			case <-r.Context().Done():
			}
			refuse(s, next).ServeHTTP(w, r)
		})
	}))
	cl, err := client.New(client.Config{URL: c.broker.URL, Source: tokens{c.ci}, CAPEM: harness.CA(t)})
	if err != nil {
		t.Fatal(err)
	}
	session, err := cl.Exchange(t.Context(), "migrate")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 1)
	go func() {
		_, err := session.LeaseAll(t.Context(), api.LeaseRequest{})
		refused <- err
	}()
	aws := len(c.aws.Sessions())
	harness.Eventually(t, 20*time.Second, "Vault and AWS have given", func() bool {
		return len(c.postgres.Roles(t)) > len(before) && len(c.aws.Sessions()) > aws
	})
	release()
	if err := <-refused; !isRefusal(err, api.CodeProviderDenied) {
		t.Errorf("leasing = %v, want %s", err, api.CodeProviderDenied)
	}
	harness.Eventually(t, 5*time.Second, "no database user is left", func() bool { return slices.Equal(c.postgres.Roles(t), before) })
	wants := map[string]string{
		"db": "revoked", "login vault": "revoked", "bucket": "expiring", "npm": "void", "token": "void", "kube": "void",
		"login aws": "active", "login gcp": "active", // the session's next request may use them
	}
	rows := c.rows(t, session.ID())
	for name, want := range wants {
		if rows[name].State != want {
			t.Errorf("%s is %q after the refusal, want %q", name, rows[name].State, want)
		}
	}
	if _, err := session.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows = c.rows(t, session.ID())
	for _, name := range []string{"login aws", "login gcp"} {
		if got := rows[name]; got.State != "expiring" || !got.DiesBy.After(time.Now()) {
			t.Errorf("%s is %q after the session's end and dies by %v, want expiring, to come", name, got.State, got.DiesBy)
		}
	}
}

// TestT34STSRefusesOthersTokens: the real STS refuses what isn't signed by the
// broker that it trusts, and what is made for another.
func TestT34STSRefusesOthersTokens(t *testing.T) {
	t.Parallel()
	trusted := harness.NewBroker(t)
	ci := harness.NewCI(t, nil)
	config := func(b *harness.BrokerServer, minio *harness.MinIOServer, head, auth string) string {
		role, sts := "arn:minio:iam:::role/none", "http://127.0.0.1:1"
		if minio != nil {
			role, sts = minio.RoleARN, minio.Address
		}
		return fmt.Sprintf(`%s
issuers:
  github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}
providers:
  minio: {type: aws, region: us-east-1, endpoints: {sts: "%s"}%s}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  bucket: {provider: minio, assume_role: "%s"}
roles:
  migrate:
    projects: [shop-api]
    match:
      github: {ref: refs/heads/main, event_name: push}
    leases: [bucket]
`, head, ci.URL, b.CAFile, sts, auth, role)
	}
	trusted.Start(t, config(trusted, nil, "", ""))
	minio := harness.MinIO(t, trusted.URL, stsAudience)

	run := func(b *harness.BrokerServer) (code int, out string, ran bool) {
		cmd := b.Runenv(t, ci, "run", "--role", "migrate", "--", "touch", "ran")
		said, _ := cmd.CombinedOutput() // the exit status says the same
		_, err := os.Lstat(filepath.Join(cmd.Dir, "ran"))
		return cmd.ProcessState.ExitCode(), string(said), err == nil
	}
	// What the real STS answers to a token that it doesn't take.
	answer := "sts:AssumeRoleWithWebIdentity of role " + minio.RoleARN[strings.LastIndexByte(minio.RoleARN, '/')+1:] + ": status 400: InvalidParameterValue"
	tests := []struct {
		name, auth string
		impostor   bool
		want       int
	}{
		{"its own", "", false, 0},
		{"for another audience", `, auth: {audience: "https://elsewhere.example.com"}`, false, 125},
		{"signed by another broker in its name", "", true, 125},
	}
	for _, tt := range tests {
		b := harness.NewBroker(t)
		head := ""
		if tt.impostor {
			head = "issuer_url: " + trusted.URL
		} else {
			// The one that is trusted, with another file.
			trusted.Stop()
			b = trusted
		}
		b.Start(t, config(b, minio, head, tt.auth))
		logged := len(b.Log())
		code, out, ran := run(b)
		if code != tt.want || ran != (tt.want == 0) {
			t.Errorf("a token %s: runenv run ends with %d, want %d; the command ran: %v\n%s", tt.name, code, tt.want, ran, out)
		}
		if tt.want == 0 {
			continue
		}
		if !strings.Contains(out, "provider_denied (lease bucket)") {
			t.Errorf("a token %s: the refusal doesn't say whose it is and name the lease: %s", tt.name, out)
		}
		harness.Eventually(t, 10*time.Second, fmt.Sprintf("a token %s: it wasn't STS that refused, with %q", tt.name, answer), func() bool {
			return strings.Contains(b.Log()[logged:], answer)
		})
	}
}
