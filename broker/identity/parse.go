package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxTokenBytes bounds a token. GitHub's and GitLab's have 1 to 3 KiB.
	maxTokenBytes = 16 << 10

	// maxDepth bounds how deeply objects and lists nest, the outer one included.
	maxDepth = 8

	// maxClaims bounds the members of a token's objects, nested ones included.
	maxClaims = 200

	maxKeyIDBytes    = 256
	maxIssuerBytes   = 512
	maxAudienceBytes = 512
	maxSubjectBytes  = 2 << 10
	maxJTIBytes      = 256
)

// base64url is strict about the bits after the last byte. It skips line ends,
// as every decoder of the standard library does: look for them first.
var base64url = base64.RawURLEncoding.Strict()

// A parsed token is well-formed; nothing about it is verified.
type parsed struct {
	text     string // the whole token
	alg, kid string
	payload  []byte
	claims   map[string]any

	issuer, subject, jti string
	audiences            []string
	expires, issued      int64 // seconds since 1970
	notBefore            int64 // 0 if absent
}

// parse reads a token strictly, from the cheapest check to the dearest.
func parse(token []byte) (*parsed, *Error) {
	if len(token) > maxTokenBytes {
		return nil, invalidRequest(ReasonTooLarge)
	}
	// Counted before anything is split, so that a token of dots costs nothing.
	if bytes.Count(token, []byte{'.'}) != 2 || !isBase64urlOrDot(token) {
		return nil, invalidRequest(ReasonMalformed)
	}
	text := string(token)
	parts := strings.Split(text, ".")
	var decoded [3][]byte
	for i, part := range parts {
		b, err := base64url.DecodeString(part)
		if err != nil || len(b) == 0 {
			return nil, invalidRequest(ReasonMalformed)
		}
		decoded[i] = b
	}
	t := &parsed{text: text, payload: decoded[1]}
	header, err := strictObject(decoded[0], maxClaims)
	if err != nil {
		return nil, invalidRequest(jsonReason(err))
	}
	if e := t.readHeader(header); e != nil {
		return nil, e
	}
	if t.claims, err = strictObject(t.payload, maxClaims); err != nil {
		return nil, invalidRequest(jsonReason(err))
	}
	if !t.readClaims() {
		return nil, invalidRequest(ReasonClaim)
	}
	return t, nil
}

// badHeaders bring a key along, demand what we don't understand, change what
// is signed, or belong to encrypted tokens.
var badHeaders = []string{"crit", "jku", "jwk", "x5u", "x5c", "b64", "enc", "zip", "epk", "p2s", "p2c"}

func (t *parsed) readHeader(header map[string]any) *Error {
	for name := range header {
		if slices.Contains(badHeaders, foldKey(name)) {
			return invalidRequest(ReasonHeaderParameter)
		}
	}
	if typ, present := header["typ"]; present && typ != "JWT" {
		return invalidRequest(ReasonType)
	}
	var ok bool
	if t.kid, ok = boundedText(header["kid"], maxKeyIDBytes); !ok {
		return invalidRequest(ReasonKeyID)
	}
	// Which ones are allowed depends on the issuer.
	if t.alg, ok = boundedText(header["alg"], 16); !ok {
		return invalidToken(ReasonAlgorithm)
	}
	return nil
}

// readClaims reads the registered claims and reports whether those required
// are there and each has its one right type.
func (t *parsed) readClaims() bool {
	for name := range t.claims {
		switch folded := foldKey(name); folded {
		case "_claim_names", "_claim_sources":
			// Claims that somebody else is to be asked for.
			return false
		case "iss", "sub", "aud", "exp", "iat", "nbf", "jti":
			// encoding/json takes "Sub" for a struct's sub.
			if name != folded {
				return false
			}
		}
	}
	var ok [6]bool
	t.issuer, ok[0] = boundedText(t.claims["iss"], maxIssuerBytes)
	t.subject, ok[1] = boundedText(t.claims["sub"], maxSubjectBytes)
	t.jti, ok[2] = boundedText(t.claims["jti"], maxJTIBytes)
	t.audiences, ok[3] = audiences(t.claims["aud"])
	t.expires, ok[4] = seconds(t.claims["exp"])
	t.issued, ok[5] = seconds(t.claims["iat"])
	if slices.Contains(ok[:], false) {
		return false
	}
	if nbf, present := t.claims["nbf"]; present {
		t.notBefore, ok[0] = seconds(nbf)
	}
	return ok[0]
}

// audiences takes a string or a list of strings. How many are right is judged
// once the signature is verified, so that the refusal can be recorded.
func audiences(value any) ([]string, bool) {
	list, isList := value.([]any)
	if !isList {
		list = []any{value}
	}
	out := make([]string, 0, len(list))
	for _, item := range list {
		s, ok := boundedText(item, maxAudienceBytes)
		if !ok {
			return nil, false
		}
		out = append(out, s)
	}
	return out, len(out) > 0
}

// seconds takes a positive whole number without fraction or exponent, before
// the year 10000.
func seconds(value any) (int64, bool) {
	number, ok := value.(json.Number)
	if !ok || !isDecimal(number.String()) {
		return 0, false
	}
	n, err := number.Int64()
	return n, err == nil && n <= maxUnixSeconds
}

// boundedText takes a string of 1 to limit bytes without control characters.
func boundedText(value any, limit int) (string, bool) {
	s, ok := value.(string)
	if !ok || s == "" || len(s) > limit || strings.ContainsFunc(s, unicode.IsControl) {
		return "", false
	}
	return s, true
}

func isBase64urlOrDot(b []byte) bool {
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

var (
	errJSON       = errors.New("not one JSON object in UTF-8")
	errDoubledKey = errors.New("doubled key")
	errDepth      = errors.New("nested too deeply")
	errMembers    = errors.New("too many members")
)

func jsonReason(err error) string {
	switch {
	case errors.Is(err, errDoubledKey):
		return ReasonDoubledKey
	case errors.Is(err, errDepth):
		return ReasonDepth
	case errors.Is(err, errMembers):
		return ReasonTooManyClaims
	}
	return ReasonJSON
}

// strictObject decodes one JSON object, with numbers as json.Number. It
// refuses what two readers could understand in two ways: keys that are doubled
// or differ only in case, at any depth; bytes or escapes that aren't Unicode;
// anything after the object.
func strictObject(doc []byte, maxMembers int) (map[string]any, error) {
	if !utf8.Valid(doc) || !json.Valid(doc) {
		return nil, errJSON
	}
	r := strictReader{dec: json.NewDecoder(bytes.NewReader(doc)), members: maxMembers}
	r.dec.UseNumber()
	v, err := r.value(1)
	if err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errJSON
	}
	return object, nil
}

type strictReader struct {
	dec     *json.Decoder
	members int // how many may still come
}

func (r *strictReader) value(depth int) (any, error) {
	token, err := r.dec.Token()
	if err != nil {
		return nil, errJSON
	}
	switch token {
	case json.Delim('{'):
		return r.object(depth)
	case json.Delim('['):
		return r.list(depth)
	}
	// The decoder puts this in place of a lone surrogate, \ud800 and \ud801
	// alike.
	if s, ok := token.(string); ok && strings.ContainsRune(s, utf8.RuneError) {
		return nil, errJSON
	}
	return token, nil
}

func (r *strictReader) object(depth int) (map[string]any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	object := map[string]any{}
	folded := map[string]bool{}
	for r.dec.More() {
		if r.members--; r.members < 0 {
			return nil, errMembers
		}
		token, err := r.dec.Token()
		key, ok := token.(string)
		if err != nil || !ok || strings.ContainsRune(key, utf8.RuneError) {
			return nil, errJSON
		}
		if fold := foldKey(key); folded[fold] {
			return nil, errDoubledKey
		} else {
			folded[fold] = true
		}
		if object[key], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	_, err := r.dec.Token() // the closing brace
	return object, err
}

func (r *strictReader) list(depth int) ([]any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	list := []any{}
	for r.dec.More() {
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := r.dec.Token() // the closing bracket
	return list, err
}

// foldKey maps keys that encoding/json takes for one another to one: it
// matches a struct's fields by simple case folding, so that "ſub" is sub too.
func foldKey(key string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '_' {
			return r
		}
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		// Of a Latin letter's forms the least is upper case.
		if 'A' <= least && least <= 'Z' {
			return least + 'a' - 'A'
		}
		return least
	}, key)
}
