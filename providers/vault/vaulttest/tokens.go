package vaulttest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/runenv/action/providers"
)

// IDToken makes what the fake takes for an ID token of the broker's.
func IDToken(subject, audience string) string {
	enc := base64.RawURLEncoding.EncodeToString
	payload, err := json.Marshal(map[string]any{"sub": subject, "aud": audience, "exp": time.Now().Add(5 * time.Minute).Unix(), "jti": rand.Text()})
	if err != nil {
		panic(err)
	}
	return enc([]byte(`{"alg":"ES256"}`)) + "." + enc(payload) + "." + enc([]byte("c4n4ry-signature"))
}

// Tokens is a source of such tokens for a RunEnv role.
func Tokens(role string) providers.TokenSource {
	return func(_ context.Context, audience string) (string, error) {
		return IDToken("runenv:role:"+role, audience), nil
	}
}

func (s *Server) login(w http.ResponseWriter, body map[string]any) {
	name, _ := body["role"].(string)
	role, ok := s.Roles[name]
	if !ok {
		refuse(w, http.StatusBadRequest, `role "`+name+`" could not be found`)
		return
	}
	var claims struct {
		Sub, Aud string
		Exp      int64
	}
	jwt, _ := body["jwt"].(string)
	parts := strings.Split(jwt, ".")
	if len(parts) == 3 {
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		_ = json.Unmarshal(payload, &claims)
	}
	switch {
	case claims.Exp < time.Now().Unix():
		refuse(w, http.StatusBadRequest, "error validating token: invalid expiration time (exp) claim: token is expired "+Echo)
	case claims.Sub != role.Subject:
		refuse(w, http.StatusBadRequest, "error validating token: invalid subject (sub) claim")
	case claims.Aud != role.Audience:
		refuse(w, http.StatusBadRequest, "error validating token: invalid audience (aud) claim: audience claim does not match any expected audience")
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grant(w, role)
	}
}

func (s *Server) loginAppRole(w http.ResponseWriter, body map[string]any) {
	id, _ := body["role_id"].(string)
	if want, ok := s.AppRoles[id]; !ok || body["secret_id"] != want {
		refuse(w, http.StatusBadRequest, "invalid role or secret ID")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grant(w, Role{})
}

func (s *Server) loginKubernetes(w http.ResponseWriter, body map[string]any) {
	name, _ := body["role"].(string)
	want, ok := s.ServiceAccounts[name]
	switch {
	case !ok:
		refuse(w, http.StatusBadRequest, fmt.Sprintf("invalid role name %q", name))
	case body["jwt"] != want:
		refuse(w, http.StatusForbidden, "permission denied")
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grant(w, Role{})
	}
}

// grant makes a token. The caller holds the lock.
func (s *Server) grant(w http.ResponseWriter, role Role) {
	tok := &token{ttl: role.TTL, period: role.Period}
	if tok.ttl == 0 {
		tok.ttl = 5 * time.Minute
	}
	kind := "service"
	if role.Batch {
		kind, tok.noRenew = "batch", true
	}
	id := "hvs.c4n4ry-" + rand.Text()
	s.tokens[id] = tok
	reply(w, map[string]any{"auth": auth(id, kind, tok)})
}

func auth(id, kind string, tok *token) map[string]any {
	return map[string]any{
		"client_token": id, "accessor": "c4n4ry-accessor", "policies": []string{"default"}, "token_type": kind,
		"lease_duration": int(tok.ttl.Seconds()), "renewable": !tok.noRenew,
	}
}

func (s *Server) renewSelf(w http.ResponseWriter, id string, tok *token, body map[string]any) {
	if n, ok := body["increment"].(float64); ok {
		tok.ttl = time.Duration(n) * time.Second
	}
	if tok.period != 0 {
		tok.ttl = tok.period
	}
	reply(w, map[string]any{"auth": auth(id, "service", tok)})
}
