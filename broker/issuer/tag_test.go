package issuer

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestTagValue(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 257)
	for in, want := range map[string]string{
		"":                       "",
		"acme/shop-api":          "acme/shop-api",
		"refs/heads/a_b.c:d+e@f": "refs/heads/a_b.c:d+e@f",
		"a=b":                    "a=3Db",
		"a=3Db":                  "a=3D3Db",
		"a b":                    "a=20b",
		"{a,b}*?#%":              "=7Ba=2Cb=7D=2A=3F=23=25",
		"é":                      "=C3=A9",
		"aws:x":                  "=61ws:x",
		"AwS:":                   "=41wS:",
		"aws":                    "aws",
		"x-aws:":                 "x-aws:",
		strings.Repeat("a", 256): strings.Repeat("a", 256),
		long:                     strings.Repeat("a", 222) + "=+e8d95cc2b4bc198c54b40bd214df958a",
		strings.Repeat("é", 43):  strings.Repeat("=C3=A9", 37) + "=+d034107ed46657dc87b9e260e78d1d5c",
	} {
		if got := tagValue(in); got != want {
			t.Errorf("tagValue(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzTagValue shows that AWS takes every value and that none can be made to
// look like another.
func FuzzTagValue(f *testing.F) {
	aws := regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{0,256}$`)
	for _, s := range []string{"", "acme/shop-api", "aws:x", "a=3D", "é\x00", strings.Repeat("é", 300), strings.Repeat("x", 257) + "=+"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		tag := tagValue(value)
		if !aws.MatchString(tag) || strings.HasPrefix(strings.ToLower(tag), "aws:") {
			t.Errorf("tagValue(%q) = %q, which AWS doesn't take", value, tag)
		}
		plain, cut, _ := strings.Cut(tag, "=+")
		var back strings.Builder
		for i := 0; i < len(plain); i++ {
			if plain[i] != '=' {
				back.WriteByte(plain[i])
				continue
			}
			c, err := strconv.ParseUint(plain[i+1:i+3], 16, 8)
			if err != nil {
				t.Fatalf("tagValue(%q) = %q, with a broken escape", value, tag)
			}
			back.WriteByte(byte(c))
			i += 2
		}
		if cut == "" && back.String() != value {
			t.Errorf("tagValue(%q) reads back as %q", value, back.String())
		}
		if cut != "" && (len(cut) != 32 || len(value) <= len(back.String()) || !strings.HasPrefix(value, back.String())) {
			t.Errorf("tagValue(%q) = %q isn't its beginning and a digest", value, tag)
		}
	})
}
