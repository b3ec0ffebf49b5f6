// Package config reads the broker's file: one YAML document, strictly decoded.
//
// YAML guesses, and a guess in a policy lets somebody in. So this package
// refuses what it would have to guess: unknown and doubled keys, a second
// document, tags, anchors and aliases, and plain scalars that some version of
// YAML reads as something other than the text that stands there. All problems
// are reported at once, each with its place and, where it is known, its cure.
//
// The file may hold secrets by mistake, so no message holds a value, a key
// that isn't known, or a line of the file. Secrets come in through
// ${env:NAME} and ${file:PATH}, in credential fields alone.
package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/secret"
)

// Pos is a place in a file.
type Pos = policy.Pos

// A Problem is why a file doesn't load.
type Problem = policy.Problem

func problem(pos Pos, path, message, hint string) Problem {
	return Problem{Pos: pos, Path: path, Message: message, Hint: hint}
}

// Problems is what [Load] and [Parse] return for a file that doesn't load,
// sorted by place. It is never empty.
type Problems []Problem //nolint:errname // a list of what is wrong with a file, and each is a Problem

// Error is one problem a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// Options are what reading a file takes from outside.
type Options struct {
	// Getenv looks up an environment variable; nil means os.LookupEnv.
	Getenv func(string) (string, bool)

	// ReadFile reads a file; nil reads the disk, and no more of a file than
	// shows that it is too large. Errors are told by errors.Is with fs.ErrNotExist
	// and fs.ErrPermission; their text isn't shown.
	ReadFile func(path string) ([]byte, error)

	// Glob lists the files that match a pattern of `include`; nil means
	// filepath.Glob.
	Glob func(pattern string) ([]string, error)

	// ProviderTypes are the types that `providers` may have; none means that
	// they aren't checked here.
	ProviderTypes []string

	// Dev is set by `runenv-broker dev` alone: literals may stand in
	// credential fields, the store may be in memory, http is spoken on
	// loopback literals, and `tls` may be absent.
	Dev bool

	// Direct is set by `runenv-broker run` alone, which serves one command
	// from this process: the store is in memory, and `tls` and `seal` may be
	// absent.
	Direct bool

	main string // path of the main file, by [loader.load]
}

// A File is the broker's file, checked.
type File struct {
	URL       string       // the origin
	IssuerURL string       // an origin; URL if absent
	Listen    string       // host:port; :8443 if absent
	TLS       *TLS         // nil only in dev and direct
	Store     string       // sqlite:PATH, or memory: in dev and direct
	Seal      secret.Value // the 32 bytes of the key; empty only with memory:

	Issuers   []Issuer
	Providers []Provider
	Leases    []Lease

	// Policy is what the file says about projects, roles, deny and tests, and
	// Compiled is made of it.
	Policy   policy.Spec
	Compiled *policy.Policy

	// Digest is the SHA-256, in hex, of the bytes of all files that were read.
	Digest string
}

// TLS are the paths of the broker's certificate and key, in PEM.
type TLS struct{ Cert, Key string }

// An Issuer is an entry of `issuers`.
type Issuer struct {
	Name          string
	Profile       string // of package identity
	URL           string
	Audience      string // empty: the broker's url
	Reason        string // why it has an audience of its own
	AllowNetworks []netip.Prefix
	CAFile        string
	JWKSFile      string
	Reuse         string // "never", "same-job", or empty for the profile's
	Enabled       bool
	Pos           Pos
}

// A Provider is an entry of `providers`.
type Provider struct {
	Name, Type string

	// Decode decodes the keys that aren't common to all providers, strictly,
	// into a pointer to a struct with yaml tags. Its error is a [Problems].
	Decode func(any) error
	Pos    Pos
}

// A Lease is an entry of `leases`.
type Lease struct {
	Name     string
	Provider string
	Env      []EnvVar      // of env and then file, in the file's order; none: the definition's defaults
	TTL      time.Duration // zero if absent: the lease engine's default
	MaxTTL   time.Duration // 24h if absent

	// Decode is as in [Provider].
	Decode func(any) error
	Pos    Pos
}

// An EnvVar says how an environment variable is made of the credential's
// fields. Mask is true if absent.
type EnvVar struct {
	shape.Var
	Pos Pos
}
