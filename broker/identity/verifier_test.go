package identity

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/identity/identitytest"
	"github.com/runenv/action/secret"
)

func TestVerifyGitHub(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	id, err := w.verify(w.Sign(w.GitHub(brokerURL)))
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	type fields struct {
		Issuer, IssuerURL, Profile                          string
		Reuse                                               Reuse
		Subject, JTI                                        string
		Issued, Expires                                     time.Time
		ProjectID, ProjectName, Source, OwnerID, Owner, Job string
	}
	got := fields{
		id.Issuer, id.IssuerURL, id.Profile, id.Reuse, id.Subject, id.JTI, id.IssuedAt, id.Expires,
		id.ProjectID, id.ProjectName, id.SourceProjectID, id.OwnerID, id.OwnerName, id.Job,
	}
	now := w.clock.now()
	want := fields{
		"github", w.URL, "github", ReuseNever,
		"repo:acme@501/shop-api@1001:environment:production", "00000000-0000-4000-8000-000000000001",
		now, now.Add(5 * time.Minute), "1001", "acme/shop-api", "1001", "501", "acme",
		"19000000001/1/44001122334",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("identity (-want +got):\n%s", diff)
	}
}

func TestVerifyGitLab(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "gitlab")
	id, err := w.verify(w.Sign(w.GitLab(brokerURL)))
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	got := []string{id.ProjectID, id.ProjectName, id.SourceProjectID, id.OwnerID, id.OwnerName, id.Job, string(id.Reuse)}
	want := []string{"88", "pay/api", "88", "72", "pay", "30002", "same-job"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("identity (-want +got):\n%s", diff)
	}
	for name, want := range map[string][]string{
		"runner_id": {"7"}, "groups_direct": {"pay", "pay/admins"}, "user_identities": nil, "nothing": nil,
	} {
		values, ok := id.Claim(name)
		if diff := cmp.Diff(want, values); diff != "" || ok != (want != nil) {
			t.Errorf("Claim(%q) = %v, %v, want %v", name, values, ok, want)
		}
	}
}

func TestT03AlgorithmAndKeyConfusion(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	rsaID, rsaKey := w.KeyID(), w.PublicKey()
	claims := w.GitHub(brokerURL)
	der, err := x509.MarshalPKIXPublicKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	// The classic: the public key, which anybody has, taken for an HMAC secret.
	hs256 := func(key []byte) string {
		input := b64(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"JWT"}`, rsaID)) + "." + b64(string(payload))
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write([]byte(input))
		return input + "." + b64(string(mac.Sum(nil)))
	}
	good := w.Sign(claims)
	w.wantReason(t, good, "")
	parts := strings.Split(good, ".")
	none := func(alg string) string {
		return b64(fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, rsaID)) + "." + parts[1] + "."
	}
	w.Rotate("ES256")
	esID := w.KeyID()
	w.clock.add(refreshWindow)
	w.wantReason(t, w.Sign(claims), "")

	tests := []struct {
		name, token, want string
	}{
		{"none, no signature", none("none"), ReasonMalformed},
		{"none, some signature", none("none") + parts[2], ReasonAlgorithm},
		{"None", none("None") + parts[2], ReasonAlgorithm},
		{"HS256 keyed by the public key in PEM", hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), ReasonAlgorithm},
		{"HS256 keyed by the public key in DER", hs256(der), ReasonAlgorithm},
		{"PS256 isn't the issuer's", w.SignWith(object{"alg": "PS256"}, claims), ReasonAlgorithm},
		{"EdDSA isn't the issuer's", w.SignWith(object{"alg": "EdDSA"}, claims), ReasonAlgorithm},
		{"lower-case algorithm", w.SignWith(object{"alg": "es256"}, claims), ReasonAlgorithm},
		{"ES256 with the id of an RSA key", w.SignWith(object{"kid": rsaID}, claims), ReasonAlgorithm},
		{"RS256 with the id of an EC key", w.SignWith(object{"alg": "RS256"}, claims), ReasonAlgorithm},
		{"signature of the other key", w.SignWith(object{"alg": "RS256", "kid": rsaID}, claims), ReasonSignature},
		{"signature of another token", parts[0] + "." + b64(goodPayload) + "." + parts[2], ReasonIssuerUnknown},
		{"payload altered", parts[0] + "." + b64(strings.Replace(string(payload), "1001", "1002", 1)) + "." + parts[2], ReasonSignature},
		{"header altered", b64(fmt.Sprintf(`{"kid":%q,"alg":"RS256"}`, rsaID)) + "." + parts[1] + "." + parts[2], ReasonSignature},
		{"key of its own in the header", w.SignWith(object{"jwk": object{"kty": "EC"}}, claims), ReasonHeaderParameter},
		{"critical header", w.SignWith(object{"crit": []string{"exp"}, "exp": 1}, claims), ReasonHeaderParameter},
		{"logout token", w.SignWith(object{"typ": "logout+jwt"}, claims), ReasonType},
		{"still good", w.SignWith(object{"kid": esID}, claims), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { w.wantReason(t, tt.token, tt.want) })
	}
}

func TestT03AnAlgorithmOutsideTheListCostsNoFetch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	for _, alg := range []string{"none", "HS256", "PS256", "EdDSA", "ES384"} {
		w.wantReason(t, w.SignWith(object{"alg": alg}, w.GitHub(brokerURL)), ReasonAlgorithm)
	}
	if got := w.Hits(); got != 0 {
		t.Errorf("%d requests, want 0", got)
	}
}

func TestT05ExactlyOneAudienceAndOurs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	tests := []struct {
		name string
		aud  any
		want string
	}{
		{"ours", brokerURL, ""},
		{"ours in a list", []string{brokerURL}, ""},
		{"another", "https://other.example.com", ReasonAudience},
		{"GitHub's default", "https://github.com/acme", ReasonAudience},
		{"ours and another", []string{brokerURL, "sts.amazonaws.com"}, ReasonAudience},
		{"another and ours", []string{"sts.amazonaws.com", brokerURL}, ReasonAudience},
		{"ours twice", []string{brokerURL, brokerURL}, ReasonAudience},
		{"with a slash", brokerURL + "/", ReasonAudience},
		{"with a port", brokerURL + ":443", ReasonAudience},
		{"in capitals", strings.ToUpper(brokerURL), ReasonAudience},
		{"a prefix", brokerURL[:len(brokerURL)-1], ReasonAudience},
		{"ours with a suffix", brokerURL + ".evil.org", ReasonAudience},
		{"comma separated", brokerURL + ",x", ReasonAudience},
		{"none", nil, ReasonClaim},
		{"empty list", []string{}, ReasonClaim},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.wantReason(t, w.Sign(w.GitHub(brokerURL, object{"aud": tt.aud})), tt.want)
		})
	}
}

func TestT05AnIssuersOwnAudienceReplacesTheBrokers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.verifier = newTestVerifier(t, w.clock, IssuerConfig{
		Name: "idp", Profile: "github", URL: w.URL, Loopback: true, Audience: "api://runenv",
	})
	w.wantReason(t, w.Sign(w.GitHub("api://runenv")), "")
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonAudience)
}

func TestT06ReuseIsTheProfilesUnlessTheIssuerSaysOtherwise(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		profile string
		set     Reuse
		want    Reuse
	}{
		{"github", "", ReuseNever},
		{"gitlab", "", ReuseSameJob},
		{"gitlab", ReuseNever, ReuseNever},
		{"github", ReuseSameJob, ReuseSameJob},
	} {
		w := newWorld(t, tt.profile)
		w.verifier = newTestVerifier(t, w.clock, IssuerConfig{
			Name: "x", Profile: tt.profile, URL: w.URL, Loopback: true, Reuse: tt.set,
		})
		claims := w.GitHub(brokerURL)
		if tt.profile == "gitlab" {
			claims = w.GitLab(brokerURL)
		}
		id, err := w.verify(w.Sign(claims))
		if err != nil || id.Reuse != tt.want {
			t.Errorf("%s, reuse %q: Verify = %+v, %v, want reuse %q", tt.profile, tt.set, id, err, tt.want)
		}
	}
}

func TestT07Times(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	at := func(d time.Duration) int64 { return w.clock.now().Add(d).Unix() }
	const s, m = time.Second, time.Minute
	tests := []struct {
		name          string
		iat, nbf, exp time.Duration // from now; nbf 0 leaves it as GitHub sets it
		want          string
	}{
		{"fresh", 0, 0, 5 * m, ""},
		{"expired within the leeway", -5 * m, 0, -30 * s, ""},
		{"expired", -5 * m, 0, -31 * s, ReasonExpired},
		{"expired long ago", -24*time.Hour - 5*m, 0, -24 * time.Hour, ReasonExpired},
		{"issued in the future within the leeway", 30 * s, 0, 5 * m, ""},
		{"issued in the future", 31 * s, 0, 5 * m, ReasonIssuedInFuture},
		{"not before, within the leeway", 0, 30 * s, 5 * m, ""},
		{"not before (go-oidc allows five minutes)", 0, 31 * s, 5 * m, ReasonNotYetValid},
		{"longest life", 0, 0, 10 * m, ""},
		{"life over the cap", 0, 0, 10*m + s, ReasonLifetime},
		{"ten years (go-oidc allows it)", 0, 0, 10 * 365 * 24 * time.Hour, ReasonLifetime},
		{"no life", 0, 0, 0, ReasonLifetime},
		{"ends before it begins", 20 * s, 0, 10 * s, ReasonLifetime},
		{"oldest", -10 * m, 0, -1 * s, ""},
		{"as old as the leeway lets it be", -10*m - 30*s, 0, -30 * s, ""},
		{"older", -10*m - 31*s, 0, -31 * s, ReasonExpired},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changes := object{"iat": at(tt.iat), "exp": at(tt.exp)}
			if tt.nbf != 0 {
				changes["nbf"] = at(tt.nbf)
			}
			w.wantReason(t, w.Sign(w.GitHub(brokerURL, changes)), tt.want)
		})
	}
	for _, name := range []string{"exp", "iat", "jti", "sub", "aud", "iss"} {
		t.Run("without "+name, func(t *testing.T) {
			w.wantReason(t, w.Sign(w.GitHub(brokerURL, object{name: nil})), ReasonClaim)
		})
	}
	t.Run("without nbf", func(t *testing.T) {
		w.wantReason(t, w.Sign(w.GitHub(brokerURL, object{"nbf": nil})), "")
	})
	t.Run("half a second past the leeway", func(t *testing.T) {
		token := w.Sign(w.GitHub(brokerURL))
		w.clock.add(5*m + 30*s)
		w.wantReason(t, token, "")
		w.clock.add(s / 2)
		w.wantReason(t, token, ReasonExpired)
	})
}

func TestT07AgeIsCappedBesideLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "gitlab")
	// No profile has a cap on age below that on life today.
	w.verifier.issuers[w.URL].profile.MaxAge = time.Minute
	token := w.Sign(w.GitLab(brokerURL))
	w.clock.add(time.Minute + leeway)
	w.wantReason(t, token, "")
	w.clock.add(time.Second)
	w.wantReason(t, token, ReasonTooOld)
}

func TestT07GitLabTokensLiveAsLongAsTheirJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "gitlab")
	at := func(d time.Duration) int64 { return w.clock.now().Add(d).Unix() }
	tests := []struct {
		name     string
		iat, exp time.Duration
		want     string
	}{
		{"three hours, two of them gone", -2 * time.Hour, time.Hour, ""},
		{"a day", 0, 24 * time.Hour, ""},
		{"a day and a second", 0, 24*time.Hour + time.Second, ReasonLifetime},
		{"a month", 0, 30 * 24 * time.Hour, ReasonLifetime},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.wantReason(t, w.Sign(w.GitLab(brokerURL, object{"iat": at(tt.iat), "exp": at(tt.exp)})), tt.want)
		})
	}
}

func TestT09BothSubjectFormsGiveTheSameIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	for _, sub := range []string{
		"repo:acme/shop-api:ref:refs/heads/main",
		"repo:acme@501/shop-api@1001:ref:refs/heads/main",
		"repo:acme@501/shop-api@1001:environment:pro%3Aduction",
		"repository_owner:acme:anything-a-customised-subject-holds",
	} {
		id, err := w.verify(w.Sign(w.GitHub(brokerURL, object{"sub": sub})))
		if err != nil {
			t.Errorf("Verify with sub %q: %v", sub, err)
			continue
		}
		if id.ProjectID != "1001" || id.OwnerID != "501" || id.Subject != sub {
			t.Errorf("sub %q: project %q, owner %q, subject %q", sub, id.ProjectID, id.OwnerID, id.Subject)
		}
	}
}

func TestT09AProjectIsItsIDWhateverItsName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	renamed, err := w.verify(w.Sign(w.GitHub(brokerURL, object{"repository": "acme/renamed"})))
	if err != nil || renamed.ProjectID != "1001" || renamed.ProjectName != "acme/renamed" {
		t.Errorf("renamed: %+v, %v", renamed, err)
	}
	registered, err := w.verify(w.Sign(w.GitHub(brokerURL, object{"repository_id": "2002"})))
	if err != nil || registered.ProjectID != "2002" || registered.ProjectName != "acme/shop-api" {
		t.Errorf("re-registered: %+v, %v", registered, err)
	}
	for name, id := range map[string]any{
		"absent": nil, "empty": "", "a name": "acme/shop-api", "signed": "-1001", "padded": "01001",
		"spaced": "1001 ", "a list": []string{"1001"}, "other digits": "١٠٠١", "a path": "../1001", "zero": "0",
		"long": strings.Repeat("9", 21), "a fraction": 1001.5,
	} {
		t.Run("id "+name, func(t *testing.T) {
			w.wantReason(t, w.Sign(w.GitHub(brokerURL, object{"repository_id": id})), ReasonIdentity)
		})
	}
	for _, job := range []string{"run_id", "run_attempt"} {
		w.wantReason(t, w.Sign(w.GitHub(brokerURL, object{job: nil})), ReasonIdentity)
	}
}

func TestT10AMergeRequestFromAForkShowsBothProjects(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "gitlab")
	id, err := w.verify(w.Sign(w.GitLab(brokerURL, object{
		"project_id": "666", "project_path": "mallory/api", "namespace_id": "13", "namespace_path": "mallory",
		"pipeline_source": "merge_request_event",
	})))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{id.ProjectID, id.ProjectName, id.SourceProjectID, id.OwnerID}
	if diff := cmp.Diff([]string{"88", "pay/api", "666", "13"}, got); diff != "" {
		t.Errorf("job's project, its name, source project, source owner (-want +got):\n%s", diff)
	}
	// Before 18.4 there is only the source's.
	id, err = w.verify(w.Sign(w.GitLab(brokerURL, object{
		"project_id": "666", "job_project_id": nil, "job_project_path": nil,
	})))
	if err != nil || id.ProjectID != "666" || id.SourceProjectID != "666" {
		t.Errorf("without job_project_id: %+v, %v", id, err)
	}
	// An id that can't be read doesn't fall back on another.
	w.wantReason(t, w.Sign(w.GitLab(brokerURL, object{"job_project_id": []string{"88"}})), ReasonIdentity)
}

func TestT10StrangersEventsAreDenied(t *testing.T) {
	t.Parallel()
	for profile, events := range map[string][]string{
		"github": {
			"pull_request_target", "workflow_run", "issue_comment", "issues", "discussion",
			"discussion_comment", "gollum", "watch", "fork",
		},
		"gitlab": {"merge_request_event", "external_pull_request_event"},
	} {
		p, ok := ProfileByName(profile)
		if !ok {
			t.Fatalf("no profile %q", profile)
		}
		if diff := cmp.Diff(events, p.DeniedEvents); diff != "" {
			t.Errorf("%s (-want +got):\n%s", profile, diff)
		}
	}
}

func TestP02ErrorsHoldNeitherTokenNorClaims(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	const canary = "canary-7Jx2"
	claims := func(changes object) object {
		return w.GitHub(brokerURL, object{"sub": canary, "jti": canary, "repository": canary}, changes)
	}
	good := w.Sign(claims(nil))
	tokens := map[string]string{
		"altered":    good[:len(good)-8] + "AAAAAAAA",
		"audience":   w.Sign(claims(object{"aud": canary})),
		"issuer":     w.Sign(claims(object{"iss": "https://" + canary})),
		"expired":    w.Sign(claims(object{"iat": 1000, "exp": 1300})),
		"kid":        w.SignWith(object{"kid": canary}, claims(nil)),
		"alg":        w.SignWith(object{"alg": canary}, claims(nil)),
		"typ":        w.SignWith(object{"typ": canary}, claims(nil)),
		"id":         w.Sign(claims(object{"repository_id": canary})),
		"number":     w.Sign(claims(object{canary: json.Number("1e400")})),
		"not a date": w.Sign(claims(object{"exp": canary})),
		"disagrees":  w.Sign(claims(object{"nonce": []string{canary}})),
	}
	for name, token := range tokens {
		_, err := w.verify(token)
		if err == nil {
			t.Errorf("%s: Verify = nil, want a refusal", name)
			continue
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			for _, leak := range []string{canary, token, strings.Split(token, ".")[1]} {
				if strings.Contains(fmt.Sprintf("%v %+v %q", e, e, e.Error()), leak) {
					t.Errorf("%s: the error shows %.20s: %v", name, leak, e)
				}
			}
		}
	}
}

func TestOnlyVerifiedRefusalsNameTheCaller(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	good := w.Sign(w.GitHub(brokerURL))
	tests := []struct {
		name, token   string
		class, issuer string
		verified, id  bool
	}{
		{"rubbish", "rubbish", ClassInvalidRequest, "", false, false},
		{"unknown issuer", w.Sign(w.GitHub(brokerURL, object{"iss": "https://evil.example.com"})), ClassInvalidToken, "", false, false},
		{"forged", good[:len(good)-8] + "AAAAAAAA", ClassInvalidToken, "github", false, false},
		{"wrong audience", w.Sign(w.GitHub("x")), ClassInvalidToken, "github", true, true},
		{"expired", w.Sign(w.GitHub(brokerURL, object{"iat": 1000, "exp": 1300})), ClassInvalidToken, "github", true, true},
		{"no project", w.Sign(w.GitHub(brokerURL, object{"repository_id": nil})), ClassInvalidToken, "github", true, true},
		{"unreadable id", w.Sign(w.GitHub(brokerURL, object{"repository_id": "x"})), ClassInvalidToken, "github", true, false},
		{"go-oidc can't read it", w.Sign(w.GitHub(brokerURL, object{"nonce": 1})), ClassInvalidToken, "github", true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := w.verify(tt.token)
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("Verify = %v, want an *Error", err)
			}
			got := []any{e.Class, e.Issuer, e.SignatureVerified, e.Identity() != nil}
			if diff := cmp.Diff([]any{tt.class, tt.issuer, tt.verified, tt.id}, got); diff != "" {
				t.Errorf("class, issuer, verified, identity of %v (-want +got):\n%s", e, diff)
			}
			if e.Identity() != nil && e.Identity().Subject == "" {
				t.Errorf("the refused identity is empty")
			}
		})
	}
}

func TestT21FloodsWaitForASlot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	token := w.Sign(w.GitHub(brokerURL))
	w.wantReason(t, token, "")
	for range cap(w.verifier.slots) {
		w.verifier.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := w.verifier.Verify(ctx, secret.FromString(token))
	if reasonOf(t, err) != ReasonCanceled || !errors.Is(err, context.Canceled) {
		t.Errorf("Verify with no slot and no time = %v, want reason %q", err, ReasonCanceled)
	}
	w.verifier.waiting.Store(maxWaiting)
	w.wantReason(t, token, ReasonBusy)
	w.verifier.waiting.Store(0)
	done := make(chan error)
	go func() {
		_, err := w.verify(token)
		done <- err
	}()
	w.verifier.leave()
	if err := <-done; err != nil {
		t.Errorf("Verify once a slot was free = %v", err)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	t.Parallel()
	good := IssuerConfig{Name: "github", Profile: "github", URL: "https://ci.example.com"}
	change := func(f func(*IssuerConfig)) []IssuerConfig {
		c := good
		f(&c)
		return []IssuerConfig{c}
	}
	url := func(u string) []IssuerConfig { return change(func(c *IssuerConfig) { c.URL = u }) }
	loopback := func(u string) []IssuerConfig {
		return change(func(c *IssuerConfig) { c.URL, c.Loopback = u, true })
	}
	other := good
	other.Name = "other"
	tests := []struct {
		name    string
		issuers []IssuerConfig
		want    string // "" means it is taken
	}{
		{"plain", []IssuerConfig{good}, ""},
		{"with a path", url("https://ci.example.com/_services/token"), ""},
		{"IPv6 loopback for development", loopback("http://[::1]:8080"), ""},
		{"no issuers", nil, "no issuers"},
		{"no name", change(func(c *IssuerConfig) { c.Name = "" }), "name"},
		{"one name twice", []IssuerConfig{good, {Name: "github", Profile: "github", URL: "https://b.example.com"}}, "twice"},
		{"one url twice", []IssuerConfig{good, other}, "same url"},
		{"unknown profile", change(func(c *IssuerConfig) { c.Profile = "jenkins" }), "no profile"},
		{"unknown reuse", change(func(c *IssuerConfig) { c.Reuse = "always" }), "reuse"},
		{"http", url("http://ci.example.com"), "not https"},
		{"http on loopback, not development", url("http://127.0.0.1"), "not https"},
		{"file", url("file:///etc/passwd"), "not a plain URL"},
		{"user", url("https://u:p@ci.example.com"), "not a plain URL"},
		{"query", url("https://ci.example.com?x"), "not a plain URL"},
		{"empty query", url("https://ci.example.com?"), "not a plain URL"},
		{"fragment", url("https://ci.example.com#x"), "not a plain URL"},
		{"upper case", url("https://CI.example.com"), "not a plain URL"},
		{"no host", url("https:///x"), "not a plain URL"},
		{"long", url("https://" + strings.Repeat("a", 600)), "longer than"},
		{"development by name", loopback("http://localhost:8080"), "loopback address"},
		{"development elsewhere", loopback("http://10.0.0.1"), "loopback address"},
		{"development by https", loopback("https://127.0.0.1"), "loopback address"},
		{"empty key set", change(func(c *IssuerConfig) { c.JWKS = []byte(`{"keys":[]}`) }), "no key"},
		{"broken key set", change(func(c *IssuerConfig) { c.JWKS = []byte(`{`) }), "key set"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := NewVerifier(Config{Audience: brokerURL, Issuers: tt.issuers})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("NewVerifier = %v, want nil", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("NewVerifier = %v, want an error with %q", err, tt.want)
			}
		})
	}
	if _, err := NewVerifier(Config{Issuers: []IssuerConfig{good}}); err == nil {
		t.Error("NewVerifier without an audience = nil, want an error")
	}
}

func TestTwoIssuersDontMix(t *testing.T) {
	t.Parallel()
	c := newClock()
	hub, lab := identitytest.New(t), identitytest.New(t)
	hub.SetNow(c.now)
	lab.SetNow(c.now)
	lab.Rotate("ES256")
	lab.Withdraw()
	w := &world{Issuer: hub, clock: c, verifier: newTestVerifier(t, c,
		IssuerConfig{Name: "hub", Profile: "github", URL: hub.URL, Loopback: true},
		IssuerConfig{Name: "lab", Profile: "gitlab", URL: lab.URL, Loopback: true})}
	w.wantReason(t, hub.Sign(hub.GitHub(brokerURL)), "")
	w.wantReason(t, lab.Sign(lab.GitLab(brokerURL)), "")
	// Each signs well, in the other's name.
	w.wantReason(t, lab.Sign(hub.GitHub(brokerURL)), ReasonKeyUnconfirmed)
	w.wantReason(t, lab.SignWith(object{"kid": hub.KeyID()}, hub.GitHub(brokerURL)), ReasonAlgorithm)
	// A GitHub token's claims don't make a GitLab identity.
	w.wantReason(t, lab.Sign(hub.GitHub(brokerURL, object{"iss": lab.URL})), ReasonIdentity)
}
