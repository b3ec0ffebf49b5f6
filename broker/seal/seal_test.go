package seal_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/runenv/action/broker/seal"
)

var field = seal.Field{Table: "keys", Row: "k1", Column: "private"}

func mustSeal(t testing.TB, s seal.Sealer, f seal.Field, plain []byte) []byte {
	t.Helper()
	sealed, err := seal.Seal(t.Context(), s, f, plain)
	if err != nil {
		t.Fatalf("Seal(%v) = %v", f, err)
	}
	return sealed
}

func TestSealedFieldOpensWhereItWasSealed(t *testing.T) {
	t.Parallel()
	s := seal.Ephemeral()
	for _, n := range []int{0, 1, 16, 1200, 64 << 10} {
		plain := bytes.Repeat([]byte("x"), n)
		sealed := mustSeal(t, s, field, plain)
		got, err := seal.Open(t.Context(), s, field, sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("Open(Seal(%d bytes)) = %d bytes, %v, want them back", n, len(got), err)
		}
		if n >= 16 && bytes.Contains(sealed, plain[:16]) {
			t.Errorf("Seal(%d bytes) shows its plain bytes", n)
		}
		if bytes.Equal(sealed, mustSeal(t, s, field, plain)) {
			t.Errorf("two seals of %d bytes are the same", n)
		}
	}
}

func TestKeyOutlivesTheProcessThatSealed(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte{7}, seal.KeyBytes)
	first, err := seal.NewKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	sealed := mustSeal(t, first, field, []byte("kept"))

	second, err := seal.ParseKey(base64.StdEncoding.EncodeToString(raw))
	if err != nil {
		t.Fatal(err)
	}
	clear(raw) // the caller's copy is the caller's to wipe
	for _, s := range []seal.Sealer{first, second} {
		if got, err := seal.Open(t.Context(), s, field, sealed); err != nil || string(got) != "kept" {
			t.Errorf("Open = %q, %v, want kept", got, err)
		}
	}
}

// A thief who may write to the database but holds no key could otherwise move
// a value to where a lesser check reads it.
func TestCiphertextIsBoundToItsPlace(t *testing.T) {
	t.Parallel()
	s := seal.Ephemeral()
	sealed := mustSeal(t, s, field, []byte("private"))
	for name, other := range map[string]seal.Field{
		"other table":             {Table: "leases", Row: "k1", Column: "private"},
		"other row":               {Table: "keys", Row: "k2", Column: "private"},
		"other column":            {Table: "keys", Row: "k1", Column: "public"},
		"same letters, table/row": {Table: "key", Row: "sk1", Column: "private"},
		"same letters, row/col":   {Table: "keys", Row: "k1p", Column: "rivate"},
		"row and column swapped":  {Table: "keys", Row: "private", Column: "k1"},
	} {
		if got, err := seal.Open(t.Context(), s, other, sealed); !errors.Is(err, seal.ErrOpen) || got != nil {
			t.Errorf("%s: Open = %q, %v, want ErrOpen", name, got, err)
		}
	}
}

func TestAlteredBytesDontOpen(t *testing.T) {
	t.Parallel()
	s := seal.Ephemeral()
	sealed := mustSeal(t, s, field, []byte("private"))
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := seal.Open(t.Context(), s, field, bad); !errors.Is(err, seal.ErrOpen) {
			t.Fatalf("bit %d flipped: Open = %v, want ErrOpen", i, err)
		}
	}
	for i := range sealed {
		if _, err := seal.Open(t.Context(), s, field, sealed[:i]); !errors.Is(err, seal.ErrOpen) {
			t.Fatalf("cut to %d bytes: Open = %v, want ErrOpen", i, err)
		}
	}
	if _, err := seal.Open(t.Context(), s, field, append(sealed, 0)); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("a byte appended: Open = %v, want ErrOpen", err)
	}
}

func TestWrongKeyNamesTheCureAndNothingElse(t *testing.T) {
	t.Parallel()
	sealed := mustSeal(t, seal.Ephemeral(), field, []byte("private"))
	_, wrongKey := seal.Open(t.Context(), seal.Ephemeral(), field, sealed)
	_, junk := seal.Open(t.Context(), seal.Ephemeral(), field, []byte("junk"))
	if !errors.Is(wrongKey, seal.ErrOpen) || junk == nil || wrongKey.Error() != junk.Error() {
		t.Errorf("a wrong key says %q and junk %q, want one and the same ErrOpen", wrongKey, junk)
	}
	if strings.Contains(wrongKey.Error(), field.Row) {
		t.Errorf("%q names the row", wrongKey)
	}
	var hint interface{ Hint() string }
	if !errors.As(wrongKey, &hint) || !strings.Contains(hint.Hint(), "`seal`") {
		t.Errorf("%v gives no hint that names the setting", wrongKey)
	}
}

func TestKeysAreExact(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte{0xfb}, seal.KeyBytes)
	good := base64.StdEncoding.EncodeToString(raw)
	if _, err := seal.ParseKey(good); err != nil {
		t.Fatalf("ParseKey of a good key = %v", err)
	}
	for name, text := range map[string]string{
		"empty":              "",
		"31 bytes":           base64.StdEncoding.EncodeToString(raw[:31]),
		"33 bytes":           base64.StdEncoding.EncodeToString(append(bytes.Clone(raw), 0xfb)),
		"the raw bytes":      string(raw),
		"hex":                strings.Repeat("fb", 32),
		"URL alphabet":       base64.URLEncoding.EncodeToString(raw),
		"no padding":         base64.RawStdEncoding.EncodeToString(raw),
		"final newline":      good + "\n",
		"newline inside":     good[:20] + "\n" + good[21:],
		"space before":       " " + good,
		"stray final bits":   good[:42] + "/=",
		"a passphrase of 44": strings.Repeat("secret passphrase", 3)[:44],
	} {
		s, err := seal.ParseKey(text)
		if err == nil || s != nil {
			t.Errorf("%s: ParseKey accepted it", name)
			continue
		}
		if text != "" && (strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "fbfb")) {
			t.Errorf("%s: the error holds the key", name)
		}
		var hint interface{ Hint() string }
		if !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "rand") {
			t.Errorf("%s: %v gives no hint how to make a key", name, err)
		}
	}
	for _, n := range []int{0, 16, 24, 31, 33, 64} {
		if _, err := seal.NewKey(make([]byte, n)); err == nil {
			t.Errorf("NewKey accepted %d bytes", n)
		}
	}
}

func TestT18SealerCantBePrinted(t *testing.T) {
	t.Parallel()
	raw := []byte("0123456789abcdefCANARY0123456789")
	s, err := seal.NewKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		got := fmt.Sprintf(verb, s)
		for _, shown := range []string{"CANARY", fmt.Sprintf("%x", "CANARY"), fmt.Sprint([]byte("CANARY"))[1:15]} {
			if strings.Contains(got, shown) {
				t.Errorf("Sprintf(%s) shows the key", verb)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := seal.Ephemeral()
	for _, f := range []seal.Field{{Row: "r", Column: "c"}, {Table: "t", Column: "c"}, {Table: "t", Row: "r"}} {
		if _, err := seal.Seal(t.Context(), s, f, nil); err == nil {
			t.Errorf("Seal(%+v) was accepted", f)
		}
		if _, err := seal.Open(t.Context(), s, f, nil); err == nil {
			t.Errorf("Open(%+v) was accepted", f)
		}
	}
	if _, err := seal.Seal(t.Context(), s, field, make([]byte, 64<<10+1)); err == nil {
		t.Error("Seal accepted a field over its limit")
	}
	if _, err := seal.Seal(t.Context(), nil, field, nil); err == nil {
		t.Error("Seal without a Sealer succeeded")
	}
	if _, err := seal.Open(t.Context(), nil, field, nil); err == nil {
		t.Error("Open without a Sealer succeeded")
	}
}

// service stands for a key service, which can be out of reach, or give a
// cipher that reuses a nonce.
type service struct {
	aead cipher.AEAD
	err  error
}

func (s service) Cipher(ctx context.Context) (cipher.AEAD, error) {
	return s.aead, errors.Join(s.err, ctx.Err())
}

func TestKeyServiceInTrouble(t *testing.T) {
	t.Parallel()
	down := errors.New("key service out of reach")
	if _, err := seal.Open(t.Context(), service{err: down}, field, nil); !errors.Is(err, down) || errors.Is(err, seal.ErrOpen) {
		t.Errorf("Open with the service down = %v, want its error and not ErrOpen", err)
	}
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	plainGCM, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Seal(t.Context(), service{aead: plainGCM}, field, []byte("x")); err == nil {
		t.Error("Seal used a cipher that wants its nonce from outside")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := seal.Seal(ctx, service{}, field, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Seal after cancel = %v, want context.Canceled", err)
	}
}

func FuzzOpen(f *testing.F) {
	s := seal.Ephemeral()
	genuine := mustSeal(f, s, field, []byte("private"))
	f.Add("keys", "k1", "private", genuine)
	f.Add("keys", "k1", "private", genuine[:20])
	f.Add("keys", "k1p", "rivate", genuine)
	f.Add("", "", "", []byte{})
	f.Fuzz(func(t *testing.T, table, row, column string, sealed []byte) {
		at := seal.Field{Table: table, Row: row, Column: column}
		got, err := seal.Open(t.Context(), s, at, sealed)
		if err == nil && (at != field || !bytes.Equal(sealed, genuine) || string(got) != "private") {
			t.Errorf("Open(%q, %x) gave %q, though only one seal was ever made", at, sealed, got)
		}
	})
}
