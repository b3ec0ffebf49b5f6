package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// maxParams bounds `params` and each list in it.
const maxParams = 64

// A definition is what a lease reads, checked.
type definition struct {
	path      providers.Template
	params    map[string]any // of Template, bool, json.Number and []any of them; nil: read
	version   int
	templates []providers.Template
}

func (d *definition) Templates() []providers.Template { return d.templates }

// Revocability before the answer: what isn't a lease turns out only then.
func (d *definition) Revocability() providers.Revocability { return providers.Revocable }

// Define reads `path`, `params` and `version`.
func (p *Provider) Define(decode func(any) error) (providers.Definition, error) {
	var k struct {
		Path    providers.Template `yaml:"path"`
		Params  map[string]any     `yaml:"params"`
		Version int                `yaml:"version"`
	}
	if err := decode(&k); err != nil {
		return nil, err
	}
	if err := checkPath(k.Path); err != nil {
		return nil, err
	}
	if k.Version < 0 {
		return nil, errors.New("`version` counts from 1")
	}
	if k.Version > 0 && k.Params != nil {
		return nil, errors.New("`version` reads a KV secret, `params` writes to another engine: only one of them")
	}
	d := &definition{path: k.Path, version: k.Version, templates: []providers.Template{k.Path}}
	if k.Params != nil {
		if err := d.setParams(k.Params); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *definition) setParams(params map[string]any) error {
	if len(params) > maxParams {
		return fmt.Errorf("`params` has %d entries: at most %d", len(params), maxParams)
	}
	d.params = make(map[string]any, len(params))
	for _, name := range slices.Sorted(maps.Keys(params)) {
		v, err := d.param(params[name], true)
		if err != nil {
			return fmt.Errorf("`params`: %s: %w", name, err)
		}
		d.params[name] = v
	}
	return nil
}

// param takes strings, which are templates, whole numbers, booleans, and lists of
// those: what Vault's engines take.
func (d *definition) param(v any, list bool) (any, error) {
	switch v := v.(type) {
	case string:
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
		if !list || len(v) > maxParams {
			break
		}
		items := make([]any, len(v))
		for i := range v {
			var err error
			if items[i], err = d.param(v[i], false); err != nil {
				return nil, err
			}
		}
		return items, nil
	}
	return nil, errors.New("neither a string, a whole number, a boolean nor a list of them")
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
	body = make(map[string]any, len(d.params))
	for name, v := range d.params {
		if body[name], err = expandParam(v, vars); err != nil {
			return "", nil, err
		}
	}
	return path, body, nil
}

func expandParam(v any, vars providers.Vars) (any, error) {
	switch v := v.(type) {
	case providers.Template:
		return v.Expand(vars)
	case []any:
		items := make([]any, len(v))
		for i := range v {
			var err error
			if items[i], err = expandParam(v[i], vars); err != nil {
				return nil, err
			}
		}
		return items, nil
	}
	return v, nil
}

// Issue reads a path, or writes params to it, and gives what comes back. A
// lease that Vault makes longer than req.TTL isn't shortened: the broker
// revokes it in time, and were the broker gone, it would end with its login.
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
	switch {
	case m.kv != 0 && body != nil:
		return nil, invalid("%s is a KV secret, and `params` would overwrite it", path)
	case def.version != 0 && m.known && m.kv != 2:
		return nil, invalid("%s has no versions: only KV version 2 has", path)
	case m.kv != 0:
		return p.readKV(ctx, m, path, def.version, token, req.Marker)
	}
	s, cerr := p.do(ctx, request{path: path, body: body, token: token, marker: req.Marker, repeat: onRefusal})
	if cerr != nil {
		if cerr.known == noRoute || cerr.is(providers.ErrDenied) {
			cerr.hint = "is `path` right, and does the policy of the session's Vault role allow it?"
		}
		return nil, cerr
	}
	if s == nil {
		return nil, malformed(path, "answered without a body", "")
	}
	cred, err := p.credential(s, path, m.known)
	if err != nil && s.LeaseID != "" && isLeaseID(s.LeaseID) {
		p.discard(ctx, s.LeaseID, token)
	}
	return cred, err
}

// readKV reads a stored secret. Whatever goes wrong, nothing was issued.
func (p *Provider) readKV(ctx context.Context, m mount, path string, version int, token, marker string) (*providers.Credential, error) {
	r := request{path: path, token: token, marker: marker, repeat: always}
	if m.kv == 2 {
		r.path, r.query = m.path+"data/"+strings.TrimPrefix(path, m.path), queryVersion(version)
	}
	s, cerr := p.do(ctx, r)
	if cerr != nil {
		if cerr.is(providers.ErrNotFound) {
			p.mounts.forget(m) // it may be another engine by now
			if m.kv == 2 && strings.HasPrefix(path, m.path+"data/") {
				cerr.hint = "leave data/ out of `path`: RunEnv adds it for KV version 2"
			}
		}
		if cerr.is(providers.ErrDenied) {
			cerr.hint = fmt.Sprintf("let the policy of the session's Vault role read %s", r.path)
		}
		cerr.classes = append(cerr.classes, providers.ErrNotIssued)
		return nil, cerr
	}
	var data map[string]any
	if s != nil {
		data = s.Data
	}
	if m.kv == 2 {
		data, _ = data["data"].(map[string]any)
	}
	fields, err := fieldsOf(data)
	if err != nil {
		return nil, hinted(fmt.Sprintf("%s holds %v: %v", r.path, err, providers.ErrMalformed), "", providers.ErrMalformed, providers.ErrNotIssued)
	}
	if len(fields) == 0 {
		return nil, hinted(fmt.Sprintf("%s holds no fields: %v", r.path, providers.ErrNotFound), "", providers.ErrNotFound)
	}
	return &providers.Credential{Fields: fields, Revocability: providers.Static}, nil
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
		if cred.Handle, err = seal(leaseHandle{s.LeaseID}); err != nil {
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

// fieldsOf turns an answer's data into fields: strings as they are, null left
// out, the rest as compact JSON.
func fieldsOf(data map[string]any) (map[string]secret.Value, error) {
	fields := make(map[string]secret.Value, len(data))
	size := 0
	for name, v := range data {
		var b []byte
		switch v := v.(type) {
		case nil:
			continue
		case string:
			b = []byte(v)
		default:
			var buf bytes.Buffer
			enc := json.NewEncoder(&buf)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(v); err != nil {
				return nil, errors.New("a field that isn't JSON")
			}
			b = bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
		}
		size += len(name) + len(b)
		if size > providers.MaxCredentialBytes {
			return nil, fmt.Errorf("more than %d bytes", providers.MaxCredentialBytes)
		}
		fields[name] = secret.New(b)
	}
	return fields, nil
}
