package static_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/providers/static"
)

const canary = "c4n4ry-static"

func open(t *testing.T) providers.Provider { return openWith(t, nil) }

func openWith(t *testing.T, keys map[string]any) providers.Provider {
	t.Helper()
	p, err := static.Type().Open(providers.Config{Name: "local", Decode: providertest.Keys(keys)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	want := map[string]string{"user": canary + "-user", "password": canary + "\n\x00%'\""}
	values := map[string]any{}
	for name, v := range want {
		values[name] = v
	}
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Backend {
		return &providertest.Backend{
			Provider:     open(t),
			Define:       providertest.Keys(map[string]any{"values": values}),
			Fields:       maps.Clone(want),
			Revocability: providers.Static,
			Canaries:     []string{canary},
		}
	}})
}

func TestDefineRefuses(t *testing.T) {
	tests := []struct {
		name string
		keys map[string]any
		want string
	}{
		{"no values", nil, "needs `values:`"},
		{"an empty map", map[string]any{"values": map[string]any{}}, "needs `values:`"},
		{"an unknown key", map[string]any{"values": map[string]any{"a": canary}, "ttl": "1h"}, "unknown key ttl"},
		{"an empty value", map[string]any{"values": map[string]any{"a": ""}}, `"a" is empty`},
		{"an empty name", map[string]any{"values": map[string]any{"": canary}}, "field name"},
		{"a name with a blank", map[string]any{"values": map[string]any{"a b": canary}}, "field name"},
		{"a name of 129 letters", map[string]any{"values": map[string]any{strings.Repeat("a", 129): canary}}, "field name"},
		{"too much", map[string]any{"values": map[string]any{"a": strings.Repeat("x", providers.MaxCredentialBytes)}}, "at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := open(t).Define(providertest.Keys(tt.keys))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("Define = %v, want one with %q and no value", err, tt.want)
			}
		})
	}
}

func TestOpenRefusesKeys(t *testing.T) {
	_, err := static.Type().Open(providers.Config{Name: "local", Decode: providertest.Keys(map[string]any{"address": "x"})})
	if err == nil || !strings.Contains(err.Error(), "unknown key address") {
		t.Errorf("Open = %v, want a refusal of the unknown key", err)
	}
}

// One byte is a value, and so is the most that fits.
func TestSizes(t *testing.T) {
	for _, n := range []int{1, 1 << 20, providers.MaxCredentialBytes - 1} {
		p := open(t)
		def, err := p.Define(providertest.Keys(map[string]any{"values": map[string]any{"a": strings.Repeat("x", n)}}))
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		cred, err := p.Issue(t.Context(), providers.Request{Definition: def})
		if err != nil || cred.Fields["a"].Len() != n {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
