package redact

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/secret"
)

func newRedactor(leaseAndValue ...string) *Redactor {
	var s []Secret
	for i := 0; i < len(leaseAndValue); i += 2 {
		s = append(s, Secret{Lease: leaseAndValue[i], Value: secret.FromString(leaseAndValue[i+1])})
	}
	return New(s)
}

// A session writes to a writer and looks at what has come out.
type session struct {
	t     *testing.T
	clock *clock
	out   bytes.Buffer
	w     *Writer
}

func newSession(t *testing.T, r *Redactor) *session {
	s := &session{t: t, clock: newClock()}
	s.w = s.clock.writer(r, &s.out)
	return s
}

func (s *session) write(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.w, text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) shows(want string) {
	s.t.Helper()
	if got := s.out.String(); got != want {
		s.t.Errorf("%v on: %q is out, want %q", s.clock.now.Sub(newClock().now), got, want)
	}
}

const limit = 20 * time.Millisecond // what the documents promise

func TestPromptIsOutWithin20ms(t *testing.T) {
	t.Parallel()
	s := newSession(t, newRedactor("db", "hunter22", "key", "words-4711"))
	s.write("Password: ")
	s.shows("Password: ")
	s.write("\nwor")
	s.shows("Password: \n")
	s.clock.advance(limit)
	s.shows("Password: \nwor")
	s.write("d")
	s.clock.advance(limit)
	s.shows("Password: \nword")
	s.write("y\n")
	s.shows("Password: \nwordy\n")
	if err := s.w.Close(); err != nil {
		t.Fatal(err)
	}
	s.shows("Password: \nwordy\n")
	s.clock.advance(time.Hour)
	if len(s.clock.timers) > 0 {
		t.Errorf("%d timers run on after Close", len(s.clock.timers))
	}
}

// What trickles in doesn't renew the wait of what came before.
func TestTrickleIsOutWithin20ms(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789", 12)
	s := newSession(t, newRedactor("key", long))
	came := map[int]time.Time{}
	for i := range 60 {
		s.write(long[i : i+1])
		came[i] = s.clock.now
		s.clock.advance(4 * time.Millisecond)
		if oldest := len(s.w.held) - (len(s.w.held) - s.w.cover.until); s.w.waits() && s.clock.now.Sub(came[oldest]) > limit {
			t.Fatalf("byte %d waits for %v", oldest, s.clock.now.Sub(came[oldest]))
		}
	}
	s.write("!")
	s.shows("0123[REDACTED:key]!")
}

// A fresh head that comes just before the timer fires has its own time.
func TestFreshHeadHasItsOwnTime(t *testing.T) {
	t.Parallel()
	s := newSession(t, newRedactor("db", "hunter22"))
	s.write("hunt")
	s.clock.advance(2*tick - time.Millisecond)
	s.write("s hunte")
	s.shows("hunts ")
	s.clock.advance(5 * time.Millisecond)
	s.write("r22.")
	s.shows("hunts [REDACTED:db].")
}

func TestT18PauseShowsFiveBytesAtMost(t *testing.T) {
	t.Parallel()
	const value = "kX7-abcabdabcabe-Zq90"
	two := "first-line-of-it\nsecond-line-of-it"
	var long strings.Builder
	for i := range 60 {
		fmt.Fprintf(&long, "%d;", i*i+7)
	}
	for name, text := range map[string]string{
		"plain":  value,
		"hex":    hex.EncodeToString([]byte(value)),
		"lines":  two,
		"pieces": long.String(),
	} {
		r := newRedactor("k", value, "l", two, "p", long.String())
		for from := range text {
			for _, step := range []int{1, 2, 5, 7, 1000} {
				s := newSession(t, r)
				s.write("say " + text[:from])
				s.clock.advance(limit)
				for rest := text[from:]; rest != ""; rest = rest[min(step, len(rest)):] {
					s.write(rest[:min(step, len(rest))])
					s.clock.advance(limit)
				}
				s.write(" end")
				if err := s.w.Close(); err != nil {
					t.Fatal(err)
				}
				got := s.out.String()
				for i, line := range strings.Split(strings.TrimSuffix(strings.TrimPrefix(got, "say "), " end"), "\n") {
					shown, after, ok := strings.Cut(line, "[REDACTED:")
					if !ok || len(shown) > MinBytes-1 || !strings.HasPrefix(strings.Split(text, "\n")[i], shown) || len(after) != 2 {
						t.Fatalf("%s, from %d in steps of %d: %q", name, from, step, got)
					}
				}
			}
		}
	}
}

// Where a complete value may go on as a longer one, it is hidden by its own
// name at the end of the wait.
func TestT18CompleteValueBeforeAPause(t *testing.T) {
	t.Parallel()
	s := newSession(t, newRedactor("a", "prefix-", "b", "prefix-and-more"))
	s.write("<prefix-")
	s.shows("<")
	s.clock.advance(limit)
	s.shows("<[REDACTED:a]")
	s.write("and-more>")
	s.shows("<[REDACTED:a]>")
}

// What looks like a value's head for six bytes and more is hidden after a
// pause, and only after one.
func TestLongHeadIsHiddenAfterAPause(t *testing.T) {
	t.Parallel()
	r := newRedactor("url", "postgres://app:s3cr3t@db/shop")
	s := newSession(t, r)
	s.write("connect postgres://")
	s.write("localhost")
	s.shows("connect postgres://localhost")
	s = newSession(t, r)
	s.write("connect postgres://")
	s.shows("connect ")
	s.clock.advance(limit)
	s.shows("connect [REDACTED:url]")
	s.write("localhost")
	s.shows("connect [REDACTED:url]localhost")
}

// GitLab's masker starts over after a mismatch and loses the head inside it:
// then a write that ends in the midst of a value lets it through.
func TestT18HeadInsideAMismatch(t *testing.T) {
	t.Parallel()
	const value = "abcabdabcabe"
	for _, pause := range []time.Duration{0, limit} {
		s := newSession(t, newRedactor("k", value))
		s.write("abcab")
		s.clock.advance(pause)
		s.write("cabdabcabe!")
		s.shows(map[time.Duration]string{0: "abc[REDACTED:k]!", limit: "abcab[REDACTED:k]!"}[pause])
	}
}

func TestErrorAtTheEndOfTheWait(t *testing.T) {
	t.Parallel()
	clock, broken := newClock(), errors.New("broken")
	w := clock.writer(newRedactor("db", "hunter22"), failing{broken})
	if _, err := io.WriteString(w, "hunt"); err != nil {
		t.Fatal(err)
	}
	clock.advance(limit)
	if _, err := io.WriteString(w, "x"); !errors.Is(err, broken) {
		t.Errorf("Write after a failed one = %v, want %v", err, broken)
	}
	if err := w.Close(); !errors.Is(err, broken) {
		t.Errorf("Close = %v, want %v", err, broken)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// Guesses of under six bytes, right or wrong, look alike: nobody finds a value
// byte by byte. (From six bytes on each guess can be told by its marker.)
func TestT35ShortGuessesLookAlike(t *testing.T) {
	t.Parallel()
	r := newRedactor("k", "kX7-abc", "five", "12345")
	for _, guess := range []string{"k", "kX", "kX7", "kX7-", "kX7-a", "j", "kX8", "kX7-b", "12345", "1234"} {
		s := newSession(t, r)
		s.write(guess)
		s.clock.advance(limit)
		s.shows(guess)
		s.write("|" + guess + "|")
		s.shows(guess + "|" + guess + "|")
		if got := string(r.Bytes([]byte(guess))); got != guess {
			t.Errorf("Bytes(%q) = %q", guess, got)
		}
	}
}

// The runner's masks end where a log stops its commands; the redactor neither
// asks for masks nor heeds commands.
func TestT27CommandsInTheLogChangeNothing(t *testing.T) {
	t.Parallel()
	s := newSession(t, newRedactor("db", "hunter22"))
	s.write("::stop-commands::tok\nhunter22\n::add-mask::hunter22\n::tok::\n")
	s.shows("::stop-commands::tok\n[REDACTED:db]\n::add-mask::[REDACTED:db]\n::tok::\n")
}

func TestT31NothingIsLeftAfterCloseAndWipe(t *testing.T) {
	t.Parallel()
	r := newRedactor("db", "hunter22")
	s := newSession(t, r)
	s.write("a hunt")
	s.write("er22 hunter2")
	held := s.w.held[:cap(s.w.held)]
	if err := s.w.Close(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(held, []byte("hunt")) {
		t.Errorf("after Close the writer holds %q", held)
	}
	r.Wipe()
	if got := string(r.Bytes([]byte("hunter22"))); got != "hunter22" {
		t.Errorf("after Wipe the redactor knows a value: %q", got)
	}
}
