package awstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A refusal400 is an error of AWS with status 400.
type refusal400 struct{ code, message string }

// forbidden are the codes that the query protocol gives with 403.
var forbidden = []string{"AccessDenied", "SignatureDoesNotMatch", "InvalidClientTokenId", "ExpiredToken", "MissingAuthenticationToken", "RegionDisabledException", "OptInRequired"}

func refuse(w http.ResponseWriter, r *http.Request, e *refusal400) {
	status := http.StatusBadRequest
	if r.Header.Get("X-Amz-Target") == "" && slices.Contains(forbidden, e.code) {
		status = http.StatusForbidden
	}
	refuseAs(w, r, status, e.code, e.message)
}

// refuseAs writes an error in the request's own protocol.
func refuseAs(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	message += " " + Echo + " arn:aws:iam::" + Account + ":role/" + Echo
	if r.Header.Get("X-Amz-Target") != "" {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws#" + code, "message": message})
		return
	}
	kind := "Sender"
	if status >= 500 {
		kind = "Receiver"
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<ErrorResponse><Error><Type>%s</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>c6104cbe</RequestId></ErrorResponse>",
		kind, escape(code), escape(message))
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

func replyXML(w http.ResponseWriter, action, result string) {
	w.Header().Set("Content-Type", "text/xml")
	_, _ = fmt.Fprintf(w, "<%[1]sResponse><%[1]sResult>%[2]s</%[1]sResult><ResponseMetadata><RequestId>c6104cbe</RequestId></ResponseMetadata></%[1]sResponse>", action, result)
}

func replyJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(v)
}

// A scope is what a signature says that it is for.
type scope struct {
	key, date, region, service string
	headers                    []string
	signature                  string
}

func scopeOf(r *http.Request) scope {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return scope{}
	}
	parts := map[string]string{}
	for _, p := range strings.Split(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[name] = value
	}
	return newScope(parts["Credential"], parts["SignedHeaders"], parts["Signature"])
}

func newScope(credential, headers, signature string) scope {
	p := strings.Split(credential, "/")
	if len(p) != 5 || p[4] != "aws4_request" {
		return scope{}
	}
	return scope{p[0], p[1], p[2], p[3], strings.Split(headers, ";"), signature}
}

// authenticate verifies a request's SigV4 signature, of a key that the fake
// issued.
func (s *Server) authenticate(r *http.Request, c *call) (*principal, string, *refusal400) {
	sc := scopeOf(r)
	if sc.key == "" {
		return nil, "", &refusal400{"MissingAuthenticationToken", "Request is missing Authentication Token"}
	}
	s.mu.Lock()
	p := s.principals[sc.key]
	s.mu.Unlock()
	unknown, expired, mismatch := "InvalidClientTokenId", "ExpiredToken", "SignatureDoesNotMatch"
	if c.json {
		unknown, expired, mismatch = "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException"
	}
	if p == nil || p.token != r.Header.Get("X-Amz-Security-Token") {
		return nil, "", &refusal400{unknown, "The security token included in the request is invalid."}
	}
	now := s.now()
	if p.session != nil && now.After(p.session.Expires) {
		return nil, "", &refusal400{expired, "The security token included in the request is expired"}
	}
	at := r.Header.Get("X-Amz-Date")
	when, err := time.Parse("20060102T150405Z", at)
	if err != nil || !strings.HasPrefix(at, sc.date) {
		return nil, "", &refusal400{mismatch, "Date in Credential scope does not match"}
	}
	if when.Before(now.Add(-5 * time.Minute)) {
		return nil, "", &refusal400{mismatch, "Signature expired: " + at}
	}
	if when.After(now.Add(5 * time.Minute)) {
		return nil, "", &refusal400{mismatch, "Signature not yet current: " + at}
	}
	service, _, _ := strings.Cut(c.action, ":")
	if sc.service != service || !slices.Contains(sc.headers, "host") || !slices.Contains(sc.headers, "x-amz-date") ||
		p.token != "" && !slices.Contains(sc.headers, "x-amz-security-token") || c.json && !slices.Contains(sc.headers, "x-amz-target") {
		return nil, "", &refusal400{mismatch, "Credential should be scoped to correct service"}
	}
	var headers strings.Builder
	for _, name := range sc.headers {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		headers.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	if !sc.verify(p.secret, at, r.Method, r.URL.EscapedPath(), r.URL.RawQuery, headers.String(), c.body) {
		return nil, "", &refusal400{mismatch, "The request signature we calculated does not match the signature you provided."}
	}
	return p, sc.region, nil
}

// verify computes the signature anew, as AWS documents it.
func (sc scope) verify(key, at, method, path, query, headers string, body []byte) bool {
	if path == "" {
		path = "/"
	}
	canonical := strings.Join([]string{method, path, query, headers, strings.Join(sc.headers, ";"), hash(body)}, "\n")
	credential := strings.Join([]string{sc.date, sc.region, sc.service, "aws4_request"}, "/")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", at, credential, hash([]byte(canonical))}, "\n")
	k := []byte("AWS4" + key)
	for _, part := range []string{sc.date, sc.region, sc.service, "aws4_request", text} {
		m := hmac.New(sha256.New, k)
		m.Write([]byte(part))
		k = m.Sum(nil)
	}
	want, err := hex.DecodeString(sc.signature)
	return err == nil && hmac.Equal(k, want)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A DatabaseLogin is what an RDS token says.
type DatabaseLogin struct{ Host, User, Region, RoleARN string }

// VerifyRDS does what a database of RDS does with a token: it checks its
// signature, of credentials that the fake issued, and its time.
func (s *Server) VerifyRDS(token string) (DatabaseLogin, error) {
	u, err := url.Parse("https://" + token)
	if err != nil {
		return DatabaseLogin{}, err
	}
	q := u.Query()
	sc := newScope(q.Get("X-Amz-Credential"), q.Get("X-Amz-SignedHeaders"), q.Get("X-Amz-Signature"))
	s.mu.Lock()
	p := s.principals[sc.key]
	s.mu.Unlock()
	when, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date"))
	switch now := s.now(); {
	case err != nil:
		return DatabaseLogin{}, err
	case p == nil || p.token != q.Get("X-Amz-Security-Token"):
		return DatabaseLogin{}, errors.New("it is signed by nobody that is known")
	case q.Get("X-Amz-Expires") != "900" || now.After(when.Add(15*time.Minute)) || p.session != nil && now.After(p.session.Expires):
		return DatabaseLogin{}, errors.New("it has run out")
	case q.Get("Action") != "connect" || sc.service != "rds-db" || !slices.Equal(sc.headers, []string{"host"}):
		return DatabaseLogin{}, errors.New("it isn't for connecting")
	}
	q.Del("X-Amz-Signature")
	query := strings.ReplaceAll(q.Encode(), "+", "%20")
	if !sc.verify(p.secret, u.Query().Get("X-Amz-Date"), http.MethodGet, u.EscapedPath(), query, "host:"+u.Host+"\n", nil) {
		return DatabaseLogin{}, errors.New("its signature is wrong")
	}
	role := p.arn
	if p.session != nil {
		role = p.session.RoleARN
	}
	return DatabaseLogin{u.Host, q.Get("DBUser"), sc.region, role}, nil
}
