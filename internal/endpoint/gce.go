package endpoint

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
)

// GCE serves one lease as the metadata server of a machine at Google, which
// Google's libraries and gcloud ask where GCE_METADATA_HOST names one. Its
// protocol has no bearer: only processes of the same user that the command
// started are answered. That can be told on Linux alone; elsewhere [Serve]
// refuses.
type GCE struct {
	// Lease has an access token in CLOUDSDK_AUTH_ACCESS_TOKEN or
	// GOOGLE_OAUTH_ACCESS_TOKEN, and an end. "" means the only lease that has.
	Lease string
	// Account is the service account's address; "" means that it isn't told,
	// and tools that ask for it are told "default".
	Account string
	// Scopes are those of the token; none means cloud-platform.
	Scopes []string
	// Project is the project's name, and ProjectNumber its number; "" means
	// not told.
	Project, ProjectNumber string
	// IDTokens are served to whoever asks for the audience of one.
	IDTokens []LeaseVariable
}

// A LeaseVariable is a variable of a lease.
type LeaseVariable struct{ Lease, Variable string }

const (
	gceRoot            = "/computeMetadata"
	cloudPlatformScope = "https://www.googleapis.com/auth/cloud-platform"
	defaultAccount     = "default"

	// maxIDTokenBytes bounds an ID token whose audience is read.
	maxIDTokenBytes = 16 << 10
)

// GCEVariables are those of which a lease must have one to be served.
func GCEVariables() []string {
	return []string{"CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN"}
}

type gceService struct {
	lease    *kept
	variable string
	idTokens []idToken
	tree     directory
	peers    *peers
	now      func() time.Time
}

type idToken struct {
	lease    *kept
	variable string
}

// A directory is what stands below a path, by name: another directory, a leaf
// (a string, a list of strings or a number), or an onDemand.
type directory map[string]any

// onDemand stands for what isn't part of a recursive answer.
type onDemand func(s *gceService, r *http.Request, t target) answer

func openGCE(k *Keeper, cfg GCE, now func() time.Time) (*gceService, error) {
	tokenVariable := func(lease api.Lease) string {
		i := slices.IndexFunc(GCEVariables(), func(name string) bool { return lacks(lease, name) == nil })
		if i < 0 {
			return ""
		}
		return GCEVariables()[i]
	}
	l, err := k.fits("GCE", cfg.Lease, func(lease api.Lease) error {
		if tokenVariable(lease) == "" {
			return errors.New("it has neither " + strings.Join(GCEVariables(), " nor "))
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case l.now().ExpiresAt.IsZero():
		return nil, fmt.Errorf("GCE: lease %q never expires: leave it in the command's environment", l.name)
	case !plainWord(cfg.Account) || !plainWord(cfg.Project) || strings.Trim(cfg.ProjectNumber, "0123456789") != "":
		return nil, errors.New("GCE: the account, the project or its number isn't one")
	}
	s := &gceService{lease: l, variable: tokenVariable(l.now()), now: now}
	l.require(s.variable)
	for _, v := range cfg.IDTokens {
		token, err := k.fits("GCE", v.Lease, func(lease api.Lease) error { return lacks(lease, v.Variable) })
		if err != nil {
			return nil, err
		}
		token.require(v.Variable)
		s.idTokens = append(s.idTokens, idToken{token, v.Variable})
	}
	if s.peers, err = newPeers(); err != nil {
		return nil, fmt.Errorf("GCE: %w", err)
	}
	s.tree = gceTree(cfg)
	return s, nil
}

// plainWord reports whether s can stand in a path and on a line.
func plainWord(s string) bool { return s == "" || plainPath(s) && !strings.Contains(s, "/") }

func gceTree(cfg GCE) directory {
	account := directory{
		"aliases": []string{defaultAccount}, "email": defaultAccount, "scopes": []string{cloudPlatformScope},
		"token": onDemand((*gceService).token), "identity": onDemand((*gceService).identity),
	}
	accounts := directory{defaultAccount: account}
	if cfg.Account != "" {
		account["email"] = cfg.Account
		accounts[cfg.Account] = account
	}
	if len(cfg.Scopes) > 0 {
		account["scopes"] = slices.Clone(cfg.Scopes)
	}
	project := directory{}
	if cfg.Project != "" {
		project["project-id"] = cfg.Project
	}
	if cfg.ProjectNumber != "" {
		project["numeric-project-id"] = json.Number(cfg.ProjectNumber)
	}
	return directory{"computeMetadata": directory{"v1": directory{
		"instance": directory{"service-accounts": accounts},
		"project":  project,
		"universe": directory{"universe-domain": "googleapis.com"},
	}}}
}

func (s *gceService) answer(r *http.Request, t target) answer {
	p, _ := r.Context().Value(peerKey{}).(*peer)
	if p == nil {
		return gceRefuse(http.StatusForbidden, "who asks can't be told")
	}
	p.once.Do(func() { p.err = s.peers.check(p.remote, p.local) })
	switch {
	case p.err != nil:
		return gceRefuse(http.StatusForbidden, p.err.Error())
	case r.Method != http.MethodGet:
		return gceRefuse(http.StatusMethodNotAllowed, "only GET is served")
	case !slices.Equal(r.Header.Values("Metadata-Flavor"), []string{"Google"}):
		return gceRefuse(http.StatusForbidden, "the header Metadata-Flavor: Google is missing")
	case t.query["wait_for_change"] == "true":
		return gceRefuse(http.StatusBadRequest, "waiting for a change isn't served")
	}
	var node any = s.tree
	for segment := range strings.SplitSeq(strings.Trim(t.path, "/"), "/") {
		if segment == "" {
			break // the root
		}
		dir, ok := node.(directory)
		if !ok {
			return gceRefuse(http.StatusNotFound, "no such entry")
		}
		if node, ok = dir[segment]; !ok {
			return gceRefuse(http.StatusNotFound, "no such entry")
		}
	}
	switch n := node.(type) {
	case onDemand:
		return n(s, r, t)
	case directory:
		if t.query["recursive"] == "true" {
			return gceJSON(recursive(n))
		}
		return gceText(listing(n))
	}
	if t.query["alt"] == "json" {
		return gceJSON(node)
	}
	if list, ok := node.([]string); ok {
		return gceText(strings.Join(list, "\n") + "\n")
	}
	return gceText(fmt.Sprint(node))
}

// listing has a line for each entry, as the metadata server lists them.
func listing(d directory) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d)) {
		b.WriteString(name)
		if _, ok := d[name].(directory); ok {
			b.WriteByte('/')
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// recursive is a directory as JSON has it: names in camelCase, but for those of
// accounts, and nothing that is made on demand.
func recursive(d directory) map[string]any {
	out := map[string]any{}
	for name, node := range d {
		switch n := node.(type) {
		case onDemand:
		case directory:
			out[camelCase(name)] = recursive(n)
		default:
			out[camelCase(name)] = n
		}
	}
	return out
}

func camelCase(name string) string {
	if strings.Contains(name, "@") {
		return name
	}
	words := strings.Split(name, "-")
	for i, w := range words[1:] {
		if w != "" {
			words[i+1] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "")
}

// token answers .../token. The token's scopes are the lease's, whatever is
// asked for; one that is bound to a channel can't be had.
func (s *gceService) token(r *http.Request, t target) answer {
	if t.query["transport"] != "" || t.query["binding-enforcement"] != "" {
		return gceRefuse(http.StatusBadRequest, "bound tokens aren't served")
	}
	lease, _, err := s.lease.current(r.Context())
	if err != nil {
		return gceRefuse(http.StatusServiceUnavailable, err.Error())
	}
	value, _ := variable(lease, s.variable)
	return gceJSON(struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"` // seconds
		TokenType   string `json:"token_type"`
	}{string(value.Reveal()), seconds(lease.ExpiresAt, s.now()), "Bearer"})
}

// identity answers .../identity?audience=.
func (s *gceService) identity(r *http.Request, t target) answer {
	for _, id := range s.idTokens {
		lease, _, err := id.lease.current(r.Context())
		if err != nil {
			return gceRefuse(http.StatusServiceUnavailable, err.Error())
		}
		value, _ := variable(lease, id.variable)
		if wanted := t.query["audience"]; wanted != "" && audience(value.Reveal()) == wanted {
			return gceText(string(value.Reveal()))
		}
	}
	return gceRefuse(http.StatusNotFound, "no ID token is leased for this audience")
}

// audience reads the audience of a token, which was checked by who issued it;
// "" if it has not exactly one.
func audience(token []byte) string {
	parts := strings.Split(string(token), ".")
	if len(token) > maxIDTokenBytes || len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		Audience string `json:"aud"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return ""
	}
	return claims.Audience
}

// seconds are those left until end, at least one: none means to some tools
// that the answer has no end.
func seconds(end, now time.Time) int64 { return max(int64(end.Sub(now)/time.Second), 1) }

func gceJSON(v any) answer {
	return answer{kind: kindGCE, status: http.StatusOK, contentType: jsonType, body: encode(v)}
}

func gceText(s string) answer {
	return answer{kind: kindGCE, status: http.StatusOK, contentType: "application/text", body: []byte(s)}
}

func gceRefuse(status int, reason string) answer {
	return answer{kindGCE, status, textType, []byte("runenv: " + strconv.Itoa(status) + ": " + reason + "\n"), reason}
}
