package needle

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/secret"
)

func TestT35EasyToGuess(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		value string
		want  bool
	}{
		{"a PIN", "493817", true},
		{"seven digits", "4938170", true},
		{"eight digits", "49381705", true},
		{"nine digits", "493817052", true},
		{"a telephone number", "0301234567", true},
		{"12 digits", "493817052664", false},
		{"counting", "12345678", true},
		{"counting on", "1234567890123456789", true},
		{"counting down", "9876543210", true},
		{"one letter", "aaaaaaaa", true},
		{"one letter, long", strings.Repeat("a", maxGuess), true},
		{"one letter, longer", strings.Repeat("a", maxGuess+1), true},
		{"one letter, a file of it", strings.Repeat("a", 1<<20), true},
		{"a block, longer, and a part of it", strings.Repeat("abc1", 40) + "ab", true},
		{"a random block, longer", strings.Repeat("kX7q9vTz", 20), false},
		{"a long block, longer", strings.Repeat("kX7q9vTzP2mWcR4ye8LhJd5uNs3gBf6ax", 4), false},
		{"blocks", "true-true", true},
		{"alphabet", "abcdefghijklmnop", true},
		{"keyboard", "qwertyuiop", true},
		{"keyboard and back", "asdfghjkljhgfdsa", true},
		{"keyboard and numbers", "Qwerty123!", true},
		{"zigzag", "1q2w3e4r", true},
		{"well known", "changeme", true},
		{"well known, capitals", "CHANGEME", true},
		{"well known, a capital", "Changeme", true},
		{"well known, figures", "p@ssw0rd", true},
		{"well known, with more", "P@ssw0rd123", true},
		{"well known, a year and a sign", "Summer2026!", true},
		{"two of them", "admin-secret", true},
		{"a short word", "pepper", true},
		{"a short word, a capital", "Pepper", true},
		{"a short word, capitals", "PEPPER", true},
		{"a short word of seven letters", "lantern", true},
		{"a date", "20260131", true},
		{"a date with signs", "2026-01-31", true},
		{"a word and a date", "deploy-20260131", true},
		{"an address", "127.0.0.1", true},
		{"a user's name", "postgres", true},
		{"a user's name with a role", "app_user", true},

		{"eight letters and digits", "k7q9vtz2", false},
		{"eight letters", "kqwvtzpm", false},
		{"six of many kinds", "kX7-a%", false},
		{"a password", "hunter22", false},
		{"a pass phrase", "correct-horse-battery", false},
		{"a value with a word", "s3cr3t-value", false},
		{"hex", "9f86d081", false},
		{"no month", "deploy-20261331", false},
		{"no day", "deploy-2026-01-32", false},
		{"no such year", "deploy-18260131", false},
		{"not yet a year", "deploy-20500131", false},
		{"a generated user's name", "v-token-app-ro-x7Kq29vTzPmW", false},
		{"a URL", "https://npm.example.com", false},
		{"a URL with a weak password", "postgres://app:changeme@db.example.com/shop", false},
		{"a host", "db.example.com", false},
		{"a region", "eu-central-1", false},
		{"an ARN", "arn:aws:iam::111122223333:role/deploy", false},
		{"an object", `{"port":5432}`, false},
		{"a UUID", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", false},
		{"a letter beyond ASCII", "größe-kälte", false},
		{"one beyond ASCII", strings.Repeat("ß", 6), true},
		{"nothing", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := easyToGuess([]byte(tt.value)); got != tt.want {
				t.Errorf("easyToGuess(%.80q) = %t, want %t", tt.value, got, tt.want)
			}
		})
	}
}

// No number of six to nine digits is hard to guess.
func TestT35NumbersAreEasyToGuess(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		v := random(rnd, digits, 6+rnd.IntN(4))
		if !easyToGuess(v) {
			t.Fatalf("easyToGuess(%q) = false", v)
		}
	}
}

const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
)

func random(rnd *rand.Rand, from string, n int) []byte {
	v := make([]byte, n)
	for i := range v {
		v[i] = from[rnd.IntN(len(from))]
	}
	return v
}

// What a back end or a generator makes is never called easy to guess.
func TestRandomValuesAreHardToGuess(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50_000 {
		raw := make([]byte, 16)
		for i := range raw {
			raw[i] = byte(rnd.Uint32())
		}
		for _, v := range [][]byte{
			raw,
			[]byte(hex.EncodeToString(raw)),
			[]byte(base64.StdEncoding.EncodeToString(raw)),
			[]byte(base64.RawURLEncoding.EncodeToString(raw)),
			random(rnd, lower+digits, 16),
			random(rnd, lower, 16),
			random(rnd, digits, 20),
			pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: raw}),
		} {
			if easyToGuess(v) {
				t.Fatalf("easyToGuess(%q) = true", v)
			}
		}
	}
}

// Eight random letters and digits pass, but for one or two in a thousand, which
// happen to hold a year or a word.
func TestEightRandomLettersAndDigitsAreHardToGuess(t *testing.T) {
	t.Parallel()
	const tries = 100_000
	rnd := rand.New(rand.NewPCG(5, 6))
	easy := 0
	for range tries {
		if easyToGuess(random(rnd, lower+digits, 8)) {
			easy++
		}
	}
	if easy > tries/500 {
		t.Errorf("%d of %d are called easy to guess", easy, tries)
	} else {
		t.Logf("%d of %d are called easy to guess", easy, tries)
	}
}

// A random tail makes anything hard to guess.
func FuzzEasyToGuess(f *testing.F) {
	for _, v := range []string{"", "12345678", "changeme", "true-true", "2026-01-31", "19", "2026-", "kX7q9vTz", "P@ssw0rd\x00\xff", strings.Repeat("ab", 40)} {
		f.Add([]byte(v), uint64(1))
	}
	f.Fuzz(func(t *testing.T, v []byte, seed uint64) {
		before := bytes.Clone(v)
		got := easyToGuess(v)
		if easyToGuess(v) != got || !bytes.Equal(v, before) {
			t.Fatalf("easyToGuess(%q) says two things, or changes the value", before)
		}
		longer := append(before, random(rand.New(rand.NewPCG(seed, 7)), lower+digits, 20)...)
		if easyToGuess(longer) {
			t.Errorf("easyToGuess(%q) = true", longer)
		}
	})
}

// The words are where they are looked for, and are found.
func TestWordsAreFound(t *testing.T) {
	t.Parallel()
	n := 0
	for i, list := range words {
		for _, w := range list {
			n++
			if len(w) < 3 || letter(w[0]) != byte(i) {
				t.Errorf("%q stands at %q", w, rune(i))
			}
			if got := word([]byte(w)); got != len(w) {
				t.Errorf("word(%q) = %d", w, got)
			}
			if got := word([]byte(strings.ToUpper(w) + "\x00")); got != len(w) {
				t.Errorf("word(%q) = %d", strings.ToUpper(w), got)
			}
		}
	}
	if n > 128 {
		t.Errorf("%d words: each counts as two choices, and every job downloads them", n)
	}
}

func TestWeak(t *testing.T) {
	t.Parallel()
	var secrets []Secret
	for _, s := range [][2]string{
		{"one", "1"}, {"five", "12345"}, {"padded", " 12345\n"}, {"six", "kX7-9v"}, {"easy", "\t123456\n"}, {"empty", ""}, {"space", " "},
		{"lines", "12\n34\n56\nk7q"}, {"one", "2"}, {"easy", "changeme"}, {"both", "true-true"}, {"both", "true"}, {"hard", "k7q9vtz2"},
	} {
		secrets = append(secrets, Secret{Lease: s[0], Value: secret.FromString(s[1])})
	}
	for _, part := range []string{"5432", "postgres"} {
		secrets = append(secrets, Secret{Lease: "url", Value: secret.FromString(part), Part: true})
	}
	want := []Weakness{
		{Lease: "one", Short: true}, {Lease: "five", Short: true}, {Lease: "padded", Short: true}, {Lease: "easy", Easy: true},
		{Lease: "space", Short: true}, {Lease: "both", Short: true, Easy: true},
	}
	if diff := cmp.Diff(want, Weak(secrets)); diff != "" {
		t.Errorf("Weak() (-want +got):\n%s", diff)
	}
}

func BenchmarkEasyToGuess(b *testing.B) {
	large, err := json.Marshal(map[string]string{"key": strings.Repeat("kX7q9vTz", 1<<14)})
	if err != nil {
		b.Fatal(err)
	}
	for name, v := range map[string]string{
		"random": "kX7q9vTzP2mWcR4ye8LhJd5uNs3gBf6a", "easy": "P@ssw0rd123", "repeats": strings.Repeat("ab", maxGuess/2),
		"digits": "12121121112111121111121111112111111121111111121111111112", "large": string(large),
	} {
		b.Run(name, func(b *testing.B) {
			value := []byte(v)
			for b.Loop() {
				easyToGuess(value)
			}
		})
	}
}
