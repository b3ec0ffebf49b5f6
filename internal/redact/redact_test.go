package redact_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

func secrets(leaseAndValue ...string) []redact.Secret {
	var s []redact.Secret
	for i := 0; i < len(leaseAndValue); i += 2 {
		s = append(s, redact.Secret{Lease: leaseAndValue[i], Value: secret.FromString(leaseAndValue[i+1])})
	}
	return s
}

// pieces writes text in pieces of n bytes and returns what came out.
func pieces(t *testing.T, r *redact.Redactor, text string, n int) string {
	t.Helper()
	var out bytes.Buffer
	w := r.Writer(&out)
	for rest := text; rest != ""; {
		k := min(n, len(rest))
		if got, err := io.WriteString(w, rest[:k]); got != k || err != nil {
			t.Fatalf("Write = %d, %v, want %d, nil", got, err, k)
		}
		rest = rest[k:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestRedact(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef-", 40)
	tests := []struct {
		name    string
		secrets []redact.Secret
		in      string
		want    string
	}{
		{"nothing to hide", nil, "some text", "some text"},
		{"no hit", secrets("db", "hunter22"), "some text", "some text"},
		{"a hit", secrets("db", "hunter22"), "a hunter22 b", "a [REDACTED:db] b"},
		{"at both ends", secrets("db", "hunter22"), "hunter22 hunter22", "[REDACTED:db] [REDACTED:db]"},
		{"near miss", secrets("db", "hunter22"), "hunter2 hunter23 unter22", "hunter2 hunter23 unter22"},
		{"six bytes", secrets("db", "abcdef"), "xabcdefx", "x[REDACTED:db]x"},
		{"five bytes can't", secrets("db", "abcde"), "abcde", "abcde"},
		{"longest first", secrets("a", "prefix", "b", "prefix-and-more"), "prefix-and-more prefix", "[REDACTED:b] [REDACTED:a]"},
		{"touching, two leases", secrets("a", "secretA", "b", "secretB"), "secretAsecretB", "[REDACTED:a][REDACTED:b]"},
		{"touching, one lease", secrets("a", "secretA"), "secretAsecretA.", "[REDACTED:a]."},
		{"overlapping, two leases", secrets("a", "xxSECRET", "b", "SECRETyy"), "-xxSECRETyy-", "-[REDACTED:a]-"},
		{"contained", secrets("a", "outer-INNERS-outer", "b", "INNERS"), "outer-INNERS-outer INNERS", "[REDACTED:a] [REDACTED:b]"},
		{"overlaps itself", secrets("a", "abcabcabd"), "abcabcabcabd", "abc[REDACTED:a]"},
		{"overlaps itself twice", secrets("a", "abcabcab"), "abcabcabcabcabX", "[REDACTED:a]X"},
		{"the same value twice", secrets("a", "hunter22", "b", "hunter22"), "hunter22", "[REDACTED:a]"},
		{"lines of a value", secrets("pem", "first line\r\n  second line\nthird one\n"), "> second line <\nfirst line\nthird one\n", "> [REDACTED:pem] <\n[REDACTED:pem]\n[REDACTED:pem]\n"},
		{"a line too short to hide alone", secrets("j", "{\n\"key\": 1\n}"), "{\n\"key\": 1\n}", "[REDACTED:j]"},
		{"short lines, ended as Windows does", secrets("j", "{\n\"key\": 1\n}"), "{\r\n\"key\": 1\r\n}", "[REDACTED:j]"},
		{"a value with such ends, printed without", secrets("j", "{\r\n\"key\": 1\r\n}"), "{\n\"key\": 1\n}", "[REDACTED:j]"},
		{"what frames a key is no secret", secrets("k", "-----BEGIN KEY-----\nAbCdEfGh\n-----END KEY-----\n"), "-----BEGIN KEY-----\nAbCdEfGh\n-----END KEY-----\n", "-----BEGIN KEY-----\n[REDACTED:k]\n-----END KEY-----\n"},
		{"a value that looks so", secrets("k", "-----VALUE-----"), "<-----VALUE----->", "<[REDACTED:k]>"},
		{"final newline", secrets("a", "hunter22\n"), "hunter22.", "[REDACTED:a]."},
		{"NUL and high bytes", secrets("a", "\x00\x01\xff\xfe\x00\x00"), "-\x00\x01\xff\xfe\x00\x00-", "-[REDACTED:a]-"},
		{"long", secrets("a", long), "x" + long + "y", "x[REDACTED:a]y"},
		{"a head of a long one", secrets("a", long), long[:64] + "|", "[REDACTED:a]|"},
		{"empty value", secrets("a", ""), "text", "text"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := redact.New(tt.secrets)
			if got := string(r.Bytes([]byte(tt.in))); got != tt.want {
				t.Errorf("Bytes(%q) = %q, want %q", tt.in, got, tt.want)
			}
			for n := 1; n <= len(tt.in); n++ {
				if got := pieces(t, r, tt.in, n); got != tt.want {
					t.Errorf("in pieces of %d: %q, want %q", n, got, tt.want)
				}
			}
		})
	}
}

// nasty are values with what encoders treat specially.
var nasty = []string{
	"hunter22",
	`qu"ote\back/slash`,
	"100%&<sure>+ =?",
	"tab\there",
	"bell\x07\x1b[0m",
	"пароль-日本-🔑",
	"a/б/\"日\"",
	"line sep\u2028end",
	"~!'()*;:@$,#[]",
	"????>>>>~~~~",
	"\x00\x00\x00\x00\x00\x00\x01",
	"bad\xff\xfeutf8",
}

// asPython escapes as json.dumps does.
func asPython(v string) string {
	var b strings.Builder
	for _, r := range v {
		if r > 0xffff {
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		} else if r > '~' {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func goJSON(t *testing.T, v string, html bool) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(html)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(b.String()), `"`), `"`)
}

// Each form is made by the standard library, not by the code under test.
func TestT18EncodingsAreHidden(t *testing.T) {
	t.Parallel()
	for _, v := range nasty {
		r := redact.New(secrets("k", v))
		forms := map[string]string{
			"plain":            v,
			"hex":              hex.EncodeToString([]byte(v)),
			"HEX":              strings.ToUpper(hex.EncodeToString([]byte(v))),
			"query":            url.QueryEscape(v),
			"path":             url.PathEscape(v),
			"query, %20":       strings.ReplaceAll(url.QueryEscape(v), "+", "%20"),
			"JSON by Go":       goJSON(t, v, true),
			"JSON, minimal":    goJSON(t, v, false),
			"JSON, \\/":        strings.ReplaceAll(goJSON(t, v, false), "/", `\/`),
			"JSON by Python":   asPython(goJSON(t, v, false)),
			"userinfo":         strings.TrimSuffix(strings.TrimPrefix(url.UserPassword("", v).String(), ":"), "@"),
			"lower-case query": lowerPercent(url.QueryEscape(v)),
		}
		for form, text := range forms {
			got := string(r.Bytes([]byte("<" + text + ">")))
			if got != "<[REDACTED:k]>" {
				t.Errorf("%q as %s: %q becomes %q", v, form, text, got)
			}
		}
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
			for before := range 6 {
				for after := range 4 {
					text := enc.EncodeToString([]byte(strings.Repeat("u", before) + v + strings.Repeat("p", after)))
					got := string(r.Bytes([]byte(text)))
					// At most the two characters that hold bits of both remain on
					// each side, beside those of the neighbours.
					if left := len(got) - len("[REDACTED:k]"); !strings.Contains(got, "[REDACTED:k]") || left > 4+(before+after)*4/3+4 {
						t.Errorf("%q in base64 %q becomes %q", v, text, got)
					}
				}
			}
		}
	}
}

// lowerPercent gives the escapes lower-case digits.
func lowerPercent(s string) string {
	b := []byte(s)
	for i := 0; i < len(b); i++ {
		if b[i] == '%' {
			copy(b[i:], bytes.ToLower(b[i:i+3]))
			i += 2
		}
	}
	return string(b)
}

// What the programs print that are named; seen once from each.
func TestT18ProgramsEscapesAreHidden(t *testing.T) {
	t.Parallel()
	const odd = `it's a "test" $x` + " `y` !z #"
	tests := []struct{ program, value, text string }{
		{"bash set -x", odd, `'it'\''s a "test" $x` + " `y` !z #'"},
		{"Python shlex.quote", odd, `'it'"'"'s a "test" $x` + " `y` !z #'"},
		{"bash export -p", odd, `"it's a \"test\" \$x` + " \\`y\\` !z #\""},
		{"bash printf %q", odd, `it\'s\ a\ \"test\"\ \$x\ ` + "\\`y\\`\\ \\!z\\ #"},
		{"bash ${v@Q}, a control character", "it's\ta \x1btest", `$'it\'s\ta \Etest'`},
		{"bash ${v@Q}, LC_ALL=C", "пароль", `$'\320\277\320\260\321\200\320\276\320\273\321\214'`},
		{"Ruby Shellwords.escape", "a=b c%d^e~f", `a\=b\ c\%d\^e\~f`},
		{"Perl quotemeta", "a=b-c.d/e", `a\=b\-c\.d\/e`},
		{"dash export -p", "back'q'", `'back'"'"'q'"'"`},
		{"Python repr", "it's \\ \"x\"\x1b\u00a0.", `'it\'s \\ "x"\x1b\xa0.'`},
		{"Python ascii", "café-пароль", `'caf\xe9-\u043f\u0430\u0440\u043e\u043b\u044c'`},
		{"Python bytes", "пароль", `b'\xd0\xbf\xd0\xb0\xd1\x80\xd0\xbe\xd0\xbb\xd1\x8c'`},
		{"Python quote", "a/b c=d", "a/b%20c%3Dd"},
		{"Node inspect", "esc\x1b[0m\vbell\x07", `'esc\x1B[0m\x0Bbell\x07'`},
		{"Python html.escape", `a<b>&"c'`, "a&lt;b&gt;&amp;&quot;c&#x27;"},
		{"an XML encoder", `a<b>&"c'`, "a&lt;b&gt;&amp;&quot;c&apos;"},
		{"Go html.EscapeString", `a<b>&"c'`, html.EscapeString(`a<b>&"c'`)},
	}
	for _, v := range nasty {
		tests = append(tests, []struct{ program, value, text string }{
			{"Go %q", v, strconv.Quote(v)},
			{"Go %+q", v, strconv.QuoteToASCII(v)},
			{"Go %x", v, fmt.Sprintf("%x %X", v, v)},
		}...)
	}
	for _, tt := range tests {
		got := string(redact.New(secrets("k", tt.value)).Bytes([]byte(tt.text)))
		if left := strings.Trim(strings.ReplaceAll(got, "[REDACTED:k]", ""), `$b'" `); left != "" {
			t.Errorf("%s of %q: %s becomes %s", tt.program, tt.value, tt.text, got)
		}
	}
}

func TestT18WrappedEncodings(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for i := range 100 {
		fmt.Fprintf(&all, "%d;", i*i)
	}
	for _, enc := range []struct {
		name   string
		encode func([]byte) string
		width  int
	}{
		{"openssl base64", base64.StdEncoding.EncodeToString, 64},
		{"base64", base64.StdEncoding.EncodeToString, 76},
		{"xxd -p", hex.EncodeToString, 60},
	} {
		for n := 30; n < 160; n++ {
			v := all.String()[:n]
			r := redact.New(secrets("k", v))
			text := enc.encode([]byte(v))
			for _, eol := range []string{"\n", "\r\n"} {
				var in []string
				for line := range slices.Chunk([]byte(text), enc.width) {
					in = append(in, string(line))
				}
				got := string(r.Bytes([]byte("<" + strings.Join(in, eol) + eol + ">")))
				// A short last line shares the marker of the line before.
				if left := strings.NewReplacer("[REDACTED:k]", "", eol, "").Replace(got); left != "<>" {
					t.Errorf("%s of %d bytes: %q", enc.name, n, got)
				}
			}
		}
	}
}

// A prompt without a newline must be seen before its answer is typed.
func TestPromptsAreNotHeldBack(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := redact.New(secrets("a", "hunter22", "b", "multi-line-1\nmulti-line-2")).Writer(&out)
	shows := func(write, want string) {
		t.Helper()
		out.Reset()
		if _, err := io.WriteString(w, write); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("after %q: %q, want %q", write, out.String(), want)
		}
	}
	shows("Password: ", "Password: ")
	shows("Continue? [y/N] hun", "Continue? [y/N] ")
	shows("gry", "hungry")
	shows("multi-line-1", "[REDACTED:b]")
	shows("\n", "\n")
	shows("hunter2", "")
	shows("2", "[REDACTED:a]")
	shows("2", "2")
}

// A matcher that starts over after a mismatch would lose the head that begins
// inside it.
func TestT18SelfOverlappingAcrossWrites(t *testing.T) {
	t.Parallel()
	const value = "abcabdabcabe"
	r := redact.New(secrets("k", value))
	text := "abcab" + value + "abcabdabcabd" + "abcabe" + "!"
	want := "abcab[REDACTED:k]abcabd[REDACTED:k]!"
	for i := range text {
		for j := i; j < len(text); j++ {
			var out bytes.Buffer
			w := r.Writer(&out)
			for _, part := range []string{text[:i], text[i:j], text[j:]} {
				if _, err := io.WriteString(w, part); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if out.String() != want {
				t.Fatalf("split at %d and %d: %q, want %q", i, j, out.String(), want)
			}
		}
	}
}

func TestLargeValue(t *testing.T) {
	t.Parallel()
	rnd := rand.NewChaCha8([32]byte{1})
	v := make([]byte, 256<<10)
	_, _ = rnd.Read(v)
	v = bytes.ReplaceAll(v, []byte("\n"), []byte("n"))
	v[0], v[len(v)-1] = 'x', 'x'
	r := redact.New([]redact.Secret{{Lease: "big", Value: secret.New(v)}})
	for name, text := range map[string]string{
		"plain":  string(v),
		"hex":    hex.EncodeToString(v),
		"base64": base64.RawStdEncoding.EncodeToString(v[:len(v)/3*3]),
	} {
		got := pieces(t, r, "<"+text+">", 4099)
		if want := "<[REDACTED:big]>"; len(got) > len(want)+4 || !strings.HasPrefix(got, "<[REDACTED:big]") {
			t.Errorf("%s: %d bytes remain, %.40q", name, len(got), got)
		}
	}
}

func TestManyWritersAtOnce(t *testing.T) {
	t.Parallel()
	r := redact.New(secrets("a", "hunter22"))
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			in := strings.Repeat("text hunter22 ", 1000)
			if got := pieces(t, r, in, 7+i); got != strings.Repeat("text [REDACTED:a] ", 1000) {
				t.Error("wrong output")
			}
		})
	}
}

type brokenWriter struct {
	n   int
	err error
}

func (b brokenWriter) Write([]byte) (int, error) { return b.n, b.err }

func TestWriterErrors(t *testing.T) {
	t.Parallel()
	r := redact.New(secrets("a", "hunter22"))
	broken := errors.New("broken")
	for _, tt := range []struct {
		w    io.Writer
		want error
	}{
		{brokenWriter{0, broken}, broken},
		{brokenWriter{1, nil}, io.ErrShortWrite},
	} {
		w := r.Writer(tt.w)
		for range 2 { // the error stays
			if n, err := w.Write([]byte("some text")); n != 0 || !errors.Is(err, tt.want) {
				t.Errorf("Write = %d, %v, want 0, %v", n, err, tt.want)
			}
		}
		if err := w.Close(); !errors.Is(err, tt.want) {
			t.Errorf("Close = %v, want %v", err, tt.want)
		}
		w = r.Writer(tt.w)
		if n, err := w.Write([]byte("hunter2")); n != 7 || err != nil {
			t.Errorf("Write of what is held = %d, %v, want 7, nil", n, err)
		}
		if err := w.Close(); !errors.Is(err, tt.want) {
			t.Errorf("Close = %v, want %v", err, tt.want)
		}
	}
	w := r.Writer(io.Discard)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close = %v, want %v", err, os.ErrClosed)
	}
	if n, err := r.Writer(brokenWriter{0, broken}).Write(nil); n != 0 || err != nil {
		t.Errorf("empty Write = %d, %v, want 0, nil", n, err)
	}
}

// At the end of a base64 text the last character and the padding hold bits of
// the value: they go with it.
func TestBase64EndLeavesNoBits(t *testing.T) {
	t.Parallel()
	const letters = "Zq7-uW_x9Kd0Lp3Rv8Tn5Yb2Hc4Jf6Gm1QsAe"
	for n := redact.MinBytes; n <= len(letters); n++ {
		value := letters[:n]
		r := redact.New([]redact.Secret{{Lease: "l", Value: secret.FromString(value)}})
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			if got, want := string(r.Bytes([]byte("a "+enc.EncodeToString([]byte(value))+"\n"))), "a [REDACTED:l]\n"; got != want {
				t.Errorf("%d bytes: %q, want %q", n, got, want)
			}
			for _, before := range []string{"u", "us"} {
				got := string(r.Bytes([]byte(enc.EncodeToString([]byte(before+value)) + "\n")))
				if !strings.HasSuffix(got, "[REDACTED:l]\n") {
					t.Errorf("%d bytes behind %q: %q shows the value's end", n, before, got)
				}
			}
		}
	}
}
