package secret_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/runenv/action/secret"
)

const canary = "c4n4ry-value"

func TestT18ValueIsNeverShown(t *testing.T) {
	v := secret.FromString(canary)
	type hidden struct{ v secret.Value }
	type nested struct {
		V secret.Value
		P *secret.Value
		M map[string]secret.Value
	}
	n := nested{v, &v, map[string]secret.Value{"a": v}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%08b"} {
		for _, x := range []any{v, &v, hidden{v}, &hidden{v}, n, &n, []secret.Value{v}, fmt.Errorf("wrap: %v", v)} {
			fmt.Fprintf(&out, verb+"\n", x)
		}
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("m", "v", v, "p", &v, "n", n, slog.Group("g", "v", v))
	}
	hexed := fmt.Sprintf("%x", canary)
	for _, bad := range []string{canary, hexed, strings.ToUpper(hexed), fmt.Sprint([]byte(canary))} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("output holds %q:\n%s", bad, out.String())
		}
	}
}

func TestMarshalFails(t *testing.T) {
	v := secret.FromString(canary)
	for name, marshal := range map[string]func() error{
		"json":        func() error { _, err := json.Marshal(v); return err },
		"json nested": func() error { _, err := json.Marshal(struct{ V any }{v}); return err },
		"gob":         func() error { return gob.NewEncoder(new(bytes.Buffer)).Encode(v) },
	} {
		if err := marshal(); !errors.Is(err, secret.ErrMarshal) {
			t.Errorf("%s: err = %v, want %v", name, err, secret.ErrMarshal)
		}
	}
}

func TestRevealEqualWipe(t *testing.T) {
	v := secret.New([]byte("abc"))
	w := v
	if got := string(v.Reveal()); got != "abc" {
		t.Errorf("Reveal() = %q, want abc", got)
	}
	if !v.Equal(secret.FromString("abc")) || v.Equal(secret.FromString("abd")) || v.Equal(secret.Value{}) {
		t.Error("Equal is wrong")
	}
	v.Wipe()
	if got := string(w.Reveal()); got != "\x00\x00\x00" {
		t.Errorf("after Wipe a copy reveals %q, want zeros", got)
	}
	if (secret.Value{}).Len() != 0 {
		t.Error("the zero Value isn't empty")
	}
}
