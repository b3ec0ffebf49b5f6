package ci

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/runenv/action/secret"
)

var errNotJWT = errors.New("not a JSON Web Token that can be read")

// Peek returns a token's claims, UNVERIFIED: no signature, time or audience is
// checked. It is good for telling people what their own token says, and for
// nothing that decides. Numbers are json.Number.
func Peek(token secret.Value) (map[string]any, error) {
	if token.Len() > maxTokenBytes {
		return nil, errNotJWT
	}
	parts := strings.SplitN(string(token.Reveal()), ".", 4)
	if len(parts) != 3 {
		return nil, errNotJWT
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, errNotJWT
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var claims map[string]any
	if d.Decode(&claims) != nil || claims == nil {
		return nil, errNotJWT
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errNotJWT
	}
	return claims, nil
}

// Expires reads, unverified, when a token expires: to the second, the zero
// Time if it doesn't say.
func Expires(token secret.Value) time.Time {
	claims, err := Peek(token)
	if err != nil {
		return time.Time{}
	}
	exp, ok := claims["exp"].(json.Number)
	if !ok {
		return time.Time{}
	}
	seconds, err := strconv.ParseFloat(string(exp), 64)
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}
