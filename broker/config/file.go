package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/secret"
)

const (
	// maxFiles bounds how many files `include` may name.
	maxFiles = 1000

	// maxProblems bounds how many problems are reported.
	maxProblems = 100

	// maxTTL bounds the life of a lease.
	maxTTL = 24 * time.Hour
	minTTL = time.Second

	// sealBytes is the length of the key under `seal`.
	sealBytes = 32

	defaultListen = ":8443"
	storeSQLite   = "sqlite:"
	storeMemory   = "memory:"
)

// Load reads the file at path and what it includes. Its error is a [Problems].
// Relative paths in a file count from the folder that it lies in.
func Load(path string, opt Options) (*File, error) {
	l := newLoader(opt)
	data, err := l.opt.ReadFile(path)
	if err != nil {
		return nil, Problems{problem(Pos{File: path}, "", "the file "+reason(err), "")}
	}
	return l.load(path, data)
}

// Parse is [Load] for bytes at hand; name is the path in messages, and
// relative paths count from its folder.
func Parse(name string, data []byte, opt Options) (*File, error) {
	return newLoader(opt).load(name, data)
}

type loader struct {
	opt  *Options
	d    *decoder
	hash []byte // of the files so far

	file File        // gathers what isn't policy's
	spec policy.Spec // gathers what policy compiles
}

func newLoader(opt Options) *loader {
	if opt.Getenv == nil {
		opt.Getenv = os.LookupEnv
	}
	if opt.ReadFile == nil {
		opt.ReadFile = readFile
	}
	if opt.Glob == nil {
		opt.Glob = filepath.Glob
	}
	return &loader{opt: &opt, d: &decoder{opt: &opt}}
}

// readFile reads no more than shows that a file is too large.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	return b, errors.Join(err, f.Close())
}

func valueOf[T any](p *T) reflect.Value { return reflect.ValueOf(p).Elem() }

// finish sorts and bounds problems; nil if there are none.
func finish(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Pos.Compare(b.Pos) })
	problems = slices.Compact(problems)
	if over := len(problems) - maxProblems; over > 0 {
		last := Problem{Pos: Pos{File: problems[maxProblems].Pos.File}, Message: fmt.Sprintf("%d more problems", over)}
		problems = append(problems[:maxProblems:maxProblems], last)
	}
	return Problems(problems)
}

func (l *loader) add(pos Pos, path, message, hint string) {
	l.d.problems = append(l.d.problems, problem(pos, path, message, hint))
}

func (l *loader) load(name string, data []byte) (*File, error) {
	l.opt.main = name
	root, problems := l.parse(name, data)
	if root == nil || len(problems) > 0 {
		return nil, finish(problems)
	}
	var raw rawFile
	l.d.decode(root, valueOf(&raw), "")
	if root.kind != mapping {
		return nil, finish(l.d.problems)
	}
	parts, complete := l.include(name, raw.Include)
	l.checkServer(&raw)
	l.checkIssuers(raw.Issuers)
	l.checkProviders(raw.Providers)
	for _, part := range append([]rawPart{{Projects: raw.Projects, Leases: raw.Leases, Roles: raw.Roles, Deny: raw.Deny, Tests: raw.Tests}}, parts...) {
		l.addPart(&part)
	}
	l.compile(complete)
	if err := finish(l.d.problems); err != nil {
		return nil, err
	}
	l.file.Policy = l.spec
	l.file.Digest = hex.EncodeToString(l.hash)
	return &l.file, nil
}

// parse is [parse], and takes the file into the digest.
func (l *loader) parse(name string, data []byte) (*node, []Problem) {
	sum := sha256.Sum256(data)
	sum = sha256.Sum256(append(slices.Clone(l.hash), sum[:]...))
	l.hash = sum[:]
	return parse(name, data)
}

// include reads the files that the patterns name, each once. complete is false
// if one of them couldn't be read.
func (l *loader) include(name string, patterns []policy.Text) (parts []rawPart, complete bool) {
	complete = true
	seen := map[string]bool{filepath.Clean(name): true}
	fail := func(pos Pos, message, hint string) {
		l.add(pos, "include", message, hint)
		complete = false
	}
	for _, pattern := range patterns {
		if pattern.Value == "" || strings.Contains(pattern.Value, "**") {
			fail(pattern.Pos, "not a pattern", "* stands for names within one folder")
			continue
		}
		paths, err := l.opt.Glob(resolve(pattern.Pos.File, pattern.Value))
		if err != nil {
			fail(pattern.Pos, "not a pattern", "")
			continue
		}
		if len(paths) == 0 {
			fail(pattern.Pos, "matches no file", "rules in a file that isn't found wouldn't count, so this doesn't load")
			continue
		}
		slices.Sort(paths)
		for _, path := range paths {
			if seen[filepath.Clean(path)] {
				continue
			}
			seen[filepath.Clean(path)] = true
			if len(seen) > maxFiles+1 {
				fail(pattern.Pos, fmt.Sprintf("over %d files", maxFiles), "")
				return parts, false
			}
			data, err := l.opt.ReadFile(path)
			if err != nil {
				fail(Pos{File: path}, "the file "+reason(err), "")
				continue
			}
			root, problems := l.parse(path, data)
			if root == nil || len(problems) > 0 {
				l.d.problems = append(l.d.problems, problems...)
				complete = false
				continue
			}
			var part rawPart
			l.d.decode(root, valueOf(&part), "")
			parts = append(parts, part)
		}
	}
	return parts, complete
}

func (l *loader) checkServer(raw *rawFile) {
	f := &l.file
	f.URL = l.origin("url", raw.URL, raw.Pos)
	f.IssuerURL = f.URL
	if raw.IssuerURL.Value != "" {
		f.IssuerURL = l.origin("issuer_url", raw.IssuerURL, raw.Pos)
	}
	l.checkListen(raw)
	switch {
	case raw.TLS != nil:
		f.TLS = &TLS{l.path(raw.TLS.Cert), l.path(raw.TLS.Key)}
		if f.TLS.Cert == "" || f.TLS.Key == "" {
			l.add(raw.TLS.Pos, "tls", "without cert or key", "name both files, in PEM")
		}
	case !l.opt.Dev && !l.opt.Direct && !l.troubled("tls"):
		l.add(raw.Pos, "tls", "missing", "write tls: {cert: FILE, key: FILE}; the broker speaks nothing but TLS")
	}
	l.checkStore(raw)
}

// path resolves a path that stands in the file.
func (l *loader) path(t policy.Text) string { return resolve(t.Pos.File, t.Value) }

// origin checks the broker's own URL: every CI token names it as its audience,
// so there is one spelling.
func (l *loader) origin(key string, t policy.Text, missing Pos) string {
	if t.Value == "" {
		if t.Pos == (Pos{}) && !l.troubled(key) {
			l.add(missing, key, "missing", "write the broker's origin, like https://runenv.example.com")
		} else if t.Pos != (Pos{}) {
			l.add(t.Pos, key, "not an origin", "")
		}
		return ""
	}
	u, err := url.Parse(t.Value)
	if err != nil || u.Host == "" || u.Path != "" || !plainURL(u, t.Value) {
		l.add(t.Pos, key, "not an origin", "write https://, the host in lower case, and a port if it isn't 443: no path, no slash at the end")
		return ""
	}
	l.scheme(key, t.Pos, u)
	return t.Value
}

// plainURL reports whether u holds scheme, host and path alone, in their one
// spelling.
func plainURL(u *url.URL, text string) bool {
	host := u.Hostname()
	port := u.Port()
	_, portErr := strconv.ParseUint(port, 10, 16)
	return u.String() == text && u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && u.Opaque == "" &&
		host != "" && strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789.-:") == "" && !strings.HasSuffix(host, ".") &&
		!strings.HasSuffix(u.Host, ":") && (port == "" || portErr == nil && port[0] != '0') &&
		!(u.Scheme == "https" && port == "443") && !(u.Scheme == "http" && port == "80")
}

func (l *loader) scheme(path string, pos Pos, u *url.URL) {
	ip, err := netip.ParseAddr(u.Hostname())
	switch {
	case u.Scheme == "https":
	case u.Scheme != "http":
		l.add(pos, path, "not an https URL", "")
	case !l.opt.Dev:
		l.add(pos, path, "http isn't taken", "write https://")
	case err != nil || !ip.IsLoopback():
		l.add(pos, path, "http is for loopback literals alone", "write 127.0.0.1 or [::1]")
	}
}

func (l *loader) checkListen(raw *rawFile) {
	l.file.Listen = raw.Listen.Value
	if raw.Listen.Value == "" {
		l.file.Listen = defaultListen
		if u, err := url.Parse(l.file.URL); err == nil && l.opt.Dev {
			l.file.Listen = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))
		}
		return
	}
	host, port, err := net.SplitHostPort(raw.Listen.Value)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || strconv.FormatUint(n, 10) != port || strings.ContainsAny(host, " /@") {
		l.add(raw.Listen.Pos, "listen", "not HOST:PORT", "the host may be empty, the port is a number, like :8443")
	}
}

func (l *loader) checkStore(raw *rawFile) {
	f := &l.file
	name, durable := strings.CutPrefix(raw.Store.Value, storeSQLite)
	inMemory := l.opt.Dev || l.opt.Direct
	switch {
	case durable && l.opt.Direct:
		l.add(raw.Store.Pos, "store", "a broker for one command keeps its store in memory", "leave store out")
	case durable && name != "":
		f.Store = storeSQLite + resolve(raw.Store.Pos.File, name)
	case raw.Store.Value == storeMemory && inMemory, raw.Store.Value == "" && inMemory && raw.Store.Pos == (Pos{}):
		f.Store = storeMemory
	case raw.Store.Value == storeMemory:
		l.add(raw.Store.Pos, "store", "serve refuses memory:", "write sqlite:PATH: a restart would leave credentials behind that nobody ends")
	case raw.Store.Pos == (Pos{}):
		if !l.troubled("store") {
			l.add(raw.Pos, "store", "missing", "write sqlite:PATH")
		}
	default:
		l.add(raw.Store.Pos, "store", "not a store", "write sqlite:PATH")
	}
	l.checkSeal(raw, durable)
}

func (l *loader) checkSeal(raw *rawFile, durable bool) {
	if raw.Seal == nil {
		if durable && !l.troubled("seal") {
			l.add(raw.Pos, "seal", "missing", "a durable store needs a key: write ${file:PATH} or ${env:NAME}, which holds 32 bytes in base64 (openssl rand -base64 32)")
		}
		return
	}
	// The decoder skips line breaks; the exact length leaves no room for one.
	text := raw.Seal.value.Reveal()
	key, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(text) != base64.StdEncoding.EncodedLen(sealBytes) || len(key) != sealBytes {
		l.add(raw.Seal.pos, "seal", "isn't 32 bytes in standard base64", "make a key with openssl rand -base64 32")
		return
	}
	l.file.Seal = secret.New(key)
}

// troubled reports whether a problem is known at the path or below.
func (l *loader) troubled(path string) bool {
	return slices.ContainsFunc(l.d.problems, func(p Problem) bool {
		return p.Path == path || strings.HasPrefix(p.Path, path+".") || strings.HasPrefix(p.Path, path+"[")
	})
}

func (l *loader) checkIssuers(raw entries[rawIssuer]) {
	urls := map[string]Pos{}
	for _, e := range raw {
		v := &e.value
		issuer := Issuer{
			Name: e.name.Value, Profile: v.Profile.Value, URL: v.URL.Value,
			Audience: v.Audience.Value, Reason: v.Reason.Value,
			CAFile: l.path(v.CAFile), JWKSFile: l.path(v.JWKSFile),
			Reuse: v.Reuse.Value, Enabled: v.Enabled == nil || *v.Enabled, Pos: e.name.Pos,
		}
		if _, ok := identity.ProfileByName(v.Profile.Value); !ok && !l.troubled(e.path+".profile") {
			hint := policy.Nearest(v.Profile.Value, identity.ProfileNames())
			l.add(cmp.Or(v.Profile.Pos, e.name.Pos), e.path+".profile", "not a profile", cmp.Or(hint, "the profiles are "+strings.Join(identity.ProfileNames(), ", ")))
		}
		if !l.troubled(e.path + ".url") {
			l.checkIssuerURL(&e, urls)
		}
		switch {
		case v.Audience.Value != "" && strings.TrimSpace(v.Reason.Value) == "":
			l.add(v.Audience.Pos, e.path+".audience", "without a reason", "tokens for another audience can be replayed here by whoever gets them: say under reason why it must be")
		case v.Audience.Value == "" && v.Reason.Pos != (Pos{}):
			l.add(v.Reason.Pos, e.path+".reason", "a reason without audience", "")
		}
		if r := identity.Reuse(v.Reuse.Value); v.Reuse.Pos != (Pos{}) && r != identity.ReuseNever && r != identity.ReuseSameJob {
			l.add(v.Reuse.Pos, e.path+".reuse", "not a kind of reuse", "write never or same-job")
		}
		for _, network := range v.AllowNetworks {
			prefix, err := netip.ParsePrefix(network.Value)
			if err != nil || prefix != prefix.Masked() {
				l.add(network.Pos, e.path+".allow_networks", "not a network", "write it like 10.0.0.0/8")
				continue
			}
			issuer.AllowNetworks = append(issuer.AllowNetworks, prefix)
		}
		l.file.Issuers = append(l.file.Issuers, issuer)
		l.spec.Issuers = append(l.spec.Issuers, policy.IssuerSpec{
			Name: e.name, Profile: issuer.Profile, Enabled: issuer.Enabled, Text: hash(e.node),
		})
	}
}

func (l *loader) checkIssuerURL(e *entry[rawIssuer], urls map[string]Pos) {
	path, t := e.path+".url", e.value.URL
	u, err := url.Parse(t.Value)
	if err != nil || t.Value == "" || !plainURL(u, t.Value) {
		l.add(cmp.Or(t.Pos, e.name.Pos), path, "not an issuer's URL", "write exactly the iss of its tokens: https://, the host in lower case, and a path if it has one")
		return
	}
	l.scheme(path, t.Pos, u)
	// The broker's own tokens are for its providers: taken back as an
	// identity, one role's login would buy another role.
	if t.Value == l.file.URL || t.Value == l.file.IssuerURL {
		l.add(t.Pos, path, "the broker's own issuer", "the broker doesn't take its own tokens")
	}
	if first, doubled := urls[t.Value]; doubled {
		l.add(t.Pos, path, "another issuer has this URL, at "+first.String(), "")
	}
	urls[t.Value] = t.Pos
}

func (l *loader) checkProviders(raw entries[rawProvider]) {
	for _, e := range raw {
		path := cmp.Or(e.path, "providers") + ".type"
		t := e.value.Type
		switch {
		case !policy.ValidName(e.name.Value):
			l.add(e.name.Pos, "providers", "not a name", "a name is 1 to 63 of a-z, 0-9 and, within, - _ .")
		case l.troubled(path) || e.value.Rest == nil: // reported already
		case t.Value == "":
			l.add(cmp.Or(t.Pos, e.name.Pos), path, "missing", "")
		case len(l.opt.ProviderTypes) > 0 && !slices.Contains(l.opt.ProviderTypes, t.Value):
			hint := policy.Nearest(t.Value, l.opt.ProviderTypes)
			l.add(t.Pos, path, "not a type of provider", cmp.Or(hint, "the types are "+strings.Join(l.opt.ProviderTypes, ", ")))
		}
		l.file.Providers = append(l.file.Providers, Provider{
			Name: e.name.Value, Type: t.Value, Pos: e.name.Pos,
			Decode: l.opt.decoder(e.value.Rest, e.path, []string{"type"}),
		})
	}
}

func (l *loader) addPart(part *rawPart) {
	for _, e := range part.Projects {
		l.spec.Projects = append(l.spec.Projects, policy.ProjectSpec{Name: e.name, Pins: e.value.pins, Vars: e.value.vars})
	}
	for i := range part.Leases {
		l.addLease(&part.Leases[i])
	}
	for _, e := range part.Roles {
		v := &e.value
		role := policy.RoleSpec{
			Name: e.name, Match: v.Match, Leases: v.Leases, References: v.References,
			SessionTTL: v.SessionTTL, HeartbeatTimeout: v.HeartbeatTimeout,
			Limits:      policy.Limits{Sessions: int(v.Limits.Sessions), Leases: int(v.Limits.Leases)},
			AllowEvents: v.AllowEvents, Unsafe: v.Unsafe,
		}
		if v.Projects != nil {
			role.Projects = &v.Projects.SelectorSpec
		}
		l.spec.Roles = append(l.spec.Roles, role)
	}
	for _, rule := range part.Deny {
		l.spec.Deny = append(l.spec.Deny, policy.DenySpec{Match: rule.match, Pos: rule.pos})
	}
	for _, test := range part.Tests {
		l.spec.Tests = append(l.spec.Tests, policy.TestSpec{
			Role: test.Role, Project: test.Project, Issuer: test.Issuer, Change: test.Change, Want: test.Want, Pos: test.Pos,
		})
	}
}

func (l *loader) addLease(e *entry[rawLease]) {
	v := &e.value
	if v.Rest == nil {
		return // not a mapping, which was reported
	}
	lease := Lease{
		Name: e.name.Value, Provider: v.Provider.Value, TTL: v.TTL, MaxTTL: v.MaxTTL, Pos: e.name.Pos,
		Decode: l.opt.decoder(v.Rest, e.path, []string{"provider", "env", "file", "ttl", "max_ttl"}),
	}
	if !slices.ContainsFunc(l.file.Providers, func(p Provider) bool { return p.Name == lease.Provider }) && !l.troubled(e.path+".provider") {
		var names []string
		for _, p := range l.file.Providers {
			names = append(names, p.Name)
		}
		l.add(cmp.Or(v.Provider.Pos, e.name.Pos), e.path+".provider", "no provider of that name", policy.Nearest(lease.Provider, names))
	}
	if v.Env != nil {
		lease.Env = *v.Env
	}
	if v.File != nil {
		lease.Env = append(lease.Env, *v.File...)
	}
	l.checkSlots(e, lease.Env)
	if lease.MaxTTL == 0 {
		lease.MaxTTL = maxTTL
	}
	switch {
	case lease.MaxTTL < minTTL || lease.MaxTTL > maxTTL:
		l.add(e.name.Pos, e.path+".max_ttl", fmt.Sprintf("not within %v and %v", minTTL, maxTTL), "")
	case lease.TTL != 0 && (lease.TTL < minTTL || lease.TTL > lease.MaxTTL):
		l.add(e.name.Pos, e.path+".ttl", fmt.Sprintf("not within %v and max_ttl", minTTL), "")
	}
	l.file.Leases = append(l.file.Leases, lease)
	spec := policy.LeaseSpec{Name: e.name, Text: hash(e.node)}
	for _, variable := range lease.Env {
		// Several leases may each add an AWS profile to one file: what
		// stands against that is found when the leases are opened.
		if variable.Name != shape.All && variable.Profile == "" {
			spec.Env = append(spec.Env, policy.Text{Value: variable.Name, Pos: variable.Pos})
		}
	}
	l.spec.Leases = append(l.spec.Leases, spec)
}

// checkSlots reports variables and files of one lease that have one name.
func (l *loader) checkSlots(e *entry[rawLease], vars []EnvVar) {
	var slots shape.Slots
	seen := map[string]bool{}
	for _, v := range vars {
		double := ""
		if err, ok := errors.AsType[*shape.CollisionError](slots.Add(v.Var)); ok {
			double = err.What()
		} else if seen[v.Name] {
			double = "the variable " + v.Name
		}
		seen[v.Name] = true
		if double != "" {
			l.add(v.Pos, e.path, double+" stands twice", "give each a name of its own")
		}
	}
}

// compile adds policy's problems, but for those of entries that have one
// already, and all of them where an issuer or a whole file is missing: they
// would only be its consequences.
func (l *loader) compile(complete bool) {
	if !complete || l.troubled("issuers") {
		return
	}
	compiled, problems := policy.Compile(l.spec)
	l.file.Compiled = compiled
	broken := map[string]bool{}
	for _, p := range l.d.problems {
		broken[entryOf(p.Path)] = true
	}
	for _, p := range problems {
		if !broken[entryOf(p.Path)] {
			l.d.problems = append(l.d.problems, p)
		}
	}
}

// entryOf is the path of the entry that the path lies in: roles.prod.
func entryOf(path string) string {
	parts := strings.SplitN(path, ".", 3)
	if len(parts) < 2 {
		return path
	}
	return parts[0] + "." + parts[1]
}

// hash stands for an entry's canonical text, which may hold a literal in dev.
func hash(n *node) string {
	var b strings.Builder
	n.canonical(&b)
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:])
}

func quote(b *strings.Builder, s string) { b.WriteString(strconv.Quote(s)) }
