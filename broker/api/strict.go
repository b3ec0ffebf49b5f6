package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// decodeStrict refuses what encoding/json lets pass: unknown fields, doubled
// keys, keys that differ only in case, and trailing data. Errors hold no part
// of the body.
func decodeStrict(body []byte, v any) error {
	if err := checkKeys(body); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if strings.HasPrefix(err.Error(), "json: unknown field") {
			return errors.New("a JSON body with an unknown field")
		}
		return errors.New("a JSON body of another shape")
	}
	return nil
}

const maxDepth = 8

func checkKeys(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	type frame struct {
		object bool
		isKey  bool
		seen   map[string]bool
	}
	var stack []frame
	values := 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) && values == 1 && len(stack) == 0 {
			return nil
		}
		if err != nil {
			return errors.New("a body that isn't JSON")
		}
		if len(stack) == 0 {
			if values == 1 {
				return errors.New("a JSON body with data behind it")
			}
			values = 1
		}
		var top *frame
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		if delim, ok := tok.(json.Delim); ok {
			switch delim {
			case '{', '[':
				if top != nil && top.object {
					top.isKey = true
				}
				if len(stack) == maxDepth {
					return errors.New("a JSON body nested too deeply")
				}
				stack = append(stack, frame{object: delim == '{', isKey: true, seen: map[string]bool{}})
			default:
				stack = stack[:len(stack)-1]
			}
			continue
		}
		if top == nil || !top.object {
			continue
		}
		if top.isKey {
			key := strings.ToLower(tok.(string))
			if top.seen[key] {
				return errors.New("a JSON body with a doubled key")
			}
			top.seen[key] = true
		}
		top.isKey = !top.isKey
	}
}
