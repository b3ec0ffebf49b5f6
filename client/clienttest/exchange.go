package clienttest

import (
	"crypto/rand"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/secret"
)

// token is the exchange, with leases where they are asked for: all or neither.
func (b *Broker) token(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxTokenRequest))
	form, ferr := url.ParseQuery(string(body))
	proof, perr := b.proof(r, "")
	switch {
	case err != nil || ferr != nil || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.Header.Get("Authorization") != "":
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "the body isn't a form")
		return
	case !known(form) || form.Get("grant_type") != api.GrantTokenExchange || form.Get("subject_token_type") != api.TokenTypeID:
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "not these parameters")
		return
	case perr != nil:
		refuse(w, http.StatusBadRequest, api.CodeInvalidDPoP, perr.Error())
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	subject, role := secret.FromString(form.Get("subject_token")), form.Get("audience")
	claims, err := ci.Peek(subject)
	before, again := b.tokens[form.Get("subject_token")]
	_, hasRole := b.cfg.Roles[role]
	switch {
	case err != nil || claims["aud"] != b.URL || !ci.Expires(subject).After(b.cfg.Now()):
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "the subject token isn't accepted")
		return
	case again && (before.thumbprint != proof.thumbprint || before.body != string(body)):
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "the subject token isn't accepted")
		return
	case !hasRole:
		answerError(w, http.StatusBadRequest, &api.Error{Code: api.CodeInvalidTarget, Description: "this job may not have this RunEnv role", RequestID: "r-fake", Claims: claims})
		return
	}
	leases, refusal := b.beside(form, role)
	switch {
	case refusal != nil:
		answerError(w, refusal.Status, refusal)
		return
	case !b.count(proof):
		refuse(w, http.StatusBadRequest, api.CodeInvalidDPoP, "the proof was used before")
		return
	}
	if again {
		b.sessions[before.access].finish("exchanged_again")
	}
	access := "access-" + rand.Text()
	s := &Session{ID: "s-" + rand.Text(), Role: role, thumbprint: proof.thumbprint, end: "end-" + rand.Text(), replies: map[string]string{}, replaced: map[string]string{}, sets: map[string][]string{}}
	if leases != nil {
		s.Leases = slices.Clone(leases.Leases)
	}
	b.sessions[access] = s
	b.tokens[form.Get("subject_token")] = exchanged{proof.thumbprint, string(body), access}
	answer(w, api.Token{
		AccessToken: api.NewText(access), IssuedTokenType: api.TokenTypeAccess, TokenType: api.SchemeDPoP,
		ExpiresIn: int64(b.cfg.HardEnd / time.Second), SessionID: s.ID, EndToken: api.NewText(s.end),
		HardEnd: b.cfg.Now().Add(b.cfg.HardEnd), HeartbeatSeconds: b.cfg.HeartbeatSeconds, Leases: leases,
	})
}

// known reports whether a form has the parameters of an exchange, each once.
func known(form url.Values) bool {
	for name, values := range form {
		switch name {
		case "grant_type", "subject_token", "subject_token_type", "audience", api.ParamLeases:
		default:
			return false
		}
		if len(values) != 1 {
			return false
		}
	}
	return true
}

// beside are the leases that an exchange asks for; nil: none.
func (b *Broker) beside(form url.Values, role string) (*api.Leases, *api.Error) {
	if !form.Has(api.ParamLeases) {
		return nil, nil
	}
	var in api.LeaseRequest
	if api.Decode(strings.NewReader(form.Get(api.ParamLeases)), api.MaxRequest, &in) != nil || in.Leases == nil || len(in.Replaces) > 0 {
		return nil, &api.Error{Status: http.StatusBadRequest, Code: api.CodeInvalidRequest, Description: "the parameter leases isn't a lease request", RequestID: "r-fake"}
	}
	out, refusal := b.granted(role, in)
	return &api.Leases{Leases: out}, refusal
}
