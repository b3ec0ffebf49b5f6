package config

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/secret"
)

// The file as it is written. Checks that need more than one value stand in
// file.go.

type rawFile struct {
	URL       policy.Text          `yaml:"url"`
	IssuerURL policy.Text          `yaml:"issuer_url"`
	Listen    policy.Text          `yaml:"listen"`
	TLS       *rawTLS              `yaml:"tls"`
	Store     policy.Text          `yaml:"store"`
	Seal      *rawSeal             `yaml:"seal"`
	Include   []policy.Text        `yaml:"include"`
	Issuers   entries[rawIssuer]   `yaml:"issuers"`
	Providers entries[rawProvider] `yaml:"providers"`
	Projects  entries[rawProject]  `yaml:"projects"`
	Leases    entries[rawLease]    `yaml:"leases"`
	Roles     entries[rawRole]     `yaml:"roles"`
	Deny      []rawDeny            `yaml:"deny"`
	Tests     []rawTest            `yaml:"tests"`
	Pos       Pos                  `yaml:",pos"`
}

// A rawPart is an included file: what a team may own. Who is trusted and where
// credentials come from is for the main file alone.
type rawPart struct {
	Projects entries[rawProject] `yaml:"projects"`
	Leases   entries[rawLease]   `yaml:"leases"`
	Roles    entries[rawRole]    `yaml:"roles"`
	Deny     []rawDeny           `yaml:"deny"`
	Tests    []rawTest           `yaml:"tests"`

	URL       mainOnly `yaml:"url"`
	IssuerURL mainOnly `yaml:"issuer_url"`
	Listen    mainOnly `yaml:"listen"`
	TLS       mainOnly `yaml:"tls"`
	Store     mainOnly `yaml:"store"`
	Seal      mainOnly `yaml:"seal"`
	Include   mainOnly `yaml:"include"`
	Issuers   mainOnly `yaml:"issuers"`
	Providers mainOnly `yaml:"providers"`
}

type mainOnly struct{}

func (*mainOnly) fromNode(d *decoder, n *node, path string) {
	d.add(n, path, "stands in the main file only", "an included file holds projects, leases, roles, deny and tests")
}

// unsupported is a key that the design has and this version hasn't.
type unsupported struct{}

func (*unsupported) fromNode(d *decoder, n *node, path string) {
	d.add(n, path, "isn't supported by this version", "remove the key")
}

// entries is a mapping from names to T, in the file's order.
type entries[T any] []entry[T]

type entry[T any] struct {
	name  policy.Text
	value T
	node  *node
	path  string
}

func (e *entries[T]) fromNode(d *decoder, n *node, path string) {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write name: {…}")
		return
	}
	for i, key := range n.keys {
		item := entry[T]{name: policy.Text{Value: key.text, Pos: key.pos}, node: n.items[i], path: pathTo(path, key, n.items[i])}
		d.decode(n.items[i], valueOf(&item.value), item.path)
		*e = append(*e, item)
	}
}

type rawTLS struct {
	Cert policy.Text `yaml:"cert"`
	Key  policy.Text `yaml:"key"`
	Pos  Pos         `yaml:",pos"`
}

// rawSeal is a credential that keeps its place.
type rawSeal struct {
	value secret.Value
	pos   Pos
}

func (s *rawSeal) fromNode(d *decoder, n *node, path string) {
	s.pos = n.pos
	s.value, _ = d.credential(n, path)
}

type rawIssuer struct {
	Profile       policy.Text   `yaml:"profile"`
	URL           policy.Text   `yaml:"url"`
	Audience      policy.Text   `yaml:"audience"`
	Reason        policy.Text   `yaml:"reason"`
	AllowNetworks []policy.Text `yaml:"allow_networks"`
	CAFile        policy.Text   `yaml:"ca_file"`
	JWKSFile      policy.Text   `yaml:"jwks_file"`
	Reuse         policy.Text   `yaml:"reuse"`
	Enabled       *bool         `yaml:"enabled"`
}

type rawProvider struct {
	Type policy.Text `yaml:"type"`
	Rest *node       `yaml:",rest"`
}

type rawLease struct {
	Provider policy.Text   `yaml:"provider"`
	Env      *rawEnv       `yaml:"env"`
	File     *rawFiles     `yaml:"file"`
	When     unsupported   `yaml:"when"`
	TTL      time.Duration `yaml:"ttl"`
	MaxTTL   time.Duration `yaml:"max_ttl"`
	Rest     *node         `yaml:",rest"`
}

// rawEnv is the env of a lease.
type rawEnv []EnvVar

func (e *rawEnv) fromNode(d *decoder, n *node, path string) {
	*e = d.variables(n, path, false)
}

// rawFiles is the file of a lease.
type rawFiles []EnvVar

func (f *rawFiles) fromNode(d *decoder, n *node, path string) {
	*f = d.variables(n, path, true)
}

// variables reads a mapping from variables to what goes into them, or, with
// files, into the files whose paths they hold.
func (d *decoder) variables(n *node, path string, files bool) (vars []EnvVar) {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write VARIABLE: field")
		return nil
	}
	if len(n.keys) == 0 {
		d.add(n, path, "sets no variable", "write VARIABLE: field")
	}
	for i, key := range n.keys {
		value := n.items[i]
		at := pathTo(path, key, value)
		if files && key.text == shape.All {
			d.add(key, path, `"*" is for env alone`, "each file has a variable of its own")
			continue
		}
		if key.text != shape.All {
			if err := api.CheckVariable(key.text); err != nil {
				d.add(key, path, err.Error(), "")
				continue
			}
		}
		v := EnvVar{Var: shape.Var{Name: key.text, Mask: true}, Pos: key.pos}
		before := len(d.problems)
		switch {
		case value.kind == mapping:
			v.fromMapping(d, value, at)
		case key.text == shape.All:
			d.add(value, at, "not a mapping", `write {}, or {prefix: APP_, fields: "db_*"}`)
		default:
			v.Field, _ = d.str(value, at)
		}
		if len(d.problems) > before {
			continue
		}
		switch {
		case files && v.File == "":
			v.File = shape.DefaultFile(v.Name)
		case !files && v.File != "" && !strings.HasSuffix(v.Name, shape.FileSuffix):
			d.add(value, at, "name is for files", "write the variable under file:, or give it a name that ends in "+shape.FileSuffix)
			continue
		}
		if err := v.Check(); err != nil {
			d.add(value, at, err.Error(), hintOf(err))
			continue
		}
		vars = append(vars, v)
	}
	return vars
}

func (v *EnvVar) fromMapping(d *decoder, n *node, path string) {
	var raw struct {
		Field    string       `yaml:"field"`
		Prefix   string       `yaml:"prefix"`
		Fields   string       `yaml:"fields"`
		Mask     *bool        `yaml:"mask"`
		Optional bool         `yaml:"optional"`
		Default  *string      `yaml:"default"`
		Decode   string       `yaml:"decode"`
		Template *rawTemplate `yaml:"template"`
		As       string       `yaml:"as"`
		Name     string       `yaml:"name"`
		Profile  string       `yaml:"profile"`
		Registry string       `yaml:"registry"`
		Server   string       `yaml:"server"`
		CA       string       `yaml:"ca"`
	}
	d.decode(n, valueOf(&raw), path)
	v.Field, v.Prefix, v.Fields = raw.Field, raw.Prefix, raw.Fields
	v.Optional, v.Default, v.Decode, v.As = raw.Optional, raw.Default, raw.Decode, raw.As
	v.File, v.Profile, v.Registry, v.Server, v.CA = raw.Name, raw.Profile, raw.Registry, raw.Server, raw.CA
	if raw.Template != nil {
		v.Template = raw.Template.Template
	}
	if raw.Mask != nil {
		v.Mask = *raw.Mask
	}
}

// rawTemplate is the template of a variable.
type rawTemplate struct{ *shape.Template }

func (t *rawTemplate) fromNode(d *decoder, n *node, path string) {
	s, ok := d.str(n, path)
	if !ok {
		return
	}
	var err error
	if t.Template, err = shape.ParseTemplate(s); err != nil {
		d.add(n, path, err.Error(), hintOf(err))
	}
}

// hintOf is the cure that an error knows.
func hintOf(err error) string {
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return h.Hint()
	}
	return ""
}

// rawProject has the key vars, and for each issuer a key of its name.
type rawProject struct {
	pins []policy.PinSpec
	vars []policy.VarSpec
}

func (p *rawProject) fromNode(d *decoder, n *node, path string) {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write {ISSUER: NAME@ID}, like {github: acme/shop-api@1001}")
		return
	}
	for i, key := range n.keys {
		value := n.items[i]
		if key.text != "vars" {
			if s, ok := d.str(value, pathTo(path, key, value)); ok {
				p.pins = append(p.pins, policy.PinSpec{
					Issuer: policy.Text{Value: key.text, Pos: key.pos}, Value: policy.Text{Value: s, Pos: value.pos},
				})
			}
			continue
		}
		if value.kind != mapping {
			d.add(value, join(path, "vars"), "not a mapping", "write NAME: value")
			continue
		}
		for j, name := range value.keys {
			if s, ok := d.str(value.items[j], pathTo(join(path, "vars"), name, value.items[j])); ok {
				p.vars = append(p.vars, policy.VarSpec{
					Name: policy.Text{Value: name.text, Pos: name.pos}, Value: policy.Text{Value: s, Pos: value.items[j].pos},
				})
			}
		}
	}
}

type rawRole struct {
	Projects         *rawSelector  `yaml:"projects"`
	Match            rawMatch      `yaml:"match"`
	When             unsupported   `yaml:"when"`
	References       []policy.Text `yaml:"references"`
	Leases           []policy.Text `yaml:"leases"`
	SessionTTL       time.Duration `yaml:"session_ttl"`
	HeartbeatTimeout time.Duration `yaml:"heartbeat_timeout"`
	Limits           struct {
		Sessions limit `yaml:"sessions"`
		Leases   limit `yaml:"leases"`
	} `yaml:"limits"`
	AllowEvents rawReasons `yaml:"allow_events"`
	Unsafe      rawReasons `yaml:"unsafe"`
}

// limit is a number over 0: an absent one stands for the default, so a written
// 0 must not.
type limit int

func (l *limit) fromNode(d *decoder, n *node, path string) {
	i, ok := whole(n)
	if !ok || i < 1 || i > 1<<20 {
		d.add(n, path, "not a whole number over 0", "")
		return
	}
	*l = limit(i)
}

// rawSelector is a list of names, or a mapping from variables to values.
type rawSelector struct{ policy.SelectorSpec }

func (s *rawSelector) fromNode(d *decoder, n *node, path string) {
	s.Pos = n.pos
	switch n.kind {
	case sequence:
		s.Names = d.texts(n, path)
	case mapping:
		for i, key := range n.keys {
			s.Vars = append(s.Vars, policy.VarSelectorSpec{
				Name:   policy.Text{Value: key.text, Pos: key.pos},
				Values: d.texts(n.items[i], pathTo(path, key, n.items[i])),
			})
		}
	default:
		d.add(n, path, "neither a list of projects nor a mapping of variables", "write [NAME, …] or {VARIABLE: [VALUE, …]}")
	}
}

// texts reads a string or a list of strings.
func (d *decoder) texts(n *node, path string) []policy.Text {
	items := []*node{n}
	if n.kind == sequence {
		items = n.items
	}
	var out []policy.Text
	for _, item := range items {
		if s, ok := d.str(item, path); ok {
			out = append(out, policy.Text{Value: s, Pos: item.pos})
		}
	}
	return out
}

// rawMatch is claims by issuer.
type rawMatch []policy.MatchSpec

func (m *rawMatch) fromNode(d *decoder, n *node, path string) {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write {ISSUER: {CLAIM: value}}")
		return
	}
	for i, key := range n.keys {
		*m = append(*m, policy.MatchSpec{
			Issuer: policy.Text{Value: key.text, Pos: key.pos},
			Claims: d.claims(n.items[i], pathTo(path, key, n.items[i])),
		})
	}
}

func (d *decoder) claims(n *node, path string) []policy.ClaimSpec {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write {CLAIM: value}")
		return nil
	}
	var out []policy.ClaimSpec
	for i, key := range n.keys {
		value := n.items[i]
		at := pathTo(path, key, value)
		items := []*node{value}
		if value.kind == sequence {
			items = value.items
		}
		claim := policy.ClaimSpec{Name: policy.Text{Value: key.text, Pos: key.pos}}
		for _, item := range items {
			if v, ok := d.value(item, at); ok {
				claim.Values = append(claim.Values, v)
			}
		}
		out = append(out, claim)
	}
	return out
}

// value reads a string or {glob: …}.
func (d *decoder) value(n *node, path string) (policy.ValueSpec, bool) {
	glob := n.kind == mapping
	if glob {
		if len(n.keys) != 1 || n.keys[0].text != "glob" {
			d.add(n, path, "neither a string nor {glob: …}", "")
			return policy.ValueSpec{}, false
		}
		n = n.items[0]
	}
	s, ok := d.str(n, path)
	return policy.ValueSpec{Text: policy.Text{Value: s, Pos: n.pos}, Glob: glob}, ok
}

// rawReasons is a mapping from names to reasons.
type rawReasons []policy.ReasonSpec

func (r *rawReasons) fromNode(d *decoder, n *node, path string) {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write {NAME: reason}")
		return
	}
	for i, key := range n.keys {
		if s, ok := d.str(n.items[i], pathTo(path, key, n.items[i])); ok {
			*r = append(*r, policy.ReasonSpec{
				Name: policy.Text{Value: key.text, Pos: key.pos}, Reason: policy.Text{Value: s, Pos: n.items[i].pos},
			})
		}
	}
}

// rawDeny is one rule of deny.
type rawDeny struct {
	match rawMatch
	pos   Pos
}

func (r *rawDeny) fromNode(d *decoder, n *node, path string) {
	r.pos = n.pos
	r.match.fromNode(d, n, path)
}

type rawTest struct {
	Role    policy.Text `yaml:"role"`
	Project policy.Text `yaml:"project"`
	Issuer  policy.Text `yaml:"issuer"`
	Change  rawChange   `yaml:"change"`
	Want    policy.Text `yaml:"want"`
	Pos     Pos         `yaml:",pos"`
}

type rawChange []policy.ClaimSpec

func (c *rawChange) fromNode(d *decoder, n *node, path string) { *c = d.claims(n, path) }

// canonical is one text for all ways to write the same entry.
func (n *node) canonical(b *strings.Builder) {
	switch n.kind {
	case null:
		b.WriteString("~")
	case scalar:
		if !n.quoted && ambiguous(n.text) {
			b.WriteString("!") // true isn't "true"
		}
		quote(b, n.text)
	case sequence:
		b.WriteByte('[')
		for _, item := range n.items {
			item.canonical(b)
			b.WriteByte(',')
		}
		b.WriteByte(']')
	case mapping:
		order := make([]int, len(n.keys))
		for i := range order {
			order[i] = i
		}
		slices.SortFunc(order, func(x, y int) int { return strings.Compare(n.keys[x].text, n.keys[y].text) })
		b.WriteByte('{')
		for _, i := range order {
			quote(b, n.keys[i].text)
			b.WriteByte(':')
			n.items[i].canonical(b)
			b.WriteByte(',')
		}
		b.WriteByte('}')
	}
}
