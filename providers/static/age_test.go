package static_test

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/providers/static"
)

func newIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// encrypt is `age --armor`.
func encrypt(t testing.TB, plain string, to ...age.Recipient) string {
	t.Helper()
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, to...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestConformanceEncrypted(t *testing.T) {
	id, other := newIdentity(t), newIdentity(t)
	want := map[string]string{"user": canary + "-user", "password": canary + "\n\x00%'\"", "line": canary + "-line"}
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Backend {
		return &providertest.Backend{
			Provider: openWith(t, map[string]any{"identity": "# created: today\n# public key: x\n\n" + other.String() + "\n" + id.String() + "\n"}),
			Define: providertest.Keys(map[string]any{
				"values": map[string]any{"user": want["user"]},
				"age":    map[string]any{"password": encrypt(t, want["password"], id.Recipient()), "line": encrypt(t, want["line"]+"\n", other.Recipient())},
			}),
			Fields:       maps.Clone(want),
			Revocability: providers.Static,
			Canaries:     []string{canary, id.String(), other.String()},
		}
	}})
}

func TestT18EncryptedRefusals(t *testing.T) {
	id, other := newIdentity(t), newIdentity(t)
	good := encrypt(t, canary, id.Recipient())
	scrypt, err := age.NewScryptRecipient(canary)
	if err != nil {
		t.Fatal(err)
	}
	scrypt.SetWorkFactor(10)
	lines := strings.SplitAfter(good, "\n")
	change := func(i int) string {
		changed := slices.Clone(lines)
		changed[i] = flip(changed[i])
		return strings.Join(changed, "")
	}
	tests := []struct {
		name string
		keys map[string]any
		want string
	}{
		{"encrypted to another", map[string]any{"age": map[string]any{"a": encrypt(t, canary, other.Recipient())}}, `field "a" isn't encrypted to the`},
		{"by a passphrase", map[string]any{"age": map[string]any{"a": encrypt(t, canary, scrypt)}}, `field "a" isn't encrypted to the`},
		{"the value itself", map[string]any{"age": map[string]any{"a": canary}}, "key age.a: not age-encrypted"},
		{"cut off", map[string]any{"age": map[string]any{"a": good[:len(good)-60]}}, "its armor isn't whole"},
		{"followed by more", map[string]any{"age": map[string]any{"a": good + canary}}, "its armor isn't whole"},
		{"changed in the header", map[string]any{"age": map[string]any{"a": change(2)}}, `field "a" can't be decrypted`},
		{"changed at the end", map[string]any{"age": map[string]any{"a": change(len(lines) - 3)}}, `field "a" can't be decrypted: it was changed`},
		{"empty inside", map[string]any{"age": map[string]any{"a": encrypt(t, "\n", id.Recipient())}}, `field "a" is empty`},
		{"too big inside", map[string]any{"age": map[string]any{"a": encrypt(t, strings.Repeat("x", 64<<10+1), id.Recipient())}}, "over 64 KiB"},
		{"too big", map[string]any{"age": map[string]any{"a": armor.Header + strings.Repeat("\n", 128<<10)}}, "over 128 KiB"},
		{"twice", map[string]any{"values": map[string]any{"a": canary}, "age": map[string]any{"a": good}}, `field "a" stands under`},
		{"a bad name", map[string]any{"age": map[string]any{"a b": good}}, "field name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := openWith(t, map[string]any{"identity": id.String()}).Define(providertest.Keys(tt.keys))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "AGE-SECRET") {
				t.Errorf("Define = %v, want one with %q and no value", err, tt.want)
			}
		})
	}
	if _, err := open(t).Define(providertest.Keys(map[string]any{"age": map[string]any{"a": good}})); err == nil || !strings.Contains(err.Error(), "needs an `identity`") {
		t.Errorf("Define without an identity = %v, want the cure", err)
	}
	for _, bad := range []string{canary, "AGE-SECRET-KEY-1" + canary, "# only a comment", id.Recipient().String()} {
		_, err := static.Type().Open(providers.Config{Name: "local", Decode: providertest.Keys(map[string]any{"identity": bad})})
		if err == nil || !strings.Contains(err.Error(), "`identity` holds no age identity") || strings.Contains(err.Error(), canary) {
			t.Errorf("Open(%q) = %v, want a refusal without the value", bad, err)
		}
	}
}

// flip changes one letter in the middle of a line.
func flip(line string) string {
	b := []byte(line)
	if i := len(b) / 2; b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

// Sizes up to the limit are values.
func TestEncryptedSizes(t *testing.T) {
	id := newIdentity(t)
	for _, n := range []int{1, 64 << 10} {
		def, err := openWith(t, map[string]any{"identity": id.String()}).Define(providertest.Keys(map[string]any{
			"age": map[string]any{"a": encrypt(t, strings.Repeat("x", n), id.Recipient())},
		}))
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		p := open(t)
		if cred, err := p.Issue(t.Context(), providers.Request{Definition: def}); err != nil || cred.Fields["a"].Len() != n {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Whatever stands under `age:`, the error repeats none of it, and what is
// accepted is bounded.
func FuzzEncrypted(f *testing.F) {
	id := newIdentity(f)
	f.Add(encrypt(f, "c4n4ry-inside", id.Recipient()))
	f.Add(armor.Header + "\n" + armor.Footer)
	f.Add("c4n4ry-plain")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		p := openWith(t, map[string]any{"identity": id.String()})
		def, err := p.Define(providertest.Keys(map[string]any{"age": map[string]any{"a": text}}))
		if err != nil {
			if len(text) > 40 && strings.Contains(err.Error(), text) {
				t.Errorf("the error repeats the value: %v", err)
			}
			return
		}
		cred, err := p.Issue(t.Context(), providers.Request{Definition: def})
		if err != nil || cred.Fields["a"].Len() == 0 || cred.Fields["a"].Len() > 64<<10 {
			t.Errorf("Issue = %v", err)
		}
	})
}
