package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

const (
	// maxParams bounds `params` and each list and mapping in it; maxDepth how
	// deep they nest: a batch of transit's is a list of mappings.
	maxParams = 64
	maxDepth  = 4
	// maxLiteralBytes bounds a string without a template: a certificate
	// request has a few KiB.
	maxLiteralBytes = 64 << 10
	// minWrap and maxWrap bound `wrap`.
	minWrap = 10 * time.Second
	maxWrap = time.Hour
)

// A definition is what a lease reads, checked.
type definition struct {
	path      providers.Template
	params    map[string]any // of Template, string, bool, json.Number, []any and map[string]any of them; nil: read
	version   int
	list      bool // all secrets right under path
	recursive bool // and all further down
	wrap      time.Duration
	templates []providers.Template
}

func (d *definition) Templates() []providers.Template { return d.templates }

// Revocability before the answer: what isn't a lease turns out only then.
func (d *definition) Revocability() providers.Revocability { return providers.Revocable }

// Define reads a lease's own keys.
func (p *Provider) Define(decode func(any) error) (providers.Definition, error) {
	var k struct {
		Path      providers.Template `yaml:"path"`
		Params    map[string]any     `yaml:"params"`
		Version   int                `yaml:"version"`
		List      bool               `yaml:"list"`
		Recursive bool               `yaml:"recursive"`
		Wrap      time.Duration      `yaml:"wrap"`
	}
	if err := decode(&k); err != nil {
		return nil, err
	}
	if err := checkPath(k.Path); err != nil {
		return nil, err
	}
	d := &definition{
		path: k.Path, version: k.Version, list: k.List || k.Recursive, recursive: k.Recursive, wrap: k.Wrap,
		templates: []providers.Template{k.Path},
	}
	switch {
	case k.Version < 0:
		return nil, errors.New("`version` counts from 1")
	case k.Version > 0 && k.Params != nil:
		return nil, errors.New("`version` reads a KV secret, `params` writes to another engine: only one of them")
	case d.list && (k.Version > 0 || k.Params != nil || k.Wrap != 0):
		return nil, errors.New("`list` and `recursive` read many KV secrets, each at its newest: neither `version`, `params` nor `wrap` beside them")
	case k.Wrap != 0 && (k.Wrap < minWrap || k.Wrap > maxWrap || k.Wrap%time.Second != 0):
		return nil, fmt.Errorf("`wrap` is how long the wrapping token lives: whole seconds from %v to %v", minWrap, maxWrap)
	}
	if k.Params != nil {
		if err := d.setParams(k.Params); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *definition) setParams(params map[string]any) error {
	v, err := d.param(params, maxDepth)
	if err != nil {
		return fmt.Errorf("`params`: %w", err)
	}
	d.params = v.(map[string]any)
	return nil
}

// param takes strings, which are templates, whole numbers, booleans, and lists
// and mappings of those: what Vault's engines take.
func (d *definition) param(v any, depth int) (any, error) {
	switch v := v.(type) {
	case string:
		if !strings.Contains(v, "{{") && !strings.Contains(v, "}}") && len(v) <= maxLiteralBytes {
			return v, nil
		}
		tmpl, err := providers.ParseTemplate(v)
		if err != nil {
			return nil, err
		}
		d.templates = append(d.templates, tmpl)
		return tmpl, nil
	case bool:
		return v, nil
	case int, int64:
		b, err := json.Marshal(v)
		return json.Number(b), err
	case []any:
		if depth == 0 || len(v) > maxParams {
			break
		}
		items := make([]any, len(v))
		for i := range v {
			var err error
			if items[i], err = d.param(v[i], depth-1); err != nil {
				return nil, err
			}
		}
		return items, nil
	case map[string]any:
		if depth == 0 || len(v) > maxParams {
			break
		}
		items := make(map[string]any, len(v))
		for _, name := range slices.Sorted(maps.Keys(v)) {
			var err error
			if items[name], err = d.param(v[name], depth-1); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		return items, nil
	default:
		return nil, errors.New("neither a string, a whole number, a boolean, a list nor a mapping")
	}
	return nil, fmt.Errorf("more than %d entries, or nested deeper than %d", maxParams, maxDepth)
}

// checkPath wants plain segments, so that a path means at Vault what it says.
func checkPath(t providers.Template) error {
	text := t.String()
	switch {
	case text == "":
		return errors.New("`path` is missing, such as database/creds/readonly")
	case strings.HasPrefix(text, "/") || strings.HasSuffix(text, "/") || strings.Contains(text, "//"):
		return errors.New("`path` begins or ends with a slash or doubles one: write it as secret/ci/npm")
	case strings.HasPrefix(text, "v1/"):
		return errors.New("`path` begins with v1/: leave that out")
	case !strings.Contains(text, "/"):
		return errors.New("`path` is a mount alone: write it as secret/ci/npm")
	}
	for _, segment := range strings.Split(text, "/") {
		if segment == "." || segment == ".." {
			return errors.New("`path` has . or .. as a segment")
		}
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(`?#%\*`, r) }) {
		return errors.New("`path` holds one of ? # % \\ * or a control character")
	}
	return checkMount(text)
}

// checkMount refuses Vault's own paths: auth/token/lookup-self would give a job
// the session's own token. It looks at a template and at what became of it.
func checkMount(path string) error {
	switch first, _, _ := strings.Cut(path, "/"); first {
	case "sys", "auth", "cubbyhole":
		return fmt.Errorf("`path` is under %s/, which holds no credentials for jobs", first)
	}
	return nil
}

// expand resolves the templates.
func (d *definition) expand(vars providers.Vars) (path string, body map[string]any, err error) {
	if path, err = d.path.Expand(vars); err == nil {
		err = checkMount(path)
	}
	if err != nil || d.params == nil {
		return path, nil, err
	}
	v, err := expandParam(d.params, vars)
	if err != nil {
		return "", nil, err
	}
	return path, v.(map[string]any), nil
}

// expandParam copies v with its templates resolved.
func expandParam(v any, vars providers.Vars) (any, error) {
	var err error
	switch v := v.(type) {
	case providers.Template:
		return v.Expand(vars)
	case []any:
		items := make([]any, len(v))
		for i := range v {
			if items[i], err = expandParam(v[i], vars); err != nil {
				return nil, err
			}
		}
		return items, nil
	case map[string]any:
		items := make(map[string]any, len(v))
		for name := range v {
			if items[name], err = expandParam(v[name], vars); err != nil {
				return nil, err
			}
		}
		return items, nil
	}
	return v, nil
}

// Issue reads a path, or writes params to it, and gives what comes back.
func (p *Provider) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	def, ok := req.Definition.(*definition)
	if !ok || def == nil {
		return nil, invalid("a definition of another provider (%T)", req.Definition)
	}
	path, body, err := def.expand(req.Vars)
	if err != nil {
		return nil, invalid("%v", err)
	}
	token, err := p.token(req.Login)
	if err != nil {
		return nil, err
	}
	m, err := p.mount(ctx, token, path)
	if err != nil {
		return nil, err
	}
	r := request{path: path, body: body, token: token, marker: req.Marker, repeat: onRefusal, wrap: def.wrap}
	switch {
	case m.kv != 0 && body != nil:
		return nil, invalid("%s is a KV secret, and `params` would overwrite it", path)
	case def.version != 0 && !m.known:
		return nil, invalid("%s isn't known to be a KV store of version 2, which alone has versions; the session's Vault role needs the right to read there", path)
	case def.version != 0 && m.kv != 2:
		return nil, invalid("%s has no versions: only KV version 2 has", path)
	case def.list && m.kv == 0:
		return nil, invalid("%s can't be listed: it isn't known to be a KV store; the session's Vault role needs the right to read or list there", path)
	case def.list:
		return p.readAll(ctx, m, path, def.recursive, r)
	case m.kv != 0:
		return p.readKV(ctx, m, path, def.version, r)
	case def.wrap != 0 && !m.wraps(path):
		return nil, invalid("%s can't be wrapped: wrapped, nobody could say when it ends; only KV secrets and the creds/ of databases and their like can", path)
	}
	life, err := r.limit(m, req.TTL)
	if err != nil {
		return nil, err
	}
	s, cerr := p.do(ctx, r)
	if cerr != nil {
		if cerr.known == noRoute || cerr.is(providers.ErrDenied) {
			cerr.hint = "is `path` right, and does the policy of the session's Vault role allow it?"
		}
		return nil, cerr
	}
	if s == nil {
		return nil, malformed(path, "answered without a body", "")
	}
	if def.wrap != 0 {
		return p.wrapped(s, path, providers.Revocable)
	}
	cred, err := p.credential(s, path, m.known)
	if err == nil && holds(cred, token) {
		err = malformed(path, "answered with the session's own token", "")
	}
	leased := isLeaseID(s.LeaseID)
	if err != nil {
		if leased {
			p.discard(ctx, s.LeaseID, token)
		}
		return nil, err
	}
	if leased {
		p.shorten(ctx, cred, s.LeaseID, token, req.TTL)
	}
	if cred.Revocability == providers.Static && life != 0 {
		cred.Expires, cred.Revocability = p.now().Add(life), providers.Expires
	}
	return cred, nil
}

// holds reports whether a field has the token in it. A path that begins with a
// namespace can lead to Vault's own paths, which [checkMount] can't see.
func holds(cred *providers.Credential, token string) bool {
	for _, v := range cred.Fields {
		if bytes.Contains(v.Reveal(), []byte(token)) {
			return true
		}
	}
	return false
}

// limit tells the engines that sign certificates how long one is to live: at
// most ttl. What they sign can't be ended before. life is that of a certificate
// which doesn't say it itself: SSH's.
func (r *request) limit(m mount, ttl time.Duration) (life time.Duration, err error) {
	verb := slices.ContainsFunc(strings.Split(strings.TrimPrefix(r.path, m.path), "/"), func(s string) bool {
		return s == "issue" || s == "sign" || s == "sign-verbatim"
	})
	if r.body == nil || !verb || m.kind != "pki" && m.kind != "ssh" {
		return 0, nil
	}
	if written, ok := r.body["ttl"]; ok {
		own, ok := lifetime(written)
		if !ok {
			return 0, invalid("`ttl` in `params` of %s isn't a length of time like 30m or 1h30m", r.path)
		}
		ttl = min(ttl, own)
	}
	r.body["ttl"] = increment(ttl)
	if m.kind == "ssh" {
		life = time.Duration(increment(ttl)) * time.Second
	}
	return life, nil
}

// lifetime reads a `ttl` as Vault would: seconds, or with units.
func lifetime(v any) (time.Duration, bool) {
	text := fmt.Sprint(v)
	if n, err := strconv.ParseInt(text, 10, 32); err == nil {
		return time.Duration(n) * time.Second, n > 0
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d > 0
}

// wrapped is the credential of a wrapped answer: a token that gives the answer
// to whoever uses it first. What is inside has its lease from the session's
// token, and ends with it.
func (p *Provider) wrapped(s *answer, path string, r providers.Revocability) (*providers.Credential, error) {
	if s.WrapInfo == nil || !isToken([]byte(s.WrapInfo.Token)) || s.Data != nil || s.Auth != nil {
		return nil, malformed(path, "answered without wrapping", "")
	}
	cred := &providers.Credential{
		Fields:       map[string]secret.Value{"token": secret.FromString(s.WrapInfo.Token)},
		Revocability: r,
	}
	if r != providers.Revocable {
		return cred, nil
	}
	var err error
	if cred.Handle, err = seal(leaseHandle{Wrapped: true}); err != nil {
		return nil, malformed(path, "answered with what can't be kept", "")
	}
	return cred, nil
}

// credential makes one of an engine's answer.
func (p *Provider) credential(s *answer, path string, known bool) (*providers.Credential, error) {
	got := p.now()
	switch {
	case s.Auth != nil:
		return nil, malformed(path, "answered with a Vault token, which isn't leased", "")
	case s.WrapInfo != nil:
		return nil, malformed(path, "answered with a wrapped secret", "")
	case s.LeaseDuration < 0:
		return nil, malformed(path, "answered with an end in the past", "")
	}
	fields, err := fieldsOf(s.Data)
	if err != nil {
		return nil, malformed(path, "answered with "+err.Error(), "")
	}
	if len(fields) == 0 {
		return nil, malformed(path, "answered without a field", "")
	}
	cred := &providers.Credential{Fields: fields, Revocability: providers.Static}
	switch {
	case s.LeaseID != "":
		if !isLeaseID(s.LeaseID) {
			return nil, malformed(path, "answered with a lease id that can't be one", "")
		}
		cred.Revocability, cred.Renewable = providers.Revocable, s.Renewable
		if s.LeaseDuration > 0 {
			cred.Expires = got.Add(seconds(s.LeaseDuration))
		}
		if cred.Handle, err = seal(leaseHandle{LeaseID: s.LeaseID}); err != nil {
			return nil, malformed(path, "answered with a lease id that can't be kept", "")
		}
	case s.LeaseDuration > 0 && known: // a KV secret of version 1 says so too, and means nothing by it
		cred.Expires, cred.Revocability = got.Add(seconds(s.LeaseDuration)), providers.Expires
	default:
		if end, ok := endOf(s.Data, got); ok {
			cred.Expires, cred.Revocability = end, providers.Expires
		}
	}
	return cred, nil
}

// endOf finds the end of a credential that has no lease: STS credentials and
// ID tokens say `ttl`, certificates `expiration`, tokens of GCP
// `expires_at_seconds`.
func endOf(data map[string]any, now time.Time) (time.Time, bool) {
	number := func(key string) int64 {
		n, _ := data[key].(json.Number)
		i, _ := n.Int64()
		return i
	}
	const farthest = 100 * 365 * 24 * 3600
	if ttl := number("ttl"); ttl > 0 {
		return now.Add(time.Duration(min(ttl, farthest)) * time.Second), true
	}
	for _, key := range []string{"expiration", "expires_at_seconds"} {
		if at := number(key); at > now.Unix() && at < now.Unix()+farthest {
			return time.Unix(at, 0), true
		}
	}
	return time.Time{}, false
}
