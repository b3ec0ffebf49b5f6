package identity

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

const (
	goodHeader  = `{"alg":"RS256","kid":"k","typ":"JWT"}`
	goodPayload = `{"iss":"https://ci.example.com","sub":"s","aud":"a","jti":"j","iat":1,"exp":2}`
)

func join(header, payload string) string { return b64(header) + "." + b64(payload) + "." + b64("sig") }

// with puts a member before those of goodPayload.
func with(member string) string { return "{" + member + "," + goodPayload[1:] }

func TestT04TokensThatTwoReadersCouldReadInTwoWays(t *testing.T) {
	t.Parallel()
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	members := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"c%d":1,`, i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	token := join(goodHeader, goodPayload)
	tests := []struct {
		name, token, want string
	}{
		{"well-formed", token, ""},
		{"empty", "", ReasonMalformed},
		{"1 MiB", strings.Repeat("a", 1<<20), ReasonTooLarge},
		{"1 MiB of dots", strings.Repeat(".", 1<<20), ReasonTooLarge},
		{"16 KiB and a byte", token + strings.Repeat("A", maxTokenBytes+1-len(token)), ReasonTooLarge},
		{"16 KiB of dots", strings.Repeat(".", maxTokenBytes), ReasonMalformed},
		{"two parts", b64(goodHeader) + "." + b64(goodPayload), ReasonMalformed},
		{"four parts", token + ".x", ReasonMalformed},
		{"five parts, as JWE has", "a.b.c.d.e", ReasonMalformed},
		{"JSON serialization", `{"payload":"","protected":"","signature":""}`, ReasonMalformed},
		{"no signature", b64(goodHeader) + "." + b64(goodPayload) + ".", ReasonMalformed},
		{"no payload", b64(goodHeader) + ".." + b64("sig"), ReasonMalformed},
		{"padded base64", b64(goodHeader) + "=." + b64(goodPayload) + "." + b64("sig"), ReasonMalformed},
		{"standard alphabet", b64(goodHeader) + "." + b64(goodPayload) + ".a+/b", ReasonMalformed},
		{"line end that decoders skip", b64(goodHeader) + ".\n" + b64(goodPayload) + "." + b64("sig"), ReasonMalformed},
		{"space before", " " + token, ReasonMalformed},
		{"line end after", token + "\n", ReasonMalformed},
		{"loose bits after the last byte", b64(goodHeader) + "." + b64(goodPayload) + ".c2ln" + "YR", ReasonMalformed},

		{"header isn't an object", join(`["RS256"]`, goodPayload), ReasonJSON},
		{"payload isn't an object", join(goodHeader, `"x"`), ReasonJSON},
		{"payload null", join(goodHeader, `null`), ReasonJSON},
		{"trailing brace", join(goodHeader, goodPayload+"}"), ReasonJSON},
		{"second document", join(goodHeader, goodPayload+goodPayload), ReasonJSON},
		{"trailing comma", join(goodHeader, with(`"a":[1,]`)), ReasonJSON},
		{"comment", join(goodHeader, goodPayload+"//x"), ReasonJSON},
		{"byte order mark", join(goodHeader, "\ufeff"+goodPayload), ReasonJSON},
		{"not UTF-8", join(goodHeader, with("\"a\":\"\xff\"")), ReasonJSON},
		{"not UTF-8 in the header", join("{\"a\":\"\xff\","+goodHeader[1:], goodPayload), ReasonJSON},
		{"lone surrogate", join(goodHeader, with(`"a":"\ud800"`)), ReasonJSON},
		{"lone surrogate as key", join(goodHeader, with(`"\ud800":1`)), ReasonJSON},
		{"surrogate pair", join(goodHeader, with(`"a":"\ud83d\ude00"`)), ""},
		{"NUL byte", join(goodHeader, goodPayload+"\x00"), ReasonJSON},

		{"doubled key", join(goodHeader, with(`"sub":"t"`)), ReasonDoubledKey},
		{"doubled by an escape", join(goodHeader, with(`"s\u0075b":"t"`)), ReasonDoubledKey},
		{"case variant", join(goodHeader, with(`"Sub":"t"`)), ReasonDoubledKey},
		{"case variant after", join(goodHeader, strings.TrimSuffix(goodPayload, "}")+`,"SUB":"t"}`), ReasonDoubledKey},
		{"variant by long s", join(goodHeader, with(`"ſub":"t"`)), ReasonDoubledKey},
		{"variant by Kelvin sign", join(goodHeader, with(`"k":1,"\u212a":1`)), ReasonDoubledKey},
		{"doubled deep inside", join(goodHeader, with(`"a":[{"b":{"c":1,"C":2}}]`)), ReasonDoubledKey},
		{"doubled in the header", join(`{"alg":"none",`+goodHeader[1:], goodPayload), ReasonDoubledKey},
		{"same key in two objects", join(goodHeader, with(`"a":{"x":1},"b":{"x":1}`)), ""},
		{"registered claim only as a variant", join(goodHeader, strings.Replace(goodPayload, `"sub"`, `"Sub"`, 1)), ReasonClaim},
		{"optional registered claim as a variant", join(goodHeader, with(`"NBF":1`)), ReasonClaim},

		{"8 deep", join(goodHeader, with(`"a":`+nest(maxDepth-1))), ""},
		{"9 deep", join(goodHeader, with(`"a":`+nest(maxDepth))), ReasonDepth},
		{"5000 deep", join(goodHeader, with(`"a":`+nest(5000))), ReasonDepth},
		{"objects 9 deep", join(goodHeader, with(strings.Repeat(`"a":{`, maxDepth)+`"b":1`+strings.Repeat("}", maxDepth))), ReasonDepth},
		{"200 claims", join(goodHeader, with(members(maxClaims-6))), ""},
		{"201 claims", join(goodHeader, with(members(maxClaims-5))), ReasonTooManyClaims},
		{"201 claims, most nested", join(goodHeader, with(`"a":{`+members(maxClaims-6)+`}`)), ReasonTooManyClaims},
		{"claims that others are asked for", join(goodHeader, with(`"_claim_names":{"ref":"x"},"_claim_sources":{"x":{"endpoint":"https://evil"}}`)), ReasonClaim},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, e := parse([]byte(tt.token))
			got := ""
			if e != nil {
				got = e.Reason
			}
			if got != tt.want {
				t.Errorf("parse = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestT04RegisteredClaimsHaveOneType(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 4<<10)
	bad := map[string][]string{
		"iss": {`null`, `1`, `""`, `["https://ci.example.com"]`, `"` + long + `"`},
		"sub": {`null`, `1`, `""`, `{}`, `"a\nb"`, `"` + long + `"`},
		"jti": {`null`, `1`, `""`, `true`, `"a\u0000b"`, `"` + long + `"`},
		"aud": {`null`, `1`, `""`, `[]`, `[""]`, `[1]`, `[null]`, `[["a"]]`, `{"a":"a"}`},
		"exp": {`null`, `"2"`, `2.0`, `2e0`, `-2`, `0`, `[2]`, `253402300800`, `99999999999999999999`},
		"iat": {`null`, `"1"`, `1.5`, `1e0`, `-1`, `0`, `true`},
		"nbf": {`null`, `"1"`, `1.5`, `-1`, `0`},
	}
	good := map[string]string{
		"iss": `"https://ci.example.com"`, "sub": `"s"`, "aud": `["a"]`, "jti": `"j"`, "iat": `1`, "exp": `2`, "nbf": `1`,
	}
	build := func(replace, by string) string {
		var members []string
		for name, value := range good {
			if name == replace {
				value = by
			}
			if value != "" {
				members = append(members, fmt.Sprintf("%q:%s", name, value))
			}
		}
		return join(goodHeader, "{"+strings.Join(members, ",")+"}")
	}
	if _, e := parse([]byte(build("", ""))); e != nil {
		t.Fatalf("parse of good claims = %v", e)
	}
	for name, values := range bad {
		if name != "nbf" {
			values = append(values, "") // absent
		}
		for _, value := range values {
			if _, e := parse([]byte(build(name, value))); e == nil || e.Reason != ReasonClaim {
				t.Errorf("parse with %s = %.40s: %v, want reason %q", name, value, e, ReasonClaim)
			}
		}
	}
}

func TestT03HeadersThatAreRefusedUnread(t *testing.T) {
	t.Parallel()
	header := func(member string) string { return "{" + member + "," + goodHeader[1:] }
	tests := []struct {
		name, header, want string
	}{
		{"plain", goodHeader, ""},
		{"no typ", `{"alg":"RS256","kid":"k"}`, ""},
		{"thumbprint, as GitHub sends", header(`"x5t":"y"`), ""},
		{"crit", header(`"crit":["exp"]`), ReasonHeaderParameter},
		{"empty crit", header(`"crit":[]`), ReasonHeaderParameter},
		{"crit in capitals", header(`"CRIT":["exp"]`), ReasonHeaderParameter},
		{"jku", header(`"jku":"https://evil.example.com/jwks"`), ReasonHeaderParameter},
		{"jwk", header(`"jwk":{"kty":"oct","k":"AA"}`), ReasonHeaderParameter},
		{"x5u", header(`"x5u":"https://evil.example.com/cert"`), ReasonHeaderParameter},
		{"x5c", header(`"x5c":["AA"]`), ReasonHeaderParameter},
		{"b64", header(`"b64":false`), ReasonHeaderParameter},
		{"enc of a JWE", header(`"enc":"A128GCM"`), ReasonHeaderParameter},
		{"zip", header(`"zip":"DEF"`), ReasonHeaderParameter},
		{"typ of an access token", `{"alg":"RS256","kid":"k","typ":"at+jwt"}`, ReasonType},
		{"typ of a DPoP proof", `{"alg":"RS256","kid":"k","typ":"dpop+jwt"}`, ReasonType},
		{"typ in lower case", `{"alg":"RS256","kid":"k","typ":"jwt"}`, ReasonType},
		{"typ null", `{"alg":"RS256","kid":"k","typ":null}`, ReasonType},
		{"typ list", `{"alg":"RS256","kid":"k","typ":["JWT"]}`, ReasonType},
		{"no kid", `{"alg":"RS256"}`, ReasonKeyID},
		{"empty kid", `{"alg":"RS256","kid":""}`, ReasonKeyID},
		{"number as kid", `{"alg":"RS256","kid":1}`, ReasonKeyID},
		{"long kid", `{"alg":"RS256","kid":"` + strings.Repeat("k", 257) + `"}`, ReasonKeyID},
		{"no alg", `{"kid":"k"}`, ReasonAlgorithm},
		{"list as alg", `{"kid":"k","alg":["RS256"]}`, ReasonAlgorithm},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, e := parse([]byte(join(tt.header, goodPayload)))
			got := ""
			if e != nil {
				got = e.Reason
			}
			if got != tt.want {
				t.Errorf("parse = %q, want %q", got, tt.want)
			}
		})
	}
}
