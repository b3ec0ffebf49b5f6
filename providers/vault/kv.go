package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// Bounds on `list` and `recursive`.
const (
	maxListed    = 256 // secrets and folders together
	maxListDepth = 16
	listWorkers  = 8
)

// data is the path that reads a secret of a KV store.
func (m mount) data(path string) string {
	if m.kv == 2 {
		return m.path + "data/" + strings.TrimPrefix(path, m.path)
	}
	return path
}

// readKV reads a stored secret. Whatever goes wrong, nothing was issued.
func (p *Provider) readKV(ctx context.Context, m mount, path string, version int, r request) (*providers.Credential, error) {
	r.repeat = always
	r.path, r.query = m.data(path), queryVersion(version)
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
	if r.wrap != 0 && s != nil {
		return p.wrapped(s, path, providers.Static)
	}
	fields, err := m.fields(s)
	if err != nil {
		return nil, hinted(fmt.Sprintf("%s holds %v: %v", r.path, err, providers.ErrMalformed), "", providers.ErrMalformed, providers.ErrNotIssued)
	}
	if len(fields) == 0 {
		return nil, hinted(fmt.Sprintf("%s holds no fields: %v", r.path, providers.ErrNotFound), "", providers.ErrNotFound)
	}
	return &providers.Credential{Fields: fields, Revocability: providers.Static}, nil
}

// fields are those of a stored secret.
func (m mount) fields(s *answer) (map[string]secret.Value, error) {
	if s == nil {
		return nil, nil
	}
	data := s.Data
	if m.kv == 2 {
		data, _ = data["data"].(map[string]any)
	}
	return fieldsOf(data)
}

// queryVersion is the query for one version of a KV secret.
func queryVersion(version int) url.Values {
	if version == 0 {
		return nil
	}
	return url.Values{"version": {fmt.Sprint(version)}}
}

// readAll reads the secrets under a path. A field is named after where its
// secret lies below that path: NAME/FIELD. What was deleted is left out;
// anything else that can't be read fails the whole.
func (p *Provider) readAll(ctx context.Context, m mount, path string, recursive bool, r request) (*providers.Credential, error) {
	r.repeat = always
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := &listing{p: p, m: m, root: path, recursive: recursive, r: r, cancel: cancel, fields: map[string]secret.Value{}, slots: make(chan struct{}, listWorkers)}
	all.wg.Go(func() { all.folder(ctx, "", 0) })
	all.wg.Wait()
	switch {
	case all.err != nil:
		return nil, all.err
	case len(all.fields) == 0:
		return nil, hinted(fmt.Sprintf("nothing lies under %s: %v", path, providers.ErrNotFound), "", providers.ErrNotFound)
	}
	return &providers.Credential{Fields: all.fields, Revocability: providers.Static}, nil
}

// A listing gathers what lies under a path.
type listing struct {
	p         *Provider
	m         mount
	root      string
	recursive bool
	r         request
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	slots     chan struct{} // requests at one time

	mu     sync.Mutex
	err    error // the first
	seen   int
	size   int
	fields map[string]secret.Value
}

// fail keeps the first error and stops the rest.
func (l *listing) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		l.cancel()
	}
}

func (l *listing) refuse(what string) {
	l.fail(hinted(fmt.Sprintf("%s %s: %v", l.root, what, providers.ErrMalformed), "let `path` name less", providers.ErrMalformed, providers.ErrNotIssued))
}

// get asks Vault once a slot is free. What isn't there gives nil.
func (l *listing) get(ctx context.Context, path string, query url.Values) (*answer, bool) {
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	r := l.r
	r.path, r.query = path, query
	s, err := l.p.do(ctx, r)
	switch {
	case err == nil:
		return s, s != nil
	case err.is(providers.ErrNotFound):
		return nil, false
	case err.is(providers.ErrDenied):
		err.hint = fmt.Sprintf("let the policy of the session's Vault role read and list %s", path)
	}
	err.classes = append(err.classes, providers.ErrNotIssued)
	l.fail(err)
	return nil, false
}

// folder lists what lies below root/below, which is empty or ends in a slash.
func (l *listing) folder(ctx context.Context, below string, depth int) {
	path := l.root + "/" + below
	if l.m.kv == 2 {
		path = l.m.path + "metadata/" + strings.TrimPrefix(path, l.m.path)
	}
	s, ok := l.get(ctx, path, url.Values{"list": {"true"}})
	if !ok {
		return
	}
	names, ok := s.Data["keys"].([]any)
	if !ok {
		l.refuse("answered a listing without names")
		return
	}
	for _, v := range names {
		name, ok := v.(string)
		inner, isFolder := strings.CutSuffix(name, "/")
		if !ok || !isName(inner) {
			l.refuse("holds a secret whose name can't be read as a path")
			return
		}
		if isFolder && !l.recursive {
			continue
		}
		l.mu.Lock()
		l.seen++
		over := l.seen > maxListed
		l.mu.Unlock()
		switch {
		case over:
			l.refuse(fmt.Sprintf("holds more than %d secrets and folders", maxListed))
			return
		case isFolder && depth >= maxListDepth:
			l.refuse(fmt.Sprintf("is deeper than %d folders", maxListDepth))
			return
		case isFolder:
			l.wg.Go(func() { l.folder(ctx, below+name, depth+1) })
		default:
			l.wg.Go(func() { l.secret(ctx, below+name) })
		}
	}
}

// isName: one segment of a path.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 512 && !strings.ContainsRune(s, '/') &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' })
}

// secret reads one.
func (l *listing) secret(ctx context.Context, below string) {
	s, ok := l.get(ctx, l.m.data(l.root+"/"+below), nil)
	if !ok {
		return
	}
	fields, err := l.m.fields(s)
	if err != nil {
		l.refuse("holds " + err.Error())
		return
	}
	l.mu.Lock()
	doubled := false
	for name, v := range fields {
		name = below + "/" + name
		_, there := l.fields[name]
		doubled = doubled || there
		l.fields[name] = v
		l.size += len(name) + v.Len()
	}
	over := l.size > providers.MaxCredentialBytes
	l.mu.Unlock()
	switch {
	case doubled:
		l.refuse("holds two fields of one name, for a field's name has a slash in it")
	case over:
		l.refuse(fmt.Sprintf("holds more than %d bytes", providers.MaxCredentialBytes))
	}
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
