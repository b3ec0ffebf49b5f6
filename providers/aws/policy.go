package aws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/runenv/action/providers"
)

const (
	// maxPolicyBytes is STS's bound of a session policy.
	maxPolicyBytes = 2048
	maxPolicyDepth = 12
)

// A policy is a session policy whose strings are templates.
type policy struct {
	doc       any // of Template, string, bool, json.Number, []any and map[string]any
	templates []providers.Template
}

// parsePolicy takes a mapping, or JSON text of one.
func parsePolicy(v any) (*policy, error) {
	if text, ok := v.(string); ok {
		if len(text) > 2*maxPolicyBytes {
			return nil, fmt.Errorf("has %d bytes: at most %d", len(text), maxPolicyBytes)
		}
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if v = nil; dec.Decode(&v) != nil {
			return nil, errors.New("is neither a mapping nor JSON")
		}
		if _, err := dec.Token(); err != io.EOF {
			return nil, errors.New("has something behind its JSON")
		}
	}
	doc, ok := v.(map[string]any)
	if !ok || doc["Statement"] == nil || doc["Version"] == nil {
		return nil, errors.New(`is no policy: it needs Version ("2012-10-17") and Statement`)
	}
	p := &policy{}
	var err error
	if p.doc, err = p.compile(doc, 0); err != nil {
		return nil, err
	}
	if len(p.templates) == 0 {
		_, err = p.expand(nil)
	}
	return p, err
}

func (p *policy) compile(v any, depth int) (any, error) {
	if depth > maxPolicyDepth {
		return nil, fmt.Errorf("is nested more than %d deep", maxPolicyDepth)
	}
	switch v := v.(type) {
	case string:
		if !strings.Contains(v, "{{") && !strings.Contains(v, "}}") {
			return v, nil
		}
		t, err := providers.ParseTemplate(v)
		if err != nil {
			return nil, fmt.Errorf("holds %w", err)
		}
		p.templates = append(p.templates, t)
		return t, nil
	case bool, json.Number:
		return v, nil
	case int, int64:
		return json.Number(fmt.Sprint(v)), nil
	case []any:
		out := make([]any, len(v))
		for i := range v {
			var err error
			if out[i], err = p.compile(v[i], depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for key := range v {
			var err error
			if out[key], err = p.compile(v[key], depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, errors.New("holds something else than strings, whole numbers, booleans, lists and mappings")
}

// expand gives the policy as STS takes it.
func (p *policy) expand(vars providers.Vars) (string, error) {
	doc, err := expandPolicy(p.doc, vars)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(doc) != nil {
		return "", errors.New("isn't JSON")
	}
	text := strings.TrimSuffix(b.String(), "\n")
	if len(text) > maxPolicyBytes {
		return "", fmt.Errorf("has %d bytes: at most %d", len(text), maxPolicyBytes)
	}
	return text, nil
}

func expandPolicy(v any, vars providers.Vars) (any, error) {
	switch v := v.(type) {
	case providers.Template:
		return v.Expand(vars)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			var err error
			if out[i], err = expandPolicy(v[i], vars); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for key := range v {
			var err error
			if out[key], err = expandPolicy(v[key], vars); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}
