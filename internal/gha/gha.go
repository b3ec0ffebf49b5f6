// Package gha speaks the protocol of GitHub's runner: inputs, command files,
// masks and annotations.
//
// It goes through go-githubactions, and mends three things there. A value in a
// command file stands between delimiters that nobody can foresee, fresh for
// each write, so that no value can end itself and set another variable. A
// value of several lines is masked line by line besides as a whole. And a
// runner that has gone away is an error, not a panic. For the job's token it
// isn't used: package ci asks for that, and asks again where that helps.
//
// Command files lie on the disk in plain text, and what is in them reaches
// other steps: no leased value is ever written there. Values go into masks
// alone, and to those only because the runner hides them.
package gha

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sethvargo/go-githubactions"

	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

// title stands above each annotation.
const title = "RunEnv"

// maxNameBytes bounds the name of an output, a state or a variable.
const maxNameBytes = 128

// Config is the process that the runner started. All fields are needed.
type Config struct {
	Getenv func(string) string
	// Commands gets masks and annotations: standard output or error.
	Commands io.Writer
}

// A Runner is the runner that started this process. It isn't safe for
// concurrent use, but for its annotations if Commands is.
type Runner struct {
	cfg    Config
	action *githubactions.Action
}

// New returns the runner at the other end of cfg.
func New(cfg Config) *Runner {
	return &Runner{cfg, githubactions.New(githubactions.WithWriter(cfg.Commands), githubactions.WithGetenv(cfg.Getenv))}
}

// Input returns an input of the action, without white space around it; "" if
// it isn't set.
func (r *Runner) Input(name string) string { return r.action.GetInput(name) }

// State returns what the main step left for the post step.
func (r *Runner) State(name string) string { return r.cfg.Getenv("STATE_" + name) }

// Mask has the runner hide the values in all that it logs from here on: each
// as a whole, and each of its lines. Lines and values of less than
// [redact.MinBytes] are left alone, as in RunEnv's own output: to hide a "1"
// or a "{" would hide every one of the job.
//
// act reads a command up to its last "::", and prints one that it doesn't know:
// there a mask with "::" in it would show the value, and none is sent.
func (r *Runner) Mask(values ...secret.Value) error {
	isAct := r.cfg.Getenv("ACT") == "true"
	for _, v := range values {
		whole := string(v.Reveal())
		masks := []string{whole}
		if strings.ContainsAny(whole, "\r\n") {
			for line := range strings.FieldsFuncSeq(whole, func(c rune) bool { return c == '\r' || c == '\n' }) {
				masks = append(masks, strings.TrimSpace(line))
			}
		}
		for _, m := range masks {
			if len(m) < redact.MinBytes || isAct && strings.Contains(m, "::") {
				continue
			}
			if err := r.do(func(a *githubactions.Action) { a.AddMask(m) }); err != nil {
				return fmt.Errorf("masking: %w", err)
			}
		}
	}
	return nil
}

// Error shows an error of the step at the top of the run's page. The text may
// have several lines.
func (r *Runner) Error(text string) error { return r.annotate("error", text) }

// Warning is like Error, for what doesn't end the step.
func (r *Runner) Warning(text string) error { return r.annotate("warning", text) }

// Notice is like Error, for what is no trouble.
func (r *Runner) Notice(text string) error { return r.annotate("notice", text) }

func (r *Runner) annotate(kind, text string) error {
	err := r.do(func(a *githubactions.Action) {
		a.IssueCommand(&githubactions.Command{Name: kind, Message: text, Properties: githubactions.CommandProperties{"title": title}})
	})
	if err != nil {
		return fmt.Errorf("annotating: %w", err)
	}
	return nil
}

// SetOutput sets an output of the step. It is no place for a secret.
func (r *Runner) SetOutput(name, value string) error { return r.put("output", name, value) }

// SaveState leaves something for the post step. It is no place for a secret.
func (r *Runner) SaveState(name, value string) error { return r.put("state", name, value) }

// SetEnv sets a variable for later steps. It is no place for a secret.
func (r *Runner) SetEnv(name, value string) error { return r.put("env", name, value) }

// AddPath puts a folder at the head of later steps' PATH.
func (r *Runner) AddPath(dir string) error {
	if strings.ContainsAny(dir, "\r\n") {
		return fmt.Errorf("the folder %q can't stand in a PATH", dir)
	}
	return r.file("path", dir)
}

// AddSummary adds to the step's summary, in Markdown.
func (r *Runner) AddSummary(markdown string) error { return r.file("step-summary", markdown) }

func (r *Runner) put(file, name, value string) error {
	if !validName(name) {
		return fmt.Errorf("%q can't be the name of an entry in the %s file", name, file)
	}
	delimiter := "runenv_" + rand.Text()
	return r.file(file, name+"<<"+delimiter+"\n"+value+"\n"+delimiter)
}

func (r *Runner) file(name, text string) error {
	variable := "GITHUB_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if r.cfg.Getenv(variable) == "" {
		return errors.New(variable + " isn't set: the runner gave the step no such file")
	}
	err := r.do(func(a *githubactions.Action) {
		a.IssueFileCommand(&githubactions.Command{Name: name, Message: text})
	})
	if err != nil {
		return fmt.Errorf("writing to %s: %w", variable, err)
	}
	return nil
}

// do turns the library's panic into an error: it panics with one.
func (r *Runner) do(f func(*githubactions.Action)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			var ok bool
			if err, ok = p.(error); !ok {
				panic(p)
			}
		}
	}()
	f(r.action)
	return nil
}

func validName(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
