package shape

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/runenv/action/secret"
)

var errPointer = errors.New("not a JSON pointer to a field: /FIELD/KEY, with ~1 for a slash and ~0 for a tilde in a key")

// cutPointer splits a field's name, or a JSON pointer (RFC 6901), into the
// field and the way into it.
func cutPointer(field string) (name string, tokens []string, err error) {
	pointer, ok := strings.CutPrefix(field, "/")
	if !ok {
		return field, nil, nil
	}
	tokens = strings.Split(pointer, "/")
	for i, token := range tokens {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(token), "~") {
			return "", nil, errPointer
		}
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
	}
	if tokens[0] == "" {
		return "", nil, errPointer
	}
	return tokens[0], tokens[1:], nil
}

// pick returns a copy of the field, or of what a JSON pointer finds in it: text
// as it is, an object or a list as JSON. JSON's null counts as absent.
func pick(field string, fields map[string]secret.Value) ([]byte, error) {
	name, tokens, err := cutPointer(field)
	if err != nil {
		return nil, err
	}
	value, ok := fields[name]
	if !ok {
		return nil, &MissingError{[]string{field}}
	}
	if len(tokens) == 0 {
		return bytes.Clone(value.Reveal()), nil
	}
	at, err := parseJSON(value.Reveal())
	if err != nil {
		return nil, fmt.Errorf("field %s: %w", name, err)
	}
	for _, token := range tokens {
		var next any
		switch in := at.(type) {
		case map[string]any:
			next = in[token]
		case []any:
			// RFC 6901: no sign, no zeros in front.
			if i, err := strconv.Atoi(token); err == nil && strconv.Itoa(i) == token && i >= 0 && i < len(in) {
				next = in[i]
			}
		}
		if next == nil {
			return nil, &MissingError{[]string{field}}
		}
		at = next
	}
	return text(at)
}

func parseJSON(value []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber() // a large id mustn't become 1e+20
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("its value isn't JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("its value isn't one JSON text")
	}
	return v, nil
}

// text is what stands for a JSON value in a variable.
func text(v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return []byte(v), nil
	case json.Number:
		return []byte(v), nil
	}
	return marshal(v)
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, errors.New("can't be written as JSON")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// object reads the fields of a JSON object; those that are null are absent.
func object(value []byte) (map[string]secret.Value, error) {
	v, err := parseJSON(value)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("its value isn't a JSON object")
	}
	out := make(map[string]secret.Value, len(m))
	for name, item := range m {
		if item == nil {
			continue
		}
		b, err := text(item)
		if err != nil {
			return nil, err
		}
		out[name] = secret.New(b)
	}
	return out, nil
}

// decode returns a copy. Line breaks in and behind an encoded text are let
// pass, and base64 may lack its padding: so tools write them.
func decode(how string, value []byte) ([]byte, error) {
	if how == "" {
		return bytes.Clone(value), nil
	}
	clean := bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, value)
	var out []byte
	var err error
	switch how {
	case "hex":
		out, err = hex.AppendDecode(nil, clean)
	case "base64":
		out, err = encodingOf(base64.StdEncoding, clean).AppendDecode(nil, clean)
	case "base64url":
		out, err = encodingOf(base64.URLEncoding, clean).AppendDecode(nil, clean)
	default:
		return nil, errors.New("no such decoding")
	}
	if err != nil { // whose text may tell of the value
		return nil, errors.New("its value isn't " + how)
	}
	return out, nil
}

func encodingOf(e *base64.Encoding, value []byte) *base64.Encoding {
	if !bytes.HasSuffix(value, []byte("=")) {
		e = e.WithPadding(base64.NoPadding)
	}
	return e.Strict()
}
