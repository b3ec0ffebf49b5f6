package needle

import (
	"bytes"
	"math"
	"slices"
	"strings"
)

const (
	// easyBits is how many bits of guesses are few: 2^34 are seventeen thousand
	// millions. Numbers of ten digits (33.2) and words of seven letters (32.9)
	// lie below it; eight random letters (37.6), or letters and digits (41.4),
	// above.
	easyBits = 34

	// maxGuess bounds the values that may be easy to guess, in bytes. Longer
	// ones are only if one block makes them all up.
	maxGuess = 64

	// minRepeat and minSequence are lengths from which one counts. Shorter ones
	// are in random values too.
	minRepeat, minSequence = 3, 4
)

// A Weakness is what a lease's values lack to be kept from those who read the
// output.
type Weakness struct {
	Lease string
	Short bool // one is too short to be found
	Easy  bool // one is found, but easy to guess: to hide it tells a right guess
}

// Weak lists the leases with a value that is too short or easy to guess, each
// once. It looks at whole values, not at their lines, nor at those that are
// parts of others.
func Weak(secrets []Secret) []Weakness {
	var weak []Weakness
	for _, s := range secrets {
		trimmed := bytes.TrimSpace(s.Value.Reveal())
		short := s.Value.Len() > 0 && tooShort(trimmed)
		easy := !short && easyToGuess(trimmed)
		if s.Part || !short && !easy {
			continue
		}
		i := slices.IndexFunc(weak, func(w Weakness) bool { return w.Lease == s.Lease })
		if i < 0 {
			i = len(weak)
			weak = append(weak, Weakness{Lease: s.Lease})
		}
		weak[i].Short = weak[i].Short || short
		weak[i].Easy = weak[i].Easy || easy
	}
	return weak
}

// easyToGuess estimates whether somebody who tries likely values first finds v
// within 2^easyBits guesses. It counts how many choices v is made of, each
// among as many characters as the classes that v uses have. A sequence, a
// repeat, a date or a well-known word is one, two or three choices, however
// long. What it doesn't know, such as all other words of eight letters and
// more, it takes for random.
func easyToGuess(v []byte) bool {
	if len(v) > maxGuess {
		block := period(v)
		if block == 0 {
			return false
		}
		v = v[:2*block]
	}
	if len(v) == 0 {
		return false
	}
	enough := int(math.Ceil(easyBits / math.Log2(float64(alphabet(v)))))
	choices := 0
	for i := 0; i < len(v) && choices < enough; {
		n, cost := piece(v, i)
		i += n
		choices += cost
	}
	return choices < enough
}

// period is the length of the block that v repeats, up to half of [maxGuess]; 0
// if there is none.
func period(v []byte) int {
	for n := 1; n <= maxGuess/2; n++ {
		if bytes.Equal(v[n:], v[:len(v)-n]) {
			return n
		}
	}
	return 0
}

// alphabet is how many characters the classes that v uses have: at least 3. A
// capital that only begins a value is what anybody would try.
func alphabet(v []byte) int {
	var lower, upper, digit, joint, other, beyond int
	for i, c := range v {
		switch {
		case isDigit(c):
			digit = 10
		case 'a' <= c && c <= 'z':
			lower = 26
		case isLetter(c) && i > 0:
			upper = 26
		case isLetter(c):
		case c == '-' || c == '_' || c == '.':
			joint = 3
		case c < 0x80:
			other = 30
		default:
			beyond = 64
		}
	}
	if lower+upper == 0 && isLetter(v[0]) {
		upper = 26
	}
	return lower + upper + digit + joint + other + beyond
}

// piece is the length of what best begins at v[i], and how many choices it is.
func piece(v []byte, i int) (n, cost int) {
	n, cost = 1, 1
	take := func(length, choices int) {
		if length-choices > n-cost {
			n, cost = length, choices
		}
	}
	rest := v[i:]
	if length := repeat(v, i); length >= minRepeat {
		take(length, 1)
	}
	if length := sequence(rest); length >= minSequence {
		take(length, 2)
	}
	take(word(rest), 2)
	take(date(rest))
	return n, cost
}

// repeat is how much of v[i:] stands further ahead in v already.
func repeat(v []byte, i int) int {
	longest := 0
	for from := range i {
		n := 0
		for i+n < len(v) && v[from+n] == v[i+n] {
			n++
		}
		longest = max(longest, n)
	}
	return longest
}

// keyboard has the rows of one, where neighbours make a sequence too.
const keyboard = "1234567890 qwertyuiop asdfghjkl zxcvbnm"

// sequence is how long v begins with an alphabet, numbers or a keyboard's row,
// up or down.
func sequence(v []byte) int {
	longest := 0
	for _, place := range []func(byte) int{ordinal, key} {
		for _, step := range []int{1, -1} {
			n := 1
			for n < len(v) && place(v[n-1]) >= 0 && place(v[n]) == place(v[n-1])+step {
				n++
			}
			longest = max(longest, n)
		}
	}
	return longest
}

// ordinal is a letter's or digit's place among its like, -1 for all else.
func ordinal(c byte) int {
	if isLetter(c) || isDigit(c) {
		return int(lowered(c))
	}
	return -1
}

// key is a letter's or digit's place on the keyboard, -1 for all else.
func key(c byte) int {
	if !isLetter(c) && !isDigit(c) {
		return -1
	}
	return strings.IndexByte(keyboard, lowered(c))
}

// date is how long v begins with a year that people remember, 1960 to 2039, or
// with such a year, a month and a day; and how many choices that is.
func date(v []byte) (n, choices int) {
	if len(v) < 4 || !isDigit(v[3]) {
		return 0, 0
	}
	if decade := string(v[:3]); (decade < "196" || "199" < decade) && (decade < "200" || "203" < decade) || !isDigit(v[2]) {
		return 0, 0
	}
	at, joint := 4, 0
	if at < len(v) && (v[at] == '-' || v[at] == '.' || v[at] == '/' || v[at] == '_') {
		joint = 1
	}
	for _, last := range []int{12, 31} {
		if joint > 0 && (at >= len(v) || v[at] != v[4]) {
			return 4, 2
		}
		at += joint
		if len(v) < at+2 || !isDigit(v[at]) || !isDigit(v[at+1]) {
			return 4, 2
		}
		if number := 10*int(v[at]-'0') + int(v[at+1]-'0'); number < 1 || number > last {
			return 4, 2
		}
		at += 2
	}
	return at, 3
}

// word is how long v begins with a well-known word, in whatever case, and with
// the figures and signs that some write for letters.
func word(v []byte) int {
	first := letter(v[0])
	if !isLetter(first) {
		return 0
	}
	longest := 0
	for _, w := range words[first] {
		if len(w) > longest && len(w) <= len(v) && reads(v[:len(w)], w) {
			longest = len(w)
		}
	}
	return longest
}

func reads(v []byte, w string) bool {
	for i, c := range v {
		if lowered(c) != w[i] && letter(c) != w[i] {
			return false
		}
	}
	return true
}

// letter is the small letter that a character stands for.
func letter(c byte) byte {
	switch c {
	case '0':
		return 'o'
	case '1', '!':
		return 'i'
	case '3':
		return 'e'
	case '4', '@':
		return 'a'
	case '5', '$':
		return 's'
	case '7':
		return 't'
	}
	return lowered(c)
}

func lowered(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func isLetter(c byte) bool { c = lowered(c); return 'a' <= c && c <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// words are what people choose, and what stands in a configuration, by the
// letter that they begin with.
var words = ['z' + 1][]string{
	'a': {"abc", "access", "account", "admin", "administrator", "api", "app", "apple", "autumn"},
	'b': {"backup", "bar", "baseball", "baz", "batman", "build"},
	'c': {"changeit", "change", "changeme", "client", "company", "computer"},
	'd': {"data", "database", "default", "demo", "deploy", "dev", "developer", "docker", "dragon", "dummy"},
	'e': {"example"},
	'f': {"false", "foo", "football", "freedom"},
	'g': {"github", "gitlab", "guest"},
	'h': {"hello", "host"},
	'i': {"iloveyou", "internal", "123", "1q2w3e4r", "1qaz2wsx"}, // 1 reads as i
	'j': {"jenkins", "john"},
	'k': {"key"},
	'l': {"letmein", "localhost", "login", "love"},
	'm': {"main", "manager", "master", "monkey", "mysql"},
	'n': {"none", "null"},
	'o': {"operator", "oracle"},
	'p': {"pass", "passwd", "password", "please", "postgres", "postgresql", "princess", "prod", "production", "public"},
	'q': {"q1w2e3r4", "qazwsx"},
	'r': {"readonly", "redis", "root", "runner"},
	's': {"sample", "secret", "server", "service", "shadow", "spring", "staging", "summer", "sunshine", "superman", "system"},
	't': {"temp", "test", "testing", "token", "trustno1", "true"},
	'u': {"ubuntu", "undefined", "user", "username"},
	'v': {"vault"},
	'w': {"welcome", "whatever", "winter", "world", "write"},
}
