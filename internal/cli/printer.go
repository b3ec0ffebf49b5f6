package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/runenv/action/broker/api"
)

// maxClaimBytes bounds a claim's value, in bytes, where it is shown.
const maxClaimBytes = 200

const (
	red    = "\x1b[31;1m"
	yellow = "\x1b[33;1m"
	cyan   = "\x1b[36m"
	plain  = "\x1b[0m"
)

// A printer says what RunEnv itself has to say, a line at a time. Texts from
// outside can neither steer a terminal nor begin a line: a CI takes some lines
// for commands.
type printer struct {
	mu     sync.Mutex
	w      io.Writer
	colour bool
}

func newPrinter(w *os.File, getenv func(string) string) *printer {
	colour := false
	if getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" {
		fi, err := w.Stat()
		colour = err == nil && fi.Mode()&os.ModeCharDevice != 0
	}
	return &printer{w: w, colour: colour}
}

// failure prints an error, the caller's claims if it is a refusal that has
// them, and the cure if some error of the chain knows one.
func (p *printer) failure(err error) {
	p.line(red, "error: ", err.Error())
	if refusal, ok := errors.AsType[*api.Error](err); ok && len(refusal.Claims) > 0 {
		p.line("", "", "this job's own claims:")
		for _, name := range slices.Sorted(maps.Keys(refusal.Claims)) {
			p.line("", "  ", oneLine(name)+": "+claimText(refusal.Claims[name]))
		}
	}
	p.hint(err)
}

// problem prints an error that doesn't end the program, and its cure.
func (p *printer) problem(what string, err error) {
	p.warning(what + ": " + err.Error())
	p.hint(err)
}

func (p *printer) hint(err error) {
	h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if ok && h.Hint() != "" {
		p.line(cyan, "hint: ", h.Hint())
	}
}

func (p *printer) warning(text string) { p.line(yellow, "warning: ", text) }

func (p *printer) note(text string) { p.line("", "", text) }

func (p *printer) line(colour, kind, text string) {
	if p.colour && colour != "" {
		kind = colour + kind + plain
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "runenv: %s%s\n", kind, oneLine(text))
}

// oneLine makes one line without control characters.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

func claimText(v any) string {
	s := fmt.Sprint(v)
	if len(s) > maxClaimBytes {
		s = strings.ToValidUTF8(s[:maxClaimBytes], "") + "…"
	}
	return oneLine(s)
}
