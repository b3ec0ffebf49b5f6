package endpoint

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/secret"
)

// Vault serves one lease as an answer of Vault's at the path that it was
// leased from.
type Vault struct {
	Lease string
	// Path is the one at which clients read it: "database/creds/shop-ro", or
	// for a KV secret of either version "secret/ci/npm".
	Path string
	// Mount says that Path is a KV secret, and where its engine is mounted:
	// "secret". It is then read as version 1 and as version 2 want it.
	Mount string
	// Fields are Vault's names for the lease's variables: {"password":
	// "DB_PASSWORD"}.
	Fields map[string]string
}

const (
	vaultPrefix     = "/v1/"
	vaultMountsPath = "sys/internal/ui/mounts/"

	// vaultDenied is Vault's own word, for whatever isn't served: who has no
	// bearer learns nothing of what is.
	vaultDenied = "permission denied"
)

type vaultService struct {
	bearer    secret.Value
	now       func() time.Time
	secrets   []*vaultSecret
	reads     map[string]vaultRead // by path
	variables []string
}

type vaultSecret struct {
	Vault
	lease *kept
}

// A vaultRead is a path that answers with a secret.
type vaultRead struct {
	secret  *vaultSecret
	version int // of the KV engine; 0 means another engine
}

func openVault(k *Keeper, all []Vault, now func() time.Time) (*vaultService, error) {
	s := &vaultService{bearer: newBearer(), now: now, reads: map[string]vaultRead{}}
	for _, v := range all {
		l, err := k.vaultLease(v)
		if err != nil {
			return nil, fmt.Errorf("vault path %q: %w", v.Path, err)
		}
		v.Fields = maps.Clone(v.Fields)
		needs := slices.Sorted(maps.Values(v.Fields))
		l.require(needs...)
		s.variables = append(s.variables, needs...)
		one := &vaultSecret{v, l}
		s.secrets = append(s.secrets, one)
		reads := map[string]vaultRead{v.Path: {one, 0}}
		if v.Mount != "" {
			reads[v.Path] = vaultRead{one, 1}
			reads[v.Mount+"/data/"+strings.TrimPrefix(v.Path, v.Mount+"/")] = vaultRead{one, 2}
		}
		for path, read := range reads {
			if _, taken := s.reads[path]; taken {
				return nil, fmt.Errorf("vault path %q: two leases would answer it", path)
			}
			s.reads[path] = read
		}
	}
	return s, nil
}

func (k *Keeper) vaultLease(v Vault) (*kept, error) {
	root, _, _ := strings.Cut(v.Path, "/")
	switch {
	case !plainPath(v.Path) || v.Mount != "" && !plainPath(v.Mount):
		return nil, errors.New("it, or its mount, can't be served: it has segments apart from plain words, and no slash at either end")
	case root == "sys" || root == "auth" || root == "identity" || root == "cubbyhole":
		return nil, errors.New("what stands there is no secret")
	case v.Mount != "" && !strings.HasPrefix(v.Path, v.Mount+"/"):
		return nil, fmt.Errorf("it isn't below the mount %q", v.Mount)
	case len(v.Fields) == 0:
		return nil, errors.New("no field is given")
	}
	l := k.lease(v.Lease)
	if l == nil {
		return nil, fmt.Errorf("no lease is named %q", v.Lease)
	}
	if err := lacks(l.now(), slices.Sorted(maps.Values(v.Fields))...); err != nil {
		return nil, fmt.Errorf("lease %q: %w", v.Lease, err)
	}
	return l, nil
}

// A vaultBody is what every answer of Vault's has.
type vaultBody struct {
	RequestID     string `json:"request_id"`
	LeaseID       string `json:"lease_id"`
	Renewable     bool   `json:"renewable"`
	LeaseDuration int64  `json:"lease_duration"` // seconds
	Data          any    `json:"data"`
	WrapInfo      any    `json:"wrap_info"`
	Warnings      any    `json:"warnings"`
	Auth          any    `json:"auth"`
}

func (s *vaultService) answer(r *http.Request, t target) answer {
	given := r.Header.Values("X-Vault-Token")
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && len(given) == 0 {
		given = []string{bearer}
	}
	if !authorized(given, s.bearer) {
		return vaultRefuse(http.StatusForbidden, vaultDenied)
	}
	// What changes an answer's meaning can't be heeded.
	for _, name := range []string{"X-Vault-Namespace", "X-Vault-Wrap-Ttl", "X-Vault-Policy-Override", "X-Vault-Mfa"} {
		if r.Header.Get(name) != "" {
			return vaultRefuse(http.StatusBadRequest, "runenv serves leases alone, and no header "+name)
		}
	}
	path := strings.TrimPrefix(t.path, vaultPrefix)
	reading := r.Method == http.MethodGet
	writing := r.Method == http.MethodPut || r.Method == http.MethodPost
	switch {
	case path == "auth/token/lookup-self" && reading:
		return vaultOK(vaultBody{Data: s.self()})
	case path == "sys/leases/renew" && writing:
		return s.renew(r)
	case strings.HasPrefix(path, vaultMountsPath) && reading:
		return s.mount(strings.TrimPrefix(path, vaultMountsPath))
	}
	read, ok := s.reads[path]
	if !ok || t.dir || !reading && (!writing || read.version > 0) {
		return vaultRefuse(http.StatusForbidden, vaultDenied)
	}
	if len(t.query) > 0 || !hasNoParameters(r.Body) {
		return vaultRefuse(http.StatusBadRequest, "runenv serves what was leased: it takes no parameters, which stand in the broker's file")
	}
	return s.read(r, read)
}

// hasNoParameters reports whether a body is empty, or an object that is.
func hasNoParameters(r io.Reader) bool {
	body, err := io.ReadAll(r)
	body = bytes.TrimSpace(body)
	return err == nil && (len(body) == 0 || api.Decode(bytes.NewReader(body), maxBodyBytes, &struct{}{}) == nil)
}

func (s *vaultService) read(r *http.Request, read vaultRead) answer {
	lease, values, err := read.secret.lease.current(r.Context())
	if err != nil {
		return vaultRefuse(http.StatusServiceUnavailable, "runenv: "+err.Error())
	}
	data := map[string]any{}
	for field, name := range read.secret.Fields {
		value, _ := variable(lease, name)
		data[field] = string(value.Reveal())
	}
	body := vaultBody{Data: data}
	switch {
	case read.version == 2:
		body.Data = map[string]any{"data": data, "metadata": map[string]any{}}
	case read.version == 0 && !lease.ExpiresAt.IsZero():
		body.LeaseID = read.secret.leaseID(values)
		body.Renewable = lease.Renewable
		body.LeaseDuration = seconds(lease.ExpiresAt, s.now())
	}
	return vaultOK(body)
}

// leaseID is ours: Vault's own would be good at Vault.
func (v *vaultSecret) leaseID(values string) string { return v.Path + "/" + values }

// renew says how long a lease lives now. It is lengthened without being asked.
func (s *vaultService) renew(r *http.Request) answer {
	var asked struct {
		LeaseID   string          `json:"lease_id"`
		Increment json.RawMessage `json:"increment"`
	}
	if api.Decode(r.Body, maxBodyBytes, &asked) != nil {
		return vaultRefuse(http.StatusBadRequest, "a body of another shape")
	}
	for _, v := range s.secrets {
		v.lease.mu.Lock()
		lease, id := v.lease.lease, v.leaseID(v.lease.values)
		v.lease.mu.Unlock()
		switch {
		case v.Mount != "" || asked.LeaseID != id || !s.now().Before(lease.ExpiresAt):
			continue
		case !lease.Renewable:
			return vaultRefuse(http.StatusBadRequest, "lease is not renewable")
		}
		return vaultOK(vaultBody{LeaseID: id, Renewable: true, LeaseDuration: seconds(lease.ExpiresAt, s.now())})
	}
	return vaultRefuse(http.StatusForbidden, vaultDenied)
}

// mount tells `vault kv` where the engine of a path is.
func (s *vaultService) mount(path string) answer {
	for _, v := range s.secrets {
		if v.Mount != "" && (path == v.Path || path == v.Mount) {
			return vaultOK(vaultBody{Data: map[string]any{"path": v.Mount + "/", "type": "kv", "options": map[string]string{"version": "2"}}})
		}
	}
	return vaultRefuse(http.StatusForbidden, vaultDenied)
}

// self describes the bearer, but doesn't repeat it.
func (s *vaultService) self() map[string]any {
	return map[string]any{
		"display_name": "runenv", "path": "runenv", "type": "service", "policies": []string{"runenv"},
		"ttl": 0, "creation_ttl": 0, "num_uses": 0, "orphan": true, "renewable": false, "expire_time": nil,
	}
}

func vaultOK(body vaultBody) answer {
	body.RequestID = rand.Text()
	return answer{kind: kindVault, status: http.StatusOK, contentType: jsonType, body: encode(body)}
}

func vaultRefuse(status int, reason string) answer {
	return answer{kindVault, status, jsonType, encode(map[string][]string{"errors": {reason}}), reason}
}
