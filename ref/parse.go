package ref

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"

	// segmentChars are those of a segment of a path. The colon is for ARNs and
	// for GCP's projects of a domain.
	segmentChars = letters + digits + "_.@=+:~-"
	fieldChars   = letters + digits + "_.@=+:$-"
	versionChars = letters + digits + "_.-"

	maxFieldBytes    = 256
	maxVersionBytes  = 128
	maxProviderBytes = 63
)

// ErrNotReference is wrapped by the error of [Parse] for a text that has
// nothing of a reference: the name of a lease, say.
var ErrNotReference = errors.New("not a reference: write it like vault://secret/ci/npm#token")

// Parse reads a reference in its canonical spelling, where query and fragment
// may also change places, or in one of the peers':
//
//	secret/data/ci/npm token                  hashicorp/vault-action
//	vault:secret/data/ci/npm#token            bank-vaults
//	arn:aws:secretsmanager:R:A:secret:NAME:field:stage:id   ECS; the last three may be absent
//	arn:aws:ssm:R:A:parameter/PATH:version
//	sm://PROJECT/NAME#version                 berglas; also sm://PROJECT/NAME/VERSION
//	sm://projects/P/secrets/S/versions/V
//	projects/P/secrets/S/versions/V
//
// Errors hold no part of the text.
func Parse(text string) (Ref, error) {
	if len(text) > MaxBytes {
		return Ref{}, fmt.Errorf("a reference of over %d bytes", MaxBytes)
	}
	r, err := parse(text)
	if err != nil {
		return Ref{}, err
	}
	if err := r.check(); err != nil {
		return Ref{}, err
	}
	// The canonical text of a peer's spelling is the longer one.
	if len(r.String()) > MaxBytes {
		return Ref{}, fmt.Errorf("a reference of over %d bytes", MaxBytes)
	}
	return r, nil
}

func parse(text string) (Ref, error) {
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		switch scheme {
		case SchemeVault, SchemeAWSSM, SchemeSSM, SchemeGCPSM:
			return canonical(scheme, rest)
		case "sm":
			return berglas(rest)
		}
		return Ref{}, errors.New("no such scheme: the schemes are vault, aws-sm, aws-ssm and gcp-sm")
	}
	if rest, ok := strings.CutPrefix(text, "vault:"); ok {
		return bankVaults(rest)
	}
	if strings.HasPrefix(text, "arn:") {
		return arn(text)
	}
	if path, field, ok := strings.Cut(text, " "); ok {
		return vaultAction(path, strings.TrimLeft(field, " "))
	}
	if strings.HasPrefix(text, "projects/") {
		return googleName(text)
	}
	return Ref{}, ErrNotReference
}

// canonical reads what stands behind the scheme.
func canonical(scheme, rest string) (Ref, error) {
	path, query, fragment, err := pieces(rest)
	if err != nil {
		return Ref{}, err
	}
	r := Ref{Scheme: scheme, Path: path}
	if fragment != "" {
		*r.fragment() = fragment
	}
	return r, r.query(query)
}

// fragment is what stands behind the # in this scheme.
func (r *Ref) fragment() *string {
	if r.Scheme == SchemeGCPSM {
		return &r.Version
	}
	return &r.Field
}

// pieces splits PATH?QUERY#FRAGMENT or PATH#FRAGMENT?QUERY.
func pieces(text string) (path, query, fragment string, err error) {
	if strings.Count(text, "?") > 1 || strings.Count(text, "#") > 1 {
		return "", "", "", errors.New("a reference with a second ? or #")
	}
	end := len(text)
	if i := strings.IndexAny(text, "?#"); i >= 0 {
		end = i
	}
	path, rest := text[:end], text[end:]
	for rest != "" {
		mark, tail := rest[0], rest[1:]
		next := len(tail)
		if i := strings.IndexAny(tail, "?#"); i >= 0 {
			next = i
		}
		part := tail[:next]
		rest = tail[next:]
		if part == "" {
			return "", "", "", errors.New("a reference with nothing behind ? or #")
		}
		if mark == '?' {
			query = part
		} else {
			fragment = part
		}
	}
	return path, query, fragment, nil
}

func (r *Ref) query(query string) error {
	if query == "" {
		return nil
	}
	var seen []string
	for pair := range strings.SplitSeq(query, "&") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" {
			return errors.New("a reference whose query isn't key=value, with & between")
		}
		if key == "stage" && slices.Contains(seen, "version") || key == "version" && slices.Contains(seen, "stage") {
			return errors.New("a reference with both version and stage: one says which")
		}
		if slices.Contains(seen, key) {
			return errors.New("a reference with a doubled key in its query")
		}
		seen = append(seen, key)
		switch {
		case key == "provider":
			r.Provider = value
		case key == "field" && r.Scheme == SchemeGCPSM:
			r.Field = value
		case key == "version" && r.Scheme == SchemeAWSSM && !IsVersionID(value):
			return errors.New("not the id of a version, which has 32 to 64 letters, digits and hyphens; a stage is ?stage=")
		case key == "stage" && r.Scheme == SchemeAWSSM && IsVersionID(value):
			return errors.New("a stage that looks like the id of a version, which is ?version=")
		case key == "version" && r.Scheme != SchemeGCPSM, key == "stage" && r.Scheme == SchemeAWSSM:
			r.Version = value
		default:
			return errors.New("a reference with an unknown key in its query: " + r.queryKeys())
		}
	}
	return nil
}

func (r *Ref) queryKeys() string {
	switch r.Scheme {
	case SchemeAWSSM:
		return "aws-sm has version, stage and provider"
	case SchemeGCPSM:
		return "gcp-sm has field and provider, and its version behind the #"
	}
	return r.Scheme + " has version and provider"
}

// check refuses what has no canonical text or could mean something else at the
// back end, and removes a version that only spells out the latest.
func (r *Ref) check() error {
	if err := checkPath(r.Path, segmentChars); err != nil {
		return err
	}
	if strings.HasPrefix(r.Path, "arn:") && (r.Scheme == SchemeAWSSM || r.Scheme == SchemeSSM) {
		// What may stand behind an ARN has a place of its own by now.
		if named, err := arn(r.Path); err != nil || named != (Ref{Scheme: r.Scheme, Path: r.Path}) {
			return errARN
		}
	}
	segments := strings.Count(r.Path, "/") + 1
	switch r.Scheme {
	case SchemeVault:
		if segments < 2 {
			return errors.New("a vault reference names a mount and a path: vault://secret/ci/npm")
		}
		if r.Version != "" && !decimal(r.Version) {
			return errors.New("a version of vault isn't a number")
		}
	case SchemeGCPSM:
		if segments != 2 {
			return errors.New("a gcp-sm reference names a project and a secret: gcp-sm://PROJECT/NAME")
		}
		if r.Version == "latest" {
			r.Version = ""
		}
	case SchemeAWSSM:
		if r.Version == "AWSCURRENT" {
			r.Version = ""
		}
	}
	switch {
	case len(r.Version) > maxVersionBytes || !only(r.Version, versionChars):
		return errors.New("a version with a character that none has")
	case r.Provider != "" && !validProvider(r.Provider):
		return errors.New("not the name of a provider")
	}
	return checkField(r.Field, fieldChars)
}

// checkPath takes plain segments with slashes between.
func checkPath(path, chars string) error {
	for segment := range strings.SplitSeq(path, "/") {
		switch {
		case segment == "":
			return errors.New("a reference with an empty segment: no slash in front, at the end, or twice")
		case segment == "." || segment == "..":
			return errors.New("a reference with . or .. for a segment")
		case !only(segment, chars):
			return errors.New("a reference with a character that no path has: a segment holds letters, digits and _ . @ = + : ~ -")
		}
	}
	return nil
}

// checkField takes a field's name, or a JSON pointer without empty tokens.
func checkField(field, chars string) error {
	if len(field) > maxFieldBytes {
		return fmt.Errorf("a field of over %d bytes", maxFieldBytes)
	}
	pointer, isPointer := strings.CutPrefix(field, "/")
	if !isPointer {
		if !only(field, chars) {
			return errors.New("a field with a character that none has: it holds letters, digits and _ . @ = + : $ -, or is a JSON pointer, which begins with /")
		}
		return nil
	}
	for token := range strings.SplitSeq(pointer, "/") {
		plain := strings.NewReplacer("~0", "", "~1", "").Replace(token)
		if token == "" || !only(plain, chars) {
			return errors.New("not a JSON pointer to a field: /FIELD/KEY, with ~1 for a slash and ~0 for a tilde in a key")
		}
	}
	return nil
}

func only(s, chars string) bool { return strings.Trim(s, chars) == "" }

// decimal reports whether s is a positive number in its one spelling.
func decimal(s string) bool {
	return s != "" && len(s) <= 18 && s[0] != '0' && only(s, digits)
}

// validProvider is what `providers:` takes for a name.
func validProvider(s string) bool {
	return len(s) <= maxProviderBytes && !strings.Contains(s, "..") && !strings.ContainsAny(s[:1], "-_.") &&
		only(s, "abcdefghijklmnopqrstuvwxyz"+digits+"-_.")
}
