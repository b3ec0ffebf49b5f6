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
	"github.com/runenv/action/internal/gha"
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
	raw    bool // the terminal does what it is told, and no more

	// runner gets errors and warnings as annotations, if it is set.
	runner *gha.Runner
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
	if p.runner != nil {
		p.annotate(p.runner.Error, slices.Concat([]string{err.Error()}, linesOf(err), hintOf(err)))
		return
	}
	p.line(red, "error: ", err.Error())
	p.lines(linesOf(err))
	p.hint(err)
}

// linesOf are what an error has to say besides: a refused caller's claims, or
// lines of its own.
func linesOf(err error) []string {
	if e, ok := errors.AsType[interface {
		error
		Lines() []string
	}](err); ok {
		return slices.Clone(e.Lines())
	}
	refusal, ok := errors.AsType[*api.Error](err)
	if !ok || len(refusal.Claims) == 0 {
		return nil
	}
	lines := []string{"this job's own claims:"}
	for _, name := range slices.Sorted(maps.Keys(refusal.Claims)) {
		lines = append(lines, "  "+oneLine(name)+": "+claimText(refusal.Claims[name]))
	}
	return lines
}

// hintOf is a line with the cure, or none.
func hintOf(err error) []string {
	h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if !ok || h.Hint() == "" {
		return nil
	}
	return []string{"hint: " + h.Hint()}
}

func (p *printer) annotate(how func(string) error, lines []string) {
	for i := range lines {
		lines[i] = oneLine(lines[i])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = how(strings.Join(lines, "\n")) // as with p.w: nothing could be done about a failure
}

// problem prints an error that doesn't end the program, and its cure.
func (p *printer) problem(what string, err error) {
	if p.runner != nil {
		p.annotate(p.runner.Warning, slices.Concat([]string{what + ": " + err.Error()}, linesOf(err), hintOf(err)))
		return
	}
	p.warning(what + ": " + err.Error())
	p.lines(linesOf(err))
	p.hint(err)
}

func (p *printer) hint(err error) {
	for _, text := range hintOf(err) {
		p.line(cyan, "hint: ", strings.TrimPrefix(text, "hint: "))
	}
}

func (p *printer) warning(text string) {
	if p.runner != nil {
		p.annotate(p.runner.Warning, []string{text})
		return
	}
	p.line(yellow, "warning: ", text)
}

func (p *printer) note(text string) { p.line("", "", text) }

func (p *printer) lines(texts []string) {
	for _, text := range texts {
		p.line("", "", text)
	}
}

// onRaw says whether the terminal is raw from here on.
func (p *printer) onRaw(raw bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raw = raw
}

func (p *printer) line(colour, kind, text string) {
	if p.colour && colour != "" {
		kind = colour + kind + plain
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	end := "\n"
	if p.raw {
		end = "\r\n"
	}
	fmt.Fprintf(p.w, "runenv: %s%s%s", kind, oneLine(text), end)
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
