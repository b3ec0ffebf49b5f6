package vault

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/providers"
)

const (
	// mountTTL is how long it is remembered what is mounted where.
	mountTTL = 5 * time.Minute
	// maxMounts bounds how many mounts are remembered.
	maxMounts = 1024
)

// A mount is what is known of the secrets engine under a path.
type mount struct {
	path  string // with a slash at its end
	known bool   // Vault said what it is
	kind  string // the engine's, such as database
	kv    int    // 1, 2, or 0 for another engine
	until time.Time
}

// mounts remembers them by path. No mount lies under another, so the first
// that fits is the one.
type mounts struct {
	mu sync.Mutex
	m  map[string]mount
}

func (c *mounts) find(path string, now time.Time) (mount, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		if m, ok := c.m[path[:i+1]]; ok && now.Before(m.until) {
			return m, true
		}
	}
	return mount{}, false
}

func (c *mounts) put(m mount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxMounts {
		c.m = make(map[string]mount)
	}
	c.m[m.path] = m
}

func (c *mounts) forget(m mount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, m.path)
}

// mount finds out what is mounted under path. Where Vault doesn't say, since
// the token has no rights there or the endpoint is missing, the path is taken
// as it stands.
func (p *Provider) mount(ctx context.Context, token, path string) (mount, error) {
	if m, ok := p.mounts.find(path, p.now()); ok {
		return m, nil
	}
	const lookup = "sys/internal/ui/mounts/"
	s, err := p.do(ctx, request{path: lookup + path, token: token, repeat: always})
	if err != nil {
		if err.is(providers.ErrDenied) || err.is(providers.ErrNotFound) {
			return mount{}, nil
		}
		err.classes = append(err.classes, providers.ErrNotIssued)
		return mount{}, err
	}
	m := mount{known: true, until: p.now().Add(mountTTL)}
	if s != nil {
		m.path, _ = s.Data["path"].(string)
		m.kind, _ = s.Data["type"].(string)
	}
	if m.kind == "" || !strings.HasSuffix(m.path, "/") || !strings.HasPrefix(path+"/", m.path) {
		return mount{}, hinted(lookup+path+" answered for another path: "+providers.ErrMalformed.Error(), "", providers.ErrMalformed, providers.ErrNotIssued)
	}
	if m.kind == "kv" || m.kind == "generic" {
		m.kv = 1
		if options, _ := s.Data["options"].(map[string]any); options["version"] == "2" {
			m.kv = 2
		}
	}
	p.mounts.put(m)
	return m, nil
}

// wraps reports whether what a path answers can be wrapped without losing
// sight of its end: it surely has a lease, which ends with the session's token.
func (m mount) wraps(path string) bool {
	switch m.kind {
	case "database", "rabbitmq", "consul", "nomad", "ldap", "mongodbatlas":
		return strings.HasPrefix(path, m.path+"creds/")
	}
	return false
}
